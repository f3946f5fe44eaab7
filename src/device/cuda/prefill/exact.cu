/* Prefill over exact (f16) pages on Hopper: sinks, the recent window, types f16. Two warpgroups of
 * 64 query rows share each page in shared memory and do what FlashAttention-3 does (Shah et al.
 * 2024, section 3.2): products by wgmma, the scores of a page asked for before the sums of the page
 * before, softmax in registers between. Bound by the tensor cores. */
#include "device/cuda/base/head_dim.cuh"
#include "device/cuda/base/hopper.cuh"
#include "device/cuda/prefill/job.cuh"

namespace tkv_cuda
{
namespace
{

constexpr int warpgroup = 128;
constexpr int n_threads = cta_rows / 64 * warpgroup;
/* Weights are 2^(logit - reference); the reference moves when the weights of a row and page come to
 * more than most_weight, and then so that none is above 2^headroom: far from a half's end either
 * way. */
constexpr float headroom = 8.0f;
constexpr float most_weight = 0x1p15f;
/* Eight coordinates of a page's tokens lie together, 16 bytes each, and so that eight of these
 * columns are in different banks. */
constexpr int column_bytes = page_tokens * 16 + 16;

template <int HeadDim> struct stage_shape {
    static constexpr int n_stages = HeadDim <= 128 ? 4 : 3;
    static constexpr int n_columns = HeadDim <= 128 ? HeadDim : 128; /* of one value product */
    /* Whether there are registers for a page's scores while the sums of the page before are added.
     */
    static constexpr bool is_overlapped = HeadDim <= 128;
    /* page_queue on their way; where they overlap, the stage of the page before is still read. */
    static constexpr int n_ahead = n_stages - (is_overlapped ? 2 : 1);
};

template <int HeadDim> struct __align__(128) page_stage
{
    uint8_t keys[HeadDim / 8 * column_bytes];
    uint8_t values[HeadDim / 8 * column_bytes];
};

/* Rows from n_tokens on, which hold what dropped tokens have left, become zero. */
template <int HeadDim>
__device__ void fetch_page(const __half *keys, int n_slots, int n_tokens, page_stage<HeadDim> &to)
{
    constexpr int n_chunks = HeadDim / 8;
    const __half *values = keys + n_slots * HeadDim;
#pragma unroll
    for (int i = 0; i < page_tokens * n_chunks / n_threads; i++) {
        const int item = threadIdx.x + i * n_threads;
        const int row = item / n_chunks;
        const int chunk = item % n_chunks;
        const bool is_there = row < n_slots && row < n_tokens;
        const int from = is_there ? item * 8 : 0;
        const int at = chunk * column_bytes + row * 16;
        copy_chunk_or_zeros(shared_address(to.keys + at), keys + from, is_there);
        copy_chunk_or_zeros(shared_address(to.values + at), values + from, is_there);
    }
}

template <int HeadDim>
using value_sums =
    float[HeadDim / stage_shape<HeadDim>::n_columns][stage_shape<HeadDim>::n_columns / 2];

/* A thread's two rows (g and g + 8 of its warp's 16) and what the softmax knows of them. */
struct exact_rows {
    int position[2]; /* last token that the row sees; -1: none */
    float reference[2];
    float largest[2]; /* logit so far; only kept where values are sparse */
    float sum[2];
};

__device__ inline exact_rows begin_rows(const prefill_job &job, const tkv_device_sequence &sequence,
                                        int first_row)
{
    exact_rows rows;
    for (int h = 0; h < 2; h++) {
        const int row = first_row + 8 * h;
        const bool is_real = row < job.n_rows;
        rows.position[h] = is_real ? first_position(job, sequence) + row / job.group : -1;
        rows.reference[h] = is_real ? -INFINITY : 0.0f; /* what sees nothing never moves it */
        rows.largest[h] = -INFINITY;
        rows.sum[h] = 0.0f;
    }
    return rows;
}

/* Scores -> logits, base 2. */
template <bool IsSpecial>
__device__ inline void scale_scores(const prefill_job &job, float (&s)[page_tokens / 2])
{
    const float scale = job.params.scale * log2_e;
    const float cap = job.params.logit_softcap * log2_e;
#pragma unroll
    for (int c = 0; c < page_tokens / 2; c++) {
        s[c] *= scale;
    }
    if constexpr (IsSpecial) {
        if (cap > 0.0f) {
#pragma unroll
            for (int c = 0; c < page_tokens / 2; c++) {
                s[c] = cap_logit(cap, s[c]);
            }
        }
    }
}

/* -infinity where a row does not see a token. A thread has of every eight columns 2t and 2t + 1,
 * for both rows. The block holds tokens start .. end-1. */
__device__ inline void mask_logits(int start, int end, int window, const exact_rows &rows,
                                   float (&s)[page_tokens / 2])
{
    int first[2]; /* column that the row sees */
    int last[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        last[h] = min(end - 1, rows.position[h]) - start;
        first[h] = window > 0 ? rows.position[h] - window + 1 - start : 0;
    }
    if (__all_sync(full_warp, first[0] <= 0 && first[1] <= 0 && last[0] >= page_tokens - 1 &&
                                  last[1] >= page_tokens - 1)) {
        return;
    }
#pragma unroll
    for (int c = 0; c < page_tokens / 2; c++) {
        const int h = c >> 1 & 1;
        const int column = 8 * (c / 4) + 2 * (threadIdx.x & 3) + (c & 1);
        s[c] = column >= first[h] && column <= last[h] ? s[c] : -INFINITY;
    }
}

/* Weights of a page as operands of the second product; adds up each row's of this thread. */
__device__ inline void weigh(const float (&s)[page_tokens / 2], const float (&reference)[2],
                             uint32_t (&weights)[page_tokens / 16][4], float (&sums)[2])
{
    sums[0] = sums[1] = 0.0f;
#pragma unroll
    for (int w = 0; w < page_tokens / 16; w++) {
#pragma unroll
        for (int r = 0; r < 4; r++) { /* columns of eight r / 2, row half r % 2 */
            const int h = r & 1;
            const int at = 8 * w + 4 * (r >> 1) + 2 * h;
            const float low = exp2_fast(s[at] - reference[h]);
            const float high = exp2_fast(s[at + 1] - reference[h]);
            weights[w][r] = to_two_halves(low, high);
            sums[h] += low + high;
        }
    }
}

__device__ inline float largest_of_row(const float (&s)[page_tokens / 2], int h)
{
    float largest = -INFINITY;
#pragma unroll
    for (int j = 0; j < page_tokens / 8; j++) {
        largest = fmaxf(largest, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
    }
    return max_row(largest);
}

/* Weights below the threshold, relative to the row's largest logit so far, become zero. */
__device__ inline void drop_small(const prefill_job &job, const float (&s)[page_tokens / 2],
                                  exact_rows &rows, uint32_t (&weights)[page_tokens / 16][4])
{
    const float threshold = log2f(job.params.sparse_v);
    float limit[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        rows.largest[h] = fmaxf(rows.largest[h], largest_of_row(s, h));
        limit[h] = rows.largest[h] + threshold;
    }
#pragma unroll
    for (int w = 0; w < page_tokens / 16; w++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int h = r & 1;
            const int at = 8 * w + 4 * (r >> 1) + 2 * h;
            weights[w][r] &=
                (s[at] < limit[h] ? 0u : 0xffffu) | (s[at + 1] < limit[h] ? 0u : 0xffff0000u);
        }
    }
}

/* One step of the online softmax: logits -> weights. `rescale` is what the sums so far are to be
 * multiplied by; returns whether that is not one somewhere in the warp. */
template <bool IsSpecial>
__device__ inline bool soften(const prefill_job &job, const float (&s)[page_tokens / 2],
                              exact_rows &rows, uint32_t (&weights)[page_tokens / 16][4],
                              float (&rescale)[2])
{
    float sums[2];
    weigh(s, rows.reference, weights, sums);
    /* Written so that what is not a number counts as too much. */
    const bool is_fitting = sums[0] <= most_weight && sums[1] <= most_weight &&
                            rows.reference[0] != -INFINITY && rows.reference[1] != -INFINITY;
    const bool is_moved = !__all_sync(full_warp, is_fitting);
    if (is_moved) {
        float reference[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float before = rows.reference[h];
            rows.reference[h] = fmaxf(before, largest_of_row(s, h) - headroom);
            rescale[h] = rows.reference[h] == before ? 1.0f : exp2_fast(before - rows.reference[h]);
            rows.sum[h] *= rescale[h];
            reference[h] = rows.reference[h] == -INFINITY ? 0.0f : rows.reference[h];
        }
        weigh(s, reference, weights, sums);
    }
    rows.sum[0] += sums[0];
    rows.sum[1] += sums[1];
    if constexpr (IsSpecial) {
        if (job.params.sparse_v > 0.0f) {
            drop_small(job, s, rows, weights);
        }
    }
    return is_moved;
}

/* Asks for the scores of a warpgroup's 64 rows and the page's tokens. */
template <int HeadDim>
__device__ inline void multiply_keys(const uint32_t (&queries)[HeadDim / 16][4],
                                     const page_stage<HeadDim> &stage,
                                     float (&scores)[page_tokens / 2])
{
    const uint64_t first = core_matrix_descriptor(stage.keys, column_bytes);
    /* A step of 16 coordinates is two columns on; descriptors count 16 bytes. */
    wgmma_f16<page_tokens, true, false>(scores, queries[0], first);
#pragma unroll
    for (int k = 1; k < HeadDim / 16; k++) {
        wgmma_f16<page_tokens, false, false>(scores, queries[k], first + 2 * k * column_bytes / 16);
    }
    wgmma_commit();
}

/* Asks for weights times values to be added to the sums. */
template <int HeadDim>
__device__ inline void multiply_values(const uint32_t (&weights)[page_tokens / 16][4],
                                       const page_stage<HeadDim> &stage, value_sums<HeadDim> &sums)
{
    constexpr int n_columns = stage_shape<HeadDim>::n_columns;
#pragma unroll
    for (int part = 0; part < HeadDim / n_columns; part++) {
        const uint64_t first = core_matrix_descriptor(
            stage.values + part * n_columns / 8 * column_bytes, 128, column_bytes);
#pragma unroll
        for (int k = 0; k < page_tokens / 16; k++) { /* 16 tokens are 256 bytes on */
            wgmma_f16<n_columns, false, true>(sums[part], weights[k], first + 16 * k);
        }
    }
    wgmma_commit();
}

template <int HeadDim>
__device__ inline void rescale_sums(const float (&rescale)[2], value_sums<HeadDim> &sums)
{
    constexpr int half_columns = stage_shape<HeadDim>::n_columns / 2;
#pragma unroll
    for (int c = 0; c < HeadDim / 2; c++) {
        sums[c / half_columns][c % half_columns] *= rescale[c >> 1 & 1];
    }
}

/* Waits for all products. */
template <int HeadDim> __device__ inline void wait_for_sums(value_sums<HeadDim> &sums)
{
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < HeadDim / stage_shape<HeadDim>::n_columns; part++) {
        wgmma_hold(sums[part]);
    }
}

/* Of rows g and g + 8 of the warp, coordinates 2t and 2t + 8 of every 16. */
template <int HeadDim>
__device__ inline void load_queries(const __half *row, uint32_t (&queries)[HeadDim / 16][4])
{
    const __half *from = row + 2 * (threadIdx.x & 3);
#pragma unroll
    for (int k = 0; k < HeadDim / 16; k++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            queries[k][r] =
                *(const uint32_t *)(from + (r & 1) * 8 * HeadDim + 16 * k + (r >> 1) * 8);
        }
    }
}

