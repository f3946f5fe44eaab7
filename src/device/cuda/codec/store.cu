/* Storing rows of tokens into pages. One thread block owns the page of one KV head for the launch:
 * it encodes its rows into an image in shared memory and then writes what changed. */
#include "device/cuda/base/copy.cuh"
#include "device/cuda/codec/encode_trellis.cuh"
#include "device/cuda/codec/pack.cuh"
#include "device/cuda/codec/page_rows.cuh"
#include "device/cuda/kernels_cuda.h"

namespace tkv_cuda
{
namespace
{

constexpr int max_threads = 128;

struct store_params {
    page_grid grid;
    const tkv_device_sequence *sequences;
    int first;
    const float *k;
    const float *v;
    int image_bytes; /* of shared memory; after them each warp's search_scratch */
};

struct store_job : page_rows {
    const float *rows; /* that of slot 0, were it there */
    int effort;
    int image_bytes;
};

template <int N>
__device__ void load_row(const row_shape<N> &shape, const store_job &job, int slot, bool is_used,
                         float *v)
{
    const float *row = job.rows + (is_used ? slot : job.range.first) * (ptrdiff_t)job.stride;
    const int lane = lane_of_row();
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        v[i] = row[i * half_warp + lane];
    }
    if (job.place.mean) {
        /* As if the row had waited in an exact block. */
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            v[i] = from_half(to_finite_half(v[i])) - job.place.mean[i * half_warp + lane];
        }
    }
}

/* The codes of a slot; its side fields go to `side`. */
template <int N, int Type>
__device__ void encode_slot(const store_job &job, int slot, bool is_used,
                            const search_scratch &scratch, uint16_t *side, row_codes<N> *out)
{
    const row_shape<N> shape = {job.head_dim};
    row_input<N> in;
    load_row(shape, job, slot, is_used, in.y);
    if constexpr (type_traits<Type>::is_trellis) {
        encode_trellis_row<N, Type>(shape, job.effort, scratch, &in, out);
    } else {
        encode_row<N, Type>(shape, &in, out);
    }
    if (is_used && lane_of_row() == 0) {
        side[slot] = (uint16_t)out->side[0];
        if (type_traits<Type>::is_sketch) {
            side[page_tokens + slot] = (uint16_t)out->side[1];
        }
    }
}

/* The slots 4 n + r of a group: one half-warp, with another r in the other half of the warp. */
template <int N, int Type>
__device__ void encode_unit(const store_job &job, int group, int r, const search_scratch &scratch,
                            uint32_t *image)
{
    const row_shape<N> shape = {job.head_dim};
    const bool is_key = job.order == TKV_ORDER_KEY;
    uint16_t *side = image_side<Type>(job.order, job.head_dim, image);
    uint32_t sums[row_shape<N>::capacity];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        sums[i] = 0;
    }
#pragma unroll 1
    for (int n = 0; n < slots_per_unit; n++) {
        const int slot = group_tokens * group + 4 * n + r;
        const bool is_used = job.range.holds(slot);
        if (!__any_sync(full_warp, is_used)) {
            continue;
        }
        row_codes<N> out;
        encode_slot<N, Type>(job, slot, is_used, scratch, side, &out);
        if (is_key) {
            pack_key<N, Type>(shape, slot, is_used, out.codes, image);
        } else {
            add_value<N, Type>(shape, slot, n, is_used, out.codes, sums, image);
        }
    }
    if (!type_traits<Type>::is_bytes && !is_key) {
        pack_values<N, Type>(shape, group, r, sums, image);
    }
}

template <int N, int Type> __device__ void encode_page(const store_job &job, uint32_t *image)
{
    const uint32_t warp_offset =
        job.image_bytes + threadIdx.x / 32 * (uint32_t)search_scratch_bytes(job.head_dim);
    const search_scratch scratch = place_scratch(warp_offset, job.head_dim);
    if (!type_traits<Type>::is_bytes && job.order == TKV_ORDER_VALUE) {
        const int n_words = image_words<Type>(job.order, job.head_dim);
        for (int i = threadIdx.x; i < n_words; i += (int)blockDim.x) {
            image[i] = 0;
        }
        __syncthreads();
    }
    for (int unit = threadIdx.x / half_warp; unit < page_tokens / slots_per_unit;
         unit += (int)blockDim.x / half_warp) {
        encode_unit<N, Type>(job, unit / 4, unit % 4, scratch, image);
    }
    __syncthreads();
    write_image<Type>(job.order, job.head_dim, job.range, image, job.place.page);
}

