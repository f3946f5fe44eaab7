/* Attention kernels in vectors: a page is unpacked once into levels, then multiplied with all rows
 * in registers. Included by one file an instruction set, after its vector operations; everything
 * here is static. What bounds it: with few rows the unpacking (three to six instructions for
 * V_LANES values), with many the multiply-adds. */
#ifndef TKV_BACKEND_CPU_VECTOR_KERNELS_H
#define TKV_BACKEND_CPU_VECTOR_KERNELS_H

#include "backend/cpu/vector_unpack.h"
#include "backend/kernels.h"

#include <math.h>

#define COLUMN_VECTORS 4

static bool is_sketch(tkv_type type)
{
    return tkv_type_get_layout(type)->kind == TKV_CODE_SKETCH;
}

static size_t query_bytes(tkv_type type, int head_dim, int n_rows)
{
    return (is_sketch(type) ? 2 : 1) * (size_t)n_rows * (size_t)head_dim * sizeof(float);
}

/* Queries as they are; for a sketch type also sketched, since its residual signs live there. */
static void prepare_queries(tkv_type type, int head_dim, int n_rows, const float *queries,
                            void *prepared)
{
    const size_t n = (size_t)n_rows * (size_t)head_dim;
    float *copy = prepared;
    memcpy(copy, queries, n * sizeof *copy);
    if (is_sketch(type)) {
        memcpy(copy + n, queries, n * sizeof *copy);
        for (int r = 0; r < n_rows; r++) {
            tkv_sketch_row(head_dim, copy + n + (size_t)r * (size_t)head_dim);
        }
    }
}

/* Levels of a page, and weights with the scales in. */
static size_t scratch_bytes(int head_dim, int n_rows)
{
    return TKV_PAGE_TOKENS * ((size_t)head_dim + (size_t)n_rows) * sizeof(float);
}

/* out[r][column] = sum over k of a[r][k] * b[k][column] for n_rows rows and COLUMN_VECTORS vectors
 * of columns; with `factors`, rows of out are first multiplied and kept, else they are overwritten.
 */
static ALWAYS_INLINE void multiply_block(int n_rows, int n_vectors, int n_k, const float *a,
                                         size_t stride_a, const float *b, size_t stride_b,
                                         const float *factors, float *out, size_t stride_out)
{
    vfloat sums[V_ROWS][COLUMN_VECTORS];
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            float *to = out + (size_t)r * stride_out + (size_t)(v * V_LANES);
            sums[r][v] = factors ? v_mul(v_load(to), v_set(factors[r])) : v_set(0.0f);
        }
    }
    for (int k = 0; k < n_k; k++) {
        vfloat columns[COLUMN_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            columns[v] = v_load(b + (size_t)k * stride_b + (size_t)(v * V_LANES));
        }
        for (int r = 0; r < n_rows; r++) {
            const vfloat factor = v_set(a[(size_t)r * stride_a + (size_t)k]);
            for (int v = 0; v < n_vectors; v++) {
                sums[r][v] = v_fma(factor, columns[v], sums[r][v]);
            }
        }
    }
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            v_store(out + (size_t)r * stride_out + (size_t)(v * V_LANES), sums[r][v]);
        }
    }
}

static ALWAYS_INLINE void multiply_columns(int n_rows, int n_k, const float *a, size_t stride_a,
                                           const float *b, int n_columns, const float *factors,
                                           float *out)
{
    const size_t stride = (size_t)n_columns;
    int column = 0;
    for (; column + COLUMN_VECTORS * V_LANES <= n_columns; column += COLUMN_VECTORS * V_LANES) {
        multiply_block(n_rows, COLUMN_VECTORS, n_k, a, stride_a, b + column, stride, factors,
                       out + column, stride);
    }
    for (; column < n_columns; column += V_LANES) {
        multiply_block(n_rows, 1, n_k, a, stride_a, b + column, stride, factors, out + column,
                       stride);
    }
}

/* out [n_rows][n_columns] = (factors * out +) a [n_rows][n_k] b [n_k][n_columns]. */
static void multiply(int n_rows, int n_k, const float *a, size_t stride_a, const float *b,
                     int n_columns, const float *factors, float *out)
{
    int r = 0;
    for (; r + V_ROWS <= n_rows; r += V_ROWS) {
        multiply_columns(V_ROWS, n_k, a + (size_t)r * stride_a, stride_a, b, n_columns,
                         factors ? factors + r : NULL, out + (size_t)r * (size_t)n_columns);
    }
    for (; r < n_rows; r++) {
        multiply_columns(1, n_k, a + (size_t)r * stride_a, stride_a, b, n_columns,
                         factors ? factors + r : NULL, out + (size_t)r * (size_t)n_columns);
    }
}

