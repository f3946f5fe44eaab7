/* The decode attention kernel proper. */
#ifndef TKV_DEVICE_CUDA_DECODE_KERNEL_CUH
#define TKV_DEVICE_CUDA_DECODE_KERNEL_CUH

#include "device/cuda/decode/blocks.cuh"
#include "device/cuda/decode/merge.cuh"
#include "device/cuda/decode/pair.cuh"
#include "device/cuda/decode/tokens.cuh"

namespace tkv_cuda
{

/* The accumulators hold 65536 tokens without overflow. */
constexpr unsigned pages_a_flush = 256;

/* Joins the warps' rows and writes the CTA's part to the workspace. Each warp leaves its sums in
 * its own stages, `stride` floats from those of the next, so that there is one barrier only. */
template <int HeadDim, int RowTiles, int Warps>
__device__ __forceinline__ void write_part(const decode_job &job, const decode_work &work,
                                           row_state<HeadDim, RowTiles> &state, float *stages,
                                           int stride)
{
    constexpr int n_rows = 4 * RowTiles;
    __shared__ float2 warp_rows[Warps][n_rows];
    const int warp = threadIdx.x / 32;
    const int g = threadIdx.x % 32 >> 2;
    const int t = threadIdx.x & 3;
    const size_t part = (size_t)work.unit * job.n_splits + work.split;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        state.sum[i] = add_column(state.sum[i]);
        if (g == 0) {
            warp_rows[warp][4 * i + t] = make_float2(state.maximum[i], state.sum[i]);
        }
        float *row = stages + warp * stride + (4 * i + t) * HeadDim + 4 * g;
#pragma unroll
        for (int block = 0; block < HeadDim / 32; block++) {
            const float *four = state.total[i][block];
            *(float4 *)(row + 32 * block) = make_float4(four[0], four[1], four[2], four[3]);
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < n_rows * HeadDim / 4; at += Warps * 32) {
        const int r = at / (HeadDim / 4);
        float maximum = no_maximum;
#pragma unroll
        for (int w = 0; w < Warps; w++) {
            maximum = fmaxf(maximum, warp_rows[w][r].x);
        }
        float4 sums = {0.0f, 0.0f, 0.0f, 0.0f};
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < Warps; w++) {
            const float2 row = warp_rows[w][r];
            const float factor = exp2_fast(row.x - maximum);
            const float4 four = *(const float4 *)(stages + w * stride + 4 * at);
            sums.x = fmaf(factor, four.x, sums.x);
            sums.y = fmaf(factor, four.y, sums.y);
            sums.z = fmaf(factor, four.z, sums.z);
            sums.w = fmaf(factor, four.w, sums.w);
            sum = fmaf(factor, row.y, sum);
        }
        ((float4 *)job.sums)[part * (n_rows * HeadDim / 4) + at] = sums;
        if (at % (HeadDim / 4) == 0) {
            *(row_sums *)(job.stats + (part * n_rows + r) * 4) = {maximum, sum, sum, 0.0f};
        }
    }
}

/* Exact blocks are shared out beforehand, whatever becomes of the coded ones. */
__device__ __forceinline__ bool has_exact_block(const decode_work &work)
{
    bool has = false;
    for (int block = work.begin + work.split + threadIdx.x * work.n_active; block < work.end;
         block += blockDim.x * work.n_active) {
        has |= ((const tkv_device_block *)work.sequence.blocks)[block].is_exact != 0;
    }
    return has;
}

/* Shared memory for the exact blocks of 4 rows. */
template <int HeadDim, int Warps> struct exact_scratch {
    float queries[token_rows][HeadDim];
    float sums[token_rows][HeadDim];
    joined_row halves[2 * Warps * token_rows];
    joined_row rows[token_rows];
};

