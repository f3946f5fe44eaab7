/* The decode attention kernel around the products of pages.cuh: which blocks, softmax, and
 * how the parts come together. */
#ifndef TKV_DEVICE_CUDA_DECODE_WORK_CUH
#define TKV_DEVICE_CUDA_DECODE_WORK_CUH

#include "device/cuda/decode/pages.cuh"

namespace tkv_cuda
{

/* What a CTA works on. */
struct decode_work {
    tkv_device_sequence sequence;
    int unit;  /* (sequence, KV head, row tile), counted in this order */
    int split; /* of the unit's blocks */
    int kv_head;
    int first_row; /* of the tile, among n_queries * group */
    int n_rows;    /* of the tile that exist */
    int group;
    int first_query; /* of the tile's rows */
    int last_query;
    int position;    /* of query 0 */
    int some_begin;  /* no row sees the positions before it */
    int some_end;    /* nor those from here on */
    int first_whole; /* all rows see all of this block and of the n_whole - 1 after it */
    int n_whole;
    int n_active; /* splits that take part */
    int begin;    /* blocks that the tile's rows see */
    int end;
};

/* The part of the work that follows from the launch alone. */
__device__ __forceinline__ decode_work name_work(const decode_job &job, int tile_rows)
{
    const tkv_device_attend &p = job.params;
    decode_work work;
    work.kv_head = blockIdx.x / job.n_tiles;
    work.unit = blockIdx.z * gridDim.x + blockIdx.x;
    work.split = blockIdx.y;
    work.group = job.group;
    work.first_row = blockIdx.x % job.n_tiles * tile_rows;
    work.n_rows = min(tile_rows, p.n_queries * work.group - work.first_row);
    work.first_query = work.first_row / work.group;
    work.last_query = (work.first_row + work.n_rows - 1) / work.group;
    return work;
}

/* Positions from here on hold no token, or those of a later segment. */
__device__ __forceinline__ int end_of_tokens(const tkv_device_attend &p)
{
    return p.end ? p.end : 0x7fffffff;
}

/* And the part that follows from the sequence's length. */
__device__ __forceinline__ void plan_work(const decode_job &job, int blocks_a_split,
                                          decode_work &work)
{
    const tkv_device_attend &p = job.params;
    work.sequence = ((const tkv_device_sequence *)p.sequences)[blockIdx.z];
    work.position = p.first_position >= 0 ? p.first_position : work.sequence.n_tokens - p.n_queries;
    const int first_query = work.position + work.first_query;
    const int last_query = work.position + work.last_query;
    const int all_end = end_of_tokens(p);
    const int last_seen = min(last_query, all_end - 1);
    work.some_begin = max(p.window ? first_query + 1 - p.window : 0, p.begin);
    work.some_end = last_seen + 1;
    work.begin = tkv_block_of_place(p.layer.n_sinks, work.some_begin);
    work.end = last_seen < work.some_begin ? work.begin
                                           : tkv_block_of_place(p.layer.n_sinks, last_seen) + 1;
    const int newest_begin = max(p.window ? last_query + 1 - p.window : 0, p.begin);
    work.first_whole = max(tkv_block_of_place(p.layer.n_sinks, newest_begin + page_tokens - 1),
                           tkv_head_blocks(p.layer.n_sinks));
    const int whole_end = max(min(first_query + 1, all_end), 0);
    work.n_whole = max(tkv_block_of_place(p.layer.n_sinks, whole_end) - work.first_whole, 0);
    work.n_active =
        max(1, min(job.n_splits, (work.end - work.begin + blocks_a_split - 1) / blocks_a_split));
}

__device__ __forceinline__ const float *query_of_row(const decode_job &job, const decode_work &work,
                                                     int r)
{
    const tkv_device_attend &p = job.params;
    const int row = work.first_row + r;
    const size_t query = (size_t)blockIdx.z * p.n_queries + row / work.group;
    return (const float *)p.q +
           (query * p.n_heads + work.kv_head * work.group + row % work.group) * p.layer.head_dim_k;
}

__device__ __forceinline__ float *output_of_row(const decode_job &job, const decode_work &work,
                                                int r)
{
    const tkv_device_attend &p = job.params;
    const int row = work.first_row + r;
    const size_t query = (size_t)blockIdx.z * p.n_queries + row / work.group;
    return (float *)p.out +
           (query * p.n_heads + work.kv_head * work.group + row % work.group) * p.layer.head_dim_v;
}

/* A query as the loop needs it, beside its fragments. */
struct row_terms {
    float factor; /* score, times the scale of a key, to a logit of base 2 */
    float bias;   /* what the keys' mean adds to it */
    int sums[2];  /* of the high and low bytes of the query */
};

/* Rotates a row of the tile and cuts it into high and low bytes in the order of the fragments. */
template <int KeyType, int HeadDim>
__device__ __forceinline__ void prepare_query(const decode_job &job, const decode_work &work, int r,
                                              float (&x)[HeadDim / 32], uint8_t *fragments,
                                              row_terms *terms)
{
    constexpr int n = HeadDim / 32;
    constexpr bool is_shared = HeadDim == 64;
    const tkv_device_attend &p = job.params;
    const int lane = threadIdx.x % 32;
    float bias = 0.0f;
    if (work.sequence.mean_k) {
        float mean[n];
        load_runs((const float *)work.sequence.mean_k + work.kv_head * HeadDim, mean);
#pragma unroll
        for (int j = 0; j < n; j++) {
            bias = fmaf(x[j], mean[j], bias);
        }
    }
    bias = add_lanes(bias);
    rotate_runs(x);
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < n; j++) {
        largest = fmaxf(largest, fabsf(x[j]));
    }
    largest = fminf(max_lanes(largest), 3e38f);
    const float to_integer = largest > 0.0f ? copysignf(query_limit / largest, p.scale) : 0.0f;
    int sums[2] = {0, 0};
    uint8_t *columns = fragments + r / 4 * (n * 256) + (r % 4) * 32;
#pragma unroll
    for (int j = 0; j < n; j++) {
        const int q = __float2int_rn(fmaxf(-query_limit, fminf(x[j] * to_integer, query_limit)));
        const int high = (q + 128) >> 8;
        const int low = q - 256 * high;
        sums[0] += high;
        sums[1] += low;
        /* The place of coordinate 32 * group + code: unpack.cuh has the order of a group's codes,
         * layout.cuh that of the groups over the lanes. */
        const int coordinate = lane * n + j;
        const int group = coordinate / 32;
        const int code = coordinate % 32;
        const int quad = type_traits<KeyType>::is_bytes ? code >> 2 : 2 * (code & 3) + (code >> 4);
        const int byte = type_traits<KeyType>::is_bytes ? code & 3 : code >> 2 & 3;
        const int t = is_shared ? 2 * group + (quad >> 2) : group & 3;
        const int word = is_shared ? quad & 3 : 8 * (group >> 2) + quad;
        uint8_t *place = columns + word * 128 + t * 4 + byte;
        place[0] = (uint8_t)high;
        place[16] = (uint8_t)low;
    }
    sums[0] = add_lanes(sums[0]);
    sums[1] = add_lanes(sums[1]);
    if (lane == 0) {
        terms->factor = largest / query_limit * fabsf(p.scale) * log2_e / TKV_LEVEL_UNIT;
        terms->bias = bias * p.scale * log2_e;
        terms->sums[0] = sums[0];
        terms->sums[1] = sums[1];
    }
}