__device__ void store_exact(const store_job &job)
{
    const int pairs = job.head_dim / 2;
    const int n_rows = job.range.end - job.range.first;
    uint32_t *page = (uint32_t *)job.place.page + job.range.first * pairs;
    for (int i = threadIdx.x; i < n_rows * pairs; i += (int)blockDim.x) {
        const float *from =
            job.rows + (job.range.first + i / pairs) * (ptrdiff_t)job.stride + 2 * (i % pairs);
        page[i] = to_finite_half(from[0]) | to_finite_half(from[1]) << 16;
    }
}

template <int N, bool WithTrellis>
__global__ void __launch_bounds__(max_threads, N != 4 && N != 8 ? 1
                                               : WithTrellis    ? 4
                                                                : 5)
    store_pages(const store_params params)
{
    uint32_t *image = in_shared<uint32_t>(0);
    const page_grid &grid = params.grid;
    const tkv_device_sequence sequence = params.sequences[blockIdx.z];
    const int first = params.first >= 0 ? params.first : sequence.n_tokens - grid.n_tokens;
    store_job job;
    if (!find_rows(grid, sequence, first, &job)) {
        return;
    }
    job.rows = (job.order == TKV_ORDER_KEY ? params.k : params.v) + job.first +
               (ptrdiff_t)blockIdx.z * grid.n_tokens * job.stride;
    job.effort = grid.layer.effort;
    job.image_bytes = params.image_bytes;
    const bool is_coded = with_coded_type(job.place.type, [&](auto coded) {
        constexpr int type = decltype(coded)::value;
        if constexpr (!type_traits<type>::is_trellis) {
            /* Beside a search the time of other types does not matter, but that of compiling does.
             */
            encode_page<WithTrellis ? 0 : N, type>(job, image);
        } else if constexpr (WithTrellis) {
            encode_page<N, type>(job, image);
        }
    });
    if (!is_coded) {
        store_exact(job);
    }
}

/* A launch with as many warps as there is shared memory for. */
template <int N, bool WithTrellis>
cudaError_t launch(const store_params &params, int head_dim, int n_sequences, cudaStream_t stream)
{
    const size_t warp_bytes = WithTrellis ? search_scratch_bytes(head_dim) : 0;
    int n_warps = max_threads / 32;
    if (WithTrellis) {
        int device;
        int most;
        cudaError_t error = cudaGetDevice(&device);
        if (error == cudaSuccess) {
            error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        }
        if (error != cudaSuccess) {
            return error;
        }
        while (n_warps > 1 && params.image_bytes + n_warps * warp_bytes > (size_t)most) {
            n_warps /= 2;
        }
    }
    const size_t bytes = params.image_bytes + n_warps * warp_bytes;
    const cudaError_t error = allow_shared_memory(store_pages<N, WithTrellis>, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    store_pages<N, WithTrellis>
        <<<grid_of(params.grid, n_sequences), 32 * n_warps, bytes, stream>>>(params);
    return cudaGetLastError();
}

bool has_trellis(const page_grid &grid)
{
    for (int order = grid.first_order; order < grid.first_order + grid.n_orders; order++) {
        if (is_trellis(layer_type(grid.layer, order))) {
            return true;
        }
    }
    return false;
}

} /* namespace */
} /* namespace tkv_cuda */

extern "C" cudaError_t tkv_cuda_store(const tkv_device_layer *layer,
                                      const tkv_device_sequence *sequences, int n_sequences,
                                      int first, int n_tokens, const float *k, const float *v,
                                      cudaStream_t stream)
{
    using namespace tkv_cuda;
    if (n_tokens == 0 || n_sequences == 0) {
        return cudaSuccess;
    }
    return launch_orders(*layer, n_tokens, true, true, [&](const page_grid &grid) {
        const store_params params = {grid, sequences, first, k, v, (int)largest_image(grid)};
        const int head_dim = layer_head_dim(*layer, grid.first_order);
        return with_row_size(head_dim, [&](auto n) {
            constexpr int N = decltype(n)::value;
            return has_trellis(grid) ? launch<N, true>(params, head_dim, n_sequences, stream)
                                     : launch<N, false>(params, head_dim, n_sequences, stream);
        });
    });
}