/* Adds the CTA's exact blocks to its part, in the domain of the codes, for rows 4 * tile and on. */
template <int HeadDim, int Warps>
__device__ __noinline__ void add_exact_blocks(const decode_job &job, const decode_work &work,
                                              int tile, row_sums *stats, float *sums,
                                              exact_scratch<HeadDim, Warps> &scratch)
{
    constexpr int N = HeadDim / half_warp;
    const row_shape<N> shape = {HeadDim};
    const int first_row = token_rows * tile;
    for (int i = threadIdx.x; i < token_rows * HeadDim; i += Warps * 32) {
        const int r = first_row + i / HeadDim;
        scratch.queries[i / HeadDim][i % HeadDim] =
            r < work.n_rows ? query_of_row(job, work, r)[i % HeadDim] : 0.0f;
    }
    __syncthreads();
    token_state<N, 1> state;
    clear_tokens(shape, state);
    for (int block = work.begin + work.split; block < work.end; block += work.n_active) {
        const tkv_device_block entry = ((const tkv_device_block *)work.sequence.blocks)[block];
        if (entry.is_exact) {
            attend_exact_runs<N, 2>(job, work, scratch.queries[0], first_row, block, entry, state);
        }
    }
    join_tokens<N, true>(shape, state, scratch.halves, scratch.rows, scratch.sums[0]);
    if (lane_of_row() % 4 == 0) {
        add_stats(job, state.n_weights, state.n_skipped);
    }
    for (int r = threadIdx.x / 32; r < token_rows; r += Warps) {
        float x[HeadDim / 32];
        load_runs(scratch.sums[r], x);
        rotate_runs(x);
        const row_sums coded = stats[r];
        const joined_row exact = scratch.rows[r];
        const float maximum = fmaxf(coded.maximum, exact.maximum);
        const float of_coded = exp2_fast(coded.maximum - maximum);
        const float of_exact = exp2_fast(exact.maximum - maximum);
        float *row = sums + r * HeadDim + threadIdx.x % 32 * (HeadDim / 32);
#pragma unroll
        for (int j = 0; j < HeadDim / 32; j++) {
            row[j] = fmaf(row[j], of_coded, x[j] * of_exact * TKV_LEVEL_UNIT);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            stats[r] = {maximum, coded.sum * of_coded + exact.sum * of_exact, coded.sum * of_coded,
                        0.0f};
        }
    }
    __syncthreads();
}

/* The same of all row tiles; the stages are no longer wanted. */
template <int HeadDim, int RowTiles, int Warps>
__device__ __forceinline__ void add_all_exact_blocks(const decode_job &job, const decode_work &work,
                                                     uint8_t *stages)
{
    const size_t rows = ((size_t)work.unit * job.n_splits + work.split) * (4 * RowTiles);
    auto &scratch = *(exact_scratch<HeadDim, Warps> *)stages;
    __syncthreads();
    for (int i = 0; i < RowTiles; i++) {
        const size_t row = rows + token_rows * i;
        add_exact_blocks(job, work, i, (row_sums *)job.stats + row, job.sums + row * HeadDim,
                         scratch);
    }
}

/* What the warps of a CTA share beside their queries and stages. */
template <int KeyType, int ValueType, int Rows> struct shared_facts {
    unsigned drawn; /* a CTA that is alone needs no counter of the unit */
    int maxima[Rows];
    hidden_tables<KeyType, ValueType> hidden[2];
};

template <typename Keys, int KeyType, int ValueType, int Rows>
__device__ __forceinline__ void begin_facts(shared_facts<KeyType, ValueType, Rows> &facts)
{
    if (threadIdx.x == 0) {
        facts.drawn = 0;
    }
    if (threadIdx.x < Rows) {
        facts.maxima[threadIdx.x] = order_of(no_maximum);
    }
    if (threadIdx.x < 2) {
        facts.hidden[threadIdx.x] = {Keys::is_shared ? make_half_tables<KeyType>(threadIdx.x)
                                                     : make_level_tables<KeyType>(),
                                     make_half_tables<ValueType>(threadIdx.x)};
    }
}

template <int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void flush_all_sums(row_state<HeadDim, RowTiles> &rows)
{
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        flush_sums<ValueType>(i, 1.0f, rows);
    }
}

