/* Viterbi search of the trellis on ARM64: 256 metrics of 16 bits in 32 vectors, or those of the 32
 * survivors of effort "fast" in four. */
#include "kernels/trellis_search.h"
#include "kernels/trellis_subsets.h"
#include "kernels/trellis_trace.h"

#include <arm_neon.h>
#include <string.h>

#define TARGET_LIMIT 190.0f
#define FAST_SURVIVOR_BITS 5

enum { LANES = 8, N_VECTORS = TKV_TRELLIS_N_STATES / LANES, N_FAST_VECTORS = 4 };

/* Four 16-bit keys a coordinate, one a subset: 4 * distance + free bits, so that the smallest key
 * is the nearest level, the first of equals. Distances are below 256. */
static void find_nearest(const tkv_trellis *trellis, float gain, int head_dim, const float *z,
                         uint64_t *keys)
{
    int16_t levels[2 * LANES];
    uint16_t free_bits[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++) {
        const int index = i & ((4 << trellis->free_bits) - 1);
        levels[i] = trellis->levels[index];
        free_bits[i] = (uint16_t)(index / 4);
    }
    const float32x4_t unit = vdupq_n_f32(trellis->unit * gain);
    for (int j = 0; j < head_dim; j += 4) {
        int32_t targets[4];
        const float32x4_t target = vrndnq_f32(vmulq_f32(vld1q_f32(z + j), unit));
        const float32x4_t clamped =
            vmaxq_f32(vdupq_n_f32(-TARGET_LIMIT), vminq_f32(target, vdupq_n_f32(TARGET_LIMIT)));
        vst1q_s32(targets, vcvtq_s32_f32(clamped));
        for (int k = 0; k < 4; k++) {
            const int16x8_t at = vdupq_n_s16((int16_t)targets[k]);
            uint16x8_t both[2];
            for (int i = 0; i < 2; i++) {
                const uint16x8_t distance =
                    vreinterpretq_u16_s16(vabdq_s16(vld1q_s16(levels + LANES * i), at));
                both[i] = vorrq_u16(vshlq_n_u16(distance, 2), vld1q_u16(free_bits + LANES * i));
            }
            const uint16x8_t half = vminq_u16(both[0], both[1]);
            const uint16x4_t key = vmin_u16(vget_low_u16(half), vget_high_u16(half));
            keys[j + k] = vget_lane_u64(vreinterpret_u64_u16(key), 0);
        }
    }
}

/* Byte selectors that look up words of a table of four. */
static inline uint8x16_t selectors_of(uint16x8_t subsets)
{
    return vreinterpretq_u8_u16(vmlaq_n_u16(vdupq_n_u16(0x0100), subsets, 0x0202));
}

static inline uint16x8_t costs_of(uint16x8_t table, uint8x16_t selectors)
{
    return vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(table), selectors));
}

/* The squared distance of each subset's nearest level, twice. */
static inline uint16x8_t cost_table(uint64_t keys)
{
    const uint16x8_t distances = vshrq_n_u16(vreinterpretq_u16_u64(vdupq_n_u64(keys)), 2);
    return vmulq_u16(distances, distances);
}

/* One bit a lane. */
static inline uint32_t lane_mask(uint16x8_t lanes)
{
    static const uint16_t weights[LANES] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vaddvq_u16(vandq_u16(lanes, vld1q_u16(weights)));
}

/* Subtracts the smallest metric from all. */
static inline void renormalise(int n, uint16x8_t *metrics)
{
    uint16x8_t low = metrics[0];
    for (int i = 1; i < n; i++) {
        low = vminq_u16(low, metrics[i]);
    }
    const uint16x8_t minimum = vdupq_n_u16(vminvq_u16(low));
    for (int i = 0; i < n; i++) {
        metrics[i] = vsubq_u16(metrics[i], minimum);
    }
}

/* One coordinate: from `metrics` to `next`. */
static inline void advance(const uint8x16_t selectors[N_VECTORS / 2], uint64_t keys,
                           const uint16x8_t metrics[N_VECTORS], uint16x8_t next[N_VECTORS],
                           step_decisions *decisions)
{
    const uint16x8_t table = cost_table(keys);
    const uint16x8_t other = vreinterpretq_u16_u32(vrev64q_u32(vreinterpretq_u32_u16(table)));
    memset(decisions, 0, sizeof *decisions);
    for (int i = 0; i < N_VECTORS / 2; i++) {
        const uint16x8_t same = costs_of(table, selectors[i]);
        const uint16x8_t flipped = costs_of(other, selectors[i]);
        const uint16x8_t upper = metrics[i + N_VECTORS / 2];
        const uint16x8_t lower0 = vqaddq_u16(metrics[i], same);
        const uint16x8_t lower1 = vqaddq_u16(metrics[i], flipped);
        const uint16x8_t zero = vminq_u16(lower0, vqaddq_u16(upper, flipped));
        const uint16x8_t one = vminq_u16(lower1, vqaddq_u16(upper, same));
        decisions->from_upper[0][i / 4] |= lane_mask(vcgtq_u16(lower0, zero)) << (8 * (i % 4));
        decisions->from_upper[1][i / 4] |= lane_mask(vcgtq_u16(lower1, one)) << (8 * (i % 4));
        next[2 * i] = vzip1q_u16(zero, one);
        next[2 * i + 1] = vzip2q_u16(zero, one);
    }
}

