/* Halves as src/base/half.h makes them. */
#ifndef TKV_DEVICE_CUDA_BASE_HALF_CUH
#define TKV_DEVICE_CUDA_BASE_HALF_CUH

#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace tkv_cuda
{

constexpr float half_max = 65504.0f;
constexpr uint32_t half_nan = 0x7e00u;

__device__ inline uint32_t to_half(float value)
{
    const uint32_t half = __half_as_ushort(__float2half_rn(value));
    return isnan(value) ? (__float_as_uint(value) >> 16 & 0x8000u) | half_nan : half;
}

/* Finite values that would round to infinity become the largest half. */
__device__ inline uint32_t to_finite_half(float value)
{
    const uint32_t half = to_half(value);
    return (half & 0x7fffu) == 0x7c00u && isfinite(value) ? half - 1 : half;
}

__device__ inline float from_half(uint32_t half)
{
    return __half2float(__ushort_as_half((unsigned short)half));
}

/* The two halves of a word, the low one first. */
__device__ inline float2 from_two_halves(uint32_t two)
{
    return __half22float2(*(const __half2 *)&two);
}

__device__ inline uint32_t to_two_halves(float low, float high)
{
    const __half2 two = __floats2half2_rn(low, high);
    return *(const uint32_t *)&two;
}

} // namespace tkv_cuda

#endif
