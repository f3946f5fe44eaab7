/* Pages of a store: memory, copies, and what is given back. */
#include "base/error.h"
#include "store/store.h"

#include <string.h>

static size_t coded_bytes(const tkv_store *store, const tkv_store_side *side)
{
    return (size_t)store->n_kv_heads * side->coded_bytes;
}

static size_t exact_bytes(const tkv_store *store, const tkv_store_side *side, int n_slots)
{
    return (size_t)store->n_kv_heads *
           tkv_stored_page_bytes(TKV_TYPE_F16, side->padded_dim, n_slots);
}

uint64_t tkv_store_first_bits(const tkv_store *store, int64_t page)
{
    const int64_t left = store->n_exact_first - page * TKV_PAGE_TOKENS % store->region_slots;
    return tkv_slot_bits(0, left < 0 ? 0 : left < TKV_PAGE_TOKENS ? (int)left : TKV_PAGE_TOKENS);
}

void tkv_store_release(const tkv_store *store, tkv_store_page *page)
{
    const tkv_allocator *allocator = &store->context->allocator;
    if (page && atomic_fetch_sub(&page->n_owners, 1) == 1) {
        tkv_release(allocator, page->coded);
        tkv_release(allocator, page->exact);
        tkv_release(allocator, page);
    }
}

size_t tkv_store_page_bytes(const tkv_store *store, const tkv_store_side *side,
                            const tkv_store_page *page)
{
    return sizeof *page + (page->coded ? coded_bytes(store, side) : 0) +
           exact_bytes(store, side, page->n_exact_slots);
}

/* Zeroed: kernels read whole pages, also what nobody has written. */
static void *allocate_rows(const tkv_store *store, size_t bytes)
{
    void *rows = tkv_allocate_aligned(&store->context->allocator, bytes, TKV_STORE_ALIGNMENT);
    if (rows) {
        memset(rows, 0, bytes);
    }
    return rows;
}

/* Exact pages of n_slots rows with the rows of others, as far as both go. */
static uint16_t *copy_exact(const tkv_store *store, const tkv_store_side *side,
                            const tkv_store_page *from, int n_slots)
{
    const int n = from->n_exact_slots < n_slots ? from->n_exact_slots : n_slots;
    const size_t width = (size_t)side->padded_dim;
    uint16_t *exact = allocate_rows(store, exact_bytes(store, side, n_slots));
    for (int head = 0; exact && n > 0 && head < store->n_kv_heads; head++) {
        memcpy(exact + (size_t)head * (size_t)n_slots * width, tkv_store_exact(side, from, head),
               tkv_stored_page_bytes(TKV_TYPE_F16, side->padded_dim, n));
    }
    return exact;
}

/* An empty page, or a copy. */
static tkv_store_page *create_page(const tkv_store *store, const tkv_store_side *side,
                                   const tkv_store_page *from)
{
    tkv_store_page *page = tkv_allocate_zeroed(&store->context->allocator, sizeof *page);
    if (!page) {
        return NULL;
    }
    atomic_init(&page->n_owners, 1);
    if (from && from->coded && (page->coded = allocate_rows(store, coded_bytes(store, side)))) {
        memcpy(page->coded, from->coded, coded_bytes(store, side));
    }
    if (from && from->exact) {
        page->exact = copy_exact(store, side, from, from->n_exact_slots);
        page->n_exact_slots = page->exact ? from->n_exact_slots : 0;
    }
    if (from && ((from->coded && !page->coded) || (from->exact && !page->exact))) {
        tkv_store_release(store, page);
        return NULL;
    }
    page->exact_rows = from ? from->exact_rows : 0;
    return page;
}

/* Exact pages of n_slots rows in place of those that there are. */
static bool resize_exact(const tkv_store *store, const tkv_store_side *side, tkv_store_page *page,
                         int n_slots)
{
    uint16_t *exact = n_slots ? copy_exact(store, side, page, n_slots) : NULL;
    if (n_slots && !exact) {
        return false;
    }
    tkv_release(&store->context->allocator, page->exact);
    page->exact = exact;
    page->n_exact_slots = n_slots;
    return true;
}

static bool prepare(const tkv_store *store, const tkv_store_side *side, tkv_store_entry *entry,
                    bool has_coded, int n_exact_slots)
{
    if (!entry->page || atomic_load(&entry->page->n_owners) > 1) {
        tkv_store_page *own = create_page(store, side, entry->page);
        if (!own) {
            return false;
        }
        tkv_store_release(store, entry->page);
        entry->page = own;
    }
    tkv_store_page *page = entry->page;
    const int wanted = tkv_exact_slots(n_exact_slots, TKV_PAGE_TOKENS, TKV_EXACT_ROWS);
    if (wanted > page->n_exact_slots && !resize_exact(store, side, page, wanted)) {
        return false;
    }
    if (has_coded && !page->coded) {
        page->coded = allocate_rows(store, coded_bytes(store, side));
    }
    return !has_coded || page->coded;
}

tkv_status tkv_store_prepare(const tkv_store *store, const tkv_store_side *side,
                             tkv_store_entry *entry, bool has_coded, int n_exact_slots,
                             tkv_error *error)
{
    if (prepare(store, side, entry, has_coded, n_exact_slots)) {
        return TKV_OK;
    }
    return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the %s page of slot %lld on",
                    side->order == TKV_ORDER_KEY ? "key" : "value",
                    (long long)(entry - side->entries) * TKV_PAGE_TOKENS);
}

void tkv_store_shorten(const tkv_store *store, const tkv_store_side *side,
                       const tkv_store_entry *entry)
{
    tkv_store_page *page = entry->page;
    const uint64_t exact = page->exact_rows & entry->held;
    const int n_rows = exact ? TKV_PAGE_TOKENS - __builtin_clzll(exact) : 0;
    const int n_slots = tkv_exact_slots(n_rows, TKV_PAGE_TOKENS, TKV_EXACT_ROWS);
    if (n_slots < page->n_exact_slots && atomic_load(&page->n_owners) == 1) {
        (void)resize_exact(store, side, page, n_slots);
    }
}

void tkv_store_drop(const tkv_store *store, const tkv_store_side *side, int64_t page, uint64_t bits)
{
    tkv_store_entry *entry = &side->entries[page];
    entry->held &= ~bits;
    if (entry->held) {
        return;
    }
    tkv_store_unlist(store, side, page);
    tkv_store_release(store, entry->page);
    tkv_release(&store->context->allocator, entry->turns);
    entry->page = NULL;
    entry->turns = NULL;
}

void tkv_store_clear_slots(tkv_store *store, int64_t first, int64_t n_slots)
{
    for (int order = 0; order < store->n_sides; order++) {
        int n = 0;
        for (int64_t done = 0; done < n_slots; done += n) {
            const int64_t slot = first + done;
            n = tkv_slots_in_page(slot, n_slots - done);
            tkv_store_drop(store, &store->sides[order], slot / TKV_PAGE_TOKENS,
                           tkv_slot_bits((int)(slot % TKV_PAGE_TOKENS), n));
        }
    }
}
