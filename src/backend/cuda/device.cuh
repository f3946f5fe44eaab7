/* Small device functions that all kernels share: asynchronous copies, byte permutes, tensor-core
 * products, reductions over the four lanes of a fragment column. sm_80 and newer. */
#ifndef TKV_CUDA_DEVICE_CUH
#define TKV_CUDA_DEVICE_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define TKV_WARP 32
#define TKV_FULL_MASK 0xffffffffu

static __device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* Copies 16 bytes from global to shared memory behind the thread's back. */
static __device__ __forceinline__ void copy16_async(uint32_t destination, const void *source)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination), "l"(source));
}

static __device__ __forceinline__ void commit_copies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `pending` of the thread's groups of copies are on their way. */
template <int pending> static __device__ __forceinline__ void wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

static __device__ __forceinline__ uint4 load_shared16(uint32_t address)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* c += a * b on int8 fragments, 16 x 8 x 32. With g = lane / 4, t = lane % 4: a[0], a[2] are row g,
 * a[1], a[3] row g + 8; b is column g; each register holds four consecutive k: 4t.. in a[0], a[1],
 * b0 and 16 + 4t.. in the others. c[0], c[1] are row g, columns 2t and 2t + 1; c[2], c[3] row g+8.
 */
static __device__ __forceinline__ void multiply_add(int c[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                    uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Over the lanes that share lane / 4. */
static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(TKV_FULL_MASK, x, 1));
    return fmaxf(x, __shfl_xor_sync(TKV_FULL_MASK, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(TKV_FULL_MASK, x, 1);
    return x + __shfl_xor_sync(TKV_FULL_MASK, x, 2);
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int distance = 16; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(TKV_FULL_MASK, x, distance));
    }
    return x;
}

#endif
