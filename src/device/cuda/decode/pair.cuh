/* A page pair against the rows of a warp: scores, softmax, sums. */
#ifndef TKV_DEVICE_CUDA_DECODE_PAIR_CUH
#define TKV_DEVICE_CUDA_DECODE_PAIR_CUH

#include "device/cuda/decode/work.cuh"

namespace tkv_cuda
{

/* What a warp keeps from page to page. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles> struct warp_state {
    lane_constants<KeyType, ValueType> lane;
    uint32_t queries[RowTiles][HeadDim / 16];
    row_terms terms[RowTiles];
    row_state<HeadDim, RowTiles> rows;
    sparse_state sparse[RowTiles];
    bool is_first; /* no page has been met */
};

template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void begin_rows(const uint32_t *fragments, const row_terms *terms,
                                           int lane,
                                           warp_state<KeyType, ValueType, HeadDim, RowTiles> &warp)
{
    row_state<HeadDim, RowTiles> &rows = warp.rows;
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
#pragma unroll
        for (int w = 0; w < HeadDim / 16; w++) {
            warp.queries[i][w] = fragments[i * (HeadDim * 2) + w * 32 + lane];
        }
        warp.terms[i] = terms[4 * i + (lane & 3)];
        rows.maximum[i] = no_maximum;
        rows.sum[i] = 0.0f;
        rows.weight_sum[i] = 0;
        warp.sparse[i] = {-CUDART_INF_F, 0, 0};
#pragma unroll
        for (int j = 0; j < HeadDim / 8; j++) {
            rows.total[i][j / 4][j % 4] = 0.0f;
            rows.sums[i][j / 2][j % 2 * 2] = rows.sums[i][j / 2][j % 2 * 2 + 1] = 0;
        }
    }
    warp.is_first = true;
}

/* Moves the maximum of row tile i to where the weights fit 16 bits, and what was summed up with it;
 * weighs the page anew. */
template <int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ float
move_maximum(int i, bool is_first, int *shared_maxima, const float (&value_scale)[8],
             float (&logit)[8], float (&integer)[8], row_state<HeadDim, RowTiles> &rows)
{
    const int t = threadIdx.x & 3;
    const float maximum =
        share_maximum(find_maximum(rows.maximum[i], logit, value_scale), shared_maxima + 4 * i + t);
    if (!is_first) {
        const float factor = exp2_fast(rows.maximum[i] - maximum);
        flush_sums<ValueType>(i, factor, rows);
        rows.sum[i] *= factor;
    }
    rows.maximum[i] = maximum;
    float weight[8];
    const float sum = compute_weights(maximum, logit, value_scale, weight, integer);
    bool is_bad = false;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        is_bad |= integer[k] != integer[k];
    }
    /* A value that is not finite makes the whole row so. */
    if (__ballot_sync(full_warp, is_bad) & 0x11111111u << t) {
        rows.total[i][0][0] = CUDART_NAN_F;
        rows.sum[i] = CUDART_NAN_F;
    }
    return sum;
}

/* Logits of row tile i to weights, as columns of the second product. Returns whether a weight of
 * the warp is not zero; that is only looked at where values are sparse. */
template <int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ bool soften_row(const decode_job &job, int i, bool is_first,
                                           int *shared_maxima, const float (&value_scale)[8],
                                           float (&logit)[8], row_state<HeadDim, RowTiles> &rows,
                                           sparse_state &sparse, uint32_t (&columns)[4])
{
    float weight[8];
    float integer[8];
    bool is_any_left = true;
    float sum = compute_weights(rows.maximum[i], logit, value_scale, weight, integer);
    if (!__all_sync(full_warp, fit_16_bits(integer, sum))) {
        sum =
            move_maximum<ValueType>(i, is_first, shared_maxima, value_scale, logit, integer, rows);
    }
    rows.sum[i] += sum;
    if (job.params.sparse_v > 0.0f) {
        drop_small_weights(job.params.sparse_v, logit, integer, sparse);
        bool is_left = false;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            is_left |= integer[k] != integer_base;
        }
        is_any_left = __any_sync(full_warp, is_left);
    }
    if constexpr (type_traits<ValueType>::n_tables == 2) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            rows.weight_sum[i] = add_low_half(rows.weight_sum[i], __float_as_uint(integer[k]));
        }
    }
    pack_weights<ValueType>(integer, columns);
    return is_any_left;
}

/* One page pair of the warp, from its stage. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void attend_pair(const decode_job &job, const decode_work &work,
                                            int block, uint8_t *stage, int *shared_maxima,
                                            warp_state<KeyType, ValueType, HeadDim, RowTiles> &warp)
{
    using layout = pair_layout<KeyType, ValueType, HeadDim>;
    constexpr int n_later = 2; /* groups of copies: the pages that come after these */
    const lane_constants<KeyType, ValueType> &lane = warp.lane;
    place_start_bits<layout>(stage);
    int query_sums[RowTiles][2];
    int score[RowTiles][8];
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        query_sums[i][0] = type_traits<KeyType>::n_tables == 2 ? warp.terms[i].sums[0] : 0;
        query_sums[i][1] = type_traits<KeyType>::n_tables == 2 ? warp.terms[i].sums[1] : 0;
    }
    compute_scores<KeyType, ValueType, HeadDim, RowTiles>(stage, lane, warp.queries, query_sums,
                                                          score);
    if constexpr (type_traits<ValueType>::is_trellis) { /* while the softmax is worked out */
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
        const int start = tkv_block_place(job.params.layer.n_sinks, block);
        forget_unseen<ValueType>(work.some_begin - start, work.some_end - start, value_scale);
    }
    uint32_t columns[RowTiles][4];
    bool is_any_left = false;
#pragma unroll
    for (int i = 0; i < RowTiles; i++) {
        row_span span = {};
        if (is_masked) {
            span = span_of_row(job, work, 4 * i + (threadIdx.x & 3), block);
        }
        float logit[8];
        compute_logits<ValueType>(job, warp.terms[i], key_scale, score[i], is_masked, span, logit);
        const bool is_left =
            soften_row<ValueType>(job, i, warp.is_first, shared_maxima, value_scale, logit,
                                  warp.rows, warp.sparse[i], columns[i]);
        is_any_left = is_left || is_any_left;
    }
    warp.is_first = false;
    /* All is there but the pages that come after this one. */
    if constexpr (!type_traits<ValueType>::is_trellis) {
        wait_copies<n_later>();
    }
    __syncwarp();
    if (is_any_left) {
        add_values<KeyType, ValueType, HeadDim, RowTiles>(stage, lane, columns, warp.rows.sums);
    }
}

} /* namespace tkv_cuda */

#endif
