/* Copies to shared memory that go on while a warp does other things, in groups. */
#ifndef TKV_DEVICE_CUDA_BASE_COPY_CUH
#define TKV_DEVICE_CUDA_BASE_COPY_CUH

#include <cstdint>
#include <cuda_runtime.h>

namespace tkv_cuda
{

constexpr int chunk_bytes = 16; /* of a copy */

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void copy_chunk(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/* Or zeros, where nothing is there; `from` must be good all the same. */
__device__ __forceinline__ void copy_chunk_or_zeros(uint32_t to, const void *from, bool is_there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}

/* What was asked for since the last call is a group. */
__device__ __forceinline__ void close_copies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until no more than Left groups of the thread are under way. */
template <int Left> __device__ __forceinline__ void wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

__device__ __forceinline__ void wait_all_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Above 48 KiB a kernel's dynamic shared memory must be asked for. */
template <typename Kernel> cudaError_t allow_shared_memory(Kernel kernel, size_t bytes)
{
    return bytes <= 48 * 1024
               ? cudaSuccess
               : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes);
}

} // namespace tkv_cuda

#endif
