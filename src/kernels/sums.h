/* What tkv_kernels.accumulate sums up. A sketch type has two sums of each row, one in the domain of
 * the codes and one in that of the sketch, where its residual signs live: bringing the sum back
 * from the sketch once costs less than bringing back every page's. */
#ifndef TKV_KERNELS_SUMS_H
#define TKV_KERNELS_SUMS_H

#include "format/codec.h"

static inline bool tkv_has_sketch(tkv_type type)
{
    return tkv_type_kind(type) == TKV_CODE_SKETCH;
}

/* Floats of the sums of n_rows rows: [n_rows][head_dim], of a sketch type twice. */
static inline size_t tkv_sum_floats(tkv_type type, int head_dim, int n_rows)
{
    return (tkv_has_sketch(type) ? 2 : 1) * (size_t)n_rows * (size_t)head_dim;
}

/* Adds the second sums to the first ones, which then are all there is. */
static inline void tkv_join_sums(tkv_type type, int head_dim, int n_rows, float *sums)
{
    const size_t n = (size_t)n_rows * (size_t)head_dim;
    if (!tkv_has_sketch(type)) {
        return;
    }
    for (int r = 0; r < n_rows; r++) {
        tkv_unsketch_row(head_dim, sums + n + (size_t)r * (size_t)head_dim);
    }
    for (size_t i = 0; i < n; i++) {
        sums[i] += sums[n + i];
        sums[n + i] = 0.0f;
    }
}

#endif
