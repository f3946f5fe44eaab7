/* The trellis search of docs/FORMAT.md section 9.1: the two rows of a warp at once, the same paths
 * as src/format/trellis.c.
 *
 * All 256 states: a lane holds the metrics of sixteen of them, two in a word. A step of the trellis
 * leaves the successors of states p and p + 128 where these were, so that nothing moves: before
 * coordinate j, bit k of a place is bit (k + j) % 8 of the state that lies there. The two
 * predecessors of a place differ in its bit 7 - j % 8: for four phases of eight they are in two
 * lanes, for three in two words, for one in the halves of a word.
 *
 * Bound by instructions: some seven a word and step, half of them in the pipe of integer logic and
 * half in that of multiplication. */
#ifndef TKV_DEVICE_CUDA_CODEC_TRELLIS_SEARCH_CUH
#define TKV_DEVICE_CUDA_CODEC_TRELLIS_SEARCH_CUH

#include "device/cuda/base/levels.cuh"
#include "device/cuda/codec/row.cuh"

namespace tkv_cuda
{

constexpr int target_limit = 190;
constexpr uint32_t unreached = 65535;
constexpr int renormalise_steps = 4;
constexpr int n_phases = 8;
constexpr int words_per_lane = 8; /* of two metrics */

/* The nearest level of each subset to every target. */
template <int Type> struct nearest_table {
    static constexpr int n_targets = 2 * target_limit + 1;
    uint32_t costs[n_targets][2]; /* squared distances of subsets 0 and 1, 2 and 3, 16 bits each */
    uint8_t free[n_targets];      /* free bits of subset s at bit 2 s */

    constexpr nearest_table() : costs(), free()
    {
        constexpr auto list = levels_of_type<Type>();
        for (int t = 0; t < n_targets; t++) {
            for (int subset = 0; subset < 4; subset++) {
                int best = 0;
                int best_cost = 1 << 30;
                for (int f = 0; f < 1 << type_traits<Type>::free_bits; f++) {
                    const int distance = t - target_limit - list.level[4 * f + subset];
                    if (distance * distance < best_cost) {
                        best_cost = distance * distance;
                        best = f;
                    }
                }
                costs[t][subset / 2] |= (uint32_t)best_cost << 16 * (subset % 2);
                free[t] = (uint8_t)(free[t] | best << 2 * subset);
            }
        }
    }
};

template <int Type> __device__ const nearest_table<Type> nearest_levels = {};

/* What a warp needs of shared memory to search its two rows. Offsets from the start of the block's
 * shared memory, so that the search's accesses are to shared memory and known to be. */
struct search_scratch {
    int head_dim;
    uint32_t costs;      /* uint2 [2][head_dim] of the rows, as nearest_table.costs */
    uint32_t block_cost; /* uint32_t [2][head_dim/4] most that four coordinates add to a metric */
    uint32_t decisions;  /* uint2 [head_dim/4][32] */
    uint32_t start;      /* uint32_t [2] start bits */
    uint32_t path;       /* uint16_t [2][head_dim/16] path bits */
};

extern __shared__ __align__(16) uint8_t shared_memory[];

template <typename T> __device__ T *in_shared(uint32_t offset)
{
    return (T *)(shared_memory + offset);
}

__host__ __device__ inline size_t search_scratch_bytes(int head_dim)
{
    const size_t bytes = (size_t)head_dim * (2 * sizeof(uint2) + 2 + 64) + head_dim / 4 + 8;
    return (bytes + 15) / 16 * 16;
}

__device__ inline search_scratch place_scratch(uint32_t offset, int head_dim)
{
    search_scratch scratch;
    scratch.head_dim = head_dim;
    scratch.costs = offset;
    scratch.decisions = scratch.costs + 16 * head_dim;
    scratch.block_cost = scratch.decisions + 64 * head_dim;
    scratch.start = scratch.block_cost + 2 * head_dim;
    scratch.path = scratch.start + 8;
    return scratch;
}

/* Bits of a place: 4 of the lane in the row, the highest of the word's number, the half of the
 * word, and the others of the word's number: so the decisions of a lane lie in order (trace_back).
 */
__host__ __device__ constexpr int place_of(int lane, int word, int half)
{
    return lane << 4 | word >> 2 << 3 | half << 2 | (word & 3);
}

/* Parity of three bits of the state that a place holds at a phase. */
__host__ __device__ constexpr uint32_t place_parity(int place, int phase, int b0, int b1, int b2)
{
    return (uint32_t)(place >> (b0 + n_phases - phase) % n_phases ^
                      place >> (b1 + n_phases - phase) % n_phases ^
                      place >> (b2 + n_phases - phase) % n_phases) &
           1u;
}

/* Subset of the step into a place from its lower predecessor. State bits 2 and 5 and the new bit,
 * which will lie where the oldest was, give z1; bits 0, 1 and 6 give z0 (format/constants.h). The
 * step from the upper predecessor has the other z1. */
__host__ __device__ constexpr uint32_t place_subset(int place, int phase)
{
    return place_parity(place, phase, 2, 5, 7) << 1 | place_parity(place, phase, 0, 1, 6);
}

/* Byte selector of a pair of costs: subset `low` for the low half, `high` for the high half. */
__host__ __device__ constexpr uint32_t cost_selector(uint32_t low, uint32_t high)
{
    return 0x1010u + 0x22u * low + 0x2200u * high;
}

/* Adds pairs of 16-bit numbers; the plain way if none can overflow. */
template <bool CanSaturate> __device__ uint32_t add_pairs(uint32_t a, uint32_t b)
{
    return CanSaturate ? __vaddus2(a, b) : a + b;
}

/* The smaller of pairs of metrics. Adds bit Bit to `decisions` where the low one of `upper` is
 * smaller than that of `lower`, bit Bit + 16 where the high one is. */
template <int Bit>
__device__ uint32_t select_pairs(uint32_t lower, uint32_t upper, uint32_t *decisions)
{
    const uint32_t smaller = __vminu2(lower, upper);
    const uint32_t is_upper = __vminu2(lower - smaller, 0x00010001u);
    *decisions += is_upper << Bit;
    return smaller;
}

/* The metrics of the predecessors of the places in word W. */
template <int Phase, int W>
__device__ void find_predecessors(const uint32_t *metrics, uint32_t *lower, uint32_t *upper)
{
    constexpr int bit = n_phases - 1 - Phase; /* of a place: which predecessor it was */
    if constexpr (bit >= 4) {
        const int lane = threadIdx.x % 32;
        *lower = __shfl_sync(full_warp, metrics[W], lane & ~(1 << (bit - 4)));
        *upper = __shfl_sync(full_warp, metrics[W], lane | 1 << (bit - 4));
    } else if constexpr (bit != 2) {
        constexpr int word_bit = bit == 3 ? 4 : 1 << bit;
        *lower = metrics[W & ~word_bit];
        *upper = metrics[W | word_bit];
    } else {
        *lower = permute_bytes(metrics[W], 0, 0x1010);
        *upper = permute_bytes(metrics[W], 0, 0x3232);
    }
}

/* Costs of the steps from the lower predecessors into the places of a lane: pairs[s] of the words
 * whose subset differs from that of word 0 by s. */
struct cost_pairs {
    uint32_t pairs[4];
};

template <int Phase, bool CanSaturate, int W>
__device__ void advance_word(const cost_pairs &cost, const uint32_t *metrics, uint32_t *next,
                             uint32_t *decisions)
{
    constexpr int subset = place_subset(place_of(0, W, 0), Phase);
    uint32_t lower;
    uint32_t upper;
    find_predecessors<Phase, W>(metrics, &lower, &upper);
    lower = add_pairs<CanSaturate>(lower, cost.pairs[subset]);
    upper = add_pairs<CanSaturate>(upper, cost.pairs[subset ^ 2]);
    next[W] = select_pairs<4 * (W % 4) + Phase % 4>(lower, upper, &decisions[W / 4]);
}

/* One coordinate. `selector` is that of the lane's word 0. */
template <int Phase, bool CanSaturate>
__device__ void advance(uint2 cost, uint32_t selector, uint32_t *metrics, uint32_t *decisions)
{
    cost_pairs pairs;
    pairs.pairs[0] = permute_bytes(cost.x, cost.y, selector);
    pairs.pairs[1] = permute_bytes(cost.x, cost.y, selector ^ 0x2222u);
    pairs.pairs[2] = permute_bytes(cost.y, cost.x, selector);
    pairs.pairs[3] = permute_bytes(cost.y, cost.x, selector ^ 0x2222u);
    uint32_t next[words_per_lane];
    advance_word<Phase, CanSaturate, 0>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 1>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 2>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 3>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 4>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 5>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 6>(pairs, metrics, next, decisions);
    advance_word<Phase, CanSaturate, 7>(pairs, metrics, next, decisions);
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        metrics[w] = next[w];
    }
}

