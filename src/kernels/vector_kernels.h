/* Attention kernels in vectors: a page is unpacked once into bytes of levels, then multiplied with
 * all rows in integers. Included by one file an instruction set, after its vector operations;
 * everything here is static. What bounds it: with few rows the unpacking (about one instruction for
 * four values of a lane), with many the byte products. */
#ifndef TKV_KERNELS_VECTOR_KERNELS_H
#define TKV_KERNELS_VECTOR_KERNELS_H

#include "kernels/kernels.h"
#include "kernels/sums.h"
#include "kernels/vector_half.h"
#include "kernels/vector_integer.h"
#include "kernels/vector_softmax.h"
#include "kernels/vector_unpack.h"

/* Half a step, relative to the largest of a row (tkv_kernels). */
#define ONE_PART_ROUNDING (0.5f / PART_LIMIT)
#define TWO_PART_ROUNDING (0.5f / (PART_LIMIT * PART_BASE))
#define WEIGHT_ROUNDING (WEIGHT_PARTS == 1 ? ONE_PART_ROUNDING : TWO_PART_ROUNDING)
#define QUERY_ROUNDING (QUERY_PARTS == 1 ? ONE_PART_ROUNDING : TWO_PART_ROUNDING)

/* Weights: a page's sum is as exact as its largest weight. */
static ALWAYS_INLINE row_form weight_form(tkv_type type)
{
    const bool is_coarse = tkv_type_rounding(type) == TKV_ROUNDING_COARSE;
    return (row_form){is_coarse ? WEIGHT_PARTS : MAX_PARTS, TKV_PAGE_TOKENS / 4, is_bytewise(type)};
}

static inline row_form query_form(tkv_type type, int head_dim)
{
    const bool is_finest = tkv_type_rounding(type) == TKV_ROUNDING_FINEST;
    return (row_form){is_finest ? MAX_PARTS : QUERY_PARTS, level_dwords(type, head_dim),
                      is_bytewise(type)};
}

/* Rows of integers; for a sketch type followed by those of the sketched queries, since its residual
 * signs live there. */
static size_t query_bytes(tkv_type type, int head_dim, int n_rows)
{
    const size_t n = (size_t)n_rows;
    if (type == TKV_TYPE_F16) {
        return n * (size_t)head_dim * sizeof(float);
    }
    return (tkv_has_sketch(type) ? 2 : 1) * n * integer_row_bytes(query_form(type, head_dim));
}

static void prepare_queries(tkv_type type, int head_dim, int n_rows, const float *queries,
                            void *prepared)
{
    if (type == TKV_TYPE_F16) {
        memcpy(prepared, queries, query_bytes(type, head_dim, n_rows));
        return;
    }
    const row_form form = query_form(type, head_dim);
    for (int r = 0; r < n_rows; r++, queries += head_dim) {
        round_row(form, head_dim, queries, row_at(prepared, form, r));
        if (tkv_has_sketch(type)) {
            float sketched[TKV_MAX_HEAD_DIM];
            memcpy(sketched, queries, (size_t)head_dim * sizeof *sketched);
            tkv_sketch_row(head_dim, sketched);
            round_row(form, head_dim, sketched, row_at(prepared, form, n_rows + r));
        }
    }
}

/* A call on a coded page works in its levels and the rows of weights. */
static size_t levels_bytes(int head_dim)
{
    return level_words(head_dim) * sizeof(uint32_t);
}

static size_t scratch_bytes(int head_dim, int n_rows)
{
    const size_t n = (size_t)n_rows;
    const size_t values = TKV_PAGE_TOKENS * (size_t)head_dim * sizeof(float);
    const row_form largest = {MAX_PARTS, TKV_PAGE_TOKENS / 4, false};
    const size_t coded = levels_bytes(head_dim) + n * integer_row_bytes(largest);
    return values > coded ? values : coded;
}

