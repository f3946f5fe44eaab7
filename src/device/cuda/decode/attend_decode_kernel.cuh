/* The decode attention kernel proper. */
#ifndef TKV_DEVICE_CUDA_DECODE_ATTEND_DECODE_KERNEL_CUH
#define TKV_DEVICE_CUDA_DECODE_ATTEND_DECODE_KERNEL_CUH

#include "device/cuda/decode/attend_decode.cuh"
#include "device/cuda/decode/decode_merge.cuh"
#include "device/cuda/decode/decode_tokens.cuh"

namespace tkv_cuda
{

/* The accumulators hold 65536 tokens without overflow. */
constexpr unsigned pages_a_flush = 256;

/* atomicAdd(counter, 1), which the compiler would do once for all lanes and wait for at once. */
__device__ __forceinline__ unsigned draw_number(unsigned *counter)
{
    unsigned drawn;
    asm volatile("atom.inc.u32 %0, [%1], 0x7fffffff;" : "=r"(drawn) : "l"(counter) : "memory");
    return drawn;
}

/* An entry of the block table as it is loaded; nothing looks at it before the pages are due. */
struct raw_entry {
    uint64_t pages;
    int is_exact;
    int block;
};

__device__ __forceinline__ void load_entry(const decode_work &work, int block, raw_entry &entry)
{
    const tkv_device_block *from = (const tkv_device_block *)work.sequence.blocks + block;
    entry.block = block;
    /* In place and under a predicate, or the compiler would wait to move the result; nothing that
     * goes unused, or it would wait to use its register. */
    asm volatile("{\n.reg .pred is_there;\nsetp.lt.s32 is_there, %3, %4;\n"
                 "@is_there ld.global.nc.b64 %0, [%2];\n"
                 "@is_there ld.global.nc.b32 %1, [%2 + 8];\n}"
                 : "+l"(entry.pages), "+r"(entry.is_exact)
                 : "l"(from), "r"(block), "r"(work.end));
}

/* A block whose pages are asked for. */
struct due_block {
    uint64_t pages; /* of the KV head */
    int block;      /* the end if there is none */
    int is_exact;
};

template <typename Layout>
__device__ __forceinline__ due_block read_entry(const decode_work &work, const raw_entry &entry)
{
    uint64_t pages; /* now, not after the entry's registers are loaded again */
    asm volatile("mad.wide.s32 %0, %1, %2, %3;"
                 : "=l"(pages)
                 : "r"(work.kv_head), "n"(Layout::page_bytes), "l"(entry.pages));
    return {pages, entry.block, entry.is_exact};
}

/* Two groups of copies, even if there is nothing to copy. */
template <typename Layout>
__device__ __forceinline__ void copy_block(uint32_t stage, int lane, const decode_work &work,
                                           const due_block &due)
{
    if (due.block < work.end && !due.is_exact) {
        copy_pair<Layout>(stage, lane, due.pages);
    } else {
        close_copies();
        close_copies();
    }
}

/* One page pair of the warp, from its stage. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void
attend_pair(const decode_job &job, const decode_work &work, int block, bool is_first,
            uint8_t *stage, int *shared_maxima, const lane_constants<KeyType, ValueType> &lane,
            const uint32_t (&queries)[RowTiles][HeadDim / 16], const row_terms (&terms)[RowTiles],
            row_state<HeadDim, RowTiles> &state, sparse_state (&sparse)[RowTiles])
{
    using layout = pair_layout<KeyType, ValueType, HeadDim>;
    const int t = threadIdx.x & 3;
    place_start_bits<layout>(stage);
    int query_sums[RowTiles][2];
    int score[RowTiles][8];
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        query_sums[i][0] = coding<KeyType>::n_tables == 2 ? terms[i].sums[0] : 0;
        query_sums[i][1] = coding<KeyType>::n_tables == 2 ? terms[i].sums[1] : 0;
    }
    compute_scores<KeyType, ValueType, HeadDim, RowTiles>(stage, lane, queries, query_sums, score);
    constexpr int n_later = 2; /* groups of copies: the pages that come after these */
    if constexpr (coding<ValueType>::is_trellis) { /* while the softmax is worked out */
        wait_copies<n_later>();
        __syncwarp();
        place_value_pairs<layout>(stage);
    }