/* The online softmax of the lane's row of each tile, over the lane's tokens. */
template <int HeadDim, int RowTiles> struct row_state {
    float maximum[RowTiles]; /* of base 2; weights are relative to it */
    float sum[RowTiles];
    unsigned weight_sum[RowTiles];          /* of the integer weights, for 16 levels */
    float total[RowTiles][HeadDim / 32][4]; /* what was taken out of the accumulators */
    int sums[RowTiles][HeadDim / 16][4];    /* the accumulators */
};

/* Moves the accumulators into floats times `factor`, what the new maximum makes of the old. */
template <int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void flush_sums(int i, float factor, row_state<HeadDim, RowTiles> &state)
{
    float offset = 0.0f;
    if constexpr (type_traits<ValueType>::n_tables == 2) {
        offset = add_column((float)(int)state.weight_sum[i]);
        state.weight_sum[i] = 0;
    }
#pragma unroll
    for (int block = 0; block < HeadDim / 32; block++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int *c = state.sums[i][2 * block + j / 2] + 2 * (j & 1);
            const float sum = fmaf((float)c[0], 256.0f, (float)c[1]) + offset;
            state.total[i][block][j] = (state.total[i][block][j] + sum) * factor;
            c[0] = c[1] = 0;
        }
    }
}

/* Which of a block's tokens the lane's row sees. */
struct row_span {
    int first, end;
};

__device__ __forceinline__ row_span span_of_row(const decode_job &job, const decode_work &work,
                                                int row, int block)
{
    const tkv_device_layer &layer = job.params.layer;
    const int start = tkv_block_place(layer.n_sinks, block);
    const int query = (work.first_row + min(row, work.n_rows - 1)) / work.group;
    const int end = work.position + query + 1 - start;
    const int all_end =
        min(end_of_tokens(job.params), tkv_block_place(layer.n_sinks, block + 1)) - start;
    return {max(job.params.window ? end - job.params.window : 0, job.params.begin - start),
            min(end, all_end)};
}

/* Base-2 logits of the lane's row and tokens. */
template <int ValueType>
__device__ __forceinline__ void compute_logits(const decode_job &job, const row_terms &terms,
                                               const float (&key_scale)[8], const int (&score)[8],
                                               bool is_masked, row_span span, float (&logit)[8])
{
    const float cap = job.params.logit_softcap * log2_e;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        logit[k] = fmaf((float)score[k], key_scale[k] * terms.factor, terms.bias);
    }
    if (cap > 0.0f) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            /* tanh(x) = 1 - 2 / (exp(2x) + 1); near 0 its error is absolute, as that of a logit. */
            const float x = fmaxf(-logit_limit, fminf(logit[k], logit_limit)) / cap;
            logit[k] = cap * (1.0f - __fdividef(2.0f, exp2_fast(2.0f * log2_e * x) + 1.0f));
        }
    }
    if (is_masked) {
        const int base = first_slot<ValueType>(threadIdx.x % 32 >> 2);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int slot = base + pair_offset<ValueType>(k / 2) + (k & 1);
            logit[k] = slot >= span.first && slot < span.end ? logit[k] : -CUDART_INF_F;
        }
    }
}

