/* Products of rows with unpacked levels in integers. A row of queries or weights is rounded to
 * whole steps, its largest number being PART_LIMIT * PART_BASE of them, and each number is split
 * into two signed bytes, high * PART_BASE + low, so that two byte products stand for one of 16
 * bits. Sums are exact: the only error is half a step a number. Included after vector_unpack.h. */
#ifndef TKV_KERNELS_VECTOR_INTEGER_H
#define TKV_KERNELS_VECTOR_INTEGER_H

#include "kernels/vector_unpack.h"

#include <math.h>

/* Below this a row counts as zero: its steps would leave the range of normal numbers. */
#define SMALLEST_MAXIMUM 1e-30f

enum { MAX_PARTS = 2, MAX_COLUMN_VECTORS = 4 };

/* How rows are laid out: parts[n_parts][n_dwords], in the order of unpacked levels. */
typedef struct row_form {
    int n_parts;
    int n_dwords;
    bool is_bytewise; /* in the order of a type whose codes are bytes */
} row_form;

typedef struct integer_row {
    float step;
    int32_t starts[MAX_PARTS]; /* minus what LEVEL_BIAS adds to each sum */
    uint32_t parts[];
} integer_row;

/* Steps of the largest number. */
static ALWAYS_INLINE float step_limit(int n_parts)
{
    return n_parts == 1 ? (float)PART_LIMIT : (float)(PART_LIMIT * PART_BASE);
}

static inline size_t integer_row_bytes(row_form form)
{
    return sizeof(integer_row) + (size_t)(form.n_parts * form.n_dwords) * sizeof(uint32_t);
}

static inline integer_row *row_at(void *rows, row_form form, int row)
{
    return (integer_row *)((uint8_t *)rows + (size_t)row * integer_row_bytes(form));
}

