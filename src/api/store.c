/* The section "Store" of turbokv.h: checks, then one call. */
#include "store/store.h"
#include "base/error.h"
#include "base/rope.h"

#include <math.h>
#include <string.h>

#define MAX_KV_HEADS 4096
#define MAX_SLOTS ((int64_t)1 << 40)

/* ---- Creating ---- */

static tkv_status check_counts(const tkv_store_params *params, tkv_error *error)
{
    const int64_t n_regions = params->n_regions ? params->n_regions : 1;
    if (params->n_slots < 1 || params->n_slots > MAX_SLOTS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_slots %lld: expected 1 to %lld",
                        (long long)params->n_slots, (long long)MAX_SLOTS);
    }
    if (n_regions < 1 || (n_regions > 1 && params->n_slots % (n_regions * TKV_PAGE_TOKENS) != 0)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "n_regions %lld of %lld slots: expected one, or regions of a multiple of "
                        "%d slots each",
                        (long long)params->n_regions, (long long)params->n_slots, TKV_PAGE_TOKENS);
    }
    if (params->n_kv_heads < 1 || params->n_kv_heads > MAX_KV_HEADS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_kv_heads %d: expected 1 to %d",
                        params->n_kv_heads, MAX_KV_HEADS);
    }
    if (params->n_exact < 0 || params->n_exact_first < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "n_exact %lld, n_exact_first %lld: expected at least 0",
                        (long long)params->n_exact, (long long)params->n_exact_first);
    }
    return TKV_OK;
}

tkv_status tkv_store_create(tkv_context *context, const tkv_store_params *params, tkv_store **store,
                            tkv_error *error)
{
    if (!context || !params || !store) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context, params or result is NULL");
    }
    tkv_status status = tkv_check_reserved(sizeof params->reserved / sizeof *params->reserved,
                                           params->reserved, "tkv_store_params", error);
    if (status == TKV_OK) {
        status = check_counts(params, error);
    }
    if (status == TKV_OK) {
        status = tkv_check_head_dim(params->type_k, params->head_dim_k, error);
    }
    if (status == TKV_OK && params->head_dim_v) {
        status = tkv_check_head_dim(params->type_v, params->head_dim_v, error);
    }
    if (status == TKV_OK) {
        status = tkv_check_rope(params->rope, params->head_dim_k, error);
    }
    if (status == TKV_OK && tkv_context_device_kind(context) != TKV_DEVICE_CPU) {
        status =
            tkv_fail(error, TKV_ERR_UNSUPPORTED, "a store on %s: expected a context on the CPU",
                     tkv_context_device(context));
    }
    return status == TKV_OK ? tkv_store_make(context, params, store, error) : status;
}

/* ---- Slots and rows ---- */

static tkv_status check_slots(const tkv_store *store, int64_t first, int64_t n_slots,
                              tkv_error *error)
{
    if (first < 0 || n_slots < 0 || first > store->n_slots || n_slots > store->n_slots - first) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%lld slots from %lld: the store has slots 0 to %lld", (long long)n_slots,
                        (long long)first, (long long)(store->n_slots - 1));
    }
    return TKV_OK;
}

static tkv_status check_layout(const tkv_layout *layout, const char *what, tkv_error *error)
{
    if (layout && (unsigned)layout->element >= (unsigned)TKV_ELEMENT_COUNT) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "element %d of %s: expected 0 to %d",
                        (int)layout->element, what, TKV_ELEMENT_COUNT - 1);
    }
    return TKV_OK;
}

static tkv_status check_rows(const tkv_store *store, int64_t n_rows, const int64_t *slots,
                             const tkv_layout *layout_k, const void *v, const tkv_layout *layout_v,
                             tkv_error *error)
{
    if (n_rows < 0 || n_rows > INT32_MAX || (n_rows && !slots)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%lld rows: expected 0 to %d and as many slots", (long long)n_rows,
                        INT32_MAX);
    }
    if (v && store->n_sides == 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "values for a store that keeps keys only: expected NULL");
    }
    for (int64_t i = 0; i < n_rows; i++) {
        if (slots[i] < 0 || slots[i] >= store->n_slots) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "slot %lld of row %lld: expected 0 to %lld", (long long)slots[i],
                            (long long)i, (long long)(store->n_slots - 1));
        }
    }
    const tkv_status status = check_layout(layout_k, "k", error);
    return status == TKV_OK ? check_layout(layout_v, "v", error) : status;
}

