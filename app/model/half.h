/* Halves and bfloat16 one by one, for the loops over a model's weights. */
#ifndef TKV_MODEL_HALF_H
#define TKV_MODEL_HALF_H

#include <stdint.h>
#include <string.h>

static inline float tkv_float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float tkv_weight_from_bfloat(uint16_t bits)
{
    return tkv_float_of_bits((uint32_t)bits << 16);
}

/* Shifted into place, a normal half is 2^112 too small; a denormal becomes a float denormal that
 * the same exact multiplication makes normal. */
static inline float tkv_weight_from_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    float value = tkv_float_of_bits(magnitude << 13) * 0x1p112f;
    if (magnitude >= 0x7c00u) {
        value = tkv_float_of_bits(0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return tkv_float_of_bits(sign | bits);
}

/* The half at any address. */
static inline float tkv_weight_at(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return tkv_weight_from_half(half);
}

#endif
