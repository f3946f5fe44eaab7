/* The nearest level of each subset to each coordinate's target, for the searches on x86. */
#ifndef TKV_KERNELS_TRELLIS_NEAREST_H
#define TKV_KERNELS_TRELLIS_NEAREST_H

#include "format/trellis.h"

#include <immintrin.h>

#define TARGET_LIMIT 190.0f

/* Four 16-bit keys a coordinate, one a subset: 4 * distance + free bits, so that the smallest key
 * is the nearest level, the first of equals. Distances are below 256. */
static inline void find_nearest(const tkv_trellis *trellis, float gain, int head_dim,
                                const float *z, uint64_t *keys)
{
    int16_t targets[16];
    int16_t levels[16];
    int16_t free_bits[16];
    for (int i = 0; i < 16; i++) {
        const int index = i & ((4 << trellis->free_bits) - 1);
        levels[i] = trellis->levels[index];
        free_bits[i] = (int16_t)(index / 4);
    }
    const __m256i all_levels = _mm256_loadu_si256((const __m256i *)(const void *)levels);
    const __m256i all_free = _mm256_loadu_si256((const __m256i *)(const void *)free_bits);
    const __m256 unit = _mm256_set1_ps(trellis->unit * gain);
    for (int j = 0; j < head_dim; j += 16) {
        __m256i halves[2];
        for (int i = 0; i < 2; i++) {
            const __m256 target =
                _mm256_round_ps(_mm256_mul_ps(_mm256_loadu_ps(z + j + 8 * i), unit),
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            halves[i] = _mm256_cvtps_epi32(
                _mm256_max_ps(_mm256_set1_ps(-TARGET_LIMIT),
                              _mm256_min_ps(target, _mm256_set1_ps(TARGET_LIMIT))));
        }
        const __m256i packed = _mm256_packs_epi32(halves[0], halves[1]);
        _mm256_storeu_si256((__m256i *)(void *)targets, _mm256_permute4x64_epi64(packed, 0xd8));
        for (int k = 0; k < 16; k++) {
            const __m256i distance =
                _mm256_abs_epi16(_mm256_sub_epi16(all_levels, _mm256_set1_epi16(targets[k])));
            const __m256i all = _mm256_or_si256(_mm256_slli_epi16(distance, 2), all_free);
            const __m128i half =
                _mm_min_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
            const __m128i key = _mm_min_epu16(half, _mm_srli_si128(half, 8));
            _mm_storel_epi64((__m128i *)(void *)(keys + j + k), key);
        }
    }
}

#endif