/* Rows of numbers [n_heads][head_dim] each. */
static tkv_status check_finite(const tkv_layout *layout, size_t stream, int64_t n_rows, int n_heads,
                               int head_dim, const void *x, const char *what, tkv_error *error)
{
    float buffer[TKV_MAX_HEAD_DIM];
    for (int64_t i = 0; i < n_rows; i++) {
        for (int head = 0; head < n_heads; head++) {
            const size_t from = stream * layout->stream_stride + (size_t)i * layout->row_stride +
                                (size_t)head * layout->head_stride;
            const float *row = buffer;
            if (layout->element == TKV_ELEMENT_F32) {
                row = (const float *)x + from;
            } else {
                tkv_elements_load(layout->element, x, from, (size_t)head_dim, buffer);
            }
            const size_t at = tkv_find_non_finite((size_t)head_dim, row);
            if (at < (size_t)head_dim) {
                return tkv_fail(error, TKV_ERR_NOT_FINITE,
                                "%s of row %lld, head %d, coordinate %zu is %g: expected finite "
                                "values",
                                what, (long long)i, head, at, (double)row[at]);
            }
        }
    }
    return TKV_OK;
}

static tkv_status check_side(const tkv_store *store, tkv_page_order order, int64_t n_rows,
                             const void *x, const tkv_layout *layout, tkv_error *error)
{
    const int head_dim = store->sides[order].head_dim;
    const tkv_layout full = tkv_layout_of(layout, n_rows, store->n_kv_heads, head_dim);
    return x ? check_finite(&full, 0, n_rows, store->n_kv_heads, head_dim, x,
                            order == TKV_ORDER_KEY ? "k" : "v", error)
             : TKV_OK;
}

tkv_status tkv_store_write(tkv_store *store, int64_t n_rows, const int64_t *slots, const void *k,
                           const tkv_layout *layout_k, const void *v, const tkv_layout *layout_v,
                           tkv_error *error)
{
    if (!store || (!k && !v)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "store is NULL, or both k and v are");
    }
    tkv_status status = check_rows(store, n_rows, slots, layout_k, v, layout_v, error);
    if (status == TKV_OK) {
        status = check_side(store, TKV_ORDER_KEY, n_rows, k, layout_k, error);
    }
    if (status == TKV_OK) {
        status = check_side(store, TKV_ORDER_VALUE, n_rows, v, layout_v, error);
    }
    return status == TKV_OK && n_rows
               ? tkv_store_write_rows(store, n_rows, slots, k, layout_k, v, layout_v, error)
               : status;
}

tkv_status tkv_store_read(const tkv_store *store, int64_t n_rows, const int64_t *slots, void *k,
                          const tkv_layout *layout_k, void *v, const tkv_layout *layout_v,
                          tkv_error *error)
{
    if (!store) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "store is NULL");
    }
    const tkv_status status = check_rows(store, n_rows, slots, layout_k, v, layout_v, error);
    if (status == TKV_OK && k) {
        tkv_store_read_side(store, TKV_ORDER_KEY, n_rows, slots, k, layout_k);
    }
    if (status == TKV_OK && v) {
        tkv_store_read_side(store, TKV_ORDER_VALUE, n_rows, slots, v, layout_v);
    }
    return status;
}

tkv_status tkv_store_clear(tkv_store *store, int64_t first, int64_t n_slots, tkv_error *error)
{
    if (!store) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "store is NULL");
    }
    const tkv_status status = check_slots(store, first, n_slots, error);
    if (status == TKV_OK) {
        tkv_store_clear_slots(store, first, n_slots);
    }
    return status;
}

tkv_status tkv_store_age(tkv_store *store, int64_t first, int64_t n_slots, tkv_error *error)
{
    if (!store) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "store is NULL");
    }
    const tkv_status status = check_slots(store, first, n_slots, error);
    return status == TKV_OK ? tkv_store_age_slots(store, first, n_slots, error) : status;
}

