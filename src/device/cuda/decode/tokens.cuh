/* Attention token by token in plain float arithmetic: f16 pages beside coded ones, and whatever
 * kernel.cuh has no products for. A half-warp takes a token: its row of keys against
 * up to 4 queries, a softmax of its own, and its row of values into sums in registers. The
 * half-warps of a CTA share a block and are joined in the end.
 *
 * Bound: f16 pages by memory; coded pages by the instructions of their decoding. */
#ifndef TKV_DEVICE_CUDA_DECODE_TOKENS_CUH
#define TKV_DEVICE_CUDA_DECODE_TOKENS_CUH

#include "device/cuda/codec/row.cuh"
#include "device/cuda/decode/merge.cuh"

namespace tkv_cuda
{

constexpr int token_rows = 4; /* queries at once */

/* Weights may grow by this factor of base 2 before the maximum is brought up to date. */
constexpr float maximum_slack = 8.0f;

/* Which domain a row of keys or values is in: as it was given, or rotated like the codes. */
enum { DOMAIN_PLAIN = 0, DOMAIN_CODED = 1 };

/* Lanes 4r .. 4r+3 of a half-warp keep the softmax of row r. */
__device__ __forceinline__ int row_of_lane()
{
    return lane_of_row() >> 2;
}

/* What the lanes that keep row r have. */
__device__ __forceinline__ float value_of_row(float x, int r)
{
    return __shfl_sync(full_warp, x, (threadIdx.x & 16) + 4 * r);
}

/* The softmax and sums of one half-warp. Lane l holds the values that `coordinate` says. */
template <int N, int Domains> struct token_state {
    static constexpr int capacity = row_shape<N>::capacity;
    float maximum; /* of base 2; weights are relative to it */
    float largest; /* logit so far */
    float sum;
    float coded; /* the part of the sum of coded values */
    float values[Domains][token_rows][capacity];
    int n_weights, n_skipped;
};

/* Rows lie over the lanes as the codec wants them, or, where there are only f16 pages, in runs. */
template <int N, bool IsRuns> __device__ __forceinline__ int coordinate(int i)
{
    return IsRuns ? lane_of_row() * N + i : half_warp * i + lane_of_row();
}

template <int N, int Domains>
__device__ __forceinline__ void clear_tokens(const row_shape<N> &shape,
                                             token_state<N, Domains> &state)
{
    state.maximum = no_maximum;
    state.largest = -CUDART_INF_F;
    state.sum = state.coded = 0.0f;
#pragma unroll
    for (int at = 0; at < Domains * token_rows; at++) {
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            state.values[at / token_rows][at % token_rows][i] = 0.0f;
        }
    }
    state.n_weights = state.n_skipped = 0;
}

/* Sums of the four rows over the half-warp: each lane gets that of its row, in 5 exchanges. */
__device__ __forceinline__ float fold_rows(const float (&sum)[token_rows])
{
    const bool is_high = threadIdx.x & 8;
    const bool is_odd = threadIdx.x & 4;
    float a = is_high ? sum[2] : sum[0];
    float b = is_high ? sum[3] : sum[1];
    a += __shfl_xor_sync(full_warp, is_high ? sum[0] : sum[2], 8);
    b += __shfl_xor_sync(full_warp, is_high ? sum[1] : sum[3], 8);
    float mine = is_odd ? b : a;
    mine += __shfl_xor_sync(full_warp, is_odd ? a : b, 4);
    mine += __shfl_xor_sync(full_warp, mine, 2);
    return mine + __shfl_xor_sync(full_warp, mine, 1);
}

/* Score of a token with the row of the lane. `queries` [token_rows][head_dim] is in shared memory.
 */
template <int N, bool IsRuns>
__device__ __forceinline__ float score_token(const row_shape<N> &shape, const float *queries,
                                             const float *y)
{
    float sum[token_rows];
#pragma unroll
    for (int r = 0; r < token_rows; r++) {
        const float *query = queries + r * shape.head_dim;
        sum[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            sum[r] = fmaf(query[coordinate<N, IsRuns>(i)], y[i], sum[r]);
        }
    }
    return fold_rows(sum);
}

/* Where the tokens of a block are that the lane's row sees. */
struct token_span {
    row_span seen;
    bool is_counted; /* the row exists */
};

__device__ __forceinline__ token_span span_of_lane(const decode_job &job, const decode_work &work,
                                                   int first_row, int block)
{
    const int row = first_row + row_of_lane();
    return {span_of_row(job, work, row, block), row < work.n_rows};
}