/* A maximum for which the largest weight has weight_bits bits. */
__device__ __forceinline__ float find_maximum(float maximum, float (&logit)[8],
                                              const float (&value_scale)[8])
{
    float top = -CUDART_INF_F;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const bool is_seen = logit[k] != -CUDART_INF_F;
        const float limited = fmaxf(-logit_limit, fminf(logit[k], logit_limit));
        const float value = limited + fmaxf(log2_fast(value_scale[k]), -valueless_bits);
        logit[k] = is_seen ? limited : logit[k];
        top = is_seen ? fmaxf(top, value) : top;
    }
    return fmaxf(maximum, max_column(top) - weight_bits);
}

/* An integer in the order of floats. */
__device__ __forceinline__ int order_of(float x)
{
    const int bits = __float_as_int(x);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

/* The largest maximum of the lane's row that any warp of the CTA has met: what one has met the
 * others need not find out one after the other, at the price of a flush each. */
__device__ __forceinline__ float share_maximum(float maximum, int *shared)
{
    int order = order_of(maximum);
    if (threadIdx.x % 32 < 4) {
        order = max(order, atomicMax(shared, order));
    }
    order = __shfl_sync(full_warp, order, threadIdx.x & 3);
    return __int_as_float(order >= 0 ? order : order ^ 0x7fffffff);
}

/* exp2(logit - maximum) and, times the value's scale, rounded to an integer. Returns their sum. */
__device__ __forceinline__ float compute_weights(float maximum, const float (&logit)[8],
                                                 const float (&value_scale)[8], float (&weight)[8],
                                                 float (&integer)[8])
{
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        weight[k] = exp2_fast(logit[k] - maximum);
        integer[k] = fmaf(weight[k], value_scale[k], integer_base);
        sum += weight[k];
    }
    return sum;
}

__device__ __forceinline__ bool fit_16_bits(const float (&integer)[8], float sum)
{
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        bits |= __float_as_uint(integer[k]);
    }
    return bits >> 16 == integer_base_high && sum < sum_limit;
}

/* Scales of the lane's tokens. */
template <int Type, int ValueType>
__device__ __forceinline__ void load_scales(const uint8_t *mine, float (&scale)[8])
{
#pragma unroll
    for (int p = 0; p < 4; p++) {
        uint32_t two = *(const uint32_t *)(mine + 2 * pair_offset<ValueType>(p));
        two = type_traits<Type>::is_trellis ? two & 0x7fff7fffu : two;
        const float2 both = from_two_halves(two);
        scale[2 * p] = both.x;
        scale[2 * p + 1] = both.y;
    }
}

/* Slots before `first` and from `end` on hold what dropped tokens have left; a weight of 0 times a
 * scale that is not finite would not be 0. */
template <int ValueType>
__device__ __forceinline__ void forget_unseen(int first, int end, float (&scale)[8])
{
    const int base = first_slot<ValueType>(threadIdx.x % 32 >> 2);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int slot = base + pair_offset<ValueType>(k / 2) + (k & 1);
        scale[k] = slot >= first && slot < end ? scale[k] : 0.0f;
    }
}

/* Weights below the threshold, relative to the largest so far, become 0. */
struct sparse_state {
    float largest; /* logit so far */
    int n_weights, n_skipped;
};

__device__ __forceinline__ void drop_small_weights(float threshold, const float (&logit)[8],
                                                   float (&integer)[8], sparse_state &sparse)
{
    float largest = sparse.largest;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        largest = fmaxf(largest, logit[k]);
    }
    largest = max_column(largest);
    sparse.largest = largest;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if (logit[k] != -CUDART_INF_F) {
            sparse.n_weights++;
            if (exp2_fast(logit[k] - largest) < threshold) {
                sparse.n_skipped++;
                integer[k] = integer_base;
            }
        }
    }
}

/* The row's weights as columns of the second product: bytes of two tokens side by side, high bytes
 * in the even column, low bytes in the odd one, transposed. */
template <int ValueType>
__device__ __forceinline__ void pack_weights(const float (&integer)[8], uint32_t (&columns)[4])
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int a = type_traits<ValueType>::is_bytes ? 2 * k : 4 * (k & 1) + (k >> 1);
        const int b = type_traits<ValueType>::is_bytes ? a + 1 : a + 2;
        columns[k] = transpose_8x8(
            permute_bytes(__float_as_uint(integer[a]), __float_as_uint(integer[b]), 0x4051));
    }
}

} /* namespace tkv_cuda */

#endif
