/* Rotary position embedding: keys and their angles (Su et al., arXiv 2104.09864). */
#ifndef TKV_BASE_ROPE_H
#define TKV_BASE_ROPE_H

#include "turbokv.h"

/* Turns one key by the angles of cosines and sines [n_rotated / 2]; back: by their opposite. */
static inline void tkv_turn_key(const tkv_rope *rope, const float *turns, bool back, float *key)
{
    const int n_pairs = rope->n_rotated / 2;
    for (int i = 0; i < n_pairs; i++) {
        float *a = rope->is_interleaved ? key + 2 * i : key + i;
        float *b = rope->is_interleaved ? key + 2 * i + 1 : key + i + n_pairs;
        const float x = *a;
        const float y = *b;
        const float sine = back ? -turns[n_pairs + i] : turns[n_pairs + i];
        *a = x * turns[i] - y * sine;
        *b = x * sine + y * turns[i];
    }
}

/* Checks a description of RoPE; NULL is right. */
tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error);

/* Cosines, then sines, [n_rotated / 2] each, of a distance of so many positions. */
void tkv_rope_turns(const tkv_rope *rope, int64_t distance, float *turns);

#endif