    float key_scale[8];
    float value_scale[8];
    load_scales<KeyType, ValueType>(stage + lane.key_scales, key_scale);
    load_scales<ValueType, ValueType>(stage + lane.value_scales, value_scale);
    const bool is_masked = (unsigned)(block - work.first_whole) >= (unsigned)work.n_whole;
    if (is_masked) {
        const int start = block_start(job.params.layer, block);
        forget_unseen<ValueType>(work.some_begin - start, work.some_end - start, value_scale);
    }
    uint32_t columns[RowTiles][4];
    bool is_any_left = true;
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        row_span span = {};
        if (is_masked) {
            span = span_of_row(job, work, 4 * i + t, block);
        }
        float logit[8];
        float weight[8];
        float integer[8];
        compute_logits<ValueType>(job, terms[i], key_scale, score[i], is_masked, span, logit);
        float sum = compute_weights(state.maximum[i], logit, value_scale, weight, integer);
        if (!__all_sync(full_warp, fit_16_bits(integer, sum))) {
            const float maximum = share_maximum(find_maximum(state.maximum[i], logit, value_scale),
                                                shared_maxima + 4 * i + t);
            if (!is_first) {
                const float factor = exp2_fast(state.maximum[i] - maximum);
                flush_sums<ValueType>(i, factor, state);
                state.sum[i] *= factor;
            }
            state.maximum[i] = maximum;
            sum = compute_weights(maximum, logit, value_scale, weight, integer);
            bool is_bad = false;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                is_bad |= integer[k] != integer[k];
            }
            /* A value that is not finite makes the whole row so. */
            if (__ballot_sync(full_warp, is_bad) & 0x11111111u << t) {
                state.total[i][0][0] = CUDART_NAN_F;
                state.sum[i] = CUDART_NAN_F;
            }
        }
        state.sum[i] += sum;
        if (job.params.sparse_v > 0.0f) {
            drop_small_weights(job.params.sparse_v, logit, integer, sparse[i]);
            bool is_left = false;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                is_left |= integer[k] != integer_base;
            }
            is_any_left = __any_sync(full_warp, is_left) || (i > 0 && is_any_left);
        }
        if constexpr (coding<ValueType>::n_tables == 2) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
                state.weight_sum[i] =
                    add_low_half(state.weight_sum[i], __float_as_uint(integer[k]));
            }
        }
        pack_weights<ValueType>(integer, columns[i]);
    }
    /* All is there but the pages that come after this one. */
    if constexpr (!coding<ValueType>::is_trellis) {
        wait_copies<n_later>();
    }
    __syncwarp();
    if (is_any_left) {
        add_values<KeyType, ValueType, HeadDim, RowTiles>(stage, lane, columns, state.sums);
    }
}

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
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
            state.sum[i] += __shfl_xor_sync(full_warp, state.sum[i], mask);
        }
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
        load_row(scratch.sums[r], x);
        rotate_lanes(x);
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

template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__global__ void __launch_bounds__(decode_shape<KeyType, ValueType, HeadDim, RowTiles>::n_warps * 32,
                                  1) attend_decode(const __grid_constant__ decode_job job)
{
    using shape = decode_shape<KeyType, ValueType, HeadDim, RowTiles>;
    using layout = typename shape::layout;
    extern __shared__ __align__(128) uint8_t shared[];
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
        load_row(query_row, query);
    }
    plan_work(job, shape::n_warps, work);
    if (work.split >= work.n_active) {
        return;
    }
    uint8_t *stage = stages + warp * shape::warp_bytes;
    const uint32_t stage_address = (uint32_t)__cvta_generic_to_shared(stage);
    const int stride = work.n_active * shape::n_warps;
    int number = work.begin + work.split * shape::n_warps + warp; /* of the block to look up */
    raw_entry first = {};
    raw_entry ahead = {};
    load_entry(work, number, first);
    number += stride;
    load_entry(work, number, ahead);
    number += stride;
    const bool has_own_exact = has_exact_block(work);
    __shared__ unsigned own_drawn; /* a CTA that is alone needs no counter of the unit */
    unsigned *counter = work.n_active == 1 ? &own_drawn : &job.counters[work.unit].drawn;
    if (threadIdx.x == 0) {
        own_drawn = 0;
    }
    __shared__ int shared_maxima[shape::n_rows];
    if (threadIdx.x < shape::n_rows) {
        shared_maxima[threadIdx.x] = order_of(no_maximum);
    }
    __shared__ hidden_tables<KeyType, ValueType> hidden[2];
    if (threadIdx.x < 2) {
        hidden[threadIdx.x] = {layout::keys::is_shared ? make_half_tables<KeyType>(threadIdx.x)
                                                       : make_level_tables<KeyType>(),
                               make_half_tables<ValueType>(threadIdx.x)};
    }
    for (int r = warp; r < shape::n_rows; r += shape::n_warps) {
        if (r != warp && r < work.n_rows) {
            load_row(query_of_row(job, work, r), query);
        }
        prepare_query<KeyType, HeadDim>(job, work, r, query, (uint8_t *)fragments, all_terms + r);
    }
    /* From here on whatever is loaded comes after the pages, which fill the memory's queues. */
    due_block due = read_entry<layout>(work, first);
    copy_block<layout>(stage_address, lane, work, due);
    const bool has_exact = __syncthreads_or(has_own_exact);
    const lane_constants<KeyType, ValueType> lane_of =
        make_lane_constants<layout, KeyType, ValueType>(hidden);
    uint32_t queries[RowTiles][HeadDim / 16];
    row_terms terms[RowTiles];
    row_state<HeadDim, RowTiles> state;
    sparse_state sparse[RowTiles];
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
#pragma unroll
        for (int w = 0; w < HeadDim / 16; w++) {
            queries[i][w] = fragments[i * shape::fragment_words + w * 32 + lane];
        }
        terms[i] = all_terms[4 * i + (lane & 3)];
        state.maximum[i] = no_maximum;
        state.sum[i] = 0.0f;
        state.weight_sum[i] = 0;
        sparse[i] = {-CUDART_INF_F, 0, 0};
