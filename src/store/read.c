/* Rows out of slots. */
#include "base/rope.h"
#include "store/store.h"

#include <string.h>

/* The row of a slot and KV head [padded_dim], keys turned. */
static void read_row(const tkv_store *store, const tkv_store_side *side, int64_t slot, int kv_head,
                     float *row)
{
    const tkv_store_entry *entry = &side->entries[slot / TKV_PAGE_TOKENS];
    const int t = (int)(slot % TKV_PAGE_TOKENS);
    if (!(entry->held >> t & 1)) {
        memset(row, 0, (size_t)side->padded_dim * sizeof *row);
        return;
    }
    const bool is_exact = entry->page->exact_rows >> t & 1;
    const tkv_page_span span = {is_exact ? TKV_TYPE_F16 : side->type,
                                side->order,
                                side->padded_dim,
                                t,
                                1,
                                TKV_EFFORT_DEFAULT};
    const void *page = is_exact ? (const void *)tkv_store_exact(side, entry->page, kv_head)
                                : tkv_store_coded(side, entry->page, kv_head);
    store->context->kernels->decode(&span, page, row, (size_t)side->padded_dim);
    if (entry->turns && entry->turns[t]) {
        float turns[TKV_MAX_HEAD_DIM];
        tkv_rope_turns(&store->rope, entry->turns[t], turns);
        tkv_turn_key(&store->rope, turns, false, row);
    }
}

typedef struct read_job {
    const tkv_store *store;
    const tkv_store_side *side;
    int64_t n_rows;
    const int64_t *slots;
    void *x;
    tkv_layout layout;
} read_job;

/* A stretch of rows. */
static void read_item(void *argument, int item, int thread)
{
    (void)thread;
    const read_job *job = argument;
    const int64_t begin = (int64_t)item * TKV_PAGE_TOKENS;
    const int64_t end =
        job->n_rows - begin < TKV_PAGE_TOKENS ? job->n_rows : begin + TKV_PAGE_TOKENS;
    float row[TKV_MAX_HEAD_DIM];
    for (int64_t i = begin; i < end; i++) {
        for (int head = 0; head < job->store->n_kv_heads; head++) {
            const size_t at =
                (size_t)i * job->layout.row_stride + (size_t)head * job->layout.head_stride;
            read_row(job->store, job->side, job->slots[i], head, row);
            tkv_elements_save(job->layout.element, job->x, at, (size_t)job->side->head_dim, row);
        }
    }
}

void tkv_store_read_side(const tkv_store *store, tkv_page_order order, int64_t n_rows,
                         const int64_t *slots, void *x, const tkv_layout *layout)
{
    const tkv_store_side *side = &store->sides[order];
    read_job job = {store, side, n_rows,
                    slots, x,    tkv_layout_of(layout, n_rows, store->n_kv_heads, side->head_dim)};
    const int64_t n_items = (n_rows + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS;
    tkv_threads_run(store->context->threads, store->context->n_threads, (int)n_items, read_item,
                    &job);
}
