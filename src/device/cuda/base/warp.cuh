/* What the lanes of a warp tell each other, and the hardware's fast functions. */
#ifndef TKV_DEVICE_CUDA_BASE_WARP_CUH
#define TKV_DEVICE_CUDA_BASE_WARP_CUH

#include <cstdint>
#include <cuda_runtime.h>

namespace tkv_cuda
{

constexpr uint32_t full_warp = 0xffffffffu;

/* 2^x; the hardware's approximation, its relative error below 2^-22. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Over all lanes, or over the runs of `Lanes` of them, always in the same order: the widest
 * exchange first. */
template <int Lanes = 32> __device__ __forceinline__ float add_lanes(float x)
{
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) {
        x += __shfl_xor_sync(full_warp, x, mask);
    }
    return x;
}

template <int Lanes = 32> __device__ __forceinline__ float max_lanes(float x)
{
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) {
        x = fmaxf(x, __shfl_xor_sync(full_warp, x, mask));
    }
    return x;
}

__device__ __forceinline__ int add_lanes(int x)
{
    return __reduce_add_sync(full_warp, x);
}

/* In the results of the tensor cores lane 4g + t has of row g the columns 2t and 2t + 1. Over the
 * four lanes of a row: */
__device__ __forceinline__ float add_row(float x)
{
    x += __shfl_xor_sync(full_warp, x, 1);
    return x + __shfl_xor_sync(full_warp, x, 2);
}

__device__ __forceinline__ float max_row(float x)
{
    x = fmaxf(x, __shfl_xor_sync(full_warp, x, 1));
    return fmaxf(x, __shfl_xor_sync(full_warp, x, 2));
}

/* Over the eight lanes of a column: */
__device__ __forceinline__ float add_column(float x)
{
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
        x += __shfl_xor_sync(full_warp, x, mask);
    }
    return x;
}

__device__ __forceinline__ float max_column(float x)
{
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
        x = fmaxf(x, __shfl_xor_sync(full_warp, x, mask));
    }
    return x;
}

} // namespace tkv_cuda

#endif
