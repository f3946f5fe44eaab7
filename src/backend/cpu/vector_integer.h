/* Products of rows with unpacked levels in integers. A row of queries or weights is rounded to
 * whole steps, its largest number being PART_LIMIT * PART_BASE of them, and each number is split
 * into two signed bytes, high * PART_BASE + low, so that two byte products stand for one of 16
 * bits. Sums are exact: the only error is half a step a number. Included after vector_unpack.h. */
#ifndef TKV_BACKEND_CPU_VECTOR_INTEGER_H
#define TKV_BACKEND_CPU_VECTOR_INTEGER_H

#include "backend/cpu/vector_unpack.h"

#include <math.h>

/* Below this a row counts as zero: its steps would leave the range of normal numbers. */
#define SMALLEST_MAXIMUM 1e-30f

enum { N_PARTS = 2, MAX_COLUMN_VECTORS = 4 };

/* One row: parts[N_PARTS][n_dwords], in the order of unpacked levels. */
typedef struct integer_row {
    float step;
    int32_t starts[N_PARTS]; /* minus what LEVEL_BIAS adds to each sum */
    uint32_t parts[];
} integer_row;

static inline size_t integer_row_bytes(int n_dwords)
{
    return sizeof(integer_row) + N_PARTS * (size_t)n_dwords * sizeof(uint32_t);
}

static inline integer_row *row_at(void *rows, int n_dwords, int row)
{
    return (integer_row *)((uint8_t *)rows + (size_t)row * integer_row_bytes(n_dwords));
}

/* Dwords of a row of n codes along a lane. */
static inline int row_dwords(tkv_type type, int n)
{
    return type == TKV_TYPE_TURBO8 ? n / 4 : (n + 31) / 32 * 8;
}

static inline float largest_magnitude(int n, const float *x)
{
    vfloat largest = v_set(0.0f);
    for (int i = 0; i < n; i += V_LANES) {
        const vfloat value = v_load(x + i);
        largest = v_max(largest, v_max(value, v_negate(value)));
    }
    return v_maximum(largest);
}

/* Bytes of a part to dwords in the order of unpacked levels. */
static inline void order_bytes(tkv_type type, int n_dwords, const int32_t *part, uint32_t *dwords)
{
    if (type == TKV_TYPE_TURBO8) {
        for (int i = 0; i < n_dwords; i++) {
            dwords[i] = ((uint32_t)part[4 * i] & 255u) | ((uint32_t)part[4 * i + 1] & 255u) << 8 |
                        ((uint32_t)part[4 * i + 2] & 255u) << 16 | (uint32_t)part[4 * i + 3] << 24;
        }
        return;
    }
    for (int i = 0; i < n_dwords; i += 8, part += 32) {
        for (int k = 0; k < 8; k++) {
            dwords[i + k] = ((uint32_t)part[k] & 255u) | ((uint32_t)part[8 + k] & 255u) << 8 |
                            ((uint32_t)part[16 + k] & 255u) << 16 | (uint32_t)part[24 + k] << 24;
        }
    }
}

/* Rounds x [n] into `row`; n is a multiple of 16. */
static inline void round_row(tkv_type type, int n, const float *x, integer_row *row)
{
    int32_t high[TKV_MAX_HEAD_DIM];
    int32_t low[TKV_MAX_HEAD_DIM];
    const int n_dwords = row_dwords(type, n);
    const float largest = largest_magnitude(n, x);
    const float limit = (float)(PART_LIMIT * PART_BASE);
    const bool is_zero = !(largest >= SMALLEST_MAXIMUM);
    const vfloat factor = v_set(is_zero ? 0.0f : limit / largest);
    const vint half = v_set_int(PART_BASE / 2);
    vint sums[N_PARTS] = {v_set_int(0), v_set_int(0)};
    for (int i = 0; i < n; i += V_LANES) {
        const vint steps = v_to_int(v_mul(v_load(x + i), factor));
        const vint high_part = v_right_signed(v_add_int(steps, half), PART_SHIFT);
        const vint low_part = v_sub_int(steps, v_left(high_part, PART_SHIFT));
        v_store_int((uint32_t *)high + i, high_part);
        v_store_int((uint32_t *)low + i, low_part);
        sums[0] = v_add_int(sums[0], high_part);
        sums[1] = v_add_int(sums[1], low_part);
    }
    for (int i = n; i < 4 * n_dwords; i++) {
        high[i] = low[i] = 0;
    }
    row->step = is_zero ? 0.0f : largest / limit;
    row->starts[0] = -LEVEL_BIAS * v_sum_int(sums[0]);
    row->starts[1] = -LEVEL_BIAS * v_sum_int(sums[1]);
    order_bytes(type, n_dwords, high, row->parts);
    order_bytes(type, n_dwords, low, row->parts + n_dwords);
}

