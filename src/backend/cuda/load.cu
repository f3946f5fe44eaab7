// Decoding tokens of a sequence into rows of floats or halves. A thread block copies a page into
// shared memory; its half-warps decode one row each.
#include "backend/cuda/kernels_cuda.h"
#include "backend/cuda/levels.cuh"
#include "backend/cuda/pack.cuh"

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
    bool is_half;    // the rows are halves
    int first_order; // of the thread blocks with blockIdx.y = 0
    int n_orders;
};

// The rows that come from one page.
struct page_rows {
    int order;
    int head_dim;
    slot_range range;
    void *rows;
    bool is_half;
    ptrdiff_t first; // value of slot 0, were it there
    ptrdiff_t stride;
    page_place place;
};

__device__ inline void put_value(const page_rows &job, ptrdiff_t at, float value)
{
    if (job.is_half) {
        static_cast<uint16_t *>(job.rows)[at] = (uint16_t)to_finite_half(value);
    } else {
        static_cast<float *>(job.rows)[at] = value;
    }
}

// Copies a page into an image like that of pack.cuh: all threads of the block.
template <int TYPE>
__device__ void read_image(int order, int head_dim, const uint8_t *page, uint32_t *image)
{
    typedef type_traits<TYPE> traits;
    uint16_t *side = image_side<TYPE>(order, head_dim, image);
    const uint32_t *words = reinterpret_cast<const uint32_t *>(page);
    for (int p = 0; p < traits::n_planes; p++) {
        const int bits = traits::plane_bits(p);
        const int n_words = plane_words(bits, head_dim);
        for (int i = threadIdx.x; i < n_words; i += n_threads) {
            const int at =
                order == TKV_ORDER_KEY ? i / page_tokens * key_stride + i % page_tokens : i;
            image[at] = words[i];
        }
        image += plane_rows(order, bits, head_dim) * image_stride(order, head_dim);
        words += n_words;
    }
    const uint16_t *fields = reinterpret_cast<const uint16_t *>(words);
    for (int i = threadIdx.x; i < traits::n_side_fields * page_tokens; i += n_threads) {
        side[i] = fields[i];
    }
}

// Code bits of a plane at (slot, coordinate 16 i + lane) in an image of keys.
template <int BITS>
__device__ uint32_t key_bits(int head_dim, int slot, int i, const uint32_t *image)
{
    const int lane = lane_of_row();
    const uint32_t mask = (1u << BITS) - 1;
    if (BITS == 8) {
        return image[(4 * i + lane / 4) * key_stride + slot] >> 8 * (lane % 4) & mask;
    }
    const int word = lane % 4 * BITS / 4;
    const int shift = 4 * (lane / 4) + lane % 4 * BITS % 4;
    const int row = i / 2 * BITS;
    if (i / 2 < head_dim / 32) {
        return image[(row + word) * key_stride + slot] >> (shift + 16 * (i % 2)) & mask;
    }
    if (BITS == 1) {
        return image[row * key_stride + slot % 32] >> (shift + 16 * (slot / 32)) & mask;
    }
    return image[(row + word / 2) * key_stride + slot] >> (shift + 16 * (word % 2)) & mask;
}

template <int BITS>
__device__ uint32_t value_bits(int head_dim, int slot, int i, const uint32_t *image)
{
    const int c = slot % group_tokens;
    const int word = BITS == 8 ? c / 4 : c % 4 * BITS / 4;
    const int shift = BITS == 8 ? 8 * (c % 4) : 4 * (c / 4) + c % 4 * BITS % 4;
    const int row = slot / group_tokens * BITS + word;
    return image[row * head_dim + i * half_warp + lane_of_row()] >> shift & ((1u << BITS) - 1);
}

template <int BITS>
__device__ uint32_t plane_code(int order, int head_dim, int slot, int i, const uint32_t *image)
{
    return order == TKV_ORDER_KEY ? key_bits<BITS>(head_dim, slot, i, image)
                                  : value_bits<BITS>(head_dim, slot, i, image);
}