static bool is_alike(const tkv_store *a, const tkv_store *b)
{
    bool is_same =
        a->context == b->context && a->n_kv_heads == b->n_kv_heads && a->n_sides == b->n_sides;
    for (int order = 0; is_same && order < a->n_sides; order++) {
        is_same = a->sides[order].type == b->sides[order].type &&
                  a->sides[order].head_dim == b->sides[order].head_dim;
    }
    return is_same;
}

static bool is_same_rope(const tkv_rope *a, const tkv_rope *b)
{
    return a->frequencies && b->frequencies && a->n_rotated == b->n_rotated &&
           a->is_interleaved == b->is_interleaved &&
           memcmp(a->frequencies, b->frequencies,
                  (size_t)(a->n_rotated / 2) * sizeof *a->frequencies) == 0;
}

tkv_status tkv_store_copy(tkv_store *to, int64_t to_first, const tkv_store *from,
                          int64_t from_first, int64_t n_slots, tkv_error *error)
{
    if (!to || !from) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "a store is NULL");
    }
    if (!is_alike(to, from)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "copy between stores that differ: expected one context, and the same heads "
                        "and types");
    }
    if (from->rope.frequencies && !is_same_rope(&to->rope, &from->rope)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "copy of keys with a rope to a store with another or without: expected "
                        "the same coordinates and frequencies");
    }
    tkv_status status = check_slots(to, to_first, n_slots, error);
    if (status == TKV_OK) {
        status = check_slots(from, from_first, n_slots, error);
    }
    const bool is_nothing = n_slots == 0 || (to == from && to_first == from_first);
    return status == TKV_OK && !is_nothing
               ? tkv_store_copy_rows(to, to_first, from, from_first, n_slots, error)
               : status;
}

tkv_status tkv_store_shift(tkv_store *store, int64_t first, int64_t n_slots, const int32_t *deltas,
                           tkv_error *error)
{
    if (!store || !deltas) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "store or deltas is NULL");
    }
    if (!store->rope.frequencies) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "shift of keys in a store without a rope: expected one in its parameters");
    }
    const tkv_status status = check_slots(store, first, n_slots, error);
    return status == TKV_OK ? tkv_store_shift_keys(store, first, n_slots, deltas, error) : status;
}

/* ---- Attention ---- */

static tkv_status check_numbers(const tkv_store *store, const tkv_store_attend_params *params,
                                tkv_error *error)
{
    if (params->n_streams < 1 || params->n_queries < 1 || params->n_heads < 1 ||
        params->n_heads % store->n_kv_heads != 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d streams of %d queries with %d heads: expected at least one, and a "
                        "multiple of the %d KV heads",
                        params->n_streams, params->n_queries, params->n_heads, store->n_kv_heads);
    }
    if (!(params->logit_softcap >= 0.0f) || !isfinite(params->logit_softcap) ||
        !isfinite(params->scale) || !(params->sparse_v >= 0.0f && params->sparse_v <= 1.0f)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "logit_softcap %g, scale %g, sparse_v %g: expected finite numbers, a "
                        "softcap of at least 0 and sparse_v from 0 to 1",
                        (double)params->logit_softcap, (double)params->scale,
                        (double)params->sparse_v);
    }
    const int head_dim_k = store->sides[TKV_ORDER_KEY].head_dim;
    const int head_dim_v = store->n_sides > 1 ? store->sides[TKV_ORDER_VALUE].head_dim : 0;
    if (head_dim_v ? params->n_value_dims != 0 && params->n_value_dims != head_dim_v
                   : params->n_value_dims < 1 || params->n_value_dims > head_dim_k) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "n_value_dims %d of a store that keeps %s: expected %s%d",
                        params->n_value_dims, head_dim_v ? "values" : "keys only",
                        head_dim_v ? "0 or " : "1 to ", head_dim_v ? head_dim_v : head_dim_k);
    }
    for (int h = 0; params->sinks && h < params->n_heads; h++) {
        if (isnan(params->sinks[h]) || params->sinks[h] == INFINITY) {
            return tkv_fail(error, TKV_ERR_NOT_FINITE,
                            "sink of head %d is %g: expected a number below infinity", h,
                            (double)params->sinks[h]);
        }
    }
    return TKV_OK;
}

