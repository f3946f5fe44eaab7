/* The decode attention kernel proper. */
#ifndef TKV_BACKEND_CUDA_ATTEND_DECODE_KERNEL_CUH
#define TKV_BACKEND_CUDA_ATTEND_DECODE_KERNEL_CUH

#include "backend/cuda/attend_decode.cuh"

namespace tkv
{

/* The blocks that a warp takes, 32 at a time, a lane each. */
struct block_batch {
    uint64_t pages;  /* of the lane's block, for this KV head */
    unsigned coded;  /* lanes whose block is coded */
};

__device__ __forceinline__ block_batch load_batch(const decode_work &work, int first, int stride,
                                                  int pair_bytes)
{
    const int index = first + threadIdx.x % 32 * stride;
    block_batch batch = {0, 0};
    bool is_coded = false;
    if (index < work.end) {
        const uint4 entry = __ldg((const uint4 *)work.sequence.blocks + index);
        batch.pages = ((uint64_t)entry.y << 32 | entry.x) + (uint64_t)work.kv_head * pair_bytes;
        is_coded = entry.z == 0;
    }
    batch.coded = __ballot_sync(ALL_LANES, is_coded);
    return batch;
}

/* One page pair of the warp, from its stage. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void
attend_pair(const decode_job &job, const decode_work &work, int block, uint8_t *stage,
            const lane_constants<KeyType, ValueType> &lane, const uint32_t (&queries)[RowTiles][HeadDim / 16], const row_terms (&terms)[RowTiles],
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
    compute_scores<KeyType, ValueType, HeadDim, RowTiles>(stage, lane, queries, query_sums,
                                                          score);

    float key_scale[8];
    float value_scale[8];
    load_scales<KeyType, ValueType>(stage + lane.key_scales, key_scale);
    load_scales<ValueType, ValueType>(stage + lane.value_scales, value_scale);
    uint32_t columns[RowTiles][4];
    bool is_any_left = true;
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        const int start = block_start(job.params.layer, block);
        const bool is_masked = start + PAGE_TOKENS > work.whole_end ||
                               job.params.window || block < sink_blocks(job.params.layer);
        row_span span = {};
        if (is_masked) {
            span = span_of_row(job, work, 4 * i + t, block);
        }
        float logit[8];
        float weight[8];
        float integer[8];
        compute_logits<ValueType>(job, terms[i], key_scale, score[i], is_masked, span, logit);
        float sum = compute_weights(state.maximum[i], logit, value_scale, weight, integer);
        if (!__all_sync(ALL_LANES, fit_16_bits(integer, sum))) {
            const float maximum = find_maximum(state.maximum[i], logit, value_scale);
            const float factor = exp2_fast(state.maximum[i] - maximum);
            flush_sums<ValueType>(i, factor, state);
            state.sum[i] *= factor;
            state.maximum[i] = maximum;
            sum = compute_weights(maximum, logit, value_scale, weight, integer);
            bool is_bad = false;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                is_bad |= integer[k] != integer[k];
            }
            /* A value that is not finite makes the whole row so. */
            if (__ballot_sync(ALL_LANES, is_bad) & 0x11111111u << t) {
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
                is_left |= integer[k] != INTEGER_BASE;
            }
            is_any_left = __any_sync(ALL_LANES, is_left) || (i > 0 && is_any_left);
        }
        if constexpr (coding<ValueType>::n_tables == 2) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
                state.weight_sum[i] += __float_as_uint(integer[k]) & 0xffffu;
            }
        }
        pack_weights<ValueType>(integer, columns[i]);
    }
    if (is_any_left) {
        add_values<KeyType, ValueType, HeadDim, RowTiles>(stage, lane, columns, state.sums);
    }
}

/* Sums of one row of one split, or of several joined. */
struct row_sums {
    float maximum, sum, coded_sum, unused;
};

/* Joins the warps' rows in shared memory and writes the CTA's part to the workspace. */
template <int HeadDim, int RowTiles, int Warps>
__device__ __forceinline__ void write_part(const decode_job &job, const decode_work &work,
                                           row_state<HeadDim, RowTiles> &state, float *shared)
{
    constexpr int n_rows = 4 * RowTiles;
    __shared__ float2 warp_rows[Warps][n_rows];
    const int warp = threadIdx.x / 32;
    const int g = threadIdx.x % 32 >> 2;
    const int t = threadIdx.x & 3;
    const size_t part = (size_t)work.unit * job.n_splits + blockIdx.x;
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
            state.sum[i] += __shfl_xor_sync(ALL_LANES, state.sum[i], mask);
        }
        if (g == 0) {
            warp_rows[warp][4 * i + t] = make_float2(state.maximum[i], state.sum[i]);
        }
    }
    __syncthreads(); /* also: nobody reads its stages any more */
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        const int r = 4 * i + t;
        float maximum = NO_MAXIMUM;
        for (int w = 0; w < Warps; w++) {
            maximum = fmaxf(maximum, warp_rows[w][r].x);
        }
        const float factor = exp2_fast(state.maximum[i] - maximum);
        float *row = shared + (warp * n_rows + r) * HeadDim;
