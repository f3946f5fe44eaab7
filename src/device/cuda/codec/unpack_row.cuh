/* Rows of a page, one by one, each by a half-warp (row.cuh), from an image of the page in shared
 * memory (pack.cuh). */
#ifndef TKV_DEVICE_CUDA_CODEC_UNPACK_ROW_CUH
#define TKV_DEVICE_CUDA_CODEC_UNPACK_ROW_CUH

#include "device/cuda/base/half.cuh"
#include "device/cuda/base/levels.cuh"
#include "device/cuda/base/trellis.cuh"
#include "device/cuda/codec/pack.cuh"

namespace tkv_cuda
{

/* Copies a page into an image like that of pack.cuh: all threads of the block. */
template <int Type>
__device__ void read_image(int order, int head_dim, const uint8_t *page, uint32_t *image)
{
    using traits = type_traits<Type>;
    uint16_t *side = image_side<Type>(order, head_dim, image);
    const uint32_t *words = (const uint32_t *)page;
    for (int p = 0; p < traits::n_planes; p++) {
        const int bits = traits::plane_bits(p);
        const int n_words = plane_words(bits, head_dim);
        for (int i = threadIdx.x; i < n_words; i += blockDim.x) {
            const int at =
                order == TKV_ORDER_KEY ? i / page_tokens * key_stride + i % page_tokens : i;
            image[at] = words[i];
        }
        image += plane_rows(order, bits, head_dim) * image_stride(order, head_dim);
        words += n_words;
    }
    const uint16_t *fields = (const uint16_t *)words;
    for (int i = threadIdx.x; i < traits::n_side_fields * page_tokens; i += blockDim.x) {
        side[i] = fields[i];
    }
}

/* Code bits of a plane at (slot, coordinate 16 i + lane) in an image of keys. */
template <int Bits>
__device__ uint32_t key_bits(int head_dim, int slot, int i, const uint32_t *image)
{
    const int lane = lane_of_row();
    const uint32_t mask = (1u << Bits) - 1;
    if (Bits == 8) {
        return image[(4 * i + lane / 4) * key_stride + slot] >> 8 * (lane % 4) & mask;
    }
    const int word = lane % 4 * Bits / 4;
    const int shift = 4 * (lane / 4) + lane % 4 * Bits % 4;
    const int row = i / 2 * Bits;
    if (i / 2 < head_dim / 32) {
        return image[(row + word) * key_stride + slot] >> (shift + 16 * (i % 2)) & mask;
    }
    if (Bits == 1) {
        return image[row * key_stride + slot % 32] >> (shift + 16 * (slot / 32)) & mask;
    }
    return image[(row + word / 2) * key_stride + slot] >> (shift + 16 * (word % 2)) & mask;
}

template <int Bits>
__device__ uint32_t value_bits(int head_dim, int slot, int i, const uint32_t *image)
{
    const int c = slot % group_tokens;
    const int word = Bits == 8 ? c / 4 : c % 4 * Bits / 4;
    const int shift = Bits == 8 ? 8 * (c % 4) : 4 * (c / 4) + c % 4 * Bits % 4;
    const int row = slot / group_tokens * Bits + word;
    return image[row * head_dim + i * half_warp + lane_of_row()] >> shift & ((1u << Bits) - 1);
}

template <int Bits>
__device__ uint32_t plane_code(int order, int head_dim, int slot, int i, const uint32_t *image)
{
    return order == TKV_ORDER_KEY ? key_bits<Bits>(head_dim, slot, i, image)
                                  : value_bits<Bits>(head_dim, slot, i, image);
}

template <int Type>
__device__ uint32_t read_code(int order, int head_dim, int slot, int i, const uint32_t *image)
{
    using traits = type_traits<Type>;
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

/* Level of a scalar type's code. */
template <int Type> __device__ float level_of(uint32_t code)
{
    using traits = type_traits<Type>;
    if constexpr (traits::is_uniform) {
        return (float)(int)(int8_t)code;
    } else {
        return level_at<Type>(code & ((1u << traits::level_bits) - 1));
    }
}

/* y of one row in the domain of the codes. */
template <int N, int Type>
__device__ void dequantise_row(const row_shape<N> &shape, int order, int slot,
                               const uint32_t *image, const uint16_t *side, float *y)
{
    using traits = type_traits<Type>;
    const int d = shape.head_dim;
    const int lane = lane_of_row();
    const uint32_t field = side[slot];
    const float scale = from_half(traits::is_trellis ? field & 0x7fffu : field) / TKV_LEVEL_UNIT;
    if constexpr (traits::is_trellis) {
        uint32_t path = row_path_before(start_bits(field));
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            const uint32_t code = read_code<Type>(order, d, slot, i, image);
            path |= row_ballot(code >> traits::free_bits) << 16;
            const uint32_t free = code & ((1u << traits::free_bits) - 1);
            const uint32_t index = 4 * free + row_subset(path, lane);
            y[i] = level_at<Type>(index) * scale;
            path >>= 16;
        }
        return;
    }
    const float step = traits::is_sketch ? from_half(side[page_tokens + slot]) : 0.0f;
    float signs[traits::is_sketch ? row_shape<N>::capacity : 1];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        const uint32_t code = read_code<Type>(order, d, slot, i, image);
        y[i] = level_of<Type>(code) * scale;
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

} /* namespace tkv_cuda */

#endif