template <int TYPE>
__device__ uint32_t read_code(int order, int head_dim, int slot, int i, const uint32_t *image)
{
    typedef type_traits<TYPE> traits;
    constexpr int bits0 = traits::plane_bits(0);
    uint32_t code = plane_code<bits0>(order, head_dim, slot, i, image);
    if constexpr (traits::n_planes > 1) {
        const int stride = image_stride(order, head_dim);
        image += plane_rows(order, bits0, head_dim) * stride;
        code |= plane_code<1>(order, head_dim, slot, i, image) << bits0;
        if constexpr (traits::n_planes > 2) {
            image += plane_rows(order, 1, head_dim) * stride;
            code |= plane_code<1>(order, head_dim, slot, i, image) << (bits0 + 1);
        }
    }
    return code;
}

// Level of a scalar type's code.
template <int TYPE> __device__ float level_of(uint32_t code)
{
    typedef type_traits<TYPE> traits;
    if constexpr (traits::is_uniform) {
        return (float)(int)(int8_t)code;
    } else {
        return codebook_level<traits::level_bits>(code & ((1u << traits::level_bits) - 1));
    }
}

// y of one row in the domain of the codes.
template <int N, int TYPE>
__device__ void dequantise_row(const row_shape<N> &shape, int order, int slot,
                               const uint32_t *image, const uint16_t *side, float *y)
{
    typedef type_traits<TYPE> traits;
    const int d = shape.head_dim;
    const int lane = lane_of_row();
    const uint32_t field = side[slot];
    const float scale = from_half(traits::is_trellis ? field & 0x7fffu : field) / TKV_LEVEL_UNIT;
    if constexpr (traits::is_trellis) {
        uint32_t path = trellis_start_word((field & 31u) | field >> 15 << 5);
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            const uint32_t code = read_code<TYPE>(order, d, slot, i, image);
            path |= row_ballot(code >> traits::free_bits) << 16;
            const uint32_t free = code & ((1u << traits::free_bits) - 1);
            const uint32_t index = 4 * free + trellis_subset(path, lane);
            y[i] = trellis_level<traits::free_bits>(index) * scale;
            path >>= 16;
        }
        return;
    }
    const float step = traits::is_sketch ? from_half(side[page_tokens + slot]) : 0.0f;
    float signs[traits::is_sketch ? row_shape<N>::capacity : 1];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        const uint32_t code = read_code<TYPE>(order, d, slot, i, image);
        y[i] = level_of<TYPE>(code) * scale;
        if constexpr (traits::is_sketch) {
            signs[i] = code >> traits::level_bits & 1u ? -step : step;
        }
    }
    if constexpr (traits::is_sketch) {
        unmix(shape, sketch_signs, signs);
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            y[i] += signs[i];
        }
    }
}

template <int N, int TYPE> __device__ void decode_page(const page_rows &job, uint32_t *image)
{
    const row_shape<N> shape = {job.head_dim};
    const int lane = lane_of_row();
    const uint16_t *side = image_side<TYPE>(job.order, job.head_dim, image);
    read_image<TYPE>(job.order, job.head_dim, job.place.page, image);
    __syncthreads();
    const int warp_row = threadIdx.x / 32 * 2;
    const int half = threadIdx.x / half_warp % 2;
    for (int base = job.range.first + warp_row; base < job.range.end;
         base += n_threads / half_warp) {
        const bool is_used = base + half < job.range.end;
        const int slot = is_used ? base + half : base;
        float y[row_shape<N>::capacity];
        dequantise_row<N, TYPE>(shape, job.order, slot, image, side, y);
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
    const uint32_t *page =
        reinterpret_cast<const uint32_t *>(job.place.page) + job.range.first * pairs;
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

} // namespace
} // namespace tkv_cuda

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