/* A side field of the first n_tokens tokens, times `unit`; 0 for the others. */
static void token_factors(const page_view *view, int field, bool has_start_bits, int n_tokens,
                          float unit, float factors[TKV_PAGE_TOKENS])
{
    const uint16_t *fields = view->fields[field];
    uint16_t halves[TKV_PAGE_TOKENS] = {0};
    ask_ahead(fields, view->ahead);
    ask_ahead(fields + TKV_PAGE_TOKENS / 2, view->ahead);
    for (int t = 0; t < n_tokens; t++) {
        halves[t] = has_start_bits ? tkv_trellis_scale(fields[t]) : fields[t];
    }
    for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
        v_store(factors + t, v_mul(v_load_half(halves + t), v_set(unit)));
    }
}

/* The factor of each token's levels. */
static void level_scales(const tkv_page_read *read, const page_view *view,
                         float scales[TKV_PAGE_TOKENS])
{
    const bool is_trellis = tkv_type_kind(read->type) == TKV_CODE_TRELLIS;
    token_factors(view, 0, is_trellis, read->n_tokens, 1.0f / TKV_LEVEL_UNIT, scales);
}

static void scores(const tkv_page_read *read, int n_rows, const void *prepared, float *result,
                   void *scratch)
{
    if (read->type == TKV_TYPE_F16) {
        scores_f16(read, n_rows, prepared, result);
        return;
    }
    const float one = 1.0f;
    float scales[TKV_PAGE_TOKENS];
    const page_view view = view_page(read, TKV_ORDER_KEY);
    const row_form form = query_form(read->type, read->head_dim);
    integer_product product = {scratch, TKV_PAGE_TOKENS, form, scales, NULL, 0};
    unpack_levels(read->type, &view, scratch);
    level_scales(read, &view, scales);
    multiply_rows(&product, n_rows, prepared, result);
    if (tkv_has_sketch(read->type)) {
        unpack_signs(read->type, &view, scratch);
        token_factors(&view, 1, false, read->n_tokens, 1.0f, scales);
        product.factors = &one;
        multiply_rows(&product, n_rows,
                      (const uint8_t *)prepared + (size_t)n_rows * integer_row_bytes(form), result);
    }
}

/* Weights times the tokens' factors as rows of integers. */
static void round_weights(row_form form, int n_rows, const float *weights,
                          const float factors[TKV_PAGE_TOKENS], void *rows)
{
    for (int r = 0; r < n_rows; r++, weights += TKV_PAGE_TOKENS) {
        float scaled[TKV_PAGE_TOKENS];
        for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
            v_store(scaled + t, v_mul(v_load(weights + t), v_load(factors + t)));
        }
        round_row(form, TKV_PAGE_TOKENS, scaled, row_at(rows, form, r));
    }
}

/* The part of a sketch type's residual, summed up in the domain of the sketch. */
static void add_residual(const tkv_page_read *read, const page_view *view, int n_rows,
                         const float *weights, const float *rescale, float *sums, uint32_t *levels,
                         void *rows)
{
    const row_form form = weight_form(read->type);
    const integer_product product = {levels, read->head_dim, form, NULL, rescale, 1};
    float steps[TKV_PAGE_TOKENS];
    token_factors(view, 1, false, read->n_tokens, 1.0f, steps);
    round_weights(form, n_rows, weights, steps, rows);
    unpack_signs(read->type, view, levels);
    multiply_rows(&product, n_rows, rows, sums + n_rows * read->head_dim);
}

static void accumulate(const tkv_page_read *read, int n_rows, const float *weights,
                       const float *rescale, float *sums, void *scratch)
{
    if (read->type == TKV_TYPE_F16) {
        accumulate_f16(read, n_rows, weights, rescale, sums, scratch);
        return;
    }
    void *rows = (uint8_t *)scratch + levels_bytes(read->head_dim);
    float scales[TKV_PAGE_TOKENS];
    const page_view view = view_page(read, TKV_ORDER_VALUE);
    const row_form form = weight_form(read->type);
    const integer_product product = {scratch, read->head_dim, form, NULL, rescale, 1};
    unpack_levels(read->type, &view, scratch);
    level_scales(read, &view, scales);
    round_weights(form, n_rows, weights, scales, rows);
    multiply_rows(&product, n_rows, rows, sums);
    if (tkv_has_sketch(read->type)) {
        add_residual(read, &view, n_rows, weights, rescale, sums, scratch, rows);
    }
}

#endif