/* f16 keys lie row by row: dot products with a sum across lanes at the end. */
static ALWAYS_INLINE void dot_rows(int n_rows, int head_dim, const float *queries,
                                   const uint16_t *key, float *scores)
{
    vfloat sums[V_ROWS];
    for (int r = 0; r < n_rows; r++) {
        sums[r] = v_set(0.0f);
    }
    for (int j = 0; j < head_dim; j += V_LANES) {
        const vfloat k = v_load_half(key + j);
        for (int r = 0; r < n_rows; r++) {
            sums[r] = v_fma(v_load(queries + (size_t)r * (size_t)head_dim + (size_t)j), k, sums[r]);
        }
    }
    for (int r = 0; r < n_rows; r++) {
        scores[r * TKV_PAGE_TOKENS] = v_sum(sums[r]);
    }
}

static void scores_f16(int head_dim, int n_rows, const float *queries, int n_tokens,
                       const uint16_t *page, float *scores)
{
    int r = 0;
    for (; r + V_ROWS <= n_rows; r += V_ROWS) {
        for (int t = 0; t < n_tokens; t++) {
            dot_rows(V_ROWS, head_dim, queries + (size_t)r * (size_t)head_dim,
                     page + (size_t)t * (size_t)head_dim, scores + r * TKV_PAGE_TOKENS + t);
        }
    }
    for (; r < n_rows; r++) {
        for (int t = 0; t < n_tokens; t++) {
            dot_rows(1, head_dim, queries + (size_t)r * (size_t)head_dim,
                     page + (size_t)t * (size_t)head_dim, scores + r * TKV_PAGE_TOKENS + t);
        }
    }
}

/* The factor of each token's levels. */
static void level_scales(tkv_type type, const uint16_t *fields, float scales[TKV_PAGE_TOKENS])
{
    const bool is_trellis = tkv_type_get_layout(type)->kind == TKV_CODE_TRELLIS;
    uint16_t halves[TKV_PAGE_TOKENS];
    for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
        halves[t] = is_trellis ? tkv_trellis_scale(fields[t]) : fields[t];
    }
    for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
        v_store(scales + t, v_mul(v_load_half(halves + t), v_set(1.0f / TKV_LEVEL_UNIT)));
    }
}

/* scores[r][t] = scales[t] * scores[r][t]. */
static void scale_columns(int n_rows, const float scales[TKV_PAGE_TOKENS], float *scores)
{
    for (int r = 0; r < n_rows; r++) {
        for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
            float *at = scores + r * TKV_PAGE_TOKENS + t;
            v_store(at, v_mul(v_load(at), v_load(scales + t)));
        }
    }
}

/* Adds the residual's part: its step times the sketched query over the signs. One row at a time,
 * since the type exists for comparison. */
static void add_residual_scores(tkv_type type, const page_view *view, int n_rows,
                                const float *sketched, float *scores, float *levels)
{
    float steps[TKV_PAGE_TOKENS];
    float part[TKV_PAGE_TOKENS];
    unpack_signs(view, tkv_type_get_layout(type)->n_planes - 1, levels);
    for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
        v_store(steps + t, v_load_half(view->fields[1] + t));
    }
    for (int r = 0; r < n_rows; r++) {
        multiply(1, view->head_dim, sketched + (size_t)r * (size_t)view->head_dim,
                 (size_t)view->head_dim, levels, TKV_PAGE_TOKENS, NULL, part);
        for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
            scores[r * TKV_PAGE_TOKENS + t] += steps[t] * part[t];
        }
    }
}

static void scores(tkv_type type, int head_dim, int n_rows, const void *prepared, int n_tokens,
                   const void *page, float *result, void *scratch)
{
    const float *queries = prepared;
    if (type == TKV_TYPE_F16) {
        scores_f16(head_dim, n_rows, queries, n_tokens, page, result);
        return;
    }
    const page_view view = view_page(type, TKV_ORDER_KEY, head_dim, page);
    float scales[TKV_PAGE_TOKENS];
    float *levels = scratch;
    unpack_levels(type, &view, levels);
    multiply(n_rows, head_dim, queries, (size_t)head_dim, levels, TKV_PAGE_TOKENS, NULL, result);
    level_scales(type, view.fields[0], scales);
    scale_columns(n_rows, scales, result);
    if (is_sketch(type)) {
        add_residual_scores(type, &view, n_rows, queries + (size_t)n_rows * (size_t)head_dim,
                            result, levels);
    }
}

