/* The online softmax in vectors. Included after the vector operations. */
#ifndef TKV_KERNELS_VECTOR_SOFTMAX_H
#define TKV_KERNELS_VECTOR_SOFTMAX_H

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

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

/* cap * tanh(x / cap), by way of e^-|2x/cap|. Beyond 44 the tangent is 1, and x / cap may be
 * infinite. */
static ALWAYS_INLINE vfloat soft_cap(vfloat x, float cap)
{
    const vfloat y = v_max(v_set(-44.0f), v_min(v_div(x, v_set(cap)), v_set(44.0f)));
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
        /* The maximum rarely changes, and then e^0 need not be computed. */
        rescale[r] = sum[r] <= 0.0f          ? 0.0f
                     : maximum[r] == largest ? 1.0f
                                             : expf(maximum[r] - largest);
        maximum[r] = largest;
        sum[r] = sum[r] * rescale[r] + v_sum(total);
    }
}

#endif