#pragma unroll
        for (int block = 0; block < HeadDim / 32; block++) {
            float4 four;
            four.x = state.total[i][block][0] * factor;
            four.y = state.total[i][block][1] * factor;
            four.z = state.total[i][block][2] * factor;
            four.w = state.total[i][block][3] * factor;
            *(float4 *)(row + 32 * block + 4 * g) = four;
        }
        if (warp == 0 && g == 0) {
            float sum = 0.0f;
            for (int w = 0; w < Warps; w++) {
                sum += exp2_fast(warp_rows[w][r].x - maximum) * warp_rows[w][r].y;
            }
            *(row_sums *)(job.stats + (part * n_rows + r) * 4) = {maximum, sum, sum, 0.0f};
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < n_rows * HeadDim / 4; at += Warps * 32) {
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < Warps; w++) {
            const float4 four = ((const float4 *)shared)[w * (n_rows * HeadDim / 4) + at];
            sum.x += four.x;
            sum.y += four.y;
            sum.z += four.z;
            sum.w += four.w;
        }
        ((float4 *)job.sums)[part * (n_rows * HeadDim / 4) + at] = sum;
    }
}

/* Whether this CTA is the last of its unit to get here; all that the others wrote can be read. */
__device__ __forceinline__ bool is_last_part(const decode_job &job, const decode_work &work)
{
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicInc(job.tickets + work.unit, work.n_active - 1) ==
                  (unsigned)work.n_active - 1;
        __threadfence();
    }
    __syncthreads();
    return is_last;
}

/* Joins the parts of one row: flash decoding's second step, in the CTA that came last. */
template <int HeadDim, int RowTiles, int Warps>
__device__ __forceinline__ void merge_parts(const decode_job &job, const decode_work &work,
                                            float *shared)
{
    constexpr int n_rows = 4 * RowTiles;
    constexpr int n = HeadDim / 32;
    const tkv_device_attend &p = job.params;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const size_t first_part = (size_t)work.unit * job.n_splits;
    /* A warp takes a row and every `shares`-th part of it. */
    constexpr int shares = Warps / n_rows > 0 ? Warps / n_rows : 1;
    constexpr int rows_at_once = Warps / shares < n_rows ? Warps / shares : n_rows;
    float *partial = shared;                                /* [n_rows][shares][HeadDim] */
    __shared__ float2 totals[n_rows];
    for (int r = warp / shares; warp < rows_at_once * shares && r < work.n_rows;
         r += rows_at_once) {
        const int head = work.kv_head * work.group + (work.first_row + r) % work.group;
        const float sink =
            p.sinks ? ((const float *)p.sinks)[head] * LOG2_E : -CUDART_INF_F;
        const float *stats = job.stats + (first_part * n_rows + r) * 4;
        float maximum = fmaxf(sink, NO_MAXIMUM);
        for (int s = lane; s < work.n_active; s += 32) {
            maximum = fmaxf(maximum, __ldcg(stats + (size_t)s * n_rows * 4));
        }
        maximum = max_lanes(maximum);
        float x[n] = {};
        float total = 0.0f;
        float coded = 0.0f;
        for (int base = 0; base < work.n_active; base += 32) {
            float factor = 0.0f;
            if (base + lane < work.n_active) {
                const float4 part =
                    __ldcg((const float4 *)(stats + (size_t)(base + lane) * n_rows * 4));
                factor = part.y == 0.0f ? 0.0f : exp2_fast(part.x - maximum);
                total += factor * part.y;
                coded += factor * part.z;
            }
            const int n_here = min(32, work.n_active - base);
#pragma unroll 8
            for (int s = warp % shares; s < n_here; s += shares) {
                const float share = __shfl_sync(ALL_LANES, factor, s);
                const float *row = job.sums +
                                   ((first_part + base + s) * n_rows + r) * HeadDim + lane * n;
#pragma unroll
                for (int j = 0; j < n; j += 2) {
                    const float2 two = __ldcg((const float2 *)(row + j));
                    x[j] = fmaf(share, two.x, x[j]);
                    x[j + 1] = fmaf(share, two.y, x[j + 1]);
                }
            }
        }
        total = add_lanes(total) + exp2_fast(sink - maximum);
        coded = add_lanes(coded);
        if (warp % shares == 0 && lane == 0) {
            totals[r] = make_float2(total, coded);
        }
#pragma unroll
        for (int j = 0; j < n; j++) {
            partial[(r * shares + warp % shares) * HeadDim + lane * n + j] = x[j];
        }
    }
    __syncthreads();
    for (int r = warp; r < work.n_rows; r += Warps) {
        float x[n] = {};
#pragma unroll
        for (int s = 0; s < shares; s++) {
#pragma unroll
            for (int j = 0; j < n; j++) {
                x[j] += partial[(r * shares + s) * HeadDim + lane * n + j];
            }
        }
        unrotate_row(x);
        const int row = work.first_row + r;
        const int head = work.kv_head * work.group + row % work.group;
        const size_t query = (size_t)blockIdx.z * p.n_queries + row / work.group;
        float *out = (float *)p.out + (query * p.n_heads + head) * HeadDim + lane * n;
        const float *mean =
            (const float *)work.sequence.mean_v + work.kv_head * HeadDim + lane * n;
        const float inverse = totals[r].x != 0.0f ? 1.0f / totals[r].x : 0.0f;
#pragma unroll
        for (int j = 0; j < n; j++) {
            float value = x[j] * (1.0f / TKV_LEVEL_UNIT);
            if (work.sequence.mean_v) {
                value = fmaf(totals[r].y, mean[j], value);
            }
            out[j] = value * inverse;
        }
    }
}