static void accumulate(tkv_type type, int head_dim, int n_rows, const float *weights,
                       const float *rescale, int n_tokens, const void *page, float *sums,
                       void *scratch)
{
    float *values = scratch;
    if (is_sketch(type)) {
        /* Its residual lies in another domain; for values the type is a curiosity. */
        tkv_kernels_scalar.accumulate(type, head_dim, n_rows, weights, rescale, n_tokens, page,
                                      sums, scratch);
        return;
    }
    if (type == TKV_TYPE_F16) {
        const uint16_t *halves = page;
        for (size_t i = 0; i < (size_t)n_tokens * (size_t)head_dim; i += V_LANES) {
            v_store(values + i, v_load_half(halves + i));
        }
        multiply(n_rows, n_tokens, weights, TKV_PAGE_TOKENS, values, head_dim, rescale, sums);
        return;
    }
    const page_view view = view_page(type, TKV_ORDER_VALUE, head_dim, page);
    float *scaled = values + TKV_PAGE_TOKENS * (size_t)head_dim;
    float scales[TKV_PAGE_TOKENS];
    unpack_levels(type, &view, values);
    level_scales(type, view.fields[0], scales);
    memcpy(scaled, weights, (size_t)n_rows * TKV_PAGE_TOKENS * sizeof *scaled);
    scale_columns(n_rows, scales, scaled);
    multiply(n_rows, n_tokens, scaled, TKV_PAGE_TOKENS, values, head_dim, rescale, sums);
}

/* e^x for x <= 0, to two units in the last place; below -87 it stays at e^-87. Cody and Waite's
 * reduction, then Taylor's series on [-ln 2 / 2, ln 2 / 2]. */
static ALWAYS_INLINE vfloat exponential(vfloat x)
{
    x = v_max(x, v_set(-87.0f));
    const vint n = v_to_int(v_mul(x, v_set(1.44269504f)));
    const vfloat whole = v_from_int(n);
    vfloat r = v_fma(whole, v_set(-0.693359375f), x);
    r = v_fma(whole, v_set(2.12194440e-4f), r);
    vfloat p = v_set(1.0f / 720.0f);
    p = v_fma(p, r, v_set(1.0f / 120.0f));
    p = v_fma(p, r, v_set(1.0f / 24.0f));
    p = v_fma(p, r, v_set(1.0f / 6.0f));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(p, r, v_set(1.0f));
    p = v_fma(p, r, v_set(1.0f));
    return v_mul(p, v_power_of_two(n));
}

/* cap * tanh(x / cap), by way of e^-|2x/cap|. */
static ALWAYS_INLINE vfloat soft_cap(vfloat x, float cap)
{
    const vfloat y = v_div(x, v_set(cap));
    const vfloat size = v_max(y, v_sub(v_set(0.0f), y));
    const vfloat e = exponential(v_mul(size, v_set(-2.0f)));
    const vfloat magnitude = v_div(v_sub(v_set(1.0f), e), v_add(v_set(1.0f), e));
    const vfloat sign = v_div(y, v_max(size, v_set(1e-30f)));
    return v_mul(v_mul(magnitude, sign), v_set(cap));
}

#define LOGIT_LIMIT 0x1p100f

/* Scores of one row to logits; returns the largest among those that the row sees. */
static float logits_of_row(const tkv_softmax_span *span, int first, int end, float *row)
{
    const vfloat limit = v_set(LOGIT_LIMIT);
    for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
        vfloat x = v_mul(v_load(row + t), v_set(span->scale));
        if (span->softcap > 0.0f) {
            x = soft_cap(v_max(v_sub(v_set(0.0f), limit), v_min(x, limit)), span->softcap);
        }
        v_store(row + t, v_max(v_sub(v_set(0.0f), limit), v_min(x, limit)));
    }
    for (int t = 0; t < first; t++) {
        row[t] = -LOGIT_LIMIT;
    }
    for (int t = end; t < TKV_PAGE_TOKENS; t++) {
        row[t] = -LOGIT_LIMIT;
    }
    vfloat maximum = v_load(row);
    for (int t = V_LANES; t < TKV_PAGE_TOKENS; t += V_LANES) {
        maximum = v_max(maximum, v_load(row + t));
    }
    return v_maximum(maximum);
}

static void softmax(const tkv_softmax_span *span, float *values, float *maximum, float *sum,
                    float *rescale)
{
    for (int r = 0; r < span->n_rows; r++) {
        float *row = values + r * TKV_PAGE_TOKENS;
        const int first = span->first[r];
        const int end = span->end[r] > first ? span->end[r] : first;
        if (first >= end) {
            memset(row, 0, TKV_PAGE_TOKENS * sizeof *row);
            rescale[r] = sum[r] > 0.0f ? 1.0f : 0.0f;
            continue;
        }
        const float largest = fmaxf(maximum[r], logits_of_row(span, first, end, row));
        for (int t = 0; t < TKV_PAGE_TOKENS; t += V_LANES) {
            v_store(row + t, exponential(v_sub(v_load(row + t), v_set(largest))));
        }
        memset(row, 0, (size_t)first * sizeof *row);
        memset(row + end, 0, (size_t)(TKV_PAGE_TOKENS - end) * sizeof *row);
        vfloat total = v_load(row);
        for (int t = V_LANES; t < TKV_PAGE_TOKENS; t += V_LANES) {
            total = v_add(total, v_load(row + t));
        }
        rescale[r] = sum[r] > 0.0f ? expf(maximum[r] - largest) : 0.0f;
        maximum[r] = largest;
        sum[r] = sum[r] * rescale[r] + v_sum(total);
    }
}

#endif