/* Four coordinates, from phase FirstPhase on; 16 decisions each. */
template <int FirstPhase, bool CanSaturate>
__device__ uint2 advance_block(const uint2 *costs, const uint32_t *selectors, uint32_t *metrics)
{
    const uint32_t *s = selectors + FirstPhase;
    uint32_t decisions[2] = {0, 0};
    advance<FirstPhase, CanSaturate>(costs[0], s[0], metrics, decisions);
    advance<FirstPhase + 1, CanSaturate>(costs[1], s[1], metrics, decisions);
    advance<FirstPhase + 2, CanSaturate>(costs[2], s[2], metrics, decisions);
    advance<FirstPhase + 3, CanSaturate>(costs[3], s[3], metrics, decisions);
    return make_uint2(decisions[0], decisions[1]);
}

__device__ inline uint32_t larger_half(uint32_t pair)
{
    return max(pair & 0xffffu, pair >> 16);
}

/* Subtracts the smallest metric of the row from all; returns the largest that is left. */
__device__ inline uint32_t renormalise(uint32_t *metrics)
{
    const uint32_t *m = metrics;
    const uint32_t low = __vimin3_u16x2(__vimin3_u16x2(m[0], m[1], m[2]),
                                        __vimin3_u16x2(m[3], m[4], m[5]), __vminu2(m[6], m[7]));
    const uint32_t high = __vimax3_u16x2(__vimax3_u16x2(m[0], m[1], m[2]),
                                         __vimax3_u16x2(m[3], m[4], m[5]), __vmaxu2(m[6], m[7]));
    /* The smallest, and above it the complement of the largest, which is the smallest of those. */
    uint32_t both = min(low & 0xffffu, low >> 16) | (0xffffu - larger_half(high)) << 16;
#pragma unroll
    for (int width = half_warp / 2; width > 0; width /= 2) {
        both = __vminu2(both, __shfl_xor_sync(full_warp, both, width));
    }
    const uint32_t minimum = both & 0xffffu;
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        metrics[w] -= minimum * 0x10001u;
    }
    return 0xffffu - (both >> 16) - minimum;
}

