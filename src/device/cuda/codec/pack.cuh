/* Codes of rows into the image of a page in shared memory (docs/FORMAT.md section 6), and the image
 * into the page. One thread block owns the page, and writes of its words only what belongs to the
 * slots that it encodes.
 *
 * A half-warp packs one key row at a time. Of values it takes the eight slots 4 n + r of a group of
 * 32, which lie in the nibbles n of the same words, and adds them up in registers first. */
#ifndef TKV_DEVICE_CUDA_CODEC_PACK_CUH
#define TKV_DEVICE_CUDA_CODEC_PACK_CUH

#include "device/cuda/base/page.cuh"
#include "device/cuda/codec/row.cuh"

namespace tkv_cuda
{

constexpr int slots_per_unit = 8; /* of one r */

/* Rows of words in an image of keys are so long that the words of one slot lie in different banks.
 */
constexpr int key_stride = page_tokens + 1;

/* Rows of words of a plane, the last one perhaps half used. */
__host__ __device__ inline int plane_rows(int order, int bits, int head_dim)
{
    return order == TKV_ORDER_KEY ? (head_dim * bits + 31) / 32 : 2 * bits;
}

__host__ __device__ inline int image_stride(int order, int head_dim)
{
    return order == TKV_ORDER_KEY ? key_stride : head_dim;
}

/* Words of the image of a page in front of the side fields. */
template <int Type> __host__ __device__ int image_words(int order, int head_dim)
{
    using traits = type_traits<Type>;
    int rows = 0;
    for (int p = 0; p < traits::n_planes; p++) {
        rows += plane_rows(order, traits::plane_bits(p), head_dim);
    }
    return rows * image_stride(order, head_dim);
}

template <int Type> __device__ inline uint16_t *image_side(int order, int head_dim, uint32_t *image)
{
    return (uint16_t *)(image + image_words<Type>(order, head_dim));
}

/* Bytes of the image of a page, side fields included; 0 for f16, which has none. */
__host__ inline size_t image_bytes(int type, int order, int head_dim)
{
    int words = 0;
    if (!with_coded_type(type, [&](auto coded) {
            words = image_words<decltype(coded)::value>(order, head_dim);
        })) {
        return 0;
    }
    const size_t bytes = words * sizeof(uint32_t) + 2 * page_tokens * sizeof(uint16_t);
    return (bytes + 15) / 16 * 16;
}

/* ORs `value` over the lanes that differ in the bits of `lanes`. */
template <int Lanes> __device__ uint32_t or_lanes(uint32_t value)
{
#pragma unroll
    for (int width = 1; width < half_warp; width *= 2) {
        if (Lanes & width) {
            value |= __shfl_xor_sync(full_warp, value, width);
        }
    }
    return value;
}

/* The words of 32 codes of a plane; `low` and `high` are those of coordinates `lane` and 16 + lane.
 * Word i is in lane i, 4 + i, ... (8 bits: 0 to 3 in `low`'s place; see pack_key_bytes). */
template <int Bits> __device__ uint32_t gather_word(uint32_t low, uint32_t high)
{
    const int lane = lane_of_row();
    if (Bits == 1) {
        return row_ballot(low != 0) | row_ballot(high != 0) << 16;
    }
    const uint32_t both = (low | high << 16) << (4 * (lane / 4) + lane % 4 * Bits % 4);
    return Bits == 4 ? or_lanes<12>(both) : or_lanes<13>(both);
}

template <int N, int Bits>
__device__ void pack_key_plane(const row_shape<N> &shape, int slot, bool is_used, int shift,
                               const uint32_t *codes, uint32_t *image)
{
    const int lane = lane_of_row();
    const uint32_t mask = (1u << Bits) - 1;
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i + 1 < shape.n(); i += 2) {
        const uint32_t word =
            gather_word<Bits>(codes[i] >> shift & mask, codes[i + 1] >> shift & mask);
        const int at = Bits == 2 ? lane / 2 : lane;
        if (is_used && lane < 4 && at < Bits && (Bits != 2 || lane % 2 == 0)) {
            image[(i / 2 * Bits + at) * key_stride + slot] = word;
        }
    }
    if (shape.n() % 2) {
        const uint32_t last = codes[shape.n() - 1] >> shift & mask;
        const int row = shape.n() / 2 * Bits;
        if (Bits == 1) {
            /* The ptxas of CUDA 12.0 to 12.6 crashes on a ballot of a constant, as gather_word's
             * second would be. */
            const uint32_t half = row_ballot(last != 0);
            if (is_used && lane == 0) {
                uint16_t *halves = (uint16_t *)(image + row * key_stride);
                halves[slot % 32 * 2 + slot / 32] = (uint16_t)half;
            }
            return;
        }
        const uint32_t half = gather_word<Bits>(last, 0);
        /* Half-words 2 m and 2 m + 1 share a word. */
        const uint32_t next = __shfl_down_sync(full_warp, half, Bits == 2 ? 2 : 1, half_warp);
        const int m = Bits == 2 ? 0 : lane / 2;
        if (is_used && lane < Bits && lane % 2 == 0 && (Bits == 4 || lane == 0)) {
            image[(row + m) * key_stride + slot] = half | next << 16;
        }
    }
}

