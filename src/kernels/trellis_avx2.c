/* Viterbi search of the trellis on AVX2: 256 metrics of 16 bits in sixteen vectors. */
#include "kernels/trellis_fast.h"
#include "kernels/trellis_search.h"
#include "kernels/trellis_subsets.h"

#include <immintrin.h>

/* Byte selectors that look up words of a table of four by the subsets of 16 predecessors. */
static void make_selectors(__m256i selectors[8])
{
    for (int i = 0; i < 8; i++) {
        const __m256i subsets =
            _mm256_loadu_si256((const __m256i *)(const void *)(subset_of + 16 * i));
        const __m256i low = _mm256_slli_epi16(subsets, 1);
        selectors[i] =
            _mm256_or_si256(low, _mm256_slli_epi16(_mm256_add_epi16(low, _mm256_set1_epi16(1)), 8));
    }
}

/* Subtracts the smallest metric from all. */
static inline void renormalise(__m256i metrics[16])
{
    __m256i low = metrics[0];
    for (int i = 1; i < 16; i++) {
        low = _mm256_min_epu16(low, metrics[i]);
    }
    const __m128i half =
        _mm_min_epu16(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    const __m256i minimum = _mm256_broadcastw_epi16(_mm_minpos_epu16(half));
    for (int i = 0; i < 16; i++) {
        metrics[i] = _mm256_sub_epi16(metrics[i], minimum);
    }
}

/* 16 bits: where the upper path is cheaper, that is where the minimum is not the lower one. */
static inline uint32_t upper_wins(__m256i lower, __m256i minimum)
{
    const __m256i same = _mm256_cmpeq_epi16(lower, minimum);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(same), _mm256_extracti128_si256(same, 1));
    return ~(uint32_t)_mm_movemask_epi8(bytes) & 0xffffu;
}

/* One coordinate: from `metrics` to `next`. */
static inline void advance(const __m256i selectors[8], uint64_t keys, const __m256i metrics[16],
                           __m256i next[16], step_decisions *decisions)
{
    const __m256i distances = _mm256_srli_epi16(_mm256_set1_epi64x((long long)keys), 2);
    const __m256i table = _mm256_mullo_epi16(distances, distances);
    const __m256i other = _mm256_shuffle_epi32(table, 0xb1);
    *decisions = (step_decisions){{{0}}};
    for (int i = 0; i < 8; i++) {
        const __m256i same = _mm256_shuffle_epi8(table, selectors[i]);
        const __m256i flipped = _mm256_shuffle_epi8(other, selectors[i]);
        const __m256i lower0 = _mm256_adds_epu16(metrics[i], same);
        const __m256i lower1 = _mm256_adds_epu16(metrics[i], flipped);
        const __m256i zero = _mm256_min_epu16(lower0, _mm256_adds_epu16(metrics[i + 8], flipped));
        const __m256i one = _mm256_min_epu16(lower1, _mm256_adds_epu16(metrics[i + 8], same));
        decisions->from_upper[0][i / 2] |= upper_wins(lower0, zero) << (16 * (i % 2));
        decisions->from_upper[1][i / 2] |= upper_wins(lower1, one) << (16 * (i % 2));
        const __m256i low = _mm256_unpacklo_epi16(zero, one);
        const __m256i high = _mm256_unpackhi_epi16(zero, one);
        next[2 * i] = _mm256_permute2x128_si256(low, high, 0x20);
        next[2 * i + 1] = _mm256_permute2x128_si256(low, high, 0x31);
    }
}

void tkv_trellis_search_avx2(const tkv_trellis *trellis, int survivor_bits, float gain,
                             int head_dim, const float *z, tkv_trellis_path *path)
{
    if (survivor_bits == FAST_SURVIVOR_BITS) {
        search_fast(trellis, gain, head_dim, z, path);
        return;
    }
    __m256i selectors[8];
    step_decisions decisions[TKV_MAX_HEAD_DIM];
    uint64_t keys[TKV_MAX_HEAD_DIM];
    __m256i metrics[2][16];
    make_selectors(selectors);
    for (int i = 0; i < 16; i++) {
        const bool is_start = i < (1 << TKV_TRELLIS_START_BITS) / 16;
        metrics[0][i] = _mm256_set1_epi16(is_start ? 0 : -1);
    }
    find_nearest(trellis, gain, head_dim, z, keys);
    for (int j = 0; j < head_dim; j++) {
        if (j > 0 && j % 4 == 0) {
            renormalise(metrics[j & 1]);
        }
        advance(selectors, keys[j], metrics[j & 1], metrics[~j & 1], &decisions[j]);
    }
    uint16_t last[TKV_TRELLIS_N_STATES];
    for (int i = 0; i < 16; i++) {
        _mm256_storeu_si256((__m256i *)(void *)(last + 16 * i), metrics[head_dim & 1][i]);
    }
    path->start = trace_back(TKV_TRELLIS_N_STATES, last, decisions, head_dim, path->codes);
    add_free_bits(trellis, head_dim, keys, path);
}
