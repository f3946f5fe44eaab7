/* What the examples share: random rows, attention by its definition, and how a program ends. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <turbokv.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the program if a call has failed. */
static inline void require(tkv_status status, const tkv_error *error)
{
    if (status != TKV_OK) {
        fprintf(stderr, "%s: %s\n", tkv_status_name(status), error->message);
        exit(EXIT_FAILURE);
    }
}

/* A buffer of n floats that must be there. */
static inline float *floats(size_t n)
{
    float *x = calloc(n, sizeof *x);
    if (!x) {
        fprintf(stderr, "no memory for %zu floats\n", n);
        exit(EXIT_FAILURE);
    }
    return x;
}

/* Numbers of mean 0.5 and variance 1 (SplitMix64). */
static inline void fill_random(uint64_t *seed, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t z = *seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        x[i] = 0.5f + 3.4641016f * ((float)((z ^ z >> 31) >> 40) * 0x1p-24f - 0.5f);
    }
}

typedef struct shape {
    int n_kv_heads;
    int n_heads;
    int head_dim;
} shape;

/* Attention of the query at position n_tokens-1, in double precision: q [n_heads][head_dim], k and
 * v [n_tokens][n_kv_heads][head_dim]. Returns |out - it| / |it|. */
static inline double compare_with_definition(const shape *s, int n_tokens, const float *q,
                                             const float *k, const float *v, const float *out)
{
    double difference = 0.0;
    double norm = 0.0;
    for (int head = 0; head < s->n_heads; head++) {
        double sums[TKV_MAX_HEAD_DIM] = {0.0};
        double total = 0.0;
        for (int t = 0; t < n_tokens; t++) {
            const int kv_head = head / (s->n_heads / s->n_kv_heads);
            const size_t row = (size_t)(t * s->n_kv_heads + kv_head) * (size_t)s->head_dim;
            double logit = 0.0;
            for (int j = 0; j < s->head_dim; j++) {
                logit += (double)q[head * s->head_dim + j] * (double)k[row + (size_t)j];
            }
            const double weight = exp(logit / sqrt((double)s->head_dim));
            total += weight;
            for (int j = 0; j < s->head_dim; j++) {
                sums[j] += weight * (double)v[row + (size_t)j];
            }
        }
        for (int j = 0; j < s->head_dim; j++) {
            const double expected = sums[j] / total;
            const double d = (double)out[head * s->head_dim + j] - expected;
            difference += d * d;
            norm += expected * expected;
        }
    }
    return sqrt(difference / norm);
}

#endif
