/* Attention kernels in vectors: a page is unpacked once into bytes of levels, then multiplied with
 * all rows in integers. Included by one file an instruction set, after its vector operations;
 * everything here is static. What bounds it: with few rows the unpacking (about one instruction for
 * four values of a lane), with many the byte products. */
#ifndef TKV_BACKEND_CPU_VECTOR_KERNELS_H
#define TKV_BACKEND_CPU_VECTOR_KERNELS_H

#include "backend/cpu/vector_half.h"
#include "backend/cpu/vector_integer.h"
#include "backend/cpu/vector_softmax.h"
#include "backend/cpu/vector_unpack.h"
#include "backend/kernels.h"

/* See tkv_kernels.rounding. */
#define ROUNDING (0.5f / (PART_LIMIT * PART_BASE))

/* Dwords of a row of weights. */
enum { WEIGHT_DWORDS = TKV_PAGE_TOKENS / 4 };

static bool is_sketch(tkv_type type)
{
    return tkv_type_get_layout(type)->kind == TKV_CODE_SKETCH;
}

/* Rows of integers; for a sketch type followed by those of the sketched queries, since its residual
 * signs live there. */
static size_t query_bytes(tkv_type type, int head_dim, int n_rows)
{
    const size_t n = (size_t)n_rows;
    if (type == TKV_TYPE_F16) {
        return n * (size_t)head_dim * sizeof(float);
    }
    return (is_sketch(type) ? 2 : 1) * n * integer_row_bytes(row_dwords(type, head_dim));
}

static void prepare_queries(tkv_type type, int head_dim, int n_rows, const float *queries,
                            void *prepared)
{
    if (type == TKV_TYPE_F16) {
        memcpy(prepared, queries, query_bytes(type, head_dim, n_rows));
        return;
    }
    const int n_dwords = row_dwords(type, head_dim);
    for (int r = 0; r < n_rows; r++, queries += head_dim) {
        round_row(type, head_dim, queries, row_at(prepared, n_dwords, r));
        if (is_sketch(type)) {
            float sketched[TKV_MAX_HEAD_DIM];
            memcpy(sketched, queries, (size_t)head_dim * sizeof *sketched);
            tkv_sketch_row(head_dim, sketched);
            round_row(type, head_dim, sketched, row_at(prepared, n_dwords, n_rows + r));
        }
    }
}

/* A call on a coded page works in its levels, the rows of weights and the sums of the residual. */
static size_t levels_bytes(int head_dim)
{
    return level_words(head_dim) * sizeof(uint32_t);
}

static size_t scratch_bytes(int head_dim, int n_rows)
{
    const size_t n = (size_t)n_rows;
    const size_t values = TKV_PAGE_TOKENS * (size_t)head_dim * sizeof(float);
    const size_t coded = levels_bytes(head_dim) + n * integer_row_bytes(WEIGHT_DWORDS) +
                         n * (size_t)head_dim * sizeof(float);
    return values > coded ? values : coded;
}

/* A side field of the first n_tokens tokens, times `unit`; 0 for the others. */
static void token_factors(const uint16_t *fields, bool has_start_bits, int n_tokens, float unit,
                          float factors[TKV_PAGE_TOKENS])
{
    uint16_t halves[TKV_PAGE_TOKENS] = {0};
    for (int t = 0; t < n_tokens; t++) {
        halves[t] = has_start_bits ? tkv_trellis_scale(fields[t]) : fields[t];
    }
    for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
        v_store(factors + t, v_mul(v_load_half(halves + t), v_set(unit)));
    }
}

/* The factor of each token's levels. */
static void level_scales(tkv_type type, const page_view *view, int n_tokens,
                         float scales[TKV_PAGE_TOKENS])
{
    const bool is_trellis = tkv_type_get_layout(type)->kind == TKV_CODE_TRELLIS;
    token_factors(view->fields[0], is_trellis, n_tokens, 1.0f / TKV_LEVEL_UNIT, scales);
}