template <int HeadDim>
__device__ void write_part(const prefill_job &job, int unit, int split, int first_row,
                           const exact_rows &rows, const value_sums<HeadDim> &sums)
{
    constexpr int n_columns = stage_shape<HeadDim>::n_columns;
    const int t = threadIdx.x & 3;
    for (int h = 0; h < 2; h++) {
        const float sum = add_row(rows.sum[h]);
        const size_t part = part_index(job, unit, 1, split, first_row + 8 * h);
        if (t == 0) {
            job.part_stats[part] = make_float2(rows.reference[h], sum);
        }
        if (rows.reference[h] == -INFINITY) {
            continue; /* nothing seen: the sums will not be read */
        }
#pragma unroll
        for (int j = 0; j < HeadDim / 8; j++) {
            const float *two = sums[8 * j / n_columns] + 4 * (j % (n_columns / 8)) + 2 * h;
            *(float2 *)(job.part_sums + part * HeadDim + 8 * j + 2 * t) =
                make_float2(two[0], two[1]);
        }
    }
}

/* The exact pages of a split, in order. Exact blocks lie together, so that splits take them in
 * turn; every warp walks alike. */
template <int HeadDim> struct page_queue {
    const prefill_job &job;
    const tkv_device_sequence &sequence;
    int kv_head;
    block_walk walk;

    /* Asks for the next page; returns its block or -1. */
    __device__ int fetch(page_stage<HeadDim> &stage)
    {
        uint64_t pages = 0;
        int n_slots = 0;
        const int block = walk.next(&pages, &n_slots);
        walk.skip(job.n_splits[1] - 1);
        if (block >= 0) {
            const auto *keys = (const __half *)pages + (size_t)kv_head * n_slots * HeadDim * 2;
            const int end = min(first_position(job, sequence) + job.params.n_queries,
                                tkv_block_place(job.params.layer.n_sinks, block + 1));
            fetch_page<HeadDim>(keys, n_slots,
                                end - tkv_block_place(job.params.layer.n_sinks, block), stage);
        }
        close_copies();
        return block;
    }
};

