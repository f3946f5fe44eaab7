// The trellis search of docs/FORMAT.md section 9.1 by one warp, the same path as
// src/codec/trellis.c.
//
// All 256 states: a lane holds the metrics of eight of them, two in a word. A step of the trellis
// leaves the successors of states p and p + 128 where these were, so that nothing moves: before
// coordinate j, bit k of a place (lane, word, half: 5, 2 and 1 bits) is bit (k + j) % 8 of the
// state that lies there. The two predecessors of a place differ in its bit 7 - j % 8: for five
// phases of eight they are in two lanes, for two in two words, for one in the halves of a word.
//
// Bound by instructions, some 45 a coordinate for the warp.
#ifndef TKV_BACKEND_CUDA_TRELLIS_SEARCH_CUH
#define TKV_BACKEND_CUDA_TRELLIS_SEARCH_CUH

#include "backend/cuda/row.cuh"

namespace tkv_cuda
{

constexpr int target_limit = 190;
constexpr uint32_t unreached = 65535;
constexpr int renormalise_steps = 4;
constexpr int n_phases = 8;
constexpr int words_per_lane = 4; // of two metrics

// The nearest level of each subset to every target.
template <int FREE_BITS> struct nearest_table {
    static constexpr int n_targets = 2 * target_limit + 1;
    uint32_t costs[n_targets][2]; // squared distances of subsets 0 and 1, 2 and 3, 16 bits each
    uint8_t free[n_targets];      // free bits of subset s at bit 2 s

    constexpr nearest_table(const int (&levels)[4 << FREE_BITS]) : costs(), free()
    {
        for (int t = 0; t < n_targets; t++) {
            for (int subset = 0; subset < 4; subset++) {
                int best = 0;
                int best_cost = 1 << 30;
                for (int f = 0; f < 1 << FREE_BITS; f++) {
                    const int distance = t - target_limit - levels[4 * f + subset];
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

constexpr int trellis_levels8[] = TKV_TRELLIS_LEVELS_8;
constexpr int trellis_levels16[] = TKV_TRELLIS_LEVELS_16;
__device__ const nearest_table<1> nearest8(trellis_levels8);
__device__ const nearest_table<2> nearest16(trellis_levels16);

template <int FREE_BITS> __device__ const nearest_table<FREE_BITS> &nearest_levels()
{
    if constexpr (FREE_BITS == 2) {
        return nearest16;
    } else {
        return nearest8;
    }
}

// What a warp needs of shared memory to search its two rows, one after the other.
struct search_scratch {
    uint2 *costs;         // [2][head_dim] of the rows, as nearest_table.costs
    uint32_t *block_cost; // [2][head_dim/4] most that four coordinates can add to a metric
    uint32_t *decisions;  // [head_dim/4][32] of the row that is being searched
    uint16_t *path;       // [2][head_dim/16] path bits
    uint32_t *start;      // [2] start bits
};

__host__ __device__ inline size_t search_scratch_bytes(int head_dim)
{
    const size_t bytes = (size_t)head_dim * (2 * sizeof(uint2) + 2 + 32) + head_dim / 4 + 8;
    return (bytes + 15) / 16 * 16;
}

__device__ inline search_scratch place_scratch(uint8_t *memory, int head_dim)
{
    search_scratch scratch;
    scratch.costs = reinterpret_cast<uint2 *>(memory);
    scratch.block_cost = reinterpret_cast<uint32_t *>(scratch.costs + 2 * head_dim);
    scratch.decisions = scratch.block_cost + head_dim / 2;
    scratch.start = scratch.decisions + 8 * head_dim;
    scratch.path = reinterpret_cast<uint16_t *>(scratch.start + 2);
    return scratch;
}

// Parity of the bits of a place at phase `phase` that are the state's bits b0, b1 and b2 (-1:
// none).
__host__ __device__ constexpr uint32_t place_parity(int place, int phase, int b0, int b1, int b2)
{
    return (uint32_t)(place >> (b0 + n_phases - phase) % n_phases ^
                      place >> (b1 + n_phases - phase) % n_phases ^
                      (b2 < 0 ? 0 : place >> (b2 + n_phases - phase) % n_phases)) &
           1u;
}

// Subset of the step into a place from its lower predecessor. State bits 2 and 5 and the new bit,
// which will lie where the oldest was, give z1; bits 0, 1 and 6 give z0 (codec/constants.h).
__host__ __device__ constexpr uint32_t place_subset(int place, int phase)
{
    return place_parity(place, phase, 2, 5, 7) << 1 | place_parity(place, phase, 0, 1, 6);
}

// Byte selector of a pair of costs: subset `low` for the low half, `high` for the high half.
__host__ __device__ constexpr uint32_t cost_selector(uint32_t low, uint32_t high)
{
    return 0x1010u + 0x22u * low + 0x2200u * high;
}

// Adds pairs of 16-bit numbers; the plain way if none can overflow.
template <bool CAN_SATURATE> __device__ uint32_t add_pairs(uint32_t a, uint32_t b)
{
    return CAN_SATURATE ? __vaddus2(a, b) : a + b;
}

// One coordinate. `selector` is that of the lane's place of word 0. Sets bits 2 w + h of what it
// returns where the step into half h of word w came from the upper predecessor.
template <int PHASE, bool CAN_SATURATE>
__device__ uint32_t advance(uint2 cost, uint32_t selector, uint32_t *metrics)
{
    constexpr int bit = n_phases - 1 - PHASE; // of a place: which predecessor it was
    constexpr int lane_bit = bit >= 3 ? 1 << (bit - 3) : 0;
    constexpr int word_bit = bit == 2 || bit == 1 ? 1 << (bit - 1) : 0;
    const bool is_upper_lane = threadIdx.x & lane_bit;
    uint32_t next[words_per_lane];
    uint32_t decisions = 0;
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        uint32_t lower;
        uint32_t upper;
        if (lane_bit) {
            const uint32_t other = __shfl_xor_sync(full_warp, metrics[w], lane_bit);
            lower = is_upper_lane ? other : metrics[w];
            upper = is_upper_lane ? metrics[w] : other;
        } else if (word_bit) {
            lower = metrics[w & ~word_bit];
            upper = metrics[w | word_bit];
        } else {
            lower = byte_permute(metrics[w], 0, 0x1010);
            upper = byte_permute(metrics[w], 0, 0x3232);
        }
        const uint32_t flips =
            cost_selector(place_subset(2 * w, PHASE), place_subset(2 * w, PHASE));
        const uint32_t word_selector = selector ^ (flips - cost_selector(0, 0));
        lower = add_pairs<CAN_SATURATE>(lower, byte_permute(cost.x, cost.y, word_selector));
        upper = add_pairs<CAN_SATURATE>(upper, byte_permute(cost.y, cost.x, word_selector));
        bool is_lower_high;
        bool is_lower_low;
        next[w] = __vibmin_u16x2(lower, upper, &is_lower_high, &is_lower_low);
        decisions |= is_lower_low ? 0 : 1u << 2 * w;
        decisions |= is_lower_high ? 0 : 2u << 2 * w;
    }
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        metrics[w] = next[w];
    }
    return decisions;
}

// Four coordinates, from phase FIRST_PHASE on.
template <int FIRST_PHASE, bool CAN_SATURATE>
__device__ uint32_t advance_block(const uint2 *costs, const uint32_t *selectors, uint32_t *metrics)
{
    const uint32_t *s = selectors + FIRST_PHASE;
    uint32_t decisions = advance<FIRST_PHASE, CAN_SATURATE>(costs[0], s[0], metrics);
    decisions |= advance<FIRST_PHASE + 1, CAN_SATURATE>(costs[1], s[1], metrics) << 8;
    decisions |= advance<FIRST_PHASE + 2, CAN_SATURATE>(costs[2], s[2], metrics) << 16;
    return decisions | advance<FIRST_PHASE + 3, CAN_SATURATE>(costs[3], s[3], metrics) << 24;
}

__device__ inline uint32_t smaller_half(uint32_t pair)
{
    return min(pair & 0xffffu, pair >> 16);
}

__device__ inline uint32_t larger_half(uint32_t pair)
{
    return max(pair & 0xffffu, pair >> 16);
}

// Subtracts the smallest metric from all; returns the largest.
__device__ inline uint32_t renormalise(uint32_t *metrics)
{
    const uint32_t low = __vminu2(__vimin3_u16x2(metrics[0], metrics[1], metrics[2]), metrics[3]);
    const uint32_t high = __vmaxu2(__vimax3_u16x2(metrics[0], metrics[1], metrics[2]), metrics[3]);
    const uint32_t minimum = __reduce_min_sync(full_warp, smaller_half(low));
    const uint32_t maximum = __reduce_max_sync(full_warp, larger_half(high));
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        metrics[w] -= minimum * 0x10001u;
    }
    return maximum - minimum;
}

// Brings the metrics through a block; metrics at most `largest` before it.
template <int FIRST_PHASE>
__device__ uint32_t advance_checked(const uint2 *costs, uint32_t block_cost, uint32_t largest,
                                    const uint32_t *selectors, uint32_t *metrics)
{
    return largest + block_cost < unreached
               ? advance_block<FIRST_PHASE, false>(costs, selectors, metrics)
               : advance_block<FIRST_PHASE, true>(costs, selectors, metrics);
}

// The place of the lowest state with the smallest metric, at phase 0, where it is the state.
__device__ inline uint32_t best_place(const uint32_t *metrics)
{
    const uint32_t place = threadIdx.x % 32 * 8;
    uint32_t best = 0xffffffffu;
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        best = min(best, (metrics[w] & 0xffffu) << 8 | (place + 2 * w));
        best = min(best, metrics[w] >> 16 << 8 | (place + 2 * w + 1));
    }
    return __reduce_min_sync(full_warp, best) & 0xffu;
}

// Follows the decisions back from a place; all lanes do the same.
__device__ inline uint32_t trace_back(int head_dim, uint32_t place, const uint32_t *decisions,
                                      uint16_t *path)
{
    for (int i = head_dim / half_warp - 1; i >= 0; i--) {
        uint32_t bits = 0;
#pragma unroll
        for (int j = half_warp - 1; j >= 0; j--) {
            const int bit = n_phases - 1 - j % n_phases;
            const uint32_t word = decisions[(4 * i + j / 4) * 32 + place / 8];
            const uint32_t is_upper = word >> (8 * (j % 4) + place % 8) & 1u;
            bits |= (place >> bit & 1u) << j;
            place = (place & ~(1u << bit)) | is_upper << bit;
        }
        if (threadIdx.x % 32 == 0) {
            path[i] = (uint16_t)bits;
        }
    }
    return place;
}

// Finds the best path of row `row` of the warp's two: all lanes.
__device__ __noinline__ void search_all_states(int head_dim, int row, const search_scratch &scratch)
{
    const int lane = threadIdx.x % 32;
    const uint2 *costs = scratch.costs + row * head_dim;
    const uint32_t *block_cost = scratch.block_cost + row * (head_dim / 4);
    uint32_t selectors[n_phases];
#pragma unroll
    for (int phase = 0; phase < n_phases; phase++) {
        selectors[phase] =
            cost_selector(place_subset(8 * lane, phase), place_subset(8 * lane + 1, phase));
    }
    uint32_t metrics[words_per_lane];
#pragma unroll
    for (int w = 0; w < words_per_lane; w++) {
        metrics[w] = 8 * lane < 1 << TKV_TRELLIS_START_BITS ? 0 : 0xffffffffu;
    }
    uint32_t largest = unreached;
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < head_dim; j += n_phases) {
        uint32_t *decisions = scratch.decisions + j * 8 + lane;
        if (j > 0) {
            largest = renormalise(metrics);
        }
        decisions[0] =
            advance_checked<0>(costs + j, block_cost[j / 4], largest, selectors, metrics);
        largest = renormalise(metrics);
        decisions[32] =
            advance_checked<4>(costs + j + 4, block_cost[j / 4 + 1], largest, selectors, metrics);
    }
    const uint32_t best = best_place(metrics);
    __syncwarp();
    const uint32_t start =
        trace_back(head_dim, best, scratch.decisions, scratch.path + row * (head_dim / half_warp));
    if (lane == 0) {
        scratch.start[row] = start & ((1u << TKV_TRELLIS_START_BITS) - 1);
    }
}

// The search of effort "fast": lane i holds the survivor whose newest five path bits are i, as
// metric << 8 | the last eight path bits.
__device__ inline uint32_t survivor_cost(uint2 cost, uint32_t window)
{
    const uint32_t z1 = __popc(window & TKV_TRELLIS_TAPS_Z1) & 1;
    const uint32_t z0 = __popc(window & TKV_TRELLIS_TAPS_Z0) & 1;
    return (z1 ? cost.y : cost.x) >> 16 * z0 & 0xffffu;
}

__device__ __noinline__ void search_survivors(int head_dim, int row, const search_scratch &scratch)
{
    const uint32_t lane = threadIdx.x % 32;
    const uint2 *costs = scratch.costs + row * head_dim;
    uint32_t survivor = lane;
    __syncwarp();
    for (int j = 0; j < head_dim; j++) {
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
            scratch.decisions[j] = from_upper;
        }
    }
    uint32_t at = __reduce_min_sync(full_warp, survivor >> 8 << 8 | lane) & 0xffu;
    __syncwarp();
    for (int i = head_dim / half_warp - 1; i >= 0; i--) {
        uint32_t bits = 0;
        for (int j = half_warp - 1; j >= 0; j--) {
            bits |= (at & 1u) << j;
            at = at >> 1 | (scratch.decisions[i * half_warp + j] >> at & 1u) << 4;
        }
        if (lane == 0) {
            scratch.path[row * (head_dim / half_warp) + i] = (uint16_t)bits;
        }
    }
    if (lane == 0) {
        scratch.start[row] = at;
    }
}

} // namespace tkv_cuda

#endif