template <int N>
__device__ void pack_key_bytes(const row_shape<N> &shape, int slot, bool is_used,
                               const uint32_t *codes, uint32_t *image)
{
    const int lane = lane_of_row();
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        const uint32_t word = or_lanes<3>(codes[i] << 8 * (lane % 4));
        if (is_used && lane % 4 == 0) {
            image[(4 * i + lane / 4) * key_stride + slot] = word;
        }
    }
}

/* Puts a row of keys into an image; all lanes of the warp call it. */
template <int N, int Type>
__device__ void pack_key(const row_shape<N> &shape, int slot, bool is_used, const uint32_t *codes,
                         uint32_t *image)
{
    using traits = type_traits<Type>;
    if constexpr (traits::is_bytes) {
        pack_key_bytes(shape, slot, is_used, codes, image);
    } else {
        constexpr int bits0 = traits::plane_bits(0);
        pack_key_plane<N, bits0>(shape, slot, is_used, 0, codes, image);
        image += plane_rows(TKV_ORDER_KEY, bits0, shape.head_dim) * key_stride;
        if constexpr (traits::n_planes > 1) {
            pack_key_plane<N, 1>(shape, slot, is_used, bits0, codes, image);
            image += plane_rows(TKV_ORDER_KEY, 1, shape.head_dim) * key_stride;
        }
        if constexpr (traits::n_planes > 2) {
            pack_key_plane<N, 1>(shape, slot, is_used, bits0 + 1, codes, image);
        }
    }
}

/* Codes of one slot of values: bytes go to the image at once, the others into nibble n of `sums`.
 */
template <int N, int Type>
__device__ void add_value(const row_shape<N> &shape, int slot, int n, bool is_used,
                          const uint32_t *codes, uint32_t *sums, uint32_t *image)
{
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        if (!type_traits<Type>::is_bytes) {
            sums[i] |= is_used ? codes[i] << 4 * n : 0;
        } else if (is_used) {
            const int word = slot / 4 * shape.head_dim + i * half_warp + lane_of_row();
            ((uint8_t *)(image + word))[slot % 4] = (uint8_t)codes[i];
        }
    }
}

/* Adds the sums of the slots 4 n + r of a group of tokens to an image that began as zeros. Not for
 * bytes. */
template <int N, int Type>
__device__ void pack_values(const row_shape<N> &shape, int group, int r, const uint32_t *sums,
                            uint32_t *image)
{
    using traits = type_traits<Type>;
#pragma unroll
    for (int p = 0; p < traits::n_planes; p++) {
        const int bits = traits::plane_bits(p);
        const uint32_t mask = 0x11111111u * ((1u << bits) - 1);
        const int row = group * bits + r * bits / 4;
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            const uint32_t word = (sums[i] >> traits::low_bit(p) & mask) << r * bits % 4;
            atomicOr(&image[row * shape.head_dim + i * half_warp + lane_of_row()], word);
        }
        image += plane_rows(TKV_ORDER_VALUE, bits, shape.head_dim) * shape.head_dim;
    }
}