/* IsSpecial: with a soft cap or sparse values. */
template <int HeadDim, bool IsSpecial>
__global__ void __launch_bounds__(n_threads, 1)
    attend_exact(const __grid_constant__ prefill_job job)
{
    constexpr int n_stages = stage_shape<HeadDim>::n_stages;
    constexpr int n_ahead = stage_shape<HeadDim>::n_ahead;
    constexpr bool is_overlapped = stage_shape<HeadDim>::is_overlapped;
    extern __shared__ __align__(128) uint8_t memory[];
    page_stage<HeadDim> *stages = (page_stage<HeadDim> *)memory;
    const int unit = blockIdx.y;
    const int split = blockIdx.z;
    const unit_place u = unit_of(job, unit);
    const tkv_device_sequence &sequence = sequence_of(job, u.sequence);
    const int first_row = blockIdx.x * cta_rows + threadIdx.x / 32 * 16 + (threadIdx.x & 31) / 4;
    page_queue<HeadDim> pages = {job, sequence, u.kv_head, {}};
    pages.walk.begin(sequence, range_of_split(job, sequence, blockIdx.x, 0, 1), 1, !job.has_coded);
    pages.walk.skip(split);
    int blocks[n_ahead + 1]; /* the page to work on and those asked for */
#pragma unroll
    for (int i = 0; i < n_ahead; i++) {
        blocks[i] = pages.fetch(stages[i]);
    }
    uint32_t queries[HeadDim / 16][4];
    load_queries<HeadDim>(job.q16 + ((size_t)unit * padded_rows(job) + first_row) * HeadDim,
                          queries);
    exact_rows rows = begin_rows(job, sequence, first_row);
    value_sums<HeadDim> sums = {};
    uint32_t weights[page_tokens / 16][4] = {}; /* nothing before the first page */
    int at = 0;
    int before = 0;
    bool is_any = false;
    while (blocks[0] >= 0) {
        wait_copies<n_ahead - 1>();
        fence_async_proxy();
        __syncthreads();
        float s[page_tokens / 2];
        wgmma_begin();
        multiply_keys<HeadDim>(queries, stages[at], s);
        if constexpr (is_overlapped) {
            multiply_values<HeadDim>(weights, stages[is_any ? before : at], sums);
        }
        /* Behind the products, which wait for all copies that are asked for before. */
        blocks[n_ahead] = pages.fetch(stages[(at + n_ahead) % n_stages]);
        wgmma_wait<is_overlapped ? 1 : 0>();
        wgmma_hold(s);
        scale_scores<IsSpecial>(job, s);
        mask_logits(tkv_block_place(job.params.layer.n_sinks, blocks[0]),
                    tkv_block_place(job.params.layer.n_sinks, blocks[0] + 1), job.params.window,
                    rows, s);
        if constexpr (is_overlapped) {
            wait_for_sums<HeadDim>(sums);
        }
        float rescale[2];
        if (soften<IsSpecial>(job, s, rows, weights, rescale)) {
            rescale_sums<HeadDim>(rescale, sums);
        }
        if constexpr (!is_overlapped) {
            wgmma_begin();
            multiply_values<HeadDim>(weights, stages[at], sums);
            wait_for_sums<HeadDim>(sums);
        }
#pragma unroll
        for (int i = 0; i < n_ahead; i++) {
            blocks[i] = blocks[i + 1];
        }
        is_any = true;
        before = at;
        at = at + 1 == n_stages ? 0 : at + 1;
    }
    if (is_overlapped && is_any) {
        wgmma_begin();
        multiply_values<HeadDim>(weights, stages[before], sums);
        wait_for_sums<HeadDim>(sums);
    }
    wait_all_copies();
    write_part<HeadDim>(job, unit, split, first_row, rows, sums);
}

