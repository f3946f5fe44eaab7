/* Which kernels there are, which of them a call takes, and how its work is split: numbers and the
 * reasons for them. docs/CUDA.md and docs/CUDA_PREFILL.md have the measurements. */
#ifndef TKV_DEVICE_CUDA_HEURISTICS_H
#define TKV_DEVICE_CUDA_HEURISTICS_H

#include "format/type_table.h"

#include <stddef.h>

namespace tkv_cuda
{

/* Of each buffer in a workspace: what an allocation has, so that no two share a line of the cache.
 */
constexpr size_t buffer_alignment = 256;

constexpr size_t align_buffer(size_t bytes)
{
    return (bytes + buffer_alignment - 1) / buffer_alignment * buffer_alignment;
}

/* ---- Decode ---- */

/* Mixed kernels cost minutes to compile, so there are those that policies ask for: keys of four or
 * more bits over values of fewer, and the two trellises. */
constexpr bool has_mixed_kernel(int type_k, int type_v)
{
    const bool is_wanted =
        tkv_type_code_bits(type_k) >= 4 ||
        (tkv_type_kind(type_k) == TKV_CODE_TRELLIS && tkv_type_kind(type_v) == TKV_CODE_TRELLIS);
    return tkv_type_code_bits(type_k) > tkv_type_code_bits(type_v) && is_wanted;
}

/* Warps of a CTA, one of which a multiprocessor has: 12 have the registers that the loop wants,
 * 168, and more would only queue for the memory. Sums of more than 256 coordinates and row tiles
 * need more registers. */
constexpr int most_decode_warps(int head_dim, int n_row_tiles)
{
    return head_dim * n_row_tiles > 256 ? 8 : 12;
}

/* Shared memory of such a CTA: Hopper's 227 KiB less what is not asked for at the launch. */
constexpr int decode_shared_limit = 224 * 1024;

/* The merge has the factors of a row's parts in shared memory. */
constexpr int max_splits = 64;

/* CTAs that share the blocks of each unit. A split costs a beginning and an end, worth some pages a
 * warp, and whole waves of CTAs count; n_slots of them run at once. */
inline int choose_decode_splits(int n_units, int n_blocks, int n_warps, int n_slots)
{
    const int overhead = 3;
    int best = 1;
    double best_cost = 1e300;
    for (int splits = 1;
         splits <= max_splits && (splits == 1 || splits * n_warps < n_blocks + n_warps); splits++) {
        const double waves = ((double)n_units * splits + n_slots - 1) / n_slots;
        const int pages = (n_blocks + splits * n_warps - 1) / (splits * n_warps);
        const double cost = (double)(int)waves * (pages + overhead) + 0.02 * splits;
        if (cost < best_cost) {
            best_cost = cost;
            best = splits;
        }
    }
    return best;
}

/* ---- Prefill ---- */

/* Rows (queries times heads of a group) a KV head from which the kernels for many rows are better:
 * decode takes 16 in one pass over the pages. */
constexpr int min_prefill_rows = 17;

/* The context is split where there are fewer row tiles than the multiprocessors can hold; eight
 * pages are worth a CTA. */
inline int choose_prefill_splits(long long n_ctas, int n_blocks, int n_multiprocessors)
{
    const int wanted = (int)(n_multiprocessors / (n_ctas > 0 ? n_ctas : 1));
    const int most = n_blocks / 8;
    const int n = wanted < most ? wanted : most;
    return n < 1 ? 1 : n;
}

} /* namespace tkv_cuda */

#endif
