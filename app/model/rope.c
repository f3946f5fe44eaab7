#include "model/rope.h"

#include <math.h>
#include <stddef.h>

void tkv_rope_frequencies(int rope_dim, double base, double linear_factor, const float *factors,
                          double *frequencies)
{
    for (int i = 0; i < rope_dim / 2; i++) {
        const double factor = factors ? factors[i] : 1.0;
        frequencies[i] = pow(base, -2.0 * i / rope_dim) / (linear_factor * factor);
    }
}

/* In double: at position 100,000 a float angle is already off by 0.004 radians. */
void tkv_rope_table(int rope_dim, const double *frequencies, double magnitude, int first_position,
                    int n_tokens, float *table)
{
    for (int t = 0; t < n_tokens; t++) {
        for (int i = 0; i < rope_dim / 2; i++) {
            const double angle = ((double)first_position + t) * frequencies[i];
            *table++ = (float)(magnitude * cos(angle));
            *table++ = (float)(magnitude * sin(angle));
        }
    }
}

static void turn_interleaved(int n_pairs, const float *turns, float *x)
{
    for (int i = 0; i < n_pairs; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        const float c = turns[2 * i], s = turns[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

static void turn_half_split(int n_pairs, const float *turns, float *x)
{
    for (int i = 0; i < n_pairs; i++) {
        const float a = x[i], b = x[i + n_pairs];
        const float c = turns[2 * i], s = turns[2 * i + 1];
        x[i] = a * c - b * s;
        x[i + n_pairs] = a * s + b * c;
    }
}

void tkv_rope_apply(tkv_rope_pairing pairing, int rope_dim, const float *table, int n_tokens,
                    int n_heads, int head_dim, float *x)
{
    const int n_pairs = rope_dim / 2;
    for (int t = 0; t < n_tokens; t++) {
        const float *turns = table + (size_t)t * (size_t)rope_dim;
        for (int h = 0; h < n_heads; h++, x += head_dim) {
            if (pairing == TKV_ROPE_INTERLEAVED)
                turn_interleaved(n_pairs, turns, x);
            else
                turn_half_split(n_pairs, turns, x);
        }
    }
}
