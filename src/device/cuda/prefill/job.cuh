/* Prefill attention, what its kernels share: many query rows a KV head against the pages of one
 * layer. Rows are (query, head of the group), query-major; 128 of them share a CTA.
 *
 *   prepare   queries -> int8 rows with a scale (rotated), and f16 rows (not rotated)
 *   coded     coded pages through int8 wgmma (coded.cu)
 *   exact     f16 pages through f16 wgmma (exact.cu)
 *   finish    partial results -> out: merge, inverse rotation, means */
#ifndef TKV_DEVICE_CUDA_PREFILL_JOB_CUH
#define TKV_DEVICE_CUDA_PREFILL_JOB_CUH

#include "device/cuda/base/half.cuh"
#include "device/cuda/base/page.cuh"
#include "device/cuda/base/softmax.cuh"

namespace tkv_cuda
{

constexpr int cta_rows = 128;

/* One launch: shapes, splits and where its buffers lie in the workspace. */
struct prefill_job {
    tkv_device_attend params;
    int group;       /* query heads a KV head */
    int n_rows;      /* n_queries * group */
    int n_row_tiles; /* of cta_rows */
    int n_splits[2]; /* of coded and of exact pages */
    int has_coded;   /* which kernels run */
    int has_exact;
    int key_bytes; /* of a coded page */
    int value_bytes;
    int8_t *q8;         /* [unit][n_row_tiles * cta_rows][head_dim], in the order of place_of() */
    float *q_scale;     /* [unit][row] logits (base 2) a unit of score */
    float *q_bias;      /* [unit][row] q . mean_k, base 2 */
    __half *q16;        /* [unit][row][head_dim] */
    float *part_sums;   /* [unit][kind, split][row][head_dim]; kind 0 coded, 1 exact */
    float2 *part_stats; /* the same without head_dim: largest logit (base 2), sum */
};

struct unit_place {
    int sequence;
    int kv_head;
};

__device__ inline unit_place unit_of(const prefill_job &job, int unit)
{
    return {unit / job.params.layer.n_kv_heads, unit % job.params.layer.n_kv_heads};
}

__device__ inline const tkv_device_sequence &sequence_of(const prefill_job &job, int sequence)
{
    return ((const tkv_device_sequence *)job.params.sequences)[sequence];
}

__device__ inline int first_position(const prefill_job &job, const tkv_device_sequence &sequence)
{
    return job.params.first_position >= 0 ? job.params.first_position
                                          : sequence.n_tokens - job.params.n_queries;
}

__host__ __device__ inline int padded_rows(const prefill_job &job)
{
    return job.n_row_tiles * cta_rows;
}

__device__ inline size_t part_index(const prefill_job &job, int unit, int kind, int split, int row)
{
    const size_t part =
        (size_t)unit * (job.n_splits[0] + job.n_splits[1]) + (kind ? job.n_splits[0] : 0) + split;
    return part * padded_rows(job) + row;
}

/* The blocks that a row tile's split of n_splits reads. */
struct block_range {
    int begin;
    int end;
};

__device__ inline block_range range_of_split(const prefill_job &job,
                                             const tkv_device_sequence &sequence, int row_tile,
                                             int split, int n_splits)
{
    const int first = first_position(job, sequence);
    const int first_row = row_tile * cta_rows;
    const int last_row = min(first_row + cta_rows, job.n_rows) - 1;
    const int last_seen = first + last_row / job.group;
    const int oldest =
        job.params.window > 0 ? max(first + first_row / job.group + 1 - job.params.window, 0) : 0;
    const int first_block = tkv_block_of_place(job.params.layer.n_sinks, oldest);
    const int n =
        min(tkv_block_of_place(job.params.layer.n_sinks, last_seen) + 1, sequence.n_blocks) -
        first_block;
    return {first_block + (int)((int64_t)n * split / n_splits),
            first_block + (int)((int64_t)n * (split + 1) / n_splits)};
}

/* Walks over the blocks of a range that are exact, or coded; called by a whole warp. */
struct block_walk {
    block_range range;
    const tkv_device_block *blocks;
    int want_exact;
    bool is_all_exact;
    int base;
    uint32_t mask;
    uint64_t pages; /* of the lane's block */
    int n_slots;

    /* Where the types are f16 all blocks are exact. */
    __device__ void begin(const tkv_device_sequence &sequence, block_range r, int exact,
                          bool all_exact)
    {
        range = r;
        blocks = (const tkv_device_block *)sequence.blocks;
        want_exact = exact;
        is_all_exact = all_exact;
        base = r.begin - 32;
        mask = 0;
        pages = 0;
        n_slots = 0;
    }

    /* The next block's index, or -1; its address and slots. */
    __device__ int next(uint64_t *address, int *slots)
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
                n_slots = block.is_exact ? block.n_slots : page_tokens;
                is_wanted = (block.is_exact || is_all_exact) == (want_exact != 0);
            }
            mask = __ballot_sync(full_warp, is_wanted);
        }
        const int i = __ffs(mask) - 1;
        mask &= mask - 1;
        *address = __shfl_sync(full_warp, pages, i);
        *slots = __shfl_sync(full_warp, n_slots, i);
        return base + i;
    }

    __device__ void skip(int n)
    {
        uint64_t address;
        int slots;
        for (int i = 0; i < n; i++) {
            next(&address, &slots);
        }
    }
};

/* Whether 16 codes come out of unpack_levels in natural order (r = 4n + i) or as i + 4n. */
__host__ __device__ inline bool is_natural(int type)
{
    return is_bytes(type);
}

cudaError_t launch_prefill_coded(const prefill_job &job, cudaStream_t stream);
cudaError_t launch_prefill_exact(const prefill_job &job, cudaStream_t stream);

} /* namespace tkv_cuda */

#endif
