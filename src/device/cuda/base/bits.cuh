/* Instructions on the bits of a word that have no C operator. On the host, where tests hold what is
 * made of them against the reference, they are spelt out. */
#ifndef TKV_DEVICE_CUDA_BASE_BITS_CUH
#define TKV_DEVICE_CUDA_BASE_BITS_CUH

#include <cstdint>
#include <cuda_runtime.h>

namespace tkv_cuda
{

#define TKV_HOST_DEVICE __host__ __device__ __forceinline__

TKV_HOST_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector)
{
#ifdef __CUDA_ARCH__
    uint32_t result; /* __byte_perm would mask bit 3 of the selectors */
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
#else
    const uint64_t table = (uint64_t)high << 32 | low;
    uint32_t result = 0;
    for (int k = 0; k < 4; k++) {
        const uint32_t nibble = selector >> (4 * k) & 15u;
        uint32_t byte = (uint32_t)(table >> (8 * (nibble & 7u))) & 255u;
        if (nibble & 8u) {
            byte = byte & 128u ? 255u : 0u;
        }
        result |= byte << (8 * k);
    }
    return result;
#endif
}

/* x >> 16 by a product of halves and bytes: it runs beside the shifts and permutations, whose unit
 * is what unpacking waits for. */
TKV_HOST_DEVICE uint32_t high_half(uint32_t x)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(0x100), "r"(0));
    return result;
#else
    return x >> 16;
#endif
}

/* sum + (x & 0xffff), likewise. */
TKV_HOST_DEVICE uint32_t add_low_half(uint32_t sum, uint32_t x)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(1), "r"(sum));
    return result;
#else
    return sum + (x & 0xffffu);
#endif
}

/* `word` shifted left by n (1 to 31), filled up from the top of `before`. */
TKV_HOST_DEVICE uint32_t shift_in(uint32_t before, uint32_t word, int n)
{
#ifdef __CUDA_ARCH__
    return __funnelshift_l(before, word, n);
#else
    return word << n | before >> (32 - n);
#endif
}

/* Bits where `mask` is set from a, elsewhere from b: one instruction, which the compiler would
 * otherwise rearrange into more. */
TKV_HOST_DEVICE uint32_t merge_bits(uint32_t mask, uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(result) : "r"(a), "r"(b), "r"(mask));
    return result;
#else
    return (a & mask) | (b & ~mask);
#endif
}

/* a & mask, likewise kept as it is. */
TKV_HOST_DEVICE uint32_t take_bits(uint32_t mask, uint32_t a)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("and.b32 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(mask));
    return result;
#else
    return a & mask;
#endif
}

TKV_HOST_DEVICE uint32_t reverse_bits(uint32_t x)
{
#ifdef __CUDA_ARCH__
    return __brev(x);
#else
    uint32_t result = 0;
    for (int k = 0; k < 32; k++) {
        result |= (x >> k & 1u) << (31 - k);
    }
    return result;
#endif
}

} /* namespace tkv_cuda */

#endif