/* Dwords of n levels along a lane. */
static inline int level_dwords(tkv_type type, int n)
{
    return is_bytewise(type) ? n / 4 : (n + 31) / 32 * 8;
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
static inline void order_bytes(row_form form, const int32_t *part, uint32_t *dwords)
{
    if (form.is_bytewise) {
        for (int i = 0; i < form.n_dwords; i++) {
            dwords[i] = ((uint32_t)part[4 * i] & 255u) | ((uint32_t)part[4 * i + 1] & 255u) << 8 |
                        ((uint32_t)part[4 * i + 2] & 255u) << 16 | (uint32_t)part[4 * i + 3] << 24;
        }
        return;
    }
    for (int i = 0; i < form.n_dwords; i += 8, part += 32) {
        for (int k = 0; k < 8; k++) {
            dwords[i + k] = ((uint32_t)part[k] & 255u) | ((uint32_t)part[8 + k] & 255u) << 8 |
                            ((uint32_t)part[16 + k] & 255u) << 16 | (uint32_t)part[24 + k] << 24;
        }
    }
}

/* Rounds x [n] into `row`; n is a multiple of 16. Infinity and NaN, which a rotation of huge
 * queries or a hostile page can bring, stay within the range of the parts. */
static inline void round_row(row_form form, int n, const float *x, integer_row *row)
{
    int32_t parts[MAX_PARTS][TKV_MAX_HEAD_DIM];
    const float largest = largest_magnitude(n, x);
    const bool is_zero = !(largest >= SMALLEST_MAXIMUM);
    const float limit = step_limit(form.n_parts);
    const vfloat factor = v_set(is_zero ? 0.0f : limit / largest);
    const vint half = v_set_int(PART_BASE / 2);
    const vfloat bound = v_set(limit);
    vint sums[MAX_PARTS] = {v_set_int(0), v_set_int(0)};
    for (int i = 0; i < n; i += V_LANES) {
        const vfloat scaled = v_mul(v_load(x + i), factor);
        const vint steps = v_to_int(v_min(v_max(scaled, v_negate(bound)), bound));
        const bool is_split = form.n_parts == 2;
        const vint high = is_split ? v_right_signed(v_add_int(steps, half), PART_SHIFT) : steps;
        const vint low = v_sub_int(steps, is_split ? v_left(high, PART_SHIFT) : steps);
        v_store_int((uint32_t *)parts[0] + i, high);
        v_store_int((uint32_t *)parts[1] + i, low);
        sums[0] = v_add_int(sums[0], high);
        sums[1] = v_add_int(sums[1], low);
    }
    row->step = is_zero ? 0.0f : largest / limit;
    for (int p = 0; p < form.n_parts; p++) {
        for (int i = n; i < 4 * form.n_dwords; i++) {
            parts[p][i] = 0;
        }
        row->starts[p] = -LEVEL_BIAS * v_sum_int(sums[p]);
        order_bytes(form, parts[p], row->parts + p * form.n_dwords);
    }
}

/* Levels [n_dwords][stride] of all columns, the form of the rows, and what to make of the products.
 */
typedef struct integer_product {
    const uint32_t *levels;
    int stride;
    row_form form;
    const float *scales;  /* [stride] of the columns, or NULL */
    const float *factors; /* of what out holds before, one a row; NULL: it is overwritten */
    int factor_stride;    /* 0: the same for all rows */
} integer_product;

/* to[lane] = (factor * to[lane] +) scales[column + lane] * step * what the parts' sums stand for.
 */
static ALWAYS_INLINE void finish_sums(const integer_product *p, int n_parts, const vint *sums,
                                      int column, float step, const float *factor, float *to)
{
    vfloat x = v_from_int(sums[0]);
    if (n_parts == 2) {
        x = v_fma(x, v_set((float)PART_BASE), v_from_int(sums[1]));
    }
    x = v_mul(x, v_set(step));
    x = p->scales ? v_mul(x, v_load(p->scales + column)) : x;
    if (factor) {
        x = v_fma(v_load(to), v_set(*factor), x);
    }
    v_store(to, x);
}

/* out[r][column] = (factors[r] * out[r][column] +) scales[column] * <row r, column>. */
static ALWAYS_INLINE void dot_block(const integer_product *p, int n_parts, int n_rows,
                                    int n_vectors, int column, const integer_row *const *rows,
                                    const float *factors, float *out)
{
    vint sums[V_ROWS][MAX_COLUMN_VECTORS][MAX_PARTS];
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            for (int part = 0; part < n_parts; part++) {
                sums[r][v][part] = v_set_int((uint32_t)rows[r]->starts[part]);
            }
        }
    }
    const uint32_t *levels = p->levels + column;
    for (int d = 0; d < p->form.n_dwords; d++, levels += p->stride) {
        vint columns[MAX_COLUMN_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            columns[v] = v_load_int(levels + v * V_LANES);
        }
        for (int r = 0; r < n_rows; r++) {
            for (int part = 0; part < n_parts; part++) {
                const vint bytes = v_set_int(rows[r]->parts[part * p->form.n_dwords + d]);
                for (int v = 0; v < n_vectors; v++) {
                    sums[r][v][part] = v_dot(sums[r][v][part], columns[v], bytes);
                }
            }
        }
    }
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            float *to = out + (size_t)r * (size_t)p->stride + column + v * V_LANES;
            finish_sums(p, n_parts, sums[r][v], column + v * V_LANES, rows[r]->step,
                        factors ? factors + r * p->factor_stride : NULL, to);
        }
    }
}

#ifdef V_HAS_PAIRS
/* The same for an even number of rows: one product for two rows and two lanes instead of four, at
 * the price of bringing two dwords of a lane together. */
