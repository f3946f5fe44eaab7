/* Which pages have exact rows that will be coded, and coding them. */
#include "base/half.h"
#include "store/store.h"

void tkv_store_unlist(const tkv_store *store, const tkv_store_side *side, int64_t page)
{
    tkv_store_entry *entry = &side->entries[page];
    tkv_store_region *region = tkv_store_region_of(store, side, page);
    if (!entry->is_listed) {
        return;
    }
    *(entry->older < 0 ? &region->oldest : &side->entries[entry->older].newer) = entry->newer;
    *(entry->newer < 0 ? &region->newest : &side->entries[entry->newer].older) = entry->older;
    entry->is_listed = false;
}

/* Numbers only grow, so the page becomes the newest. */
void tkv_store_list(const tkv_store *store, const tkv_store_side *side, int64_t page,
                    int64_t number)
{
    tkv_store_entry *entry = &side->entries[page];
    tkv_store_region *region = tkv_store_region_of(store, side, page);
    tkv_store_unlist(store, side, page);
    entry->newest = number;
    entry->older = region->newest;
    entry->newer = -1;
    entry->is_listed = true;
    *(region->newest < 0 ? &region->oldest : &side->entries[region->newest].newer) = page;
    region->newest = page;
}

typedef struct age_job {
    const tkv_store *store;
    const tkv_store_side *side;
    tkv_store_page *page;
    uint64_t bits;
} age_job;

static void age_head(void *argument, int kv_head, int thread)
{
    (void)thread;
    const age_job *job = argument;
    const tkv_store_side *side = job->side;
    const size_t width = (size_t)side->padded_dim;
    const uint16_t *exact = tkv_store_exact(side, job->page, kv_head);
    float rows[TKV_STORE_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (uint64_t left = job->bits; left;) {
        const tkv_slots run = tkv_take_run(&left);
        for (int slot = run.first; slot < run.end; slot += TKV_STORE_CHUNK_ROWS) {
            const int n =
                run.end - slot < TKV_STORE_CHUNK_ROWS ? run.end - slot : TKV_STORE_CHUNK_ROWS;
            const tkv_page_span span = {side->type, side->order, side->padded_dim,
                                        slot,       n,           job->store->context->effort};
            tkv_halves_to_floats((size_t)n * width, exact + (size_t)slot * width, rows);
            job->store->context->kernels->encode(&span, rows, width,
                                                 tkv_store_coded(side, job->page, kv_head));
        }
    }
}

tkv_status tkv_store_age_page(const tkv_store *store, const tkv_store_side *side, int64_t page,
                              uint64_t bits, tkv_error *error)
{
    tkv_store_entry *entry = &side->entries[page];
    const uint64_t first_bits = tkv_store_first_bits(store, page);
    if (!entry->page || side->type == TKV_TYPE_F16) {
        return TKV_OK;
    }
    const uint64_t ageing = entry->page->exact_rows & entry->held & bits & ~first_bits;
    if (ageing) {
        const tkv_status status = tkv_store_prepare(store, side, entry, true, 0, error);
        if (status != TKV_OK) {
            return status;
        }
        const tkv_context *context = store->context;
        age_job job = {store, side, entry->page, ageing};
        tkv_threads_run(context->threads, context->n_threads, store->n_kv_heads, age_head, &job);
        entry->page->exact_rows &= ~ageing;
        tkv_store_shorten(store, side, entry);
    }
    if (!(entry->page->exact_rows & entry->held & ~first_bits)) {
        tkv_store_unlist(store, side, page);
    }
    return TKV_OK;
}

void tkv_store_settle(const tkv_store *store, const tkv_store_side *side)
{
    for (int64_t r = 0; r < store->n_regions; r++) {
        const tkv_store_region *region = &side->regions[r];
        while (region->oldest >= 0 &&
               side->entries[region->oldest].newest <= region->n_written - store->n_exact) {
            if (tkv_store_age_page(store, side, region->oldest, ~(uint64_t)0, NULL) != TKV_OK) {
                break;
            }
        }
    }
}

tkv_status tkv_store_age_slots(tkv_store *store, int64_t first, int64_t n_slots, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int order = 0; order < store->n_sides; order++) {
        int n = 0;
        for (int64_t done = 0; status == TKV_OK && done < n_slots; done += n) {
            const int64_t slot = first + done;
            n = tkv_slots_in_page(slot, n_slots - done);
            status = tkv_store_age_page(store, &store->sides[order], slot / TKV_PAGE_TOKENS,
                                        tkv_slot_bits((int)(slot % TKV_PAGE_TOKENS), n), error);
        }
    }
    return status;
}