static tkv_status check_mask(const tkv_store *store, const tkv_store_attend_params *params,
                             tkv_error *error)
{
    if (params->views || params->window) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a mask together with views or a window: expected one of both");
    }
    if ((unsigned)params->mask_element >= (unsigned)TKV_ELEMENT_COUNT) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "element %d of the mask: expected 0 to %d",
                        (int)params->mask_element, TKV_ELEMENT_COUNT - 1);
    }
    for (int h = 0; params->mask_slopes && h < params->n_heads; h++) {
        if (!isfinite(params->mask_slopes[h])) {
            return tkv_fail(error, TKV_ERR_NOT_FINITE, "slope of head %d: expected a finite number",
                            h);
        }
    }
    tkv_status status = TKV_OK;
    for (int s = 0; status == TKV_OK && s < params->n_streams; s++) {
        status = check_slots(store, params->mask_first ? params->mask_first[s] : 0,
                             params->n_mask_slots, error);
    }
    return status;
}

static tkv_status check_views(const tkv_store *store, const tkv_store_attend_params *params,
                              tkv_error *error)
{
    if (!params->views || params->n_ranges < 0 || (params->n_ranges && !params->ranges) ||
        params->window < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%lld ranges, window %lld: expected a mask or views, their ranges, and at "
                        "least 0",
                        (long long)params->n_ranges, (long long)params->window);
    }
    for (int64_t i = 0; i < params->n_ranges; i++) {
        const tkv_slot_range *range = &params->ranges[i];
        if (range->first < 0 || range->end < range->first || range->end > store->n_slots) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "range %lld from slot %lld to %lld: expected slots within 0 to %lld",
                            (long long)i, (long long)range->first, (long long)range->end,
                            (long long)store->n_slots);
        }
    }
    for (int64_t i = 0; i < (int64_t)params->n_streams * params->n_queries; i++) {
        const tkv_slot_view *view = &params->views[i];
        if (view->first_range < 0 || view->n_ranges < 0 || view->n_seen < 0 ||
            view->first_range > params->n_ranges ||
            view->n_ranges > params->n_ranges - view->first_range) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "view %lld with %lld ranges from %lld on, of which %lld slots: "
                            "expected ranges within 0 to %lld, and at least 0",
                            (long long)i, (long long)view->n_ranges, (long long)view->first_range,
                            (long long)view->n_seen, (long long)params->n_ranges);
        }
    }
    return TKV_OK;
}

static tkv_status check_queries(const tkv_store *store, const tkv_store_attend_params *params,
                                const void *q, tkv_error *error)
{
    const int head_dim = store->sides[TKV_ORDER_KEY].head_dim;
    const tkv_layout layout =
        tkv_layout_of(&params->q, params->n_queries, params->n_heads, head_dim);
    tkv_status status = check_layout(&params->q, "q", error);
    if (status == TKV_OK) {
        status = check_layout(&params->out, "out", error);
    }
    for (size_t s = 0; status == TKV_OK && s < (size_t)params->n_streams; s++) {
        status =
            check_finite(&layout, s, params->n_queries, params->n_heads, head_dim, q, "q", error);
    }
    return status;
}

tkv_status tkv_attend_store(const tkv_store *store, const tkv_store_attend_params *params,
                            const void *q, void *out, tkv_error *error)
{
    if (!store || !params || !q || !out) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "store, params, q or out is NULL");
    }
    tkv_store_attend_params full = *params;
    full.n_streams = params->n_streams ? params->n_streams : 1;
    tkv_status status = tkv_check_reserved(sizeof full.reserved / sizeof *full.reserved,
                                           full.reserved, "tkv_store_attend_params", error);
    if (status == TKV_OK) {
        status = check_numbers(store, &full, error);
    }
    if (status == TKV_OK) {
        status = full.mask ? check_mask(store, &full, error) : check_views(store, &full, error);
    }
    if (status == TKV_OK) {
        status = check_queries(store, &full, q, error);
    }
    return status == TKV_OK ? tkv_store_attend(store, &full, q, out, error) : status;
}
