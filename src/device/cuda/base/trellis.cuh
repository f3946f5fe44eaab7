/* The path of a trellis code: its start bits, and the index bits that follow from it
 * (docs/FORMAT.md 5.3; the taps are those of format/constants.h). */
#ifndef TKV_DEVICE_CUDA_BASE_TRELLIS_CUH
#define TKV_DEVICE_CUDA_BASE_TRELLIS_CUH

#include "device/cuda/base/bits.cuh"
#include "format/constants.h"

namespace tkv_cuda
{

/* The start bits of a row, the newest lowest, from its scale field: the five lowest bits and the
 * sign. */
TKV_HOST_DEVICE uint32_t start_bits(uint32_t field)
{
    return (field & 31u) | field >> 15 << 5;
}

/* The word of path bits before the first 32 codes of a row, the newest highest. */
TKV_HOST_DEVICE uint32_t path_before(uint32_t start)
{
    return reverse_bits(start);
}

/* The two low bits of a table index, for as many codes as a word has bits. `u` are the path bits,
 * u<k> those of the codes k before. */
struct trellis_bits {
    uint32_t z1, z0;
};

TKV_HOST_DEVICE trellis_bits trellis_taps(uint32_t u, uint32_t u1, uint32_t u2, uint32_t u3,
                                          uint32_t u6, uint32_t u7, uint32_t u8)
{
    return {u ^ u3 ^ u6 ^ u8, u1 ^ u2 ^ u7};
}

/* Keys: the codes before are in the bits below, and in `before`, the word of the group before. */
TKV_HOST_DEVICE trellis_bits trellis_key_bits(uint32_t before, uint32_t u)
{
    return trellis_taps(u, shift_in(before, u, 1), shift_in(before, u, 2), shift_in(before, u, 3),
                        shift_in(before, u, 6), shift_in(before, u, 7), shift_in(before, u, 8));
}

/* A row that lies over 16 lanes has its path bits, 16 at a time, in the upper half of a word; those
 * before are in the lower half. At first these are the start bits. */
TKV_HOST_DEVICE uint32_t row_path_before(uint32_t start)
{
    return path_before(start) >> 16;
}

/* Subset 2 z1 + z0 of the coordinate whose path bit is bit 16 + lane. */
TKV_HOST_DEVICE uint32_t row_subset(uint32_t path, int lane)
{
    const uint32_t w = path >> (lane + 8); /* bit 8 - k: path bit k coordinates back */
    const trellis_bits z = trellis_taps(w >> 8, w >> 7, w >> 6, w >> 5, w >> 2, w >> 1, w);
    return (z.z1 & 1u) << 1 | (z.z0 & 1u);
}

} /* namespace tkv_cuda */

#endif