/* Slots first .. end - 1 of a page. */
struct slot_range {
    int first;
    int end;

    __device__ bool holds(int slot) const
    {
        return slot >= first && slot < end;
    }

    /* Bit c: slot 32 group + c is in the range. */
    __device__ uint32_t of_group(int group) const
    {
        const int from = max(first - 32 * group, 0);
        const int to = min(end - 32 * group, 32);
        return from >= to ? 0 : (to == 32 ? 0xffffffffu : (1u << to) - 1) & (0xffffffffu << from);
    }
};

/* The bits of word i of a group of values that belong to the slots of `slots`. */
__device__ inline uint32_t value_mask(int bits, int i, uint32_t slots)
{
    const uint32_t ones = 0x11111111u;
    switch (bits) {
    case 1: return slots;
    case 2: return (slots >> 2 * i & ones) * 3 | (slots >> (2 * i + 1) & ones) * 12;
    case 4: return (slots >> i & ones) * 15;
    default: {
        const uint32_t s = slots >> 4 * i;
        return (s & 1) * 0xffu | (s >> 1 & 1) * 0xff00u | (s >> 2 & 1) * 0xff0000u |
               (s >> 3 & 1) * 0xff000000u;
    }
    }
}

__device__ inline void write_masked(uint32_t *word, uint32_t mask, uint32_t value)
{
    *word = mask == 0xffffffffu ? value : (*word & ~mask) | (value & mask);
}

/* Writes a plane of an image of values: all threads of the block. */
__device__ inline void write_value_plane(int bits, int head_dim, const slot_range &range,
                                         const uint32_t *image, uint32_t *page)
{
    for (int row = 0; row < 2 * bits; row++) {
        const uint32_t mask = value_mask(bits, row % bits, range.of_group(row / bits));
        for (int j = threadIdx.x; mask != 0 && j < head_dim; j += blockDim.x) {
            write_masked(&page[row * head_dim + j], mask, image[row * head_dim + j]);
        }
    }
}

/* Likewise of keys. In the half group of one bit a code, slots t and t + 32 share a word. */
__device__ inline void write_key_plane(int bits, int head_dim, const slot_range &range,
                                       const uint32_t *image, uint32_t *page)
{
    const int n_words = plane_words(bits, head_dim);
    const bool has_shared_row = bits == 1 && head_dim % 32 != 0;
    for (int i = threadIdx.x; i < n_words; i += blockDim.x) {
        const int slot = i % page_tokens;
        uint32_t mask = range.holds(slot) ? 0xffffffffu : 0;
        if (has_shared_row && i >= n_words - page_tokens / 2) {
            mask = (range.holds(slot) ? 0xffffu : 0) | (range.holds(slot + 32) ? 0xffff0000u : 0);
        }
        if (mask != 0) {
            write_masked(&page[i], mask, image[i / page_tokens * key_stride + slot]);
        }
    }
}

/* Writes what an image holds of the slots in `range` into the page: all threads of the block. */
template <int Type>
__device__ void write_image(int order, int head_dim, const slot_range &range, uint32_t *image,
                            uint8_t *page)
{
    using traits = type_traits<Type>;
    const uint16_t *side = image_side<Type>(order, head_dim, image);
    uint32_t *words = (uint32_t *)page;
    for (int p = 0; p < traits::n_planes; p++) {
        const int bits = traits::plane_bits(p);
        if (order == TKV_ORDER_KEY) {
            write_key_plane(bits, head_dim, range, image, words);
        } else {
            write_value_plane(bits, head_dim, range, image, words);
        }
        image += plane_rows(order, bits, head_dim) * image_stride(order, head_dim);
        words += plane_words(bits, head_dim);
    }
    uint16_t *fields = (uint16_t *)words;
    for (int i = threadIdx.x; i < traits::n_side_fields * page_tokens; i += blockDim.x) {
        if (range.holds(i % page_tokens)) {
            fields[i] = side[i];
        }
    }
}

} /* namespace tkv_cuda */

#endif