#pragma unroll
        for (int j = 0; j < HeadDim / 8; j++) {
            state.total[i][j / 4][j % 4] = 0.0f;
            state.sums[i][j / 2][j % 2 * 2] = state.sums[i][j / 2][j % 2 * 2 + 1] = 0;
        }
    }

    /* Which blocks a warp takes: the first ones are fixed, so that nothing waits for them; the
     * others go to whoever is ready, since multiprocessors do not get the same share of the memory.
     * Nothing waits for a block's number or its entry in the table either: the number is drawn a
     * page before the entry is looked up, and that a page before the pages are asked for. */
    unsigned drawn = 0;
    bool is_first = true;
    int at = 0; /* the stage of `due` */
    for (unsigned n_done = 0; due.block < work.end; n_done++) {
        /* The keys are there. Only now the next pages are asked for: if all were on their way at
         * once, all would arrive at the end. */
        wait_copies<1>();
        __syncwarp();
        const due_block next = read_entry<layout>(work, ahead);
        if (n_done > 0 && number < work.end) {
            number = work.begin + 3 * stride + (int)__shfl_sync(full_warp, drawn, 0);
        }
        /* These are answered in order: what the next turn wants before its pages comes first. */
        load_entry(work, number, ahead);
        if (lane == 0 && number < work.end) {
            drawn = draw_number(counter);
        }
        copy_block<layout>(stage_address + layout::bytes - at, lane, work, next);
        if (!due.is_exact) {
            attend_pair<KeyType, ValueType, HeadDim, RowTiles>(job, work, due.block, is_first,
                                                               stage + at, shared_maxima, lane_of,
                                                               queries, terms, state, sparse);
            is_first = false;
        }
        if (n_done % pages_a_flush == pages_a_flush - 1) {
#pragma unroll
            for (int i = 0; i < RowTiles; i++) {
                flush_sums<ValueType>(i, 1.0f, state);
            }
        }
        __syncwarp();
        due = next;
        at = layout::bytes - at;
    }
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        flush_sums<ValueType>(i, 1.0f, state);
    }
    wait_copies<0>();
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        if (4 * i + (lane & 3) < work.n_rows) {
            add_stats(job, sparse[i].n_weights, sparse[i].n_skipped);
        }
    }

    write_part<HeadDim, RowTiles, shape::n_warps>(job, work, state, (float *)stages,
                                                  shape::warp_bytes / 4);
    if (has_exact) {
        const size_t rows = ((size_t)work.unit * job.n_splits + work.split) * shape::n_rows;
        auto &scratch = *(exact_scratch<HeadDim, shape::n_warps> *)stages;
        __syncthreads();
        for (int i = 0; i < RowTiles; i++) {
            const size_t row = rows + token_rows * i;
            add_exact_blocks(job, work, i, (row_sums *)job.stats + row, job.sums + row * HeadDim,
                             scratch);
        }
    }
    if (is_last_part(job, work)) {
        merge_parts<HeadDim, RowTiles, shape::n_warps>(job, work, (float *)stages);
    }
}

} /* namespace tkv_cuda */

#endif