/* All blocks that the warp takes, from the two stages in turn; `due` is the first, its pages on
 * their way. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void
attend_blocks(const decode_job &job, const decode_work &work, int lane, due_block due,
              block_queue &queue, uint8_t *stage, int *shared_maxima,
              warp_state<KeyType, ValueType, HeadDim, RowTiles> &warp)
{
    using layout = pair_layout<KeyType, ValueType, HeadDim>;
    const uint32_t stage_address = shared_address(stage);
    int at = 0; /* the stage of `due` */
    for (unsigned n_done = 0; due.block < work.end; n_done++) {
        /* The keys are there. Only now the next pages are asked for: if all were on their way at
         * once, all would arrive at the end. */
        wait_copies<1>();
        __syncwarp();
        const due_block next = read_entry<layout>(work, queue.ahead);
        advance_blocks(work, lane, n_done == 0, queue);
        copy_block<layout>(stage_address + layout::bytes - at, lane, work, next);
        if (!due.is_exact) {
            attend_pair(job, work, due.block, stage + at, shared_maxima, warp);
        }
        if (n_done % pages_a_flush == pages_a_flush - 1) {
            flush_all_sums<ValueType>(warp.rows);
        }
        __syncwarp();
        due = next;
        at = layout::bytes - at;
    }
    flush_all_sums<ValueType>(warp.rows);
    wait_copies<0>();
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        if (4 * i + (lane & 3) < work.n_rows) {
            add_stats(job, warp.sparse[i].n_weights, warp.sparse[i].n_skipped);
        }
    }
}

template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__global__ void __launch_bounds__(decode_shape<KeyType, ValueType, HeadDim, RowTiles>::n_warps * 32,
                                  1) attend_decode(const __grid_constant__ decode_job job)
{
    using shape = decode_shape<KeyType, ValueType, HeadDim, RowTiles>;
    using layout = typename shape::layout;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ shared_facts<KeyType, ValueType, shape::n_rows> facts;
    uint32_t *fragments = (uint32_t *)shared;
    row_terms *all_terms = (row_terms *)(fragments + RowTiles * shape::fragment_words);
    uint8_t *stages = shared + shape::query_bytes;

    const int lane = pin(threadIdx.x % 32);
    const int warp = threadIdx.x / 32;
    /* What the first loads will want, on its way before there is anything to wait for. */
    prefetch((const tkv_device_sequence *)job.params.sequences + blockIdx.z);
    decode_work work = name_work(job, shape::n_rows);
    const float *query_row = query_of_row(job, work, warp);
    await_launch();
    float query[HeadDim / 32] = {};
    if (warp < work.n_rows) { /* before the pages, or it would come after them */
        load_runs(query_row, query);
    }
    plan_work(job, shape::n_warps, work);
    if (work.split >= work.n_active) {
        return;
    }
    uint8_t *stage = stages + warp * shape::warp_bytes;
    block_queue queue;
    const raw_entry first = begin_blocks(work, shape::n_warps, warp, queue);
    const bool has_own_exact = has_exact_block(work);
    queue.counter = work.n_active == 1 ? &facts.drawn : &job.counters[work.unit].drawn;
    begin_facts<typename layout::keys>(facts);
    for (int r = warp; r < shape::n_rows; r += shape::n_warps) {
        if (r != warp && r < work.n_rows) {
            load_runs(query_of_row(job, work, r), query);
        }
        prepare_query<KeyType, HeadDim>(job, work, r, query, (uint8_t *)fragments, all_terms + r);
    }
    /* From here on whatever is loaded comes after the pages, which fill the memory's queues. */
    const due_block due = read_entry<layout>(work, first);
    copy_block<layout>(shared_address(stage), lane, work, due);
    const bool has_exact = __syncthreads_or(has_own_exact);
    warp_state<KeyType, ValueType, HeadDim, RowTiles> state;
    state.lane = make_lane_constants<layout, KeyType, ValueType>(facts.hidden);
    begin_rows(fragments, all_terms, lane, state);
    attend_blocks(job, work, lane, due, queue, stage, facts.maxima, state);
    write_part<HeadDim, RowTiles, shape::n_warps>(job, work, state.rows, (float *)stages,
                                                  shape::warp_bytes / 4);
    if (has_exact) {
        add_all_exact_blocks<HeadDim, RowTiles, shape::n_warps>(job, work, stages);
    }
    if (is_last_part(job, work)) {
        merge_parts<HeadDim, RowTiles, shape::n_warps>(job, work, (float *)stages);
    }
}

} /* namespace tkv_cuda */

#endif