static void scores(tkv_type type, int head_dim, int n_rows, const void *prepared, int n_tokens,
                   const void *page, float *result, void *scratch)
{
    if (type == TKV_TYPE_F16) {
        scores_f16(head_dim, n_rows, prepared, n_tokens, page, result);
        return;
    }
    const float one = 1.0f;
    float scales[TKV_PAGE_TOKENS];
    const page_view view = view_page(type, TKV_ORDER_KEY, head_dim, page);
    const int n_dwords = row_dwords(type, head_dim);
    integer_product product = {scratch, TKV_PAGE_TOKENS, n_dwords, scales, NULL, 0};
    unpack_levels(type, &view, scratch);
    level_scales(type, &view, n_tokens, scales);
    multiply_rows(&product, n_rows, prepared, result);
    if (is_sketch(type)) {
        unpack_signs(type, &view, scratch);
        token_factors(view.fields[1], false, n_tokens, 1.0f, scales);
        product.factors = &one;
        multiply_rows(&product, n_rows,
                      (const uint8_t *)prepared + (size_t)n_rows * integer_row_bytes(n_dwords),
                      result);
    }
}

/* Weights times the tokens' factors as rows of integers. */
static void round_weights(tkv_type type, int n_rows, const float *weights,
                          const float factors[TKV_PAGE_TOKENS], void *rows)
{
    for (int r = 0; r < n_rows; r++, weights += TKV_PAGE_TOKENS) {
        float scaled[TKV_PAGE_TOKENS];
        for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
            v_store(scaled + t, v_mul(v_load(weights + t), v_load(factors + t)));
        }
        round_row(type, TKV_PAGE_TOKENS, scaled, row_at(rows, WEIGHT_DWORDS, r));
    }
}

/* The part of a sketch type's residual, brought back from the sketch. */
static void add_residual(tkv_type type, const page_view *view, int n_rows, const float *weights,
                         int n_tokens, float *sums, uint32_t *levels, void *rows)
{
    const size_t head_dim = (size_t)view->head_dim;
    float *part =
        (float *)(void *)((uint8_t *)rows + (size_t)n_rows * integer_row_bytes(WEIGHT_DWORDS));
    float steps[TKV_PAGE_TOKENS];
    const integer_product product = {levels, view->head_dim, WEIGHT_DWORDS, NULL, NULL, 0};
    token_factors(view->fields[1], false, n_tokens, 1.0f, steps);
    round_weights(type, n_rows, weights, steps, rows);
    unpack_signs(type, view, levels);
    multiply_rows(&product, n_rows, rows, part);
    for (size_t r = 0; r < (size_t)n_rows; r++) {
        tkv_unsketch_row(view->head_dim, part + r * head_dim);
        for (size_t j = 0; j < head_dim; j++) {
            sums[r * head_dim + j] += part[r * head_dim + j];
        }
    }
}

static void accumulate(tkv_type type, int head_dim, int n_rows, const float *weights,
                       const float *rescale, int n_tokens, const void *page, float *sums,
                       void *scratch)
{
    if (type == TKV_TYPE_F16) {
        accumulate_f16(head_dim, n_rows, weights, rescale, n_tokens, page, sums, scratch);
        return;
    }
    void *rows = (uint8_t *)scratch + levels_bytes(head_dim);
    float scales[TKV_PAGE_TOKENS];
    const page_view view = view_page(type, TKV_ORDER_VALUE, head_dim, page);
    const integer_product product = {scratch, head_dim, WEIGHT_DWORDS, NULL, rescale, 1};
    unpack_levels(type, &view, scratch);
    level_scales(type, &view, n_tokens, scales);
    round_weights(type, n_rows, weights, scales, rows);
    multiply_rows(&product, n_rows, rows, sums);
    if (is_sketch(type)) {
        add_residual(type, &view, n_rows, weights, n_tokens, sums, scratch, rows);
    }
}

#endif
