/* Attention token by token in plain float arithmetic: f16 pages beside coded ones, and whatever
 * attend_decode_kernel.cuh has no products for. A half-warp takes a token: its row of keys against
 * up to 4 queries, a softmax of its own, and its row of values into sums in registers. The
 * half-warps of a CTA share a block and are joined in the end.
 *
 * Bound: f16 pages by memory while a row has no more than 4 queries or so; coded pages by the
 * instructions of their decoding. */
#ifndef TKV_BACKEND_CUDA_DECODE_TOKENS_CUH
#define TKV_BACKEND_CUDA_DECODE_TOKENS_CUH

#include "backend/cuda/decode_merge.cuh"
#include "backend/cuda/row.cuh"

namespace tkv_cuda
{

constexpr int TOKEN_ROWS = 4; /* queries at once */

/* Which domain a row of keys or values is in: as it was given, or rotated like the codes. */
enum { DOMAIN_PLAIN = 0, DOMAIN_CODED = 1 };

/* The softmax and sums of one half-warp. Lane l holds the values that `coordinate` says. */
template <int N, int Domains> struct token_state {
    static constexpr int capacity = row_shape<N>::capacity;
    float maximum[TOKEN_ROWS]; /* of base 2; weights are relative to it */
    float largest[TOKEN_ROWS]; /* logit so far */
    float sum[TOKEN_ROWS];
    float coded[TOKEN_ROWS]; /* the part of the sum of coded values */
    float values[Domains][TOKEN_ROWS][capacity];
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
#pragma unroll
    for (int r = 0; r < TOKEN_ROWS; r++) {
        state.maximum[r] = NO_MAXIMUM;
        state.largest[r] = -CUDART_INF_F;
        state.sum[r] = state.coded[r] = 0.0f;
#pragma unroll
        for (int d = 0; d < Domains; d++) {
#pragma unroll
            for (int i = 0; i < shape.n(); i++) {
                state.values[d][r][i] = 0.0f;
            }
        }
    }
    state.n_weights = state.n_skipped = 0;
}

/* A row of an f16 page. */
template <int N, bool IsRuns>
__device__ __forceinline__ void load_half_row(const row_shape<N> &shape, const uint8_t *page,
                                              int slot, float *y)
{
    const __half *row = (const __half *)page + (size_t)slot * shape.head_dim;
    if constexpr (IsRuns) {
        static_assert(N % 4 == 0, "runs are read 8 bytes at a time");
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint2 four = *(const uint2 *)(row + coordinate<N, true>(i));
            const float2 a = __half22float2(*(const __half2 *)&four.x);
            const float2 b = __half22float2(*(const __half2 *)&four.y);
            y[i] = a.x;
            y[i + 1] = a.y;
            y[i + 2] = b.x;
            y[i + 3] = b.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            y[i] = __half2float(row[coordinate<N, false>(i)]);
        }
    }
}

/* What the tokens of a block meet. */
struct token_queries {
    const float *rows; /* [2][TOKEN_ROWS][head_dim_k] in shared memory: plain, coded */
    const float *bias; /* [TOKEN_ROWS] what the keys' mean adds to the product of a coded key */
    int first_row;     /* of these, in the tile */
};

/* Score of a token with each row, in all lanes of the half-warp. */
template <int N, bool IsRuns>
__device__ __forceinline__ void score_token(const row_shape<N> &shape, const float *queries,
                                            const float *y, float (&score)[TOKEN_ROWS])
{
#pragma unroll
    for (int r = 0; r < TOKEN_ROWS; r++) {
        const float *query = queries + r * shape.head_dim;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            sum = fmaf(query[coordinate<N, IsRuns>(i)], y[i], sum);
        }
        score[r] = fold_lanes(sum);
    }
}

/* Brings the softmax up to date with one token, and turns scores into weights relative to the
 * maximum. Returns whether the values count for any row. */
template <int N, int Domains>
__device__ __forceinline__ bool
weigh_token(const row_shape<N> &shape, const decode_job &job, const decode_work &work, int block,
            int slot, int first_row, bool is_coded_value, float (&score)[TOKEN_ROWS],
            token_state<N, Domains> &state)
{
    const float cap = job.params.logit_softcap * LOG2_E;
    bool counts = false;
#pragma unroll
    for (int r = 0; r < TOKEN_ROWS; r++) {
        const row_span span = span_of_row(job, work, first_row + r, block);
        float logit = score[r] * job.params.scale * LOG2_E;
        logit = fmaxf(-LOGIT_LIMIT, fminf(logit, LOGIT_LIMIT));
        logit = cap > 0.0f ? cap * tanhf(logit / cap) : logit;
        const bool is_seen = slot >= span.first && slot < span.end;
        if (is_seen && logit > state.maximum[r]) {
            const float factor = exp2_fast(state.maximum[r] - logit);
            state.maximum[r] = logit;
            state.sum[r] *= factor;
            state.coded[r] *= factor;
#pragma unroll
            for (int d = 0; d < Domains; d++) {
#pragma unroll
                for (int i = 0; i < shape.n(); i++) {
                    state.values[d][r][i] *= factor;
                }
            }
        }
        const float weight = is_seen ? exp2_fast(logit - state.maximum[r]) : 0.0f;
        state.sum[r] += weight;
        state.coded[r] += is_coded_value ? weight : 0.0f;
        const bool is_dropped = weight < job.params.sparse_v;
        state.n_weights += is_seen && first_row + r < work.n_rows;
        state.n_skipped += is_seen && is_dropped && first_row + r < work.n_rows;
        score[r] = is_dropped ? 0.0f : weight;
        counts |= score[r] > 0.0f;
    }
    return counts;
}

