/* Words of a page -> int8 levels, 32 codes at a time (docs/FORMAT.md section 6): codes c = r + 4n
 * of a group come out in out[2r] (n = 0..3, a byte each) and out[2r + 1] (n = 4..7), because a
 * masked plane word is a row of selectors for the byte permute that looks levels up. turbo8's bytes
 * come out in natural order: out[i] = codes 4i .. 4i+3. */
#ifndef TKV_DEVICE_CUDA_PREFILL_UNPACK_CODES_CUH
#define TKV_DEVICE_CUDA_PREFILL_UNPACK_CODES_CUH

#include "format/constants.h"
#include "turbokv.h"

#include <cuda_runtime.h>

namespace tkv_cuda
{

/* Four int8 levels a word, the lowest first. */
__host__ __device__ constexpr uint32_t pack4(int a, int b, int c, int d)
{
    return (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | (d & 255u) << 24;
}

struct level_words {
    uint32_t w[4];
};

template <int N> __host__ __device__ constexpr level_words pack_levels(const int (&levels)[N])
{
    level_words words = {};
    for (int i = 0; i < N; i += 4) {
        words.w[i / 4] = pack4(levels[i], levels[i + 1], levels[i + 2], levels[i + 3]);
    }
    return words;
}

constexpr int codebook2[] = TKV_CODEBOOK_LEVELS_2;
constexpr int codebook3[] = TKV_CODEBOOK_LEVELS_3;
constexpr int codebook4[] = TKV_CODEBOOK_LEVELS_4;
constexpr int trellis8[] = TKV_TRELLIS_LEVELS_8;
constexpr int trellis16[] = TKV_TRELLIS_LEVELS_16;

/* x >> 16 by a product, which runs beside the shifts and permutations. */
__device__ inline uint32_t high_half(uint32_t x)
{
    uint32_t y;
    asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(0x100), "r"(0));
    return y;
}

/* Looks up four nibbles (the low half of sel), each below 8. */
__device__ inline uint32_t look_up8(level_words t, uint32_t sel)
{
    return __byte_perm(t.w[0], t.w[1], sel);
}

/* Looks up four nibbles of 16 levels: three bits each in sel, the fourth in bit 0 of top's nibbles.
 */
__device__ inline uint32_t look_up16(level_words t, uint32_t sel, uint32_t top)
{
    const uint32_t low = __byte_perm(t.w[0], t.w[1], sel);
    const uint32_t high = __byte_perm(t.w[2], t.w[3], sel);
    const uint32_t mask = __byte_perm(0x0000ff00u, 0u, top);
    return (low & ~mask) | (high & mask);
}

__device__ inline void look_up8x8(level_words t, uint32_t sel, uint32_t *out)
{
    out[0] = look_up8(t, sel);
    out[1] = look_up8(t, high_half(sel));
}

__device__ inline void look_up16x8(level_words t, uint32_t sel, uint32_t top, uint32_t *out)
{
    out[0] = look_up16(t, sel, top);
    out[1] = look_up16(t, high_half(sel), top >> 16);
}

/* w[4]: the words of a 4-bit plane. */
__device__ inline void unpack_turbo4(const uint32_t w[4], uint32_t out[8])
{
    constexpr level_words levels = pack_levels(codebook4);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        look_up16x8(levels, w[r] & 0x77777777u, w[r] >> 3 & 0x11111111u, out + 2 * r);
    }
}

/* low[2]: the words of the 2-bit plane; high: that of the 1-bit plane. */
__device__ inline void unpack_turbo3(const uint32_t low[2], uint32_t high, uint32_t out[8])
{
    constexpr level_words levels = pack_levels(codebook3);
    const uint32_t above[4] = {high << 2, high << 1, high, high >> 1};
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t below = r % 2 ? low[r / 2] >> 2 : low[r / 2];
        look_up8x8(levels, (below & 0x33333333u) | (above[r] & 0x44444444u), out + 2 * r);
    }
}

__device__ inline void unpack_turbo2(const uint32_t low[2], uint32_t out[8])
{
    constexpr level_words levels = pack_levels(codebook2);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t below = r % 2 ? low[r / 2] >> 2 : low[r / 2];
        look_up8x8(levels, below & 0x33333333u, out + 2 * r);
    }
}

/* Subset bits of 32 coordinates of one token from its path words: `path` and the one before. */
struct subset_bits {
    uint32_t z1;
    uint32_t z0;
};

__device__ inline subset_bits subsets_along_row(uint32_t path, uint32_t before)
{
    const auto back = [=](int n) { return __funnelshift_l(before, path, n); };
    return {path ^ back(3) ^ back(6) ^ back(8), back(1) ^ back(2) ^ back(7)};
}

/* The word of path bits before coordinate 0: start bit i is the path bit of coordinate -1-i. */
__device__ inline uint32_t path_before_row(uint32_t scale_field)
{
    const uint32_t start = (scale_field & 31u) | scale_field >> 15 << 5;
    return __brev(start);
}

/* free[2]: the words of the 2-bit plane. */
__device__ inline void unpack_trellis3(const uint32_t free[2], subset_bits z, uint32_t out[8])
{
    constexpr level_words levels = pack_levels(trellis16);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t f = r % 2 ? free[r / 2] >> 2 : free[r / 2];
        const uint32_t sel = (f << 2 & 0x44444444u) |
                             ((r ? z.z1 >> (r - 1) : z.z1 << 1) & 0x22222222u) |
                             (z.z0 >> r & 0x11111111u);
        look_up16x8(levels, sel, f >> 1 & 0x11111111u, out + 2 * r);
    }
}

/* free: the word of the 1-bit plane of free bits. */
__device__ inline void unpack_trellis2(uint32_t free, subset_bits z, uint32_t out[8])
{
    constexpr level_words levels = pack_levels(trellis8);
    const uint32_t above[4] = {free << 2, free << 1, free, free >> 1};
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t sel = (above[r] & 0x44444444u) |
                             ((r ? z.z1 >> (r - 1) : z.z1 << 1) & 0x22222222u) |
                             (z.z0 >> r & 0x11111111u);
        look_up8x8(levels, sel, out + 2 * r);
    }
}

} /* namespace tkv_cuda */

#endif