/* Brings the metrics through a block. They are at most *largest before and after it. While no sum
 * can reach the bound at which metrics saturate, subtracting the smallest changes no decision: it
 * waits until it must be. */
template <int FirstPhase>
__device__ uint2 advance_checked(const uint2 *costs, uint32_t block_cost, bool is_first,
                                 const uint32_t *selectors, uint32_t *metrics, uint32_t *largest)
{
    if (!is_first && __any_sync(full_warp, *largest + block_cost >= unreached)) {
        *largest = renormalise(metrics);
    }
    *largest += block_cost;
    if (__all_sync(full_warp, *largest < unreached)) {
        return advance_block<FirstPhase, false>(costs, selectors, metrics);
    }
    *largest = unreached;
    return advance_block<FirstPhase, true>(costs, selectors, metrics);
}

/* The place of the row's lowest state with the smallest metric, at phase 0, where it is the state.
 */
__device__ inline uint32_t best_place(const uint32_t *metrics)
{
    const int lane = lane_of_row();
    uint32_t best = 0xffffffffu;
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        best = min(best, (metrics[w] & 0xffffu) << 8 | place_of(lane, w, 0));
        best = min(best, metrics[w] >> 16 << 8 | place_of(lane, w, 1));
    }
#pragma unroll
    for (int width = half_warp / 2; width > 0; width /= 2) {
        best = min(best, __shfl_xor_sync(full_warp, best, width));
    }
    return best & 0xffu;
}

/* The four bits of the place in `nibble` (0 low, 1 high) before a block of four coordinates, from
 * `place` after it. A bit is replaced at every coordinate, from the lowest to the highest. Each of
 * the row's lanes supposes other ones; all decisions agree with one lane. */
template <int NIBBLE> __device__ uint32_t trace_block(const uint32_t *decisions, uint32_t place)
{
    const uint32_t supposed = (uint32_t)lane_of_row() << 4 * NIBBLE;
    uint32_t found = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t replaced = ((1u << k) - 1) << 4 * NIBBLE;
        const uint32_t at = (place & ~replaced) | (supposed & replaced);
        found |= (decisions[at / 8] >> (at % 8 * 4 + 3 - k) & 1u) << (k + 4 * NIBBLE);
    }
    const uint32_t agreeing = __ffs((int)row_ballot(found == supposed)) - 1;
    return (place & ~(15u << 4 * NIBBLE)) | agreeing << 4 * NIBBLE;
}

/* Follows the decisions of the row back from a place: the bits of a place are the path bits of as
 * many coordinates, the highest first. */
__device__ inline uint32_t trace_back(const search_scratch &scratch, uint32_t place)
{
    const int row = threadIdx.x / half_warp % 2;
    const int n = scratch.head_dim / n_phases;
    const uint32_t *decisions = in_shared<uint32_t>(scratch.decisions) + row * 2 * half_warp;
    uint8_t *path = in_shared<uint8_t>(scratch.path) + row * n;
    for (int i = n - 1; i >= 0; i--) {
        if (lane_of_row() == 0) {
            path[i] = (uint8_t)(__brev(place) >> 24);
        }
        place = trace_block<0>(decisions + (2 * i + 1) * 64, place);
        place = trace_block<1>(decisions + 2 * i * 64, place);
    }
    return place;
}

