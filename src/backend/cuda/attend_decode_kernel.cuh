/* The decode attention kernel proper. */
#ifndef TKV_BACKEND_CUDA_ATTEND_DECODE_KERNEL_CUH
#define TKV_BACKEND_CUDA_ATTEND_DECODE_KERNEL_CUH

#include "backend/cuda/attend_decode.cuh"

namespace tkv
{

/* Which blocks a warp takes: its first ones are fixed, so that nothing waits for them; the others
 * go to whoever is ready, since multiprocessors do not get the same share of the memory. */
constexpr int FIXED_BLOCKS = 3;

/* The accumulators hold 65536 tokens without overflow. */
constexpr unsigned PAGES_A_FLUSH = 256;

struct block_entry {
    uint64_t pages;
    int block; /* the end if there is no more */
    int is_exact;
};

__device__ __forceinline__ block_entry load_entry(const decode_work &work, int block,
                                                  int pair_bytes)
{
    if (block >= work.end) {
        return {0, work.end, 0};
    }
    const uint4 entry = __ldg((const uint4 *)work.sequence.blocks + block);
    const uint64_t pages = (uint64_t)entry.y << 32 | entry.x;
    return {pages + (uint64_t)work.kv_head * pair_bytes, block, (int)entry.z};
}

template <typename Layout>
__device__ __forceinline__ void copy_entry(uint32_t stage, const decode_work &work,
                                           const block_entry &entry)
{
    if (entry.block < work.end && !entry.is_exact) {
        copy_pair<Layout>(stage, entry.pages);
    }
    close_copies();
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

/* Whether this CTA is the last of its unit to get here; all that the others wrote can be read: the
 * barrier and the ticket's release and acquire carry it. */
__device__ __forceinline__ bool is_last_part(const decode_job &job, const decode_work &work)
{
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned last = work.n_active - 1;
        unsigned ticket; /* goes back to 0 after the last */
        asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                     : "=r"(ticket)
                     : "l"(&job.counters[work.unit].ticket), "r"(last)
                     : "memory");
        is_last = ticket == last;
        if (is_last) {
            job.counters[work.unit].drawn = 0;
        }
    }
    __syncthreads();
    return is_last;
}

/* What the parts of a row count for. */
template <int Rows> struct part_factors {
    float factor[Rows][MAX_SPLITS];
    float total[Rows]; /* of all weights */
    float coded[Rows]; /* of those of coded tokens */
};

template <int Rows>
__device__ __forceinline__ void weigh_parts(const decode_job &job, const decode_work &work, int r,
                                            part_factors<Rows> &factors)
{
    const int lane = threadIdx.x % 32;
    const int head = work.kv_head * work.group + (work.first_row + r) % work.group;
    const float sink = job.params.sinks ? ((const float *)job.params.sinks)[head] * LOG2_E
                                        : -CUDART_INF_F;
    const float4 *stats =
        (const float4 *)job.stats + (size_t)work.unit * job.n_splits * Rows + r;
    float4 part[MAX_SPLITS / 32];
    float maximum = fmaxf(sink, NO_MAXIMUM);
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; i++) {
        const int s = 32 * i + lane;
        part[i] = s < work.n_active ? __ldcg(stats + (size_t)s * Rows)
                                    : make_float4(NO_MAXIMUM, 0.0f, 0.0f, 0.0f);
        maximum = fmaxf(maximum, part[i].x);
    }
    maximum = max_lanes(maximum);
    float total = 0.0f;
    float coded = 0.0f;
#pragma unroll
    for (int i = 0; i < MAX_SPLITS / 32; i++) {
        const float factor = part[i].y == 0.0f ? 0.0f : exp2_fast(part[i].x - maximum);
        total = fmaf(factor, part[i].y, total);
        coded = fmaf(factor, part[i].z, coded);
        factors.factor[r][32 * i + lane] = factor;
    }
    total = add_lanes(total);
    coded = add_lanes(coded);
    if (lane == 0) {
        factors.total[r] = total + exp2_fast(sink - maximum);
        factors.coded[r] = coded;
    }
}

/* Joins the parts of all rows: flash decoding's second step, in the CTA that came last. Bound by
 * the latency of the parts' loads, of which each thread has 8 in flight. */