template <int HeadDim, bool IsSpecial>
cudaError_t launch(const prefill_job &job, cudaStream_t stream)
{
    const int bytes = stage_shape<HeadDim>::n_stages * sizeof(page_stage<HeadDim>);
    const cudaError_t error = cudaFuncSetAttribute(
        attend_exact<HeadDim, IsSpecial>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 grid(job.n_row_tiles, job.params.n_sequences * job.params.layer.n_kv_heads,
                    job.n_splits[1]);
    attend_exact<HeadDim, IsSpecial><<<grid, n_threads, bytes, stream>>>(job);
    return cudaGetLastError();
}

template <int HeadDim> cudaError_t launch(const prefill_job &job, cudaStream_t stream)
{
    const bool is_special = job.params.logit_softcap > 0.0f || job.params.sparse_v > 0.0f;
    return is_special ? launch<HeadDim, true>(job, stream) : launch<HeadDim, false>(job, stream);
}

} /* namespace */

cudaError_t launch_prefill_exact(const prefill_job &job, cudaStream_t stream)
{
    cudaError_t error = cudaErrorInvalidValue;
    with_head_dim(job.params.layer.head_dim_k,
                  [&](auto size) { error = launch<decltype(size)::value>(job, stream); });
    return error;
}

} /* namespace tkv_cuda */
