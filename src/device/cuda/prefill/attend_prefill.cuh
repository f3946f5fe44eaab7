// Prefill attention, what its kernels share: many query rows a KV head against the pages of one
// layer. Rows are (query, head of the group), query-major; 128 of them share a CTA.
//
//   prepare   queries -> int8 rows with a scale (rotated), and f16 rows (not rotated)
//   coded     coded pages through int8 wgmma (attend_prefill_coded.cu)
//   exact     f16 pages through f16 wgmma (attend_prefill_exact.cu)
//   finish    partial results -> out: merge, inverse rotation, means
#pragma once

#include "device/device_layout.h"
#include "turbokv.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace tkv_prefill
{

constexpr int PAGE = TKV_PAGE_TOKENS;
constexpr int CTA_ROWS = 128;
constexpr float LOG2E = 1.4426950408889634f;

// One launch: shapes, splits and where its buffers lie in the workspace.
struct Plan {
    tkv_device_attend a;
    int group;       // query heads a KV head
    int n_rows;      // n_queries * group
    int n_row_tiles; // of CTA_ROWS
    int n_splits[2]; // of coded and of exact pages
    int has_coded;   // which kernels run
    int has_exact;
    signed char *q8;    // [unit][n_row_tiles * CTA_ROWS][head_dim], in the order of place_of()
    float *q_scale;     // [unit][row] logits (base 2) a unit of score
    float *q_bias;      // [unit][row] q . mean_k, base 2
    __half *q16;        // [unit][row][head_dim]
    float *part_sums;   // [unit][kind, split][row][head_dim]; kind 0 coded, 1 exact
    float2 *part_stats; // the same without head_dim: largest logit (base 2), sum
};

struct Unit {
    int sequence;
    int kv_head;
};

__device__ inline Unit unit_of(const Plan &plan, int unit)
{
    return {unit / plan.a.layer.n_kv_heads, unit % plan.a.layer.n_kv_heads};
}

__device__ inline const tkv_device_sequence &sequence_of(const Plan &plan, int sequence)
{
    return reinterpret_cast<const tkv_device_sequence *>(plan.a.sequences)[sequence];
}

__device__ inline int first_position(const Plan &plan, const tkv_device_sequence &sequence)
{
    return plan.a.first_position >= 0 ? plan.a.first_position
                                      : sequence.n_tokens - plan.a.n_queries;
}

__host__ __device__ inline int padded_rows(const Plan &plan)
{
    return plan.n_row_tiles * CTA_ROWS;
}

__device__ inline size_t part_index(const Plan &plan, int unit, int kind, int split, int row)
{
    const size_t part = static_cast<size_t>(unit) * (plan.n_splits[0] + plan.n_splits[1]) +
                        (kind ? plan.n_splits[0] : 0) + split;
    return part * padded_rows(plan) + row;
}

__device__ inline int sink_blocks(const tkv_device_layer &layer)
{
    return (layer.n_sinks + PAGE - 1) / PAGE;
}

__device__ inline int block_start(const tkv_device_layer &layer, int block)
{
    const int n = sink_blocks(layer);
    return block < n ? block * PAGE : layer.n_sinks + (block - n) * PAGE;
}

__device__ inline int block_of(const tkv_device_layer &layer, int position)
{
    return position < layer.n_sinks ? position / PAGE
                                    : sink_blocks(layer) + (position - layer.n_sinks) / PAGE;
}

// The blocks that a row tile's split of n_splits reads.
struct BlockRange {
    int begin;
    int end;
};

__device__ inline BlockRange block_range(const Plan &plan, const tkv_device_sequence &sequence,
                                         int row_tile, int split, int n_splits)
{
    const int first = first_position(plan, sequence);
    const int first_row = row_tile * CTA_ROWS;
    const int last_row = min(first_row + CTA_ROWS, plan.n_rows) - 1;
    const int last_seen = first + last_row / plan.group;
    const int oldest =
        plan.a.window > 0 ? max(first + first_row / plan.group + 1 - plan.a.window, 0) : 0;
    const int first_block = block_of(plan.a.layer, oldest);
    const int n = min(block_of(plan.a.layer, last_seen) + 1, sequence.n_blocks) - first_block;
    return {first_block + static_cast<int>(static_cast<long long>(n) * split / n_splits),
            first_block + static_cast<int>(static_cast<long long>(n) * (split + 1) / n_splits)};
}

// Walks over the blocks of a range that are exact, or coded; called by a whole warp.
struct BlockWalk {
    BlockRange range;
    const tkv_device_block *blocks;
    int want_exact;
    bool is_all_exact;
    int base;
    unsigned mask;
    unsigned long long pages; // of the lane's block
    int n_slots;

    // Where the types are f16 all blocks are exact.
    __device__ void begin(const tkv_device_sequence &sequence, BlockRange r, int exact,
                          bool all_exact)
    {
        range = r;
        blocks = reinterpret_cast<const tkv_device_block *>(sequence.blocks);
        want_exact = exact;
        is_all_exact = all_exact;
        base = r.begin - 32;
        mask = 0;
        pages = 0;
        n_slots = 0;
    }

    // The next block's index, or -1; its address and slots.
    __device__ int next(unsigned long long *address, int *slots)
    {
        const int lane = threadIdx.x & 31;
        while (mask == 0) {
            base += 32;
            if (base >= range.end) {
                return -1;
            }
            bool is_wanted = false;
            if (base + lane < range.end) {
                const tkv_device_block block = blocks[base + lane];
                pages = block.pages;
                n_slots = block.is_exact ? block.n_slots : PAGE;
                is_wanted = (block.is_exact || is_all_exact) == (want_exact != 0);
            }
            mask = __ballot_sync(~0u, is_wanted);
        }
        const int i = __ffs(mask) - 1;
        mask &= mask - 1;
        *address = __shfl_sync(~0u, pages, i);
        *slots = __shfl_sync(~0u, n_slots, i);
        return base + i;
    }

    __device__ void skip(int n)
    {
        unsigned long long address;
        int slots;
        for (int i = 0; i < n; i++) {
            next(&address, &slots);
        }
    }
};

// Bytes of one page of a type that prefill reads.
__host__ __device__ inline int page_bytes(int type, int head_dim)
{
    const int bits = type == TKV_TYPE_TURBO8                                ? 8
                     : type == TKV_TYPE_TURBO4                              ? 4
                     : type == TKV_TYPE_TURBO3 || type == TKV_TYPE_TRELLIS3 ? 3
                                                                            : 2;
    return head_dim * bits * PAGE / 8 + PAGE * 2;
}

// Whether 16 codes come out of unpack_codes in natural order (r = 4n + i) or as i + 4n.
__host__ __device__ constexpr bool is_natural(int type)
{
    return type == TKV_TYPE_TURBO8;
}

// 2^x; the hardware's approximation, its relative error below 2^-22.
__device__ inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The four lanes that share a row of a product's result.
__device__ inline float max_of_four_lanes(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

cudaError_t launch_coded(const Plan &plan, cudaStream_t stream);
cudaError_t launch_exact(const Plan &plan, cudaStream_t stream);

} // namespace tkv_prefill
