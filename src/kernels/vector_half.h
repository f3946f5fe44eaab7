/* Attention on f16 pages in vectors: what bounds it is the multiply-adds. Included after the vector
 * operations. */
#ifndef TKV_KERNELS_VECTOR_HALF_H
#define TKV_KERNELS_VECTOR_HALF_H

#include "kernels/vector_unpack.h"

#define COLUMN_VECTORS 4
#define CACHE_LINE 64

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

/* Asks for the next page's part that corresponds to the row. */
static ALWAYS_INLINE void ask_row_ahead(const tkv_page_read *read, const uint16_t *row)
{
    const uintptr_t ahead = pages_ahead(read);
    for (int j = 0; j < read->head_dim; j += CACHE_LINE / 2) {
        ask_ahead(row + j, ahead);
    }
}

static void scores_f16(const tkv_page_read *read, int n_rows, const float *queries, float *scores)
{
    const int head_dim = read->head_dim;
    const int n_tokens = read->n_tokens;
    const uint16_t *page = read->page;
    int r = 0;
    for (; r + V_ROWS <= n_rows; r += V_ROWS) {
        for (int t = 0; t < n_tokens; t++) {
            ask_row_ahead(read, page + (size_t)t * (size_t)head_dim);
            dot_rows(V_ROWS, head_dim, queries + (size_t)r * (size_t)head_dim,
                     page + (size_t)t * (size_t)head_dim, scores + r * TKV_PAGE_TOKENS + t);
        }
    }
    for (; r < n_rows; r++) {
        for (int t = 0; t < n_tokens; t++) {
            ask_row_ahead(read, page + (size_t)t * (size_t)head_dim);
            dot_rows(1, head_dim, queries + (size_t)r * (size_t)head_dim,
                     page + (size_t)t * (size_t)head_dim, scores + r * TKV_PAGE_TOKENS + t);
        }
    }
}

static void accumulate_f16(const tkv_page_read *read, int n_rows, const float *weights,
                           const float *rescale, float *sums, float *values)
{
    const size_t head_dim = (size_t)read->head_dim;
    const uint16_t *page = read->page;
    for (size_t t = 0; t < (size_t)read->n_tokens; t++, page += head_dim) {
        ask_row_ahead(read, page);
        for (size_t j = 0; j < head_dim; j += V_LANES) {
            v_store(values + t * head_dim + j, v_load_half(page + j));
        }
    }
    multiply(n_rows, read->n_tokens, weights, TKV_PAGE_TOKENS, values, read->head_dim, rescale,
             sums);
}

#endif