template <int HeadDim, int RowTiles, int Warps>
__device__ __forceinline__ void merge_parts(const decode_job &job, const decode_work &work,
                                            float *shared)
{
    constexpr int n_rows = 4 * RowTiles;
    constexpr int n = HeadDim / 32;
    constexpr int columns = n_rows * HeadDim / 4; /* of 4 floats */
    constexpr int shares = Warps * 32 / columns > 0 ? Warps * 32 / columns : 1;
    const tkv_device_attend &p = job.params;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    __shared__ part_factors<n_rows> factors;
    float4 *sums = (float4 *)shared; /* [shares][columns] */
    for (int r = warp; r < n_rows; r += Warps) {
        weigh_parts(job, work, r, factors);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < shares * columns; at += Warps * 32) {
        const int column = at % columns;
        const float *factor = factors.factor[column / (HeadDim / 4)];
        const float4 *part =
            (const float4 *)job.sums + (size_t)work.unit * job.n_splits * columns + column;
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int base = at / columns; base < work.n_active; base += 8 * shares) {
            float4 four[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const int s = min(base + k * shares, work.n_active - 1);
                four[k] = __ldcg(part + (size_t)s * columns);
            }
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const int s = base + k * shares;
                const float f = s < work.n_active ? factor[s] : 0.0f;
                sum.x = fmaf(f, four[k].x, sum.x);
                sum.y = fmaf(f, four[k].y, sum.y);
                sum.z = fmaf(f, four[k].z, sum.z);
                sum.w = fmaf(f, four[k].w, sum.w);
            }
        }
        sums[at] = sum;
    }
    __syncthreads();
    for (int r = warp; r < work.n_rows; r += Warps) {
        float x[n] = {};
#pragma unroll
        for (int s = 0; s < shares; s++) {
            float part[n];
            load_row(shared + (s * n_rows + r) * HeadDim, part);
#pragma unroll
            for (int j = 0; j < n; j++) {
                x[j] += part[j];
            }
        }
        unrotate_row(x);
        const int row = work.first_row + r;
        const int head = work.kv_head * work.group + row % work.group;
        const size_t query = (size_t)blockIdx.z * p.n_queries + row / work.group;
        float *out = (float *)p.out + (query * p.n_heads + head) * HeadDim + lane * n;
        const float *mean =
            (const float *)work.sequence.mean_v + work.kv_head * HeadDim + lane * n;
        const float inverse = factors.total[r] != 0.0f ? 1.0f / factors.total[r] : 0.0f;
#pragma unroll
        for (int j = 0; j < n; j++) {
            float value = x[j] * (1.0f / TKV_LEVEL_UNIT);
            if (work.sequence.mean_v) {
                value = fmaf(factors.coded[r], mean[j], value);
            }
            out[j] = value * inverse;
        }
    }
}

template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__global__ void
__launch_bounds__(decode_shape<KeyType, ValueType, HeadDim, RowTiles>::n_warps * 32,
                  decode_shape<KeyType, ValueType, HeadDim, RowTiles>::n_ctas)
    attend_decode(const __grid_constant__ decode_job job)
{
    using shape = decode_shape<KeyType, ValueType, HeadDim, RowTiles>;
    using layout = typename shape::layout;
    extern __shared__ __align__(128) uint8_t shared[];
    uint32_t *fragments = (uint32_t *)shared;
    row_terms *all_terms = (row_terms *)(fragments + RowTiles * shape::fragment_words);
    uint8_t *stages = shared + shape::query_bytes;

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    decode_work work = name_work(job, shape::n_rows);
    float query[HeadDim / 32];
    load_query(job, work, warp, query); /* before the pages, or it would come after them */
    plan_work(job, work);
    if (blockIdx.x >= work.n_active) {
        return;
    }
    uint8_t *stage = stages + warp * N_STAGES * layout::bytes;
    const uint32_t stage_address = (uint32_t)__cvta_generic_to_shared(stage);
    const int stride = work.n_active * shape::n_warps;
    const int first = work.begin + blockIdx.x * shape::n_warps + warp;
    block_entry entry = load_entry(work, first, layout::page_bytes);
    block_entry next = load_entry(work, first + stride, layout::page_bytes);
    copy_entry<layout>(stage_address, work, entry);

    __shared__ hidden_tables<KeyType, ValueType> hidden[2];
    if (threadIdx.x < 2) {
        hidden[threadIdx.x] = {make_level_tables<KeyType>(), make_level_tables<ValueType>()};
    }
    for (int r = warp; r < shape::n_rows; r += shape::n_warps) {
        if (r != warp) {
            load_query(job, work, r, query);
        }
        prepare_row<KeyType, HeadDim>(job, work, r, query, (uint8_t *)fragments, all_terms + r);
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

    /* The pages of `next` are asked for while those of `entry` are worked on; one more entry of the
     * table and the number of one after that are on their way. */
    int coming = first + 2 * stride;
    unsigned drawn = 0;
    for (unsigned n_done = 0; entry.block < work.end; n_done++) {
        copy_entry<layout>(stage_address + (n_done + 1) % N_STAGES * layout::bytes, work, next);
        const block_entry after = load_entry(work, coming, layout::page_bytes);
        if (lane == 0 && coming < work.end) {
            drawn = atomicAdd(&job.counters[work.unit].drawn, 1);
        }
        wait_copies<1>();
        __syncwarp();
        if (!entry.is_exact) {
            attend_pair<KeyType, ValueType, HeadDim, RowTiles>(
                job, work, entry.block, stage + n_done % N_STAGES * layout::bytes, lane_of,
                queries, terms, state, sparse);
        }
        if (n_done % PAGES_A_FLUSH == PAGES_A_FLUSH - 1) {
#pragma unroll
            for (int i = 0; i < RowTiles; i++) {
                flush_sums<ValueType>(i, 1.0f, state);
            }
        }
        __syncwarp();
        entry = next;
        next = after;
        coming = coming < work.end
                     ? work.begin + FIXED_BLOCKS * stride + (int)__shfl_sync(ALL_LANES, drawn, 0)
                     : work.end;
    }
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        flush_sums<ValueType>(i, 1.0f, state);
    }
    wait_copies<0>();

    write_part<HeadDim, RowTiles, shape::n_warps>(job, work, state, (float *)stages);
    if (is_last_part(job, work)) {
        merge_parts<HeadDim, RowTiles, shape::n_warps>(job, work, (float *)stages);
    }
}

} // namespace tkv

#endif
