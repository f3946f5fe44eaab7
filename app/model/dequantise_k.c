#include "model/dequantise_k.h"

#include "model/half.h"
#include "model/simd_clones.h"

#include <string.h>

#define GROUP 32

/* Six-bit scale and minimum of group 0-7, packed into 12 bytes: groups 0-3 have bytes of their own,
 * whose upper two bits complete the nibbles of groups 4-7. */
static inline void unpack_scale(const uint8_t *packed, int group, float *scale, float *minimum)
{
    int s = packed[group] & 63;
    int m = packed[group + 4] & 63;
    if (group >= 4) {
        s = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
        m = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
    *scale = (float)s;
    *minimum = (float)m;
}

/* half scale, half minimum, 12 bytes of scales, 128 bytes: of each 32 bytes the low nibbles are one
 * group and the high nibbles the next */
TKV_SIMD_CLONES
void tkv_dequantise_q4_k(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += TKV_K_BLOCK, block += 144) {
        const float block_scale = tkv_weight_at(block);
        const float block_minimum = tkv_weight_at(block + 2);
        for (int group = 0; group < 8; group++) {
            const uint8_t *codes = block + 16 + group / 2 * GROUP;
            const int shift = group % 2 * 4;
            float scale;
            float minimum;
            unpack_scale(block + 4, group, &scale, &minimum);
            scale *= block_scale;
            minimum *= block_minimum;
            float *out = values + i + (size_t)(group * GROUP);
            for (int j = 0; j < GROUP; j++) {
                out[j] = scale * (float)(codes[j] >> shift & 15) - minimum;
            }
        }
    }
}

/* as Q4_K, with 32 bytes of fifth bits (bit g of byte j: value j of group g) before the nibbles */
TKV_SIMD_CLONES
void tkv_dequantise_q5_k(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += TKV_K_BLOCK, block += 176) {
        const float block_scale = tkv_weight_at(block);
        const float block_minimum = tkv_weight_at(block + 2);
        const uint8_t *high = block + 16;
        for (int group = 0; group < 8; group++) {
            const uint8_t *codes = block + 48 + group / 2 * GROUP;
            const int shift = group % 2 * 4;
            float scale;
            float minimum;
            unpack_scale(block + 4, group, &scale, &minimum);
            scale *= block_scale;
            minimum *= block_minimum;
            float *out = values + i + (size_t)(group * GROUP);
            for (int j = 0; j < GROUP; j++) {
                const int code = (codes[j] >> shift & 15) | (high[j] >> group & 1) << 4;
                out[j] = scale * (float)code - minimum;
            }
        }
    }
}

/* 128 bytes of low nibbles, 64 of upper bit pairs, 16 int8 scales, half scale. Each half of a block
 * is 64 + 32 bytes for four groups of 32 values, two scales a group. */
TKV_SIMD_CLONES
void tkv_dequantise_q6_k(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += TKV_K_BLOCK, block += 210) {
        const float block_scale = tkv_weight_at(block + 208);
        const int8_t *scales = (const int8_t *)block + 192;
        for (int group = 0; group < 8; group++) {
            const int half = group / 4;
            const int quarter = group % 4;
            const uint8_t *low = block + half * 64 + quarter % 2 * GROUP;
            const uint8_t *high = block + 128 + half * GROUP;
            const int low_shift = quarter / 2 * 4;
            float *out = values + i + (size_t)(group * GROUP);
            for (int j = 0; j < GROUP; j++) {
                const int code = (low[j] >> low_shift & 15) | (high[j] >> 2 * quarter & 3) << 4;
                const float scale = block_scale * (float)scales[group * 2 + j / 16];
                out[j] = scale * (float)(code - 32);
            }
        }
    }
}
