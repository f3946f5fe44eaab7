/* Random rows and rows that are made to do harm. */
#include "base/random.h"
#include "check/check.h"
#include "format/codec.h"

#include <math.h>

enum { KIND_ROTATED_RUN = 10 };

static float value_of(int kind, float gauss, bool is_spike)
{
    switch (kind) {
    case 1: return is_spike ? 7.0f : 0.0f;
    case 2: return 0.0f;
    case 3: return gauss * 1e-13f;
    case 4: return gauss * 1e30f;
    case 5: return 1.0f;
    case 6: return rintf(4.0f * gauss) / 4.0f;
    case 7: return gauss * 1e-42f;
    case 8: return gauss < 0.0f ? -3e38f : 3e38f;
    case 9: return is_spike ? 1000.0f * gauss : gauss;
    case 11: return is_spike ? (gauss < 0.0f ? NAN : INFINITY) : gauss;
    default: return gauss;
    }
}

/* Signs alternate at random within the run. */
static void fill_rotated_run(uint64_t *seed, int head_dim, float *x)
{
    const int length = 5 + tkv_random_below(seed, 12);
    const int first = tkv_random_below(seed, head_dim - length + 1);
    for (int j = 0; j < head_dim; j++) {
        const float size = j >= first && j < first + length ? 7.0f : 0.01f;
        x[j] = tkv_random_below(seed, 2) ? size : -size;
    }
    tkv_unrotate_row(head_dim, x);
}

void tkv_check_rows(uint64_t *seed, int n_rows, int head_dim, size_t stride, int n_kinds, float *x)
{
    for (int i = 0; i < n_rows; i++) {
        const int kind = n_kinds > 1 ? tkv_random_below(seed, n_kinds) : 0;
        float *row = x + (size_t)i * stride;
        for (int j = 0; j < head_dim; j++) {
            row[j] = value_of(kind, tkv_random_near_gauss(seed), j == i % head_dim);
        }
        if (kind == KIND_ROTATED_RUN) {
            fill_rotated_run(seed, head_dim, row);
        }
    }
}

void tkv_check_unify_nan(size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = isnan(x[i]) ? NAN : x[i];
    }
}

double tkv_check_norm(int n, const float *x)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}
