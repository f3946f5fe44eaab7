/* Rotation of V_LANES rows at once: lanes are rows, so that a transform is additions of whole
 * vectors and every row is rounded as in the reference. Included after the vector operations. What
 * bounds it: loads and stores, three stages of butterflies to one pass through the cache. */
#ifndef TKV_KERNELS_VECTOR_TRANSFORM_H
#define TKV_KERNELS_VECTOR_TRANSFORM_H

#include "format/codec.h"
#include "kernels/kernels.h"

#include <math.h>

/* Rows next to each other: x [head_dim][V_LANES]. */
typedef struct lane_rows {
    _Alignas(64) float x[TKV_MAX_HEAD_DIM * V_LANES];
} lane_rows;

static ALWAYS_INLINE float *lanes_of(lane_rows *rows, int coordinate)
{
    return rows->x + coordinate * V_LANES;
}

/* Gathers n_rows <= V_LANES rows; the lanes beyond repeat the first. */
static inline void load_lanes(int head_dim, int n_rows, const float *x, size_t row_stride,
                              lane_rows *rows)
{
    for (int j = 0; j < head_dim; j += V_LANES) {
        vfloat block[V_LANES];
        for (int lane = 0; lane < V_LANES; lane++) {
            block[lane] = v_load(x + (size_t)(lane < n_rows ? lane : 0) * row_stride + j);
        }
        v_transpose(block);
        for (int k = 0; k < V_LANES; k++) {
            v_store(lanes_of(rows, j + k), block[k]);
        }
    }
}

/* Spreads n_rows rows. */
static inline void store_lanes(int head_dim, int n_rows, const lane_rows *rows, float *x,
                               size_t row_stride)
{
    for (int j = 0; j < head_dim; j += V_LANES) {
        vfloat block[V_LANES];
        for (int k = 0; k < V_LANES; k++) {
            block[k] = v_load(rows->x + (j + k) * V_LANES);
        }
        v_transpose(block);
        for (int lane = 0; lane < V_LANES && lane < n_rows; lane++) {
            v_store(x + (size_t)lane * row_stride + j, block[lane]);
        }
    }
}

/* n_stages <= 3 stages of the transform from distance `half` on; in the last pass values are
 * multiplied by norm. */
static ALWAYS_INLINE void butterflies(int n_stages, int block, int half, bool is_last, float norm,
                                      float *x)
{
    const int n = 1 << n_stages;
    for (int base = 0; base < block; base += n * half) {
        for (int j = base; j < base + half; j++) {
            vfloat v[8];
            for (int k = 0; k < n; k++) {
                v[k] = v_load(x + (j + k * half) * V_LANES);
            }
            for (int distance = 1; distance < n; distance *= 2) {
                for (int k = 0; k < n; k++) {
                    if (!(k & distance)) {
                        const vfloat a = v[k];
                        const vfloat b = v[k + distance];
                        v[k] = v_add(a, b);
                        v[k + distance] = v_sub(a, b);
                    }
                }
            }
            for (int k = 0; k < n; k++) {
                v_store(x + (j + k * half) * V_LANES, is_last ? v_mul(v[k], v_set(norm)) : v[k]);
            }
        }
    }
}

/* The transform of format/rotation.c. */
static inline void transform_lanes(int block, float *x)
{
    const float norm = (float)(1.0 / sqrt((double)block));
    int half = 1;
    for (; 16 * half <= block; half *= 8) {
        butterflies(3, block, half, false, norm, x);
    }
    switch (block / half) {
    case 2: butterflies(1, block, half, true, norm, x); break;
    case 4: butterflies(2, block, half, true, norm, x); break;
    default: butterflies(3, block, half, true, norm, x); break;
    }
}

static inline void flip_lanes(int first, int end, const uint32_t *signs, lane_rows *rows)
{
    for (int j = first; j < end; j++) {
        if (signs[j / 32] >> (j % 32) & 1u) {
            v_store(lanes_of(rows, j), v_negate(v_load(lanes_of(rows, j))));
        }
    }
}

/* One round of the rotation, and back. */
static inline void mix_lanes(int head_dim, const uint32_t *signs, lane_rows *rows)
{
    const int block = tkv_rotation_block(head_dim);
    const int last = head_dim - block;
    flip_lanes(0, block, signs, rows);
    transform_lanes(block, rows->x);
    if (last > 0) {
        flip_lanes(last, head_dim, signs, rows);
        transform_lanes(block, lanes_of(rows, last));
    }
}

static inline void unmix_lanes(int head_dim, const uint32_t *signs, lane_rows *rows)
{
    const int block = tkv_rotation_block(head_dim);
    const int last = head_dim - block;
    if (last > 0) {
        transform_lanes(block, lanes_of(rows, last));
        flip_lanes(last, head_dim, signs, rows);
    }
    transform_lanes(block, rows->x);
    flip_lanes(0, block, signs, rows);
}

static inline void rotate_lanes(int head_dim, lane_rows *rows)
{
    mix_lanes(head_dim, tkv_rotation_signs[0], rows);
    mix_lanes(head_dim, tkv_rotation_signs[1], rows);
}

static inline void unrotate_lanes(int head_dim, lane_rows *rows)
{
    unmix_lanes(head_dim, tkv_rotation_signs[1], rows);
    unmix_lanes(head_dim, tkv_rotation_signs[0], rows);
}

/* The kernels of the table. A few rows are quicker one at a time. */
#define MIN_LANE_ROWS (V_LANES / 4)

static void rotate(int head_dim, int n_rows, float *x)
{
    lane_rows rows;
    for (int i = 0; i < n_rows; i += V_LANES, x += V_LANES * head_dim) {
        const int n = n_rows - i < V_LANES ? n_rows - i : V_LANES;
        if (n < MIN_LANE_ROWS) {
            tkv_kernels_scalar.rotate(head_dim, n, x);
            continue;
        }
        load_lanes(head_dim, n, x, (size_t)head_dim, &rows);
        rotate_lanes(head_dim, &rows);
        store_lanes(head_dim, n, &rows, x, (size_t)head_dim);
    }
}

static void unrotate(int head_dim, int n_rows, float *x)
{
    lane_rows rows;
    for (int i = 0; i < n_rows; i += V_LANES, x += V_LANES * head_dim) {
        const int n = n_rows - i < V_LANES ? n_rows - i : V_LANES;
        if (n < MIN_LANE_ROWS) {
            tkv_kernels_scalar.unrotate(head_dim, n, x);
            continue;
        }
        load_lanes(head_dim, n, x, (size_t)head_dim, &rows);
        unrotate_lanes(head_dim, &rows);
        store_lanes(head_dim, n, &rows, x, (size_t)head_dim);
    }
}

#endif