template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__global__ void
__launch_bounds__(decode_shape<KeyType, ValueType, HeadDim, RowTiles>::n_warps * 32, 2)
    attend_decode(const __grid_constant__ decode_job job)
{
    using shape = decode_shape<KeyType, ValueType, HeadDim, RowTiles>;
    using layout = typename shape::layout;
    extern __shared__ __align__(128) uint8_t shared[];
    uint32_t *fragments = (uint32_t *)shared;
    row_terms *all_terms = (row_terms *)(fragments + RowTiles * shape::fragment_words);
    uint8_t *stages = shared + shape::query_bytes;

    const decode_work work = plan_work(job, shape::n_rows);
    if (blockIdx.x >= work.n_active) {
        return;
    }
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    uint8_t *stage = stages + warp * N_STAGES * layout::bytes;
    const uint32_t stage_address = (uint32_t)__cvta_generic_to_shared(stage);
    int first = work.begin + warp;
    block_batch batch = load_batch(work, first, shape::n_warps, layout::page_bytes);
    unsigned to_issue = batch.coded;
    unsigned n_issued = 0;
    const auto issue = [&]() {
        if (to_issue) {
            const uint64_t pages = __shfl_sync(ALL_LANES, batch.pages, __ffs(to_issue) - 1);
            copy_pair<layout>(stage_address + n_issued % N_STAGES * layout::bytes, pages);
            to_issue &= to_issue - 1;
            n_issued++;
        }
        close_copies();
    };
    issue();

    __shared__ hidden_tables<KeyType, ValueType> hidden[2];
    if (threadIdx.x < 2) {
        hidden[threadIdx.x] = {make_level_tables<KeyType>(), make_level_tables<ValueType>()};
    }
    for (int r = warp; r < shape::n_rows; r += shape::n_warps) {
        prepare_row<KeyType, HeadDim>(job, work, r, (uint8_t *)fragments, all_terms + r);
    }
    __syncthreads();
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
        state.maximum[i] = NO_MAXIMUM;
        state.sum[i] = 0.0f;
        state.weight_sum[i] = 0;
        sparse[i] = {-CUDART_INF_F, 0, 0};
#pragma unroll
        for (int j = 0; j < HeadDim / 8; j++) {
            state.total[i][j / 4][j % 4] = 0.0f;
            state.sums[i][j / 2][j % 2 * 2] = state.sums[i][j / 2][j % 2 * 2 + 1] = 0;
        }
    }

    while (first < work.end) {
        unsigned n_done = 0;
        for (unsigned left = batch.coded; left; left &= left - 1) {
            issue();
            wait_copies<1>();
            __syncwarp();
            attend_pair<KeyType, ValueType, HeadDim, RowTiles>(
                job, work, first + (__ffs(left) - 1) * shape::n_warps,
                stage + n_done % N_STAGES * layout::bytes, lane_of, queries, terms, state, sparse);
            n_done++;
            __syncwarp();
        }
        /* The accumulators hold 32 pages without overflow. */
#pragma unroll
        for (int i = 0; i < RowTiles; i++) {
            flush_sums<ValueType>(i, 1.0f, state);
        }
        first += 32 * shape::n_warps;
        batch = load_batch(work, first, shape::n_warps, layout::page_bytes);
        to_issue = batch.coded;
        n_issued = 0;
        issue();
    }
    wait_copies<0>();

    write_part<HeadDim, RowTiles, shape::n_warps>(job, work, state, (float *)stages);
    if (is_last_part(job, work)) {
        merge_parts<HeadDim, RowTiles, shape::n_warps>(job, work, (float *)stages);
    }
}

} // namespace tkv

#endif
