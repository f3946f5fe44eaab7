/* Viterbi search of the trellis on AVX-512: 256 metrics of 16 bits in eight registers. Bound by
 * some 70 instructions a coordinate. */
#include "kernels/trellis_fast.h"
#include "kernels/trellis_search.h"
#include "kernels/trellis_subsets.h"

#include <immintrin.h>

typedef struct constants {
    __m512i subsets[4]; /* of 32 predecessors each */
    __m512i first_half; /* interleave the first 16 words of two registers */
    __m512i second_half;
} constants;

static constants make_constants(void)
{
    constants k;
    uint16_t first[32];
    uint16_t second[32];
    for (int i = 0; i < 32; i++) {
        first[i] = (uint16_t)(i / 2 + 32 * (i % 2));
        second[i] = (uint16_t)(first[i] + 16);
    }
    for (int i = 0; i < 4; i++) {
        k.subsets[i] = _mm512_loadu_si512(subset_of + 32 * i);
    }
    k.first_half = _mm512_loadu_si512(first);
    k.second_half = _mm512_loadu_si512(second);
    return k;
}

/* Subtracts the smallest metric from all. */
static inline void renormalise(__m512i metrics[8])
{
    __m512i low = metrics[0];
    for (int i = 1; i < 8; i++) {
        low = _mm512_min_epu16(low, metrics[i]);
    }
    const __m256i half =
        _mm256_min_epu16(_mm512_castsi512_si256(low), _mm512_extracti64x4_epi64(low, 1));
    const __m128i quarter =
        _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m512i minimum = _mm512_broadcastw_epi16(_mm_minpos_epu16(quarter));
    for (int i = 0; i < 8; i++) {
        metrics[i] = _mm512_sub_epi16(metrics[i], minimum);
    }
}

/* One coordinate: from `metrics` to `next`. */
static inline void advance(const constants *k, uint64_t keys, const __m512i metrics[8],
                           __m512i next[8], step_decisions *decisions)
{
    const __m512i distances = _mm512_srli_epi16(_mm512_set1_epi64((long long)keys), 2);
    const __m512i table = _mm512_mullo_epi16(distances, distances);
    const __m512i other = _mm512_rol_epi64(table, 32);
    for (int i = 0; i < 4; i++) {
        const __m512i same = _mm512_permutexvar_epi16(k->subsets[i], table);
        const __m512i flipped = _mm512_permutexvar_epi16(k->subsets[i], other);
        const __m512i lower0 = _mm512_adds_epu16(metrics[i], same);
        const __m512i upper0 = _mm512_adds_epu16(metrics[i + 4], flipped);
        const __m512i lower1 = _mm512_adds_epu16(metrics[i], flipped);
        const __m512i upper1 = _mm512_adds_epu16(metrics[i + 4], same);
        const __m512i zero = _mm512_min_epu16(lower0, upper0);
        const __m512i one = _mm512_min_epu16(lower1, upper1);
        decisions->from_upper[0][i] = _mm512_cmplt_epu16_mask(upper0, lower0);
        decisions->from_upper[1][i] = _mm512_cmplt_epu16_mask(upper1, lower1);
        next[2 * i] = _mm512_permutex2var_epi16(zero, k->first_half, one);
        next[2 * i + 1] = _mm512_permutex2var_epi16(zero, k->second_half, one);
    }
}

void tkv_trellis_search_avx512(const tkv_trellis *trellis, int survivor_bits, float gain,
                               int head_dim, const float *z, tkv_trellis_path *path)
{
    if (survivor_bits == FAST_SURVIVOR_BITS) {
        search_fast(trellis, gain, head_dim, z, path);
        return;
    }
    const constants k = make_constants();
    step_decisions decisions[TKV_MAX_HEAD_DIM];
    uint64_t keys[TKV_MAX_HEAD_DIM];
    __m512i metrics[2][8];
    for (int i = 0; i < 8; i++) {
        const bool is_start = i < (1 << TKV_TRELLIS_START_BITS) / 32;
        metrics[0][i] = _mm512_set1_epi16(is_start ? 0 : -1);
    }
    find_nearest(trellis, gain, head_dim, z, keys);
    for (int j = 0; j < head_dim; j++) {
        if (j > 0 && j % 4 == 0) {
            renormalise(metrics[j & 1]);
        }
        advance(&k, keys[j], metrics[j & 1], metrics[~j & 1], &decisions[j]);
    }
    uint16_t last[TKV_TRELLIS_N_STATES];
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(last + 32 * i, metrics[head_dim & 1][i]);
    }
    path->start = trace_back(TKV_TRELLIS_N_STATES, last, decisions, head_dim, path->codes);
    add_free_bits(trellis, head_dim, keys, path);
}