template <int N>
__device__ __forceinline__ void add_token(const row_shape<N> &shape,
                                          const float (&weight)[TOKEN_ROWS], const float *y,
                                          float (*values)[row_shape<N>::capacity])
{
#pragma unroll
    for (int r = 0; r < TOKEN_ROWS; r++) {
#pragma unroll
        for (int i = 0; i < shape.n(); i++) {
            values[r][i] = fmaf(weight[r], y[i], values[r][i]);
        }
    }
}

/* All tokens of an exact block, a half-warp each. Every thread of the CTA takes part. */
template <int N, bool IsRuns, int Domains>
__device__ __forceinline__ void
attend_exact_block(const row_shape<N> &keys, const row_shape<N> &values, const decode_job &job,
                   const decode_work &work, const token_queries &queries, int block,
                   const tkv_device_block &entry, token_state<N, Domains> &state)
{
    const int n_halves = blockDim.x / half_warp;
    const uint8_t *page = (const uint8_t *)entry.pages + (size_t)work.kv_head * entry.n_slots * 2 *
                                                             (keys.head_dim + values.head_dim);
    const uint8_t *value_page = page + (size_t)entry.n_slots * 2 * keys.head_dim;
    const tkv_device_layer &layer = job.params.layer;
    const int n_tokens =
        min(min(block_start(layer, block + 1), work.some_end) - block_start(layer, block),
            entry.n_slots);
    /* Both halves of a warp stay in step; the second may have no token left. */
    for (int base = threadIdx.x / 32 * 2; base < n_tokens; base += n_halves) {
        const int slot = base + threadIdx.x / half_warp % 2;
        const int read = min(slot, n_tokens - 1);
        float k[row_shape<N>::capacity];
        float v[row_shape<N>::capacity];
        float score[TOKEN_ROWS];
        load_half_row<N, IsRuns>(keys, page, read, k);
        load_half_row<N, IsRuns>(values, value_page, read, v);
        score_token<N, IsRuns>(keys, queries.rows, k, score);
        weigh_token(values, job, work, block, slot < n_tokens ? slot : PAGE_TOKENS,
                    queries.first_row, false, score, state);
        add_token(values, score, v, state.values[DOMAIN_PLAIN]);
    }
}

/* One row joined over the half-warps. */
struct joined_row {
    float maximum, sum, coded;
};

/* Joins the half-warps of the CTA, always in the same order: rows [TOKEN_ROWS] and sums
 * [Domains][TOKEN_ROWS][head_dim_v] in shared memory, likewise scratch [half-warps][TOKEN_ROWS]. */
template <int N, bool IsRuns, int Domains>
__device__ __forceinline__ void join_tokens(const row_shape<N> &shape,
                                            token_state<N, Domains> &state, joined_row *scratch,
                                            joined_row *rows, float *sums)
{
    const int n_halves = blockDim.x / half_warp;
    const int half = threadIdx.x / half_warp;
    const int d = shape.head_dim;
    float factor[TOKEN_ROWS];
#pragma unroll
    for (int r = 0; r < TOKEN_ROWS; r++) {
        if (lane_of_row() == r) {
            scratch[half * TOKEN_ROWS + r] = {state.maximum[r], state.sum[r], state.coded[r]};
        }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < TOKEN_ROWS; r++) {
        joined_row row = {NO_MAXIMUM, 0.0f, 0.0f};
        for (int h = 0; h < n_halves; h++) {
            row.maximum = fmaxf(row.maximum, scratch[h * TOKEN_ROWS + r].maximum);
        }
        for (int h = 0; h < n_halves; h++) {
            const joined_row part = scratch[h * TOKEN_ROWS + r];
            row.sum += exp2_fast(part.maximum - row.maximum) * part.sum;
            row.coded += exp2_fast(part.maximum - row.maximum) * part.coded;
        }
        factor[r] = exp2_fast(state.maximum[r] - row.maximum);
        if (threadIdx.x == 0) {
            rows[r] = row;
        }
    }
    for (int h = 0; h < n_halves; h++) {
        if (half == h) {
#pragma unroll
            for (int at = 0; at < Domains * TOKEN_ROWS; at++) {
                const float *values = state.values[at / TOKEN_ROWS][at % TOKEN_ROWS];
#pragma unroll
                for (int i = 0; i < shape.n(); i++) {
                    float *sum = &sums[at * d + coordinate<N, IsRuns>(i)];
                    *sum = fmaf(values[i], factor[at % TOKEN_ROWS], h == 0 ? 0.0f : *sum);
                }
            }
        }
        __syncthreads();
    }
}

/* Counters of sparse V: every weight is counted once, by the first lane of its half-warp. */
__device__ __forceinline__ void add_stats(const decode_job &job, int n_weights, int n_skipped)
{
    if (job.params.stats && job.params.sparse_v > 0.0f && n_weights) {
        unsigned long long *stats = (unsigned long long *)job.params.stats;
        atomicAdd(stats, (unsigned long long)n_weights);
        atomicAdd(stats + 1, (unsigned long long)n_skipped);
    }
}

} // namespace tkv_cuda

#endif