static ALWAYS_INLINE void dot_block_pairs(const integer_product *p, int n_parts, int n_rows,
                                          int n_vectors, int column, const integer_row *const *rows,
                                          const float *factors, float *out)
{
    vint sums[V_ROWS / 2][MAX_COLUMN_VECTORS][MAX_PARTS][2];
    for (int r = 0; r < n_rows / 2; r++) {
        for (int v = 0; v < n_vectors; v++) {
            for (int part = 0; part < n_parts; part++) {
                sums[r][v][part][0] = sums[r][v][part][1] = v_set_int(0);
            }
        }
    }
    const uint32_t *levels = p->levels + column;
    for (int d = 0; d < p->form.n_dwords; d += 2, levels += 2 * p->stride) {
        vint low[MAX_COLUMN_VECTORS];
        vint high[MAX_COLUMN_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            const vint first = v_load_int(levels + v * V_LANES);
            const vint second = v_load_int(levels + p->stride + v * V_LANES);
            low[v] = v_pair_low(first, second);
            high[v] = v_pair_high(first, second);
        }
        for (int r = 0; r < n_rows / 2; r++) {
            for (int part = 0; part < n_parts; part++) {
                const int at = part * p->form.n_dwords + d;
                const vint pair = v_load_pair(rows[2 * r]->parts + at, rows[2 * r + 1]->parts + at);
                for (int v = 0; v < n_vectors; v++) {
                    vint *sum = sums[r][v][part];
                    sum[0] = v_dot_pairs(sum[0], pair, low[v]);
                    sum[1] = v_dot_pairs(sum[1], pair, high[v]);
                }
            }
        }
    }
    for (int r = 0; r < n_rows; r++) {
        for (int v = 0; v < n_vectors; v++) {
            vint row_sums[MAX_PARTS];
            for (int part = 0; part < n_parts; part++) {
                const vint *sum = sums[r / 2][v][part];
                row_sums[part] = v_pair_row(r % 2, sum[0], sum[1]);
            }
            float *to = out + (size_t)r * (size_t)p->stride + column + v * V_LANES;
            finish_sums(p, n_parts, row_sums, column + v * V_LANES, rows[r]->step,
                        factors ? factors + r * p->factor_stride : NULL, to);
        }
    }
}
#endif

static ALWAYS_INLINE void dot_vectors(const integer_product *p, int n_parts, int n_rows,
                                      int n_vectors, int column, const integer_row *const *rows,
                                      const float *factors, float *out)
{
#ifdef V_HAS_PAIRS
    if (n_rows % 2 == 0) {
        dot_block_pairs(p, n_parts, n_rows, n_vectors, column, rows, factors, out);
        return;
    }
#endif
    dot_block(p, n_parts, n_rows, n_vectors, column, rows, factors, out);
}

static ALWAYS_INLINE void dot_columns(const integer_product *p, int n_parts, int n_rows,
                                      const void *rows, int row, float *out)
{
    const int block = V_BLOCK / n_rows < MAX_COLUMN_VECTORS ? V_BLOCK / n_rows : MAX_COLUMN_VECTORS;
    const float *factors = p->factors ? p->factors + row * p->factor_stride : NULL;
    const integer_row *block_rows[V_ROWS];
    for (int r = 0; r < n_rows; r++) {
        block_rows[r] = (const integer_row *)((const uint8_t *)rows +
                                              (size_t)(row + r) * integer_row_bytes(p->form));
    }
    float *to = out + (size_t)row * (size_t)p->stride;
    int column = 0;
    for (; column + block * V_LANES <= p->stride; column += block * V_LANES) {
        dot_vectors(p, n_parts, n_rows, block, column, block_rows, factors, to);
    }
    for (; column < p->stride; column += V_LANES) {
        dot_vectors(p, n_parts, n_rows, 1, column, block_rows, factors, to);
    }
}

static ALWAYS_INLINE void multiply_parts(const integer_product *p, int n_parts, int n_rows,
                                         const void *rows, float *out)
{
    int row = 0;
    for (; row + V_ROWS <= n_rows; row += V_ROWS) {
        dot_columns(p, n_parts, V_ROWS, rows, row, out);
    }
    for (; row + 2 <= n_rows; row += 2) {
        dot_columns(p, n_parts, 2, rows, row, out);
    }
    for (; row < n_rows; row++) {
        dot_columns(p, n_parts, 1, rows, row, out);
    }
}

/* The products of all rows: out [n_rows][stride]. */
static void multiply_rows(const integer_product *p, int n_rows, const void *rows, float *out)
{
    if (p->form.n_parts == 1) {
        multiply_parts(p, 1, n_rows, rows, out);
    } else {
        multiply_parts(p, 2, n_rows, rows, out);
    }
}

#endif
