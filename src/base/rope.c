#include "base/rope.h"
#include "base/error.h"

#include <math.h>

tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error)
{
    if (rope && (!rope->frequencies || rope->n_rotated < 0 || rope->n_rotated % 2 != 0 ||
                 rope->n_rotated > head_dim)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "RoPE over %d coordinates: expected frequencies and an even number up to "
                        "%d",
                        rope->n_rotated, head_dim);
    }
    return TKV_OK;
}

void tkv_rope_turns(const tkv_rope *rope, int64_t distance, float *turns)
{
    const int n_pairs = rope->n_rotated / 2;
    for (int i = 0; i < n_pairs; i++) {
        const double angle = (double)distance * (double)rope->frequencies[i];
        turns[i] = (float)cos(angle);
        turns[n_pairs + i] = (float)sin(angle);
    }
}
