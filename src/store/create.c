/* A store from its parameters, and what it holds. */
#include "base/error.h"
#include "store/store.h"

#include <string.h>

static void make_side(const tkv_store_params *params, tkv_page_order order, tkv_store_side *side)
{
    const bool is_key = order == TKV_ORDER_KEY;
    side->type = is_key ? params->type_k : params->type_v;
    side->order = order;
    side->head_dim = is_key ? params->head_dim_k : params->head_dim_v;
    side->padded_dim = tkv_padded_dim(side->head_dim);
    side->coded_bytes = tkv_page_bytes(side->type, side->padded_dim);
}

static bool allocate_side(const tkv_store *store, tkv_store_side *side)
{
    const tkv_allocator *allocator = &store->context->allocator;
    side->entries = tkv_allocate_zeroed(allocator, (size_t)store->n_pages * sizeof *side->entries);
    side->regions =
        tkv_allocate_zeroed(allocator, (size_t)store->n_regions * sizeof *side->regions);
    for (int64_t r = 0; side->regions && r < store->n_regions; r++) {
        side->regions[r].oldest = side->regions[r].newest = -1;
    }
    return side->entries && side->regions;
}

static bool allocate_rope(tkv_store *store, const tkv_rope *rope)
{
    if (!rope) {
        return true;
    }
    const size_t bytes = (size_t)(rope->n_rotated / 2) * sizeof(float);
    float *frequencies = tkv_allocate(&store->context->allocator, bytes);
    if (frequencies) {
        memcpy(frequencies, rope->frequencies, bytes);
        store->rope = *rope;
        store->rope.frequencies = frequencies;
    }
    return frequencies;
}

tkv_status tkv_store_make(tkv_context *context, const tkv_store_params *params, tkv_store **store,
                          tkv_error *error)
{
    tkv_store *made = tkv_allocate_zeroed(&context->allocator, sizeof *made);
    if (!made) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a store");
    }
    made->context = context;
    made->n_slots = params->n_slots;
    made->n_pages = (params->n_slots + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS;
    made->n_regions = params->n_regions ? params->n_regions : 1;
    made->region_slots =
        made->n_regions == 1 ? made->n_pages * TKV_PAGE_TOKENS : params->n_slots / made->n_regions;
    made->n_kv_heads = params->n_kv_heads;
    made->n_exact = params->n_exact;
    made->n_exact_first = params->n_exact_first;
    made->n_sides = params->head_dim_v ? 2 : 1;
    bool is_made = allocate_rope(made, params->rope);
    for (int order = 0; is_made && order < made->n_sides; order++) {
        make_side(params, (tkv_page_order)order, &made->sides[order]);
        is_made = allocate_side(made, &made->sides[order]);
    }
    if (!is_made) {
        tkv_store_free(made);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the tables of %lld slots",
                        (long long)params->n_slots);
    }
    *store = made;
    return TKV_OK;
}

void tkv_store_free(tkv_store *store)
{
    if (!store) {
        return;
    }
    const tkv_context *context = store->context;
    for (int order = 0; order < store->n_sides; order++) {
        tkv_store_side *side = &store->sides[order];
        for (int64_t p = 0; side->entries && p < store->n_pages; p++) {
            tkv_store_release(store, side->entries[p].page);
            tkv_release(&context->allocator, side->entries[p].turns);
        }
        tkv_release(&context->allocator, side->entries);
        tkv_release(&context->allocator, side->regions);
    }
    tkv_release(&context->allocator, (float *)store->rope.frequencies);
    tkv_release(&context->allocator, store);
}

static size_t table_bytes(const tkv_store *store)
{
    const tkv_store_side *side = store->sides;
    return (size_t)store->n_sides * ((size_t)store->n_pages * sizeof *side->entries +
                                     (size_t)store->n_regions * sizeof *side->regions);
}

size_t tkv_store_bytes(const tkv_store *store)
{
    if (!store) {
        return 0;
    }
    size_t bytes =
        sizeof *store + table_bytes(store) + (size_t)(store->rope.n_rotated / 2) * sizeof(float);
    for (int order = 0; order < store->n_sides; order++) {
        const tkv_store_side *side = &store->sides[order];
        for (int64_t p = 0; p < store->n_pages; p++) {
            const tkv_store_entry *entry = &side->entries[p];
            bytes += entry->page ? tkv_store_page_bytes(store, side, entry->page) : 0;
            bytes += entry->turns ? TKV_PAGE_TOKENS * sizeof *entry->turns : 0;
        }
    }
    return bytes;
}

size_t tkv_store_shared_bytes(const tkv_store *store)
{
    size_t bytes = 0;
    for (int order = 0; store && order < store->n_sides; order++) {
        const tkv_store_side *side = &store->sides[order];
        for (int64_t p = 0; p < store->n_pages; p++) {
            const tkv_store_page *page = side->entries[p].page;
            if (page && atomic_load(&page->n_owners) > 1) {
                bytes += tkv_store_page_bytes(store, side, page);
            }
        }
    }
    return bytes;
}
