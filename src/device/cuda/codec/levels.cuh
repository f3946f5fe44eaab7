/* Levels of codes, from tables in registers. */
#ifndef TKV_DEVICE_CUDA_CODEC_LEVELS_CUH
#define TKV_DEVICE_CUDA_CODEC_LEVELS_CUH

#include "device/cuda/codec/codec.cuh"

namespace tkv_cuda
{

/* Four levels of a table, from `first` on, as the bytes of a word, the lowest code in the lowest
 * byte. */
template <int N>
__host__ __device__ constexpr uint32_t pack_levels(const int (&levels)[N], int first)
{
    return (uint32_t)(levels[first] & 0xff) | (uint32_t)(levels[first + 1] & 0xff) << 8 |
           (uint32_t)(levels[first + 2] & 0xff) << 16 | (uint32_t)(levels[first + 3] & 0xff) << 24;
}

/* Entry `index` below 8 of a table of signed bytes, as a float. */
__device__ inline float pick_level(uint32_t low, uint32_t high, uint32_t index)
{
    /* Three copies of the byte's sign, then the byte. */
    return (float)(int)byte_permute(low, high, index * 0x1111u + 0x8880u);
}

template <int Bits> __device__ float codebook_level(uint32_t code)
{
    if constexpr (Bits == 4) {
        constexpr int levels[] = TKV_CODEBOOK_LEVELS_4;
        constexpr uint32_t w0 = pack_levels(levels, 0), w1 = pack_levels(levels, 4);
        constexpr uint32_t w2 = pack_levels(levels, 8), w3 = pack_levels(levels, 12);
        return code & 8u ? pick_level(w2, w3, code & 7u) : pick_level(w0, w1, code & 7u);
    } else if constexpr (Bits == 3) {
        constexpr int levels[] = TKV_CODEBOOK_LEVELS_3;
        constexpr uint32_t w0 = pack_levels(levels, 0), w1 = pack_levels(levels, 4);
        return pick_level(w0, w1, code);
    } else {
        constexpr int levels[] = TKV_CODEBOOK_LEVELS_2;
        constexpr uint32_t w0 = pack_levels(levels, 0);
        return pick_level(w0, 0, code);
    }
}

template <int FreeBits> __device__ float trellis_level(uint32_t index)
{
    if constexpr (FreeBits == 2) {
        constexpr int levels[] = TKV_TRELLIS_LEVELS_16;
        constexpr uint32_t w0 = pack_levels(levels, 0), w1 = pack_levels(levels, 4);
        constexpr uint32_t w2 = pack_levels(levels, 8), w3 = pack_levels(levels, 12);
        return index & 8u ? pick_level(w2, w3, index & 7u) : pick_level(w0, w1, index & 7u);
    } else {
        constexpr int levels[] = TKV_TRELLIS_LEVELS_8;
        constexpr uint32_t w0 = pack_levels(levels, 0), w1 = pack_levels(levels, 4);
        return pick_level(w0, w1, index);
    }
}

/* Subset 2 z1 + z0 of the coordinate whose path bit is bit 16 + lane of `path`; the bits before it
 * are those of the coordinates before it (TKV_TRELLIS_TAPS_Z1, TKV_TRELLIS_TAPS_Z0). */
__device__ inline uint32_t trellis_subset(uint32_t path, int lane)
{
    const uint32_t w = path >> (lane + 8); /* bit 8 - k: path bit k coordinates back */
    const uint32_t z1 = w >> 8 ^ w >> 5 ^ w >> 2 ^ w;
    const uint32_t z0 = w >> 7 ^ w >> 6 ^ w >> 1;
    return (z1 & 1u) << 1 | (z0 & 1u);
}

/* What stands before the first path bits: the start bits, the newest of them highest. */
__device__ inline uint32_t trellis_start_word(uint32_t start)
{
    return __brev(start) >> 16;
}

} /* namespace tkv_cuda */

#endif