static void search_all(const tkv_trellis *trellis, int head_dim, const uint64_t *keys,
                       tkv_trellis_path *path)
{
    uint8x16_t selectors[N_VECTORS / 2];
    step_decisions decisions[TKV_MAX_HEAD_DIM];
    uint16x8_t metrics[2][N_VECTORS];
    uint16_t last[TKV_TRELLIS_N_STATES];
    for (int i = 0; i < N_VECTORS / 2; i++) {
        selectors[i] = selectors_of(vld1q_u16(subset_of + LANES * i));
    }
    for (int i = 0; i < N_VECTORS; i++) {
        const bool is_start = i < (1 << TKV_TRELLIS_START_BITS) / LANES;
        metrics[0][i] = vdupq_n_u16(is_start ? 0 : UINT16_MAX);
    }
    for (int j = 0; j < head_dim; j++) {
        if (j > 0 && j % 4 == 0) {
            renormalise(N_VECTORS, metrics[j & 1]);
        }
        advance(selectors, keys[j], metrics[j & 1], metrics[~j & 1], &decisions[j]);
    }
    for (int i = 0; i < N_VECTORS; i++) {
        vst1q_u16(last + LANES * i, metrics[head_dim & 1][i]);
    }
    path->start = trace_back(TKV_TRELLIS_N_STATES, last, decisions, head_dim, path->codes);
    add_free_bits(trellis, head_dim, keys, path);
}

/* The 32 survivors of effort "fast", one for each value of the newest five path bits; each carries
 * its own last eight. */
typedef struct fast_survivors {
    uint16x8_t metrics[N_FAST_VECTORS];
    uint16x8_t states[N_FAST_VECTORS];
} fast_survivors;

/* Selectors of the costs of the states' successors with new bit 0. */
static inline uint8x16_t successor_selectors(uint16x8_t states)
{
    const uint16x8_t one = vdupq_n_u16(1);
    const uint16x8_t z0 =
        veorq_u16(veorq_u16(states, vshrq_n_u16(states, 1)), vshrq_n_u16(states, 6));
    const uint16x8_t z1 = veorq_u16(veorq_u16(vshrq_n_u16(states, 2), vshrq_n_u16(states, 5)),
                                    vshrq_n_u16(states, 7));
    return selectors_of(vorrq_u16(vandq_u16(z0, one), vshlq_n_u16(vandq_u16(z1, one), 1)));
}

static inline void fast_advance(uint64_t keys, const fast_survivors *s, fast_survivors *next,
                                step_decisions *decisions)
{
    const uint16x8_t table = cost_table(keys);
    const uint16x8_t other = vreinterpretq_u16_u32(vrev64q_u32(vreinterpretq_u32_u16(table)));
    memset(decisions, 0, sizeof *decisions);
    for (int i = 0; i < N_FAST_VECTORS / 2; i++) {
        const uint8x16_t lower = successor_selectors(s->states[i]);
        const uint8x16_t upper = successor_selectors(s->states[i + 2]);
        uint16x8_t metrics[2];
        uint16x8_t states[2];
        for (int u = 0; u < 2; u++) {
            const uint16x8_t costs = u ? other : table;
            const uint16x8_t from_lower = vqaddq_u16(s->metrics[i], costs_of(costs, lower));
            const uint16x8_t from_upper = vqaddq_u16(s->metrics[i + 2], costs_of(costs, upper));
            const uint16x8_t is_upper = vcgtq_u16(from_lower, from_upper);
            const uint16x8_t before = vbslq_u16(is_upper, s->states[i + 2], s->states[i]);
            metrics[u] = vminq_u16(from_lower, from_upper);
            states[u] = vorrq_u16(vandq_u16(vshlq_n_u16(before, 1), vdupq_n_u16(0xff)),
                                  vdupq_n_u16((uint16_t)u));
            decisions->from_upper[u][0] |= lane_mask(is_upper) << (8 * i);
        }
        next->metrics[2 * i] = vzip1q_u16(metrics[0], metrics[1]);
        next->metrics[2 * i + 1] = vzip2q_u16(metrics[0], metrics[1]);
        next->states[2 * i] = vzip1q_u16(states[0], states[1]);
        next->states[2 * i + 1] = vzip2q_u16(states[0], states[1]);
    }
}

static void search_fast(const tkv_trellis *trellis, int head_dim, const uint64_t *keys,
                        tkv_trellis_path *path)
{
    step_decisions decisions[TKV_MAX_HEAD_DIM];
    uint16_t numbers[N_FAST_VECTORS * LANES];
    fast_survivors survivors[2];
    for (int i = 0; i < N_FAST_VECTORS * LANES; i++) {
        numbers[i] = (uint16_t)i;
    }
    for (int i = 0; i < N_FAST_VECTORS; i++) {
        survivors[0].metrics[i] = vdupq_n_u16(0);
        survivors[0].states[i] = vld1q_u16(numbers + LANES * i);
    }
    for (int j = 0; j < head_dim; j++) {
        if (j > 0 && j % 4 == 0) {
            renormalise(N_FAST_VECTORS, survivors[j & 1].metrics);
        }
        fast_advance(keys[j], &survivors[j & 1], &survivors[~j & 1], &decisions[j]);
    }
    for (int i = 0; i < N_FAST_VECTORS; i++) {
        vst1q_u16(numbers + LANES * i, survivors[head_dim & 1].metrics[i]);
    }
    path->start = trace_back(1 << FAST_SURVIVOR_BITS, numbers, decisions, head_dim, path->codes);
    add_free_bits(trellis, head_dim, keys, path);
}

void tkv_trellis_search_neon(const tkv_trellis *trellis, int survivor_bits, float gain,
                             int head_dim, const float *z, tkv_trellis_path *path)
{
    uint64_t keys[TKV_MAX_HEAD_DIM];
    find_nearest(trellis, gain, head_dim, z, keys);
    if (survivor_bits == FAST_SURVIVOR_BITS) {
        search_fast(trellis, head_dim, keys, path);
    } else {
        search_all(trellis, head_dim, keys, path);
    }
}
