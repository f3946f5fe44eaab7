/* IEEE 754 binary16 <-> binary32, round to nearest even, by integer arithmetic only, so that every
 * machine and compiler gives the same bits (denormals, infinities and NaN included). */
#ifndef TKV_BASE_HALF_H
#define TKV_BASE_HALF_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define TKV_HALF_MAX 65504.0f
#define TKV_HALF_NAN 0x7e00u

static inline uint32_t tkv_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float tkv_bits_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float tkv_half_to_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        return tkv_bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    /* Shifted into place, a normal half is 2^112 too small; a denormal becomes a float denormal
     * that the same exact multiplication makes normal. */
    return tkv_bits_float(sign | tkv_float_bits(tkv_bits_float(magnitude << 13) * 0x1p112f));
}

static inline uint16_t tkv_float_to_half(float value)
{
    const uint32_t bits = tkv_float_bits(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | TKV_HALF_NAN);
    }
    if (magnitude >= 0x477ff000u) { /* 65520 and up round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: the sum's last bit is the half's last bit */
        const float sum = tkv_bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (tkv_float_bits(sum) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

/* As f16 rows store values: finite ones that would round to infinity become the largest half. */
static inline uint16_t tkv_float_to_finite_half(float value)
{
    const uint16_t half = tkv_float_to_half(value);
    const bool is_overflow =
        (half & 0x7fffu) == 0x7c00u && (tkv_float_bits(value) & 0x7fffffffu) < 0x7f800000u;
    return (uint16_t)(half - is_overflow);
}

#endif
