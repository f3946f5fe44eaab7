/* Random numbers that are the same everywhere, from a state that the caller keeps. */
#ifndef TKV_BASE_RANDOM_H
#define TKV_BASE_RANDOM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* SplitMix64 (Steele, Lea and Flood 2014). */
static inline uint64_t tkv_random_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* In [0, 1). */
static inline double tkv_random_uniform(uint64_t *state)
{
    return (double)(tkv_random_bits(state) >> 11) * 0x1p-53;
}

/* From 0 to n - 1. */
static inline int tkv_random_below(uint64_t *state, int n)
{
    return (int)(tkv_random_bits(state) % (uint64_t)n);
}

/* Gaussian (Box and Muller): the same float wherever the C library's functions are. */
static inline float tkv_random_gauss(uint64_t *state)
{
    const double radius = sqrt(-2.0 * log(1.0 - tkv_random_uniform(state)));
    return (float)(radius * cos(6.283185307179586 * tkv_random_uniform(state)));
}

/* Nearly Gaussian, of variance 4/3, and the same float everywhere: a sum of integers, scaled by a
 * power of two. */
static inline float tkv_random_near_gauss(uint64_t *state)
{
    const uint64_t bits = tkv_random_bits(state);
    const int sum = (int)(bits & 0xffff) + (int)(bits >> 16 & 0xffff) + (int)(bits >> 32 & 0xffff) +
                    (int)(bits >> 48);
    return (float)(sum - 131070) * 0x1p-15f;
}

static inline void tkv_random_fill(uint64_t *state, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = tkv_random_near_gauss(state);
    }
}

#endif