/* Brings the softmax up to date with `Tokens` tokens and turns scores into weights. */
template <int N, int Domains, int Tokens>
__device__ __forceinline__ void weigh_tokens(const row_shape<N> &shape, const decode_job &job,
                                             const token_span &span, const int (&slot)[Tokens],
                                             bool is_coded_value, float (&score)[Tokens],
                                             token_state<N, Domains> &state)
{
    const float cap = job.params.logit_softcap * log2_e;
    float top = -CUDART_INF_F;
#pragma unroll
    for (int u = 0; u < Tokens; u++) {
        float logit = score[u] * job.params.scale * log2_e;
        logit = fmaxf(-logit_limit, fminf(logit, logit_limit));
        logit = cap > 0.0f ? cap_logit(cap, logit) : logit;
        const bool is_seen = slot[u] >= span.seen.first && slot[u] < span.seen.end;
        score[u] = is_seen ? logit : -CUDART_INF_F;
        top = fmaxf(top, score[u]);
    }
    state.largest = fmaxf(state.largest, top);
    if (__any_sync(full_warp, top > state.maximum + maximum_slack)) {
        const float maximum = fmaxf(state.maximum, top);
        const float factor = exp2_fast(state.maximum - maximum);
        state.maximum = maximum;
        state.sum *= factor;
        state.coded *= factor;
#pragma unroll
        for (int at = 0; at < Domains * token_rows; at++) {
            const float of_row = value_of_row(factor, at % token_rows);
#pragma unroll
            for (int i = 0; i < shape.n(); i++) {
                state.values[at / token_rows][at % token_rows][i] *= of_row;
            }
        }
    }
#pragma unroll
    for (int u = 0; u < Tokens; u++) {
        const float weight = exp2_fast(score[u] - state.maximum);
        state.sum += weight;
        state.coded += is_coded_value ? weight : 0.0f;
        if (job.params.sparse_v > 0.0f) {
            const bool is_seen = span.is_counted && score[u] != -CUDART_INF_F;
            const bool is_small = exp2_fast(score[u] - state.largest) < job.params.sparse_v;
            state.n_weights += is_seen;
            state.n_skipped += is_seen && is_small;
            score[u] = is_small ? 0.0f : weight;
        } else {
            score[u] = weight;
        }
    }
}

template <int N>
__device__ __forceinline__ void add_token(const row_shape<N> &shape, float weight, const float *y,
                                          float (*values)[row_shape<N>::capacity])
{
#pragma unroll
    for (int r = 0; r < token_rows; r++) {
        const float of_row = value_of_row(weight, r);
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            values[r][i] = fmaf(of_row, y[i], values[r][i]);
        }
    }
}

/* The pages of a KV head in an exact block. */
struct exact_pages {
    const __half *keys, *values;
    int first; /* slot that any row may see */
    int end;
};

/* Slots of a block that any row may see: those before them hold no token, and whatever. */
__device__ __forceinline__ int first_of_block(const decode_work &work, int start)
{
    return max(work.some_begin - start, 0);
}

__device__ __forceinline__ exact_pages find_exact_pages(const decode_job &job,
                                                        const decode_work &work, int block,
                                                        const tkv_device_block &entry)
{
    const tkv_device_layer &layer = job.params.layer;
    const size_t key_size = (size_t)entry.n_slots * layer.head_dim_k;
    const size_t value_size = (size_t)entry.n_slots * layer.head_dim_v;
    const __half *keys = (const __half *)entry.pages + work.kv_head * (key_size + value_size);
    const int start = tkv_block_place(layer.n_sinks, block);
    const int n_tokens = min(tkv_block_place(layer.n_sinks, block + 1), work.some_end) - start;
    return {keys, keys + key_size, first_of_block(work, start), min(n_tokens, entry.n_slots)};
}

/* N halves of a row in runs, as they lie in memory. */
template <int N> struct half_run {
    uint2 four[N / 4];

    __device__ __forceinline__ void load(const __half *page, int slot)
    {
        const __half *run = page + slot * (half_warp * N) + coordinate<N, true>(0);
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            four[i] = __ldg((const uint2 *)run + i);
        }
    }

    __device__ __forceinline__ void unpack(float (&y)[N]) const
    {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const uint32_t two = i % 2 ? four[i / 2].y : four[i / 2].x;
            const float2 both = from_two_halves(two);
            y[2 * i] = both.x;
            y[2 * i + 1] = both.y;
        }
    }
};

/* All tokens of an exact block, `Tokens` at a time a half-warp, so that as many rows are on their
 * way. Every thread of the CTA takes part. */
