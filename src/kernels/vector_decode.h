/* Decoding V_LANES rows at once, to the bit as the reference does. Included after the vector
 * operations. */
#ifndef TKV_KERNELS_VECTOR_DECODE_H
#define TKV_KERNELS_VECTOR_DECODE_H

#include "kernels/vector_kernels.h"
#include "kernels/vector_transform.h"
#include "kernels/vector_unpack.h"

/* Levels of a whole page, or its residual signs: 256 KiB for the largest head. */
typedef struct page_levels {
    _Alignas(64) float levels[TKV_PAGE_TOKENS * TKV_MAX_HEAD_DIM];
    float factors[TKV_PAGE_TOKENS + V_LANES]; /* of the tokens */
} page_levels;

/* Which code along a lane is byte k of a dword of levels. */
static inline int code_of_byte(tkv_type type, int dword, int k)
{
    return is_bytewise(type) ? 4 * dword + k : dword / 8 * 32 + 8 * k + dword % 8;
}

/* Byte k of each dword without the bias; with a bias bytes are unsigned. */
static ALWAYS_INLINE vint level_of_byte(vint bytes, int k)
{
    const vint top = v_left(bytes, 24 - 8 * k);
    return LEVEL_BIAS ? v_sub_int(v_right(top, 24), v_set_int(LEVEL_BIAS))
                      : v_right_signed(top, 24);
}

/* Unpacked bytes to levels[code][lane]: key pages by coordinate, value pages by token. */
static void spread_levels(tkv_type type, const page_view *view, const uint32_t *unpacked,
                          page_levels *page)
{
    const int n_codes = view->order == TKV_ORDER_KEY ? view->head_dim : TKV_PAGE_TOKENS;
    const int stride = view->stride;
    for (int d = 0; d < level_dwords(type, n_codes); d++) {
        for (int k = 0; k < 4; k++) {
            const int code = code_of_byte(type, d, k);
            for (int lane = 0; code < n_codes && lane < stride; lane += V_LANES) {
                const vint bytes = v_load_int(unpacked + d * stride + lane);
                v_store(page->levels + code * stride + lane, v_from_int(level_of_byte(bytes, k)));
            }
        }
    }
}

static inline void decode_halves(const tkv_page_span *span, const void *page, float *x,
                                 size_t row_stride)
{
    const size_t head_dim = (size_t)span->head_dim;
    for (int i = 0; i < span->n_rows; i++, x += row_stride) {
        const uint16_t *row = (const uint16_t *)page + (size_t)(span->first_slot + i) * head_dim;
        for (size_t j = 0; j < head_dim; j += V_LANES) {
            v_store(x + j, v_load_half(row + j));
        }
    }
}

/* Rows from `slot` on: levels times the factors of their tokens. */
static inline void dequantise_lanes(const tkv_page_span *span, int slot, int n_rows,
                                    const page_levels *page, lane_rows *rows)
{
    const int head_dim = span->head_dim;
    if (span->order == TKV_ORDER_VALUE) {
        load_lanes(head_dim, n_rows, page->levels + slot * head_dim, (size_t)head_dim, rows);
    }
    for (int j = 0; j < head_dim; j++) {
        float *to = lanes_of(rows, j);
        if (span->order == TKV_ORDER_KEY) {
            memcpy(to, page->levels + j * TKV_PAGE_TOKENS + slot, (size_t)n_rows * sizeof *to);
        }
        v_store(to, v_mul(v_load(to), v_load(page->factors + slot)));
    }
}

/* What the residual signs add to rows from `slot` on. */
static inline void add_residual_lanes(const tkv_page_span *span, int slot, int n_rows,
                                      const page_levels *signs, lane_rows *rows)
{
    const int head_dim = span->head_dim;
    lane_rows residual = {.x = {0}};
    dequantise_lanes(span, slot, n_rows, signs, &residual);
    unmix_lanes(head_dim, tkv_sketch_signs, &residual);
    for (int j = 0; j < head_dim; j++) {
        float *to = lanes_of(rows, j);
        v_store(to, v_add(v_load(to), v_load(lanes_of(&residual, j))));
    }
}

static void decode(const tkv_page_span *span, const void *page, float *x, size_t row_stride)
{
    const int head_dim = span->head_dim;
    if (span->type == TKV_TYPE_F16) {
        decode_halves(span, page, x, row_stride);
        return;
    }
    if (span->n_rows < MIN_LANE_ROWS) {
        tkv_kernels_scalar.decode(span, page, x, row_stride);
        return;
    }
    const bool has_sketch = tkv_has_sketch(span->type);
    uint32_t unpacked[TKV_PAGE_TOKENS * TKV_MAX_HEAD_DIM / 4];
    page_levels codes = {.factors = {0}};
    page_levels signs;
    lane_rows rows = {.x = {0}};
    const tkv_page_read read = {span->type, head_dim, TKV_PAGE_TOKENS, page, NULL};
    const page_view view = view_page(&read, span->order);
    unpack_levels(span->type, &view, unpacked);
    spread_levels(span->type, &view, unpacked, &codes);
    level_scales(&read, &view, codes.factors);
    if (has_sketch) {
        unpack_signs(span->type, &view, unpacked);
        spread_levels(span->type, &view, unpacked, &signs);
        memset(signs.factors, 0, sizeof signs.factors);
        token_factors(&view, 1, false, TKV_PAGE_TOKENS, 1.0f, signs.factors);
    }
    for (int i = 0; i < span->n_rows; i += V_LANES, x += V_LANES * row_stride) {
        const int n = span->n_rows - i < V_LANES ? span->n_rows - i : V_LANES;
        dequantise_lanes(span, span->first_slot + i, n, &codes, &rows);
        if (has_sketch) {
            add_residual_lanes(span, span->first_slot + i, n, &signs, &rows);
        }
        unrotate_lanes(head_dim, &rows);
        store_lanes(head_dim, n, &rows, x, row_stride);
    }
}

#endif
