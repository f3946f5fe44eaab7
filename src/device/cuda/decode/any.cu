/* Decode attention for every type and head_dim, a token a half-warp in plain float arithmetic:
 * layers of f16, the sketched types, types that differ, head_dims without kernels of their own.
 * Bound by instructions but for f16 (tokens.cuh). */
#include "device/cuda/base/copy.cuh"
#include "device/cuda/base/head_dim.cuh"
#include "device/cuda/codec/unpack_row.cuh"
#include "device/cuda/decode/launch.cuh"
#include "device/cuda/decode/tokens.cuh"

namespace tkv_cuda
{
namespace
{

constexpr int any_warps = 8;

/* One side of a block: where the page is, and its image if it is coded. */
struct side_pages {
    int type;
    int order;
    const uint8_t *page;
    uint32_t *image;
};

__device__ void read_side(const side_pages &side, int head_dim)
{
    with_coded_type(side.type, [&](auto type) {
        read_image<decltype(type)::value>(side.order, head_dim, side.page, side.image);
    });
}

/* Row `slot` in the domain of its page. */
template <int N>
__device__ void decode_row(const row_shape<N> &shape, const side_pages &side, int slot, float *y)
{
    const bool is_coded = with_coded_type(side.type, [&](auto type) {
        constexpr int coded_type = decltype(type)::value;
        const uint16_t *fields = image_side<coded_type>(side.order, shape.head_dim, side.image);
        dequantise_row<N, coded_type>(shape, side.order, slot, side.image, fields, y);
    });
    if (!is_coded) {
        const __half *row = (const __half *)side.page + (size_t)slot * shape.head_dim;
        for (int i = 0; i < shape.n(); i++) {
            y[i] = __half2float(row[coordinate<N, false>(i)]);
        }
    }
}

/* The tile's queries in shared memory. */
struct token_queries {
    const float *rows; /* [2][token_rows][head_dim_k]: plain, rotated */
    const float *bias; /* [token_rows] what the keys' mean adds to the product of a coded key */
};

/* All tokens of a block. Every thread of the CTA takes part. */
template <int N>
__device__ void
attend_block(const row_shape<N> &keys, const row_shape<N> &values, const decode_job &job,
             const decode_work &work, const token_queries &queries, int block, int n_tokens,
             const side_pages &key, const side_pages &value, token_state<N, 2> &state)
{
    const bool is_coded_key = key.type != TKV_TYPE_F16;
    const bool is_coded_value = value.type != TKV_TYPE_F16;
    const float *rows = queries.rows + (is_coded_key ? token_rows * keys.head_dim : 0);
    const float bias = is_coded_key ? queries.bias[row_of_lane()] : 0.0f;
    const token_span span = span_of_lane(job, work, 0, block);
    __syncthreads(); /* the images are no longer read */
    read_side(key, keys.head_dim);
    read_side(value, values.head_dim);
    __syncthreads();
    const int first = first_of_block(work, tkv_block_place(job.params.layer.n_sinks, block));
    for (int base = first + threadIdx.x / 32 * 2; base < n_tokens; base += 2 * any_warps) {
        const int at = base + threadIdx.x / half_warp % 2;
        const int read = min(at, n_tokens - 1);
        const int slot[1] = {at < n_tokens ? at : page_tokens};
        float y[row_shape<N>::capacity];
        decode_row(keys, key, read, y);
        float score[1] = {score_token<N, false>(keys, rows, y) + bias};
        weigh_tokens(values, job, span, slot, is_coded_value, score, state);
        decode_row(values, value, read, y);
        add_token(values, score[0], y, state.values[is_coded_value ? DOMAIN_CODED : DOMAIN_PLAIN]);
    }
}

/* The tile's queries, plain and rotated, and what the keys' mean adds: one row a half-warp. */
template <int N>
__device__ void load_queries(const row_shape<N> &shape, const decode_job &job,
                             const decode_work &work, float *rows, float *bias)
{
    const int r = threadIdx.x / half_warp;
    if (threadIdx.x / 32 >= token_rows / 2) {
        return;
    }
    const float *mean = job.params.layer.type_k != TKV_TYPE_F16 && work.sequence.mean_k
                            ? (const float *)work.sequence.mean_k + work.kv_head * shape.head_dim
                            : nullptr;
    float x[row_shape<N>::capacity];
    float sum = 0.0f;
    for (int i = 0; i < shape.n(); i++) {
        const int j = coordinate<N, false>(i);
        x[i] = r < work.n_rows ? query_of_row(job, work, r)[j] : 0.0f;
        rows[r * shape.head_dim + j] = x[i];
        sum += mean ? x[i] * mean[j] : 0.0f;
    }
    bias[r] = add_lanes<half_warp>(sum);
    rotate_row(shape, x);
    for (int i = 0; i < shape.n(); i++) {
        rows[(token_rows + r) * shape.head_dim + coordinate<N, false>(i)] = x[i];
    }
}

/* Brings the joined sums into the domain of the output and writes the CTA's part. */
template <int N>
__device__ void write_rows(const row_shape<N> &shape, const decode_job &job,
                           const decode_work &work, const joined_row *rows, const float *sums)
{
    const int d = shape.head_dim;
    const int r = threadIdx.x / half_warp;
    const size_t part = (size_t)work.unit * job.n_splits + work.split;
    if (threadIdx.x / 32 >= token_rows / 2) {
        return;
    }
    const bool is_rotated = job.params.layer.type_v != TKV_TYPE_F16;
    const float *mean = is_rotated && work.sequence.mean_v
                            ? (const float *)work.sequence.mean_v + work.kv_head * d
                            : nullptr;
    float x[row_shape<N>::capacity];
    for (int i = 0; i < shape.n(); i++) {
        x[i] = sums[(token_rows + r) * d + coordinate<N, false>(i)];
    }
    if (is_rotated) {
        unrotate_row(shape, x);
    }
    float *to = job.sums + (part * token_rows + r) * d;
    for (int i = 0; i < shape.n(); i++) {
        const int j = coordinate<N, false>(i);
        to[j] = x[i] + sums[r * d + j] + (mean ? rows[r].coded * mean[j] : 0.0f);
    }
    if (lane_of_row() == 0) {
        *(row_sums *)(job.stats + (part * token_rows + r) * 4) = {rows[r].maximum, rows[r].sum,
                                                                  rows[r].coded, 0.0f};
    }
}

/* Shared memory: queries, then images, over which the joined sums are laid in the end. */
struct any_places {
    size_t queries, key_image, value_image, sums, bytes;
};

__host__ __device__ any_places place_shared(const tkv_device_layer &layer, size_t key_image,
                                            size_t value_image)
{
    any_places at;
    at.queries = 0;
    at.key_image = 2 * token_rows * sizeof(float) * layer.head_dim_k;
    at.value_image = at.key_image + key_image;
    at.sums = at.key_image;
    const size_t images_end = at.value_image + value_image;
    const size_t sums_end = at.sums + 2 * token_rows * sizeof(float) * layer.head_dim_v;
    at.bytes = images_end > sums_end ? images_end : sums_end;
    return at;
}

template <int N>
__global__ void __launch_bounds__(any_warps * 32)
    attend_any(const __grid_constant__ decode_job job, const __grid_constant__ any_places at)
{
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ float bias[token_rows];
    __shared__ joined_row scratch[2 * any_warps * token_rows];
    __shared__ joined_row rows[token_rows];
    const tkv_device_layer &layer = job.params.layer;
    const row_shape<N> keys = {layer.head_dim_k};
    const row_shape<N> values = {layer.head_dim_v};
    decode_work work = name_work(job, token_rows);
    plan_work(job, job.blocks_a_split, work);
    if (work.split >= work.n_active) {
        return;
    }
    float *query_rows = (float *)(shared + at.queries);
    load_queries(keys, job, work, query_rows, bias);
    __syncthreads();
    const token_queries queries = {query_rows, bias};
    token_state<N, 2> state;
    clear_tokens(values, state);
    for (int block = work.begin + work.split; block < work.end; block += work.n_active) {
        const tkv_device_block entry = ((const tkv_device_block *)work.sequence.blocks)[block];
        const head_pages pages = find_pages(layer, entry, work.kv_head);
        const int start = tkv_block_place(layer.n_sinks, block);
        const int n_seen = min(tkv_block_place(layer.n_sinks, block + 1), work.some_end) - start;
        const side_pages key = {pages.type_k, TKV_ORDER_KEY, pages.keys,
                                (uint32_t *)(shared + at.key_image)};
        const side_pages value = {pages.type_v, TKV_ORDER_VALUE, pages.values,
                                  (uint32_t *)(shared + at.value_image)};
        attend_block(keys, values, job, work, queries, block, min(n_seen, pages.n_slots), key,
                     value, state);
    }
    __syncthreads();
    float *sums = (float *)(shared + at.sums);
    join_tokens<N, false>(values, state, scratch, rows, sums);
    if (lane_of_row() % 4 == 0) {
        add_stats(job, state.n_weights, state.n_skipped);
    }
    write_rows(values, job, work, rows, sums);
    if (is_last_part(job, work)) {
        merge_plain_parts<token_rows>(job, work);
    }
}

/* Layers of f16: nothing to unpack, so that only memory and the products count. */
template <int N>
__global__ void __launch_bounds__(any_warps * 32, 2)
    attend_exact(const __grid_constant__ decode_job job)
{
    constexpr int d = N * half_warp;
    __shared__ __align__(16) float query_rows[token_rows * d];
    __shared__ float sums[token_rows * d];
    __shared__ joined_row scratch[2 * any_warps * token_rows];
    __shared__ joined_row rows[token_rows];
    const row_shape<N> shape = {d};
    decode_work work = name_work(job, token_rows);
    plan_work(job, job.blocks_a_split, work);
    if (work.split >= work.n_active) {
        return;
    }
    for (int i = threadIdx.x; i < token_rows * d; i += any_warps * 32) {
        query_rows[i] = i / d < work.n_rows ? query_of_row(job, work, i / d)[i % d] : 0.0f;
    }
    __syncthreads();
    token_state<N, 1> state;
    clear_tokens(shape, state);
    for (int block = work.begin + work.split; block < work.end; block += work.n_active) {
        tkv_device_block entry = ((const tkv_device_block *)work.sequence.blocks)[block];
        entry.n_slots = entry.is_exact ? entry.n_slots : page_tokens;
        attend_exact_runs<N, N == 16 ? 1 : 4>(job, work, query_rows, 0, block, entry, state);
    }
    join_tokens<N, true>(shape, state, scratch, rows, sums);
    if (lane_of_row() % 4 == 0) {
        add_stats(job, state.n_weights, state.n_skipped);
    }
    const size_t part = (size_t)work.unit * job.n_splits + work.split;
    for (int i = threadIdx.x; i < token_rows * d; i += any_warps * 32) {
        job.sums[part * token_rows * d + i] = sums[i];
    }
    if (threadIdx.x < token_rows) {
        const joined_row row = rows[threadIdx.x];
        *(row_sums *)(job.stats + (part * token_rows + threadIdx.x) * 4) = {row.maximum, row.sum,
                                                                            0.0f, 0.0f};
    }
    if (is_last_part(job, work)) {
        merge_plain_parts<token_rows>(job, work);
    }
}

template <int N> cudaError_t launch_any(const decode_job &job, dim3 grid, cudaStream_t stream)
{
    const tkv_device_layer &layer = job.params.layer;
    const any_places at =
        place_shared(layer, image_bytes(layer.type_k, TKV_ORDER_KEY, layer.head_dim_k),
                     image_bytes(layer.type_v, TKV_ORDER_VALUE, layer.head_dim_v));
    const cudaError_t error = allow_shared_memory(attend_any<N>, at.bytes);
    if (error != cudaSuccess) {
        return error;
    }
    attend_any<N><<<grid, any_warps * 32, at.bytes, stream>>>(job, at);
    return cudaGetLastError();
}

template <int N> cudaError_t launch_exact(const decode_job &job, dim3 grid, cudaStream_t stream)
{
    attend_exact<N><<<grid, any_warps * 32, 0, stream>>>(job);
    return cudaGetLastError();
}

} /* namespace */

decode_kernel find_any_kernel(const tkv_device_layer &layer)
{
    decode_kernel kernel = {};
    kernel.n_rows = token_rows;
    kernel.n_warps = 1; /* that work on a block: all of them */
    kernel.n_ctas = 2;
    const bool is_square = layer.head_dim_k == layer.head_dim_v;
    const bool is_exact = layer.type_k == TKV_TYPE_F16 && layer.type_v == TKV_TYPE_F16;
    kernel.launch = is_square && layer.head_dim_k == 128 ? launch_any<8> : launch_any<0>;
    if (is_square && is_exact) {
        with_head_dim(layer.head_dim_k, [&](auto size) {
            kernel.launch = launch_exact<decltype(size)::value / half_warp>;
        });
    }
    return kernel;
}

} /* namespace tkv_cuda */
