/* Decoding tokens of a sequence into rows of floats or halves. A thread block copies a page into
 * shared memory; its half-warps decode one row each. */
#include "device/cuda/codec/unpack_row.cuh"
#include "device/cuda/kernels_cuda.h"

namespace tkv_cuda
{
namespace
{

constexpr int n_threads = 128;

struct load_params {
    tkv_device_layer layer;
    const tkv_device_sequence *sequence;
    int first;
    int n_tokens;
    void *k;
    void *v;
    bool is_half;    /* the rows are halves */
    int first_order; /* of the thread blocks with blockIdx.y = 0 */
    int n_orders;
};

/* The rows that come from one page. */
struct page_rows {
    int order;
    int head_dim;
    slot_range range;
    void *rows;
    bool is_half;
    ptrdiff_t first; /* value of slot 0, were it there */
    ptrdiff_t stride;
    page_place place;
};

__device__ inline void put_value(const page_rows &job, ptrdiff_t at, float value)
{
    if (job.is_half) {
        ((uint16_t *)job.rows)[at] = (uint16_t)to_finite_half(value);
    } else {
        ((float *)job.rows)[at] = value;
    }
}

template <int N, int Type> __device__ void decode_page(const page_rows &job, uint32_t *image)
{
    const row_shape<N> shape = {job.head_dim};
    const int lane = lane_of_row();
    const uint16_t *side = image_side<Type>(job.order, job.head_dim, image);
    read_image<Type>(job.order, job.head_dim, job.place.page, image);
    __syncthreads();
    const int warp_row = threadIdx.x / 32 * 2;
    const int half = threadIdx.x / half_warp % 2;
    for (int base = job.range.first + warp_row; base < job.range.end;
         base += n_threads / half_warp) {
        const bool is_used = base + half < job.range.end;
        const int slot = is_used ? base + half : base;
        float y[row_shape<N>::capacity];
        dequantise_row<N, Type>(shape, job.order, slot, image, side, y);
        unrotate_row(shape, y);
        const ptrdiff_t row = job.first + slot * job.stride + lane;
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            const float mean = job.place.mean ? job.place.mean[i * half_warp + lane] : 0.0f;
            if (is_used) {
                put_value(job, row + i * half_warp, job.place.mean ? y[i] + mean : y[i]);
            }
        }
    }
}

__device__ void load_exact(const page_rows &job)
{
    const int pairs = job.head_dim / 2;
    const int n_rows = job.range.end - job.range.first;
    const uint32_t *page = (const uint32_t *)job.place.page + job.range.first * pairs;
    for (int i = threadIdx.x; i < n_rows * pairs; i += n_threads) {
        const ptrdiff_t at =
            job.first + (job.range.first + i / pairs) * job.stride + 2 * (i % pairs);
        put_value(job, at, from_half(page[i] & 0xffffu));
        put_value(job, at + 1, from_half(page[i] >> 16));
    }
}

template <int N> __global__ void __launch_bounds__(n_threads) load_pages(const load_params params)
{
    extern __shared__ __align__(16) uint32_t image[];
    const tkv_device_layer &layer = params.layer;
    const tkv_device_sequence sequence = *params.sequence;
    const int block = block_of(layer, params.first) + (int)blockIdx.x;
    const int start = block_start(layer, block);
    const int end = min(block_end(layer, block), params.first + params.n_tokens);
    if (start >= end) {
        return;
    }
    const int order = params.first_order + (int)blockIdx.y % params.n_orders;
    const int head = (int)blockIdx.y / params.n_orders;
    page_rows job;
    job.order = order;
    job.head_dim = layer_head_dim(layer, order);
    job.range.first = max(params.first - start, 0);
    job.range.end = end - start;
    job.stride = (ptrdiff_t)layer.n_kv_heads * job.head_dim;
    job.is_half = params.is_half;
    job.rows = order == TKV_ORDER_KEY ? params.k : params.v;
    job.first = (start - params.first) * job.stride + (ptrdiff_t)head * job.head_dim;
    job.place = place_page(layer, sequence, block, head, order);
    switch (job.place.type) {
    case TKV_TYPE_TURBO8: decode_page<N, TKV_TYPE_TURBO8>(job, image); break;
    case TKV_TYPE_TURBO4: decode_page<N, TKV_TYPE_TURBO4>(job, image); break;
    case TKV_TYPE_TURBO3: decode_page<N, TKV_TYPE_TURBO3>(job, image); break;
    case TKV_TYPE_TURBO2: decode_page<N, TKV_TYPE_TURBO2>(job, image); break;
    case TKV_TYPE_TRELLIS3: decode_page<N, TKV_TYPE_TRELLIS3>(job, image); break;
    case TKV_TYPE_TRELLIS2: decode_page<N, TKV_TYPE_TRELLIS2>(job, image); break;
    case TKV_TYPE_TURBO4Q: decode_page<N, TKV_TYPE_TURBO4Q>(job, image); break;
    case TKV_TYPE_TURBO3Q: decode_page<N, TKV_TYPE_TURBO3Q>(job, image); break;
    default: load_exact(job); break;
    }
}

template <int N> cudaError_t launch_class(const load_params &params, cudaStream_t stream)
{
    const tkv_device_layer &layer = params.layer;
    size_t bytes = 0;
    for (int order = params.first_order; order < params.first_order + params.n_orders; order++) {
        const size_t needed =
            image_bytes(layer_type(layer, order), order, layer_head_dim(layer, order));
        bytes = needed > bytes ? needed : bytes;
    }
    const cudaError_t error = allow_shared_memory(load_pages<N>, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 grid((unsigned)max_blocks(layer, params.n_tokens),
                    (unsigned)(layer.n_kv_heads * params.n_orders));
    load_pages<N><<<grid, n_threads, bytes, stream>>>(params);
    return cudaGetLastError();
}

cudaError_t launch(const load_params &params, cudaStream_t stream)
{
    switch (layer_head_dim(params.layer, params.first_order)) {
    case 64: return launch_class<4>(params, stream);
    case 128: return launch_class<8>(params, stream);
    case 256: return launch_class<16>(params, stream);
    default: return launch_class<0>(params, stream);
    }
}

cudaError_t load(const tkv_device_layer &layer, const tkv_device_sequence *sequence, int first,
                 int n_tokens, void *k, void *v, bool is_half, cudaStream_t stream)
{
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    load_params params = {layer, sequence, first, n_tokens, k, v, is_half, TKV_ORDER_KEY, 2};
    if (k && v && layer.head_dim_k == layer.head_dim_v) {
        return launch(params, stream);
    }
    params.n_orders = 1;
    cudaError_t error = k ? launch(params, stream) : cudaSuccess;
    params.first_order = TKV_ORDER_VALUE;
    return error == cudaSuccess && v ? launch(params, stream) : error;
}

} /* namespace */
} /* namespace tkv_cuda */

extern "C" cudaError_t tkv_cuda_load(const tkv_device_layer *layer,
                                     const tkv_device_sequence *sequence, int first, int n_tokens,
                                     float *k, float *v, cudaStream_t stream)
{
    return tkv_cuda::load(*layer, sequence, first, n_tokens, k, v, false, stream);
}

extern "C" cudaError_t tkv_cuda_load_half(const tkv_device_layer *layer,
                                          const tkv_device_sequence *sequence, int first,
                                          int n_tokens, uint16_t *k, uint16_t *v,
                                          cudaStream_t stream)
{
    return tkv_cuda::load(*layer, sequence, first, n_tokens, k, v, true, stream);
}