template <int N, int Tokens>
__device__ __forceinline__ void
attend_exact_runs(const decode_job &job, const decode_work &work, const float *queries,
                  int first_row, int block, const tkv_device_block &entry, token_state<N, 1> &state)
{
    const row_shape<N> shape = {half_warp * N};
    const exact_pages pages = find_exact_pages(job, work, block, entry);
    const token_span span = span_of_lane(job, work, first_row, block);
    const int n_halves = blockDim.x / half_warp;
    /* Both halves of a warp stay in step; tokens beyond the last are read again and not seen. */
    for (int base = pages.first + threadIdx.x / 32 * 2; base < pages.end;
         base += Tokens * n_halves) {
        half_run<N> k[Tokens];
        half_run<N> v[Tokens];
        int slot[Tokens];
        float score[Tokens];
        float y[N];
#pragma unroll
        for (int u = 0; u < Tokens; u++) {
            slot[u] = base + u * n_halves + threadIdx.x / half_warp % 2;
            k[u].load(pages.keys, min(slot[u], pages.end - 1));
        }
#pragma unroll
        for (int u = 0; u < Tokens; u++) {
            v[u].load(pages.values, min(slot[u], pages.end - 1));
            slot[u] = slot[u] < pages.end ? slot[u] : page_tokens;
        }
#pragma unroll
        for (int u = 0; u < Tokens; u++) {
            k[u].unpack(y);
            score[u] = score_token<N, true>(shape, queries, y);
        }
        weigh_tokens(shape, job, span, slot, false, score, state);
#pragma unroll
        for (int u = 0; u < Tokens; u++) {
            v[u].unpack(y);
            add_token(shape, score[u], y, state.values[DOMAIN_PLAIN]);
        }
    }
}

/* One row joined over the half-warps. */
struct joined_row {
    float maximum, sum, coded;
};

/* Joins the half-warps of the CTA, always in the same order: rows [token_rows] and sums
 * [Domains][token_rows][head_dim_v] in shared memory, likewise scratch [half-warps][token_rows]. */
template <int N, bool IsRuns, int Domains>
__device__ __forceinline__ void join_tokens(const row_shape<N> &shape,
                                            token_state<N, Domains> &state, joined_row *scratch,
                                            joined_row *rows, float *sums)
{
    const int n_halves = blockDim.x / half_warp;
    const int half = threadIdx.x / half_warp;
    const int d = shape.head_dim;
    if (lane_of_row() % 4 == 0) {
        scratch[half * token_rows + row_of_lane()] = {state.maximum, state.sum, state.coded};
    }
    __syncthreads();
    joined_row row = {no_maximum, 0.0f, 0.0f};
    for (int h = 0; h < n_halves; h++) {
        row.maximum = fmaxf(row.maximum, scratch[h * token_rows + row_of_lane()].maximum);
    }
    for (int h = 0; h < n_halves; h++) {
        const joined_row part = scratch[h * token_rows + row_of_lane()];
        row.sum = fmaf(exp2_fast(part.maximum - row.maximum), part.sum, row.sum);
        row.coded = fmaf(exp2_fast(part.maximum - row.maximum), part.coded, row.coded);
    }
    if (threadIdx.x < half_warp && lane_of_row() % 4 == 0) {
        rows[row_of_lane()] = row;
    }
    const float factor = exp2_fast(state.maximum - row.maximum);
#pragma unroll
    for (int at = 0; at < Domains * token_rows; at++) {
        const float of_row = value_of_row(factor, at % token_rows);
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            state.values[at / token_rows][at % token_rows][i] *= of_row;
        }
    }
    for (int h = 0; h < n_halves; h++) {
        if (half == h) {
#pragma unroll
            for (int at = 0; at < Domains * token_rows; at++) {
                const float *values = state.values[at / token_rows][at % token_rows];
#pragma unroll
                for (int i = 0; i < shape.n(); i++) {
                    float *sum = &sums[at * d + coordinate<N, IsRuns>(i)];
                    *sum = values[i] + (h == 0 ? 0.0f : *sum);
                }
            }
        }
        __syncthreads();
    }
}

/* Counters of sparse V; n are those of one lane of the four that keep a row. */
__device__ __forceinline__ void add_stats(const decode_job &job, int n_weights, int n_skipped)
{
    if (job.params.stats && job.params.sparse_v > 0.0f && n_weights) {
        unsigned long long *stats = (unsigned long long *)job.params.stats;
        atomicAdd(stats, (unsigned long long)n_weights);
        atomicAdd(stats + 1, (unsigned long long)n_skipped);
    }
}

} /* namespace tkv_cuda */

#endif
