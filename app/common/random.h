/* Random numbers that are the same everywhere, from a state that the caller keeps. */
#ifndef TKV_COMMON_RANDOM_H
#define TKV_COMMON_RANDOM_H

#include <math.h>
#include <stdint.h>

/* SplitMix64 (Steele, Lea and Flood 2014). */
static inline uint64_t tkv_draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* In [0, 1). */
static inline double tkv_draw_uniform(uint64_t *state)
{
    return (double)(tkv_draw(state) >> 11) * 0x1p-53;
}

/* Gaussian (Box and Muller). */
static inline float tkv_draw_gauss(uint64_t *state)
{
    const double radius = sqrt(-2.0 * log(1.0 - tkv_draw_uniform(state)));
    return (float)(radius * cos(6.283185307179586 * tkv_draw_uniform(state)));
}

#endif
