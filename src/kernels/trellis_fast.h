/* The search of effort "fast" on x86: 32 survivors, one for each value of the newest five path
 * bits, which carry their own eight. Bound by some 70 instructions a coordinate. */
#ifndef TKV_KERNELS_TRELLIS_FAST_H
#define TKV_KERNELS_TRELLIS_FAST_H

#include "kernels/trellis_nearest.h"
#include "kernels/trellis_trace.h"

#define FAST_SURVIVOR_BITS 5

/* Survivors 0 to 15 and 16 to 31: the predecessors of one step that are called lower and upper. */
typedef struct fast_survivors {
    __m256i metrics[2];
    __m256i states[2]; /* the last eight path bits */
} fast_survivors;

/* Byte selectors of the 16-bit costs of the states' successors with new bit 0. */
static inline __m256i select_subset(__m256i states)
{
    const __m256i z0 = _mm256_xor_si256(_mm256_xor_si256(states, _mm256_srli_epi16(states, 1)),
                                        _mm256_srli_epi16(states, 6));
    const __m256i z1 = _mm256_xor_si256(
        _mm256_xor_si256(_mm256_srli_epi16(states, 2), _mm256_srli_epi16(states, 5)),
        _mm256_srli_epi16(states, 7));
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i index =
        _mm256_or_si256(_mm256_and_si256(z0, one), _mm256_slli_epi16(_mm256_and_si256(z1, one), 1));
    return _mm256_add_epi16(_mm256_mullo_epi16(index, _mm256_set1_epi16(0x0202)),
                            _mm256_set1_epi16(0x0100));
}

/* Survivors 2p and 2p + 1 from a[p] and b[p]. */
static inline void interleave(__m256i a, __m256i b, __m256i out[2])
{
    const __m256i low = _mm256_unpacklo_epi16(a, b);
    const __m256i high = _mm256_unpackhi_epi16(a, b);
    out[0] = _mm256_permute2x128_si256(low, high, 0x20);
    out[1] = _mm256_permute2x128_si256(low, high, 0x31);
}

/* One bit a lane. */
static inline uint32_t lane_mask(__m256i lanes)
{
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    return (uint32_t)_mm_movemask_epi8(bytes);
}

static inline void fast_renormalise(fast_survivors *s)
{
    const __m256i both = _mm256_min_epu16(s->metrics[0], s->metrics[1]);
    const __m128i half =
        _mm_min_epu16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    const __m256i minimum = _mm256_broadcastw_epi16(_mm_minpos_epu16(half));
    for (int i = 0; i < 2; i++) {
        s->metrics[i] = _mm256_sub_epi16(s->metrics[i], minimum);
    }
}

static inline void fast_advance(uint64_t keys, fast_survivors *s, step_decisions *decisions)
{
    const __m256i distances = _mm256_srli_epi16(_mm256_set1_epi64x((long long)keys), 2);
    const __m256i table = _mm256_mullo_epi16(distances, distances);
    const __m256i other = _mm256_shuffle_epi32(table, 0xb1);
    const __m256i lower = select_subset(s->states[0]);
    const __m256i upper = select_subset(s->states[1]);
    const __m256i byte = _mm256_set1_epi16(0xff);
    __m256i metrics[2];
    __m256i states[2];
    for (int u = 0; u < 2; u++) {
        const __m256i costs = u ? other : table;
        const __m256i from_lower =
            _mm256_adds_epu16(s->metrics[0], _mm256_shuffle_epi8(costs, lower));
        const __m256i from_upper =
            _mm256_adds_epu16(s->metrics[1], _mm256_shuffle_epi8(costs, upper));
        metrics[u] = _mm256_min_epu16(from_lower, from_upper);
        const __m256i is_lower = _mm256_cmpeq_epi16(metrics[u], from_lower);
        const __m256i before = _mm256_blendv_epi8(s->states[1], s->states[0], is_lower);
        const __m256i shifted = _mm256_and_si256(_mm256_add_epi16(before, before), byte);
        states[u] = _mm256_or_si256(shifted, _mm256_set1_epi16((short)u));
        decisions->from_upper[u][0] = ~lane_mask(is_lower) & 0xffffu;
    }
    interleave(metrics[0], metrics[1], s->metrics);
    interleave(states[0], states[1], s->states);
}

static inline void search_fast(const tkv_trellis *trellis, float gain, int head_dim, const float *z,
                               tkv_trellis_path *path)
{
    step_decisions decisions[TKV_MAX_HEAD_DIM];
    uint64_t keys[TKV_MAX_HEAD_DIM];
    uint16_t metrics[1 << FAST_SURVIVOR_BITS];
    uint16_t states[1 << FAST_SURVIVOR_BITS];
    for (int i = 0; i < 1 << FAST_SURVIVOR_BITS; i++) {
        states[i] = (uint16_t)i;
    }
    fast_survivors s = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                        {_mm256_loadu_si256((const __m256i *)(const void *)states),
                         _mm256_loadu_si256((const __m256i *)(const void *)(states + 16))}};
    find_nearest(trellis, gain, head_dim, z, keys);
    for (int j = 0; j < head_dim; j++) {
        if (j > 0 && j % 4 == 0) {
            fast_renormalise(&s);
        }
        fast_advance(keys[j], &s, &decisions[j]);
    }
    _mm256_storeu_si256((__m256i *)(void *)metrics, s.metrics[0]);
    _mm256_storeu_si256((__m256i *)(void *)(metrics + 16), s.metrics[1]);
    path->start = trace_back(1 << FAST_SURVIVOR_BITS, metrics, decisions, head_dim, path->codes);
    add_free_bits(trellis, head_dim, keys, path);
}

#endif
