/* Decoding tokens of a sequence into rows of floats or halves. A thread block copies a page into
 * shared memory; its half-warps decode one row each. */
#include "device/cuda/base/copy.cuh"
#include "device/cuda/codec/page_rows.cuh"
#include "device/cuda/codec/unpack_row.cuh"
#include "device/cuda/kernels_cuda.h"

namespace tkv_cuda
{
namespace
{

constexpr int n_threads = 128;

struct load_params {
    page_grid grid;
    const tkv_device_sequence *sequence;
    int first;
    void *k;
    void *v;
    bool is_half; /* the rows are halves */
};

struct load_job : page_rows {
    void *rows;
    bool is_half;
};

__device__ inline void put_value(const load_job &job, ptrdiff_t at, float value)
{
    if (job.is_half) {
        ((uint16_t *)job.rows)[at] = (uint16_t)to_finite_half(value);
    } else {
        ((float *)job.rows)[at] = value;
    }
}

template <int N, int Type> __device__ void decode_page(const load_job &job, uint32_t *image)
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

__device__ void load_exact(const load_job &job)
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
    load_job job;
    if (!find_rows(params.grid, *params.sequence, params.first, &job)) {
        return;
    }
    job.is_half = params.is_half;
    job.rows = job.order == TKV_ORDER_KEY ? params.k : params.v;
    if (!with_coded_type(job.place.type,
                         [&](auto coded) { decode_page<N, decltype(coded)::value>(job, image); })) {
        load_exact(job);
    }
}

template <int N> cudaError_t launch(const load_params &params, cudaStream_t stream)
{
    const size_t bytes = largest_image(params.grid);
    const cudaError_t error = allow_shared_memory(load_pages<N>, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    load_pages<N><<<grid_of(params.grid, 1), n_threads, bytes, stream>>>(params);
    return cudaGetLastError();
}

cudaError_t load(const tkv_device_layer &layer, const tkv_device_sequence *sequence, int first,
                 int n_tokens, void *k, void *v, bool is_half, cudaStream_t stream)
{
    if (n_tokens == 0) {
        return cudaSuccess;
    }
    return launch_orders(layer, n_tokens, k, v, [&](const page_grid &grid) {
        const load_params params = {grid, sequence, first, k, v, is_half};
        return with_row_size(layer_head_dim(layer, grid.first_order),
                             [&](auto n) { return launch<decltype(n)::value>(params, stream); });
    });
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