/* Finds the best paths of the warp's two rows: all lanes. */
__device__ __noinline__ void search_all_states(search_scratch scratch)
{
    const int lane = lane_of_row();
    const int row = threadIdx.x / half_warp % 2;
    const uint2 *costs = in_shared<uint2>(scratch.costs) + row * scratch.head_dim;
    const uint32_t *block_cost =
        in_shared<uint32_t>(scratch.block_cost) + row * (scratch.head_dim / 4);
    uint2 *decisions = in_shared<uint2>(scratch.decisions) + threadIdx.x % 32;
    uint32_t selectors[n_phases];
#pragma unroll
    for (int phase = 0; phase < n_phases; phase++) {
        selectors[phase] = cost_selector(place_subset(place_of(lane, 0, 0), phase),
                                         place_subset(place_of(lane, 0, 1), phase));
    }
    uint32_t metrics[words_per_lane];
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        metrics[w] = 16 * lane < 1 << TKV_TRELLIS_START_BITS ? 0 : 0xffffffffu;
    }
    uint32_t largest = unreached;
#pragma unroll 1
    for (int j = 0; j < scratch.head_dim; j += n_phases) {
        decisions[j / 4 * 32] =
            advance_checked<0>(costs + j, block_cost[j / 4], j == 0, selectors, metrics, &largest);
        decisions[(j / 4 + 1) * 32] = advance_checked<4>(costs + j + 4, block_cost[j / 4 + 1],
                                                         false, selectors, metrics, &largest);
    }
    const uint32_t best = best_place(metrics);
    __syncwarp();
    const uint32_t start = trace_back(scratch, best);
    if (lane == 0) {
        in_shared<uint32_t>(scratch.start)[row] = start & ((1u << TKV_TRELLIS_START_BITS) - 1);
    }
}

/* The search of effort "fast": lane i holds the survivor whose newest five path bits are i, as
 * metric << 8 | the last eight path bits. */
__device__ inline uint32_t survivor_cost(uint2 cost, uint32_t window)
{
    const uint32_t z1 = __popc(window & TKV_TRELLIS_TAPS_Z1) & 1;
    const uint32_t z0 = __popc(window & TKV_TRELLIS_TAPS_Z0) & 1;
    return (z1 ? cost.y : cost.x) >> 16 * z0 & 0xffffu;
}

/* Finds a path of row `row` of the warp's two: all lanes. */
__device__ __noinline__ void search_survivors(search_scratch scratch, int row)
{
    const uint32_t lane = threadIdx.x % 32;
    const int n = scratch.head_dim / half_warp;
    const uint2 *costs = in_shared<uint2>(scratch.costs) + row * scratch.head_dim;
    uint32_t *decisions = in_shared<uint32_t>(scratch.decisions);
    uint32_t survivor = lane;
    __syncwarp();
    for (int j = 0; j < scratch.head_dim; j++) {
        if (j > 0 && j % renormalise_steps == 0) {
            survivor -= __reduce_min_sync(full_warp, survivor >> 8) << 8;
        }
        const uint32_t lower = __shfl_sync(full_warp, survivor, lane / 2);
        const uint32_t upper = __shfl_sync(full_warp, survivor, lane / 2 + 16);
        const uint32_t lower_window = (lower & 0xffu) << 1 | (lane & 1);
        const uint32_t upper_window = (upper & 0xffu) << 1 | (lane & 1);
        const uint32_t lower_metric =
            min((lower >> 8) + survivor_cost(costs[j], lower_window), unreached);
        const uint32_t upper_metric =
            min((upper >> 8) + survivor_cost(costs[j], upper_window), unreached);
        const bool is_upper = upper_metric < lower_metric;
        survivor = is_upper ? upper_metric << 8 | (upper_window & 0xffu)
                            : lower_metric << 8 | (lower_window & 0xffu);
        const uint32_t from_upper = __ballot_sync(full_warp, is_upper);
        if (lane == 0) {
            decisions[j] = from_upper;
        }
    }
    uint32_t at = __reduce_min_sync(full_warp, survivor >> 8 << 8 | lane) & 0xffu;
    __syncwarp();
    for (int i = n - 1; i >= 0; i--) {
        uint32_t bits = 0;
        for (int j = half_warp - 1; j >= 0; j--) {
            bits |= (at & 1u) << j;
            at = at >> 1 | (decisions[i * half_warp + j] >> at & 1u) << 4;
        }
        if (lane == 0) {
            in_shared<uint16_t>(scratch.path)[row * n + i] = (uint16_t)bits;
        }
    }
    if (lane == 0) {
        in_shared<uint32_t>(scratch.start)[row] = at;
    }
}

} /* namespace tkv_cuda */

#endif
