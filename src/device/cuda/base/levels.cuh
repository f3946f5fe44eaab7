/* Levels of codes: the tables of format/constants.h by type, and as bytes of words in registers. */
#ifndef TKV_DEVICE_CUDA_BASE_LEVELS_CUH
#define TKV_DEVICE_CUDA_BASE_LEVELS_CUH

#include "device/cuda/base/bits.cuh"
#include "device/cuda/base/type.cuh"

namespace tkv_cuda
{

template <int N> struct level_list {
    int level[N];
};

/* Of a type with a codebook or a trellis, by code or table index. */
template <int Type> TKV_HOST_DEVICE constexpr auto levels_of_type()
{
    using traits = type_traits<Type>;
    constexpr int n = 1 << traits::level_bits;
    static_assert(!traits::is_uniform, "it has no table");
    if constexpr (traits::is_trellis) {
        static_assert(n == 16 || n == 8, "a trellis of format/constants.h");
        if constexpr (n == 16) {
            return level_list<n>{TKV_TRELLIS_LEVELS_16};
        } else {
            return level_list<n>{TKV_TRELLIS_LEVELS_8};
        }
    } else {
        static_assert(n == 16 || n == 8 || n == 4, "a codebook of format/constants.h");
        if constexpr (n == 16) {
            return level_list<n>{TKV_CODEBOOK_LEVELS_4};
        } else if constexpr (n == 8) {
            return level_list<n>{TKV_CODEBOOK_LEVELS_3};
        } else {
            return level_list<n>{TKV_CODEBOOK_LEVELS_2};
        }
    }
}

/* Levels a standard deviation of a trellis. */
template <int Type> TKV_HOST_DEVICE constexpr float trellis_unit()
{
    constexpr int n = 1 << type_traits<Type>::level_bits;
    static_assert(type_traits<Type>::is_trellis && (n == 16 || n == 8), "a trellis of constants.h");
    return n == 16 ? TKV_TRELLIS_UNIT_16 : TKV_TRELLIS_UNIT_8;
}

/* Four levels, from `first` on, as the bytes of a word, the lowest code in the lowest byte; zeros
 * beyond the last. */
template <int N>
TKV_HOST_DEVICE constexpr uint32_t pack_levels(const level_list<N> &list, int first)
{
    uint32_t word = 0;
    for (int k = 0; k < 4 && first + k < N; k++) {
        word |= ((uint32_t)list.level[first + k] & 255u) << (8 * k);
    }
    return word;
}

/* Entry `index` below 8 of a table of signed bytes, as a float. */
__device__ inline float pick_level(uint32_t low, uint32_t high, uint32_t index)
{
    /* Three copies of the byte's sign, then the byte. */
    return (float)(int)permute_bytes(low, high, index * 0x1111u + 0x8880u);
}

/* The level of a code, or of a table index of a trellis. */
template <int Type> __device__ float level_at(uint32_t index)
{
    constexpr auto levels = levels_of_type<Type>();
    constexpr uint32_t w0 = pack_levels(levels, 0), w1 = pack_levels(levels, 4);
    if constexpr (type_traits<Type>::level_bits == 4) {
        constexpr uint32_t w2 = pack_levels(levels, 8), w3 = pack_levels(levels, 12);
        return index & 8u ? pick_level(w2, w3, index & 7u) : pick_level(w0, w1, index & 7u);
    } else {
        static_assert(type_traits<Type>::level_bits < 4, "tables of 16 levels at most");
        return pick_level(w0, w1, index);
    }
}

} /* namespace tkv_cuda */

#endif