/* Levels [n_dwords][stride] of all columns, and what to make of the products. */
typedef struct integer_product {
    const uint32_t *levels;
    int stride;
    int n_dwords;
    const float *scales;  /* [stride] of the columns, or NULL */
    const float *factors; /* of what out holds before, one a row; NULL: it is overwritten */
    int factor_stride;    /* 0: the same for all rows */
} integer_product;

/* out[r][column] = (factors[r] * out[r][column] +) scales[column] * <row r, column>. */
static ALWAYS_INLINE void dot_block(const integer_product *p, int n_rows, int n_vectors, int column,
                                    const integer_row *const *rows, const float *factors,
                                    float *out)
{
    vint sums[V_ROWS][MAX_COLUMN_VECTORS][N_PARTS];
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            for (int part = 0; part < N_PARTS; part++) {
                sums[r][v][part] = v_set_int((uint32_t)rows[r]->starts[part]);
            }
        }
    }
    const uint32_t *levels = p->levels + column;
    for (int d = 0; d < p->n_dwords; d++, levels += p->stride) {
        vint columns[MAX_COLUMN_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            columns[v] = v_load_int(levels + v * V_LANES);
        }
        for (int r = 0; r < n_rows; r++) {
            for (int part = 0; part < N_PARTS; part++) {
                const vint bytes = v_set_int(rows[r]->parts[part * p->n_dwords + d]);
                for (int v = 0; v < n_vectors; v++) {
                    sums[r][v][part] = v_dot(sums[r][v][part], columns[v], bytes);
                }
            }
        }
    }
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            float *to = out + (size_t)r * (size_t)p->stride + column + v * V_LANES;
            vfloat x = v_fma(v_from_int(sums[r][v][0]), v_set((float)PART_BASE),
                             v_from_int(sums[r][v][1]));
            x = v_mul(x, v_set(rows[r]->step));
            x = p->scales ? v_mul(x, v_load(p->scales + column + v * V_LANES)) : x;
            if (factors) {
                x = v_fma(v_load(to), v_set(factors[r * p->factor_stride]), x);
            }
            v_store(to, x);
        }
    }
}

static ALWAYS_INLINE void dot_columns(const integer_product *p, int n_rows, const void *rows,
                                      int row, float *out)
{
    const int block = V_BLOCK / n_rows < MAX_COLUMN_VECTORS ? V_BLOCK / n_rows : MAX_COLUMN_VECTORS;
    const float *factors = p->factors ? p->factors + row * p->factor_stride : NULL;
    const integer_row *block_rows[V_ROWS];
    for (int r = 0; r < n_rows; r++) {
        block_rows[r] = (const integer_row *)((const uint8_t *)rows +
                                              (size_t)(row + r) * integer_row_bytes(p->n_dwords));
    }
    float *to = out + (size_t)row * (size_t)p->stride;
    int column = 0;
    for (; column + block * V_LANES <= p->stride; column += block * V_LANES) {
        dot_block(p, n_rows, block, column, block_rows, factors, to);
    }
    for (; column < p->stride; column += V_LANES) {
        dot_block(p, n_rows, 1, column, block_rows, factors, to);
    }
}

/* The products of all rows: out [n_rows][stride]. */
static void multiply_rows(const integer_product *p, int n_rows, const void *rows, float *out)
{
    int row = 0;
    for (; row + V_ROWS <= n_rows; row += V_ROWS) {
        dot_columns(p, V_ROWS, rows, row, out);
    }
    for (; row + 2 <= n_rows; row += 2) {
        dot_columns(p, 2, rows, row, out);
    }
    for (; row < n_rows; row++) {
        dot_columns(p, 1, rows, row, out);
    }
}

#endif
