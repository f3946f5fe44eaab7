/* The two ends of decode attention, a warp a row: a query comes in, is rotated and rounded to 16
 * bits; the sums of all splits come together, are rotated back and divided. Both are bound by
 * latency, not by work: everything stays in registers, lane l holding the values from l * n on. */
#ifndef TKV_DEVICE_CUDA_DECODE_DECODE_ROWS_CUH
#define TKV_DEVICE_CUDA_DECODE_DECODE_ROWS_CUH

#include "device/cuda/codec/codec.cuh"
#include "device/cuda/decode/unpack.cuh"

namespace tkv_cuda
{

constexpr float log2_e = 1.44269504f;
constexpr float query_limit = 32639.0f; /* 127 * 256 + 127: a high and a low signed byte */

static __constant__ uint32_t decode_signs[2][32] = {TKV_ROTATION_SIGNS_0, TKV_ROTATION_SIGNS_1};

constexpr int max_splits = 64;

/* What the CTAs of a unit share; all zero before and after a launch. */
struct unit_counters {
    unsigned ticket; /* parts that are done */
    unsigned drawn;  /* blocks handed out beyond the fixed ones */
};

/* What a launch of decode attention knows. A unit is a row tile of a KV head of a sequence. */
struct decode_job {
    tkv_device_attend params;
    int n_splits;            /* CTAs that share a unit, at most max_splits */
    int n_tiles;             /* row tiles a KV head */
    int group;               /* query heads a KV head */
    int is_early;            /* the launch may overlap the end of the one before: await_launch */
    int blocks_a_split;      /* no more splits than this leaves work for */
    unit_counters *counters; /* [n_units]; none where n_splits is 1 */
    float *stats;            /* [n_units][n_splits][rows][4]: row_sums */
    float *sums;             /* [n_units][n_splits][rows][head_dim] */
};

__device__ __forceinline__ void prefetch(const void *address)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/* A launch may come before the kernel before it has ended; from here on it has. The next one may
 * come at once: it waits here for this one. */
__device__ __forceinline__ void await_launch()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Orthonormal Walsh-Hadamard transform of 32 * N values. */
template <int N> __device__ __forceinline__ void transform_row(float (&x)[N])
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 1; half < N; half *= 2) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            if ((j & half) == 0) {
                const float a = x[j];
                const float b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
        const float sign = lane & mask ? -1.0f : 1.0f;
#pragma unroll
        for (int j = 0; j < N; j++) {
            x[j] = fmaf(sign, x[j], __shfl_xor_sync(full_warp, x[j], mask));
        }
    }
    const float norm = rsqrtf(32.0f * N);
#pragma unroll
    for (int j = 0; j < N; j++) {
        x[j] *= norm;
    }
}

template <int N> __device__ __forceinline__ void flip_row(float (&x)[N], int round)
{
    const int first = threadIdx.x % 32 * N;
    const uint32_t signs = decode_signs[round][first / 32] >> first % 32;
#pragma unroll
    for (int j = 0; j < N; j++) {
        x[j] = __uint_as_float(__float_as_uint(x[j]) ^ (signs >> j & 1u) << 31);
    }
}

template <int N> __device__ __forceinline__ void rotate_lanes(float (&x)[N])
{
#pragma unroll
    for (int round = 0; round < 2; round++) {
        flip_row(x, round);
        transform_row(x);
    }
}

template <int N> __device__ __forceinline__ void unrotate_lanes(float (&x)[N])
{
#pragma unroll
    for (int round = 1; round >= 0; round--) {
        transform_row(x);
        flip_row(x, round);
    }
}

template <int N> __device__ __forceinline__ void load_row(const float *from, float (&x)[N])
{
    const float *mine = from + threadIdx.x % 32 * N;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        const float2 two = *(const float2 *)(mine + j);
        x[j] = two.x;
        x[j + 1] = two.y;
    }
}

__device__ __forceinline__ float add_lanes(float x)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        x += __shfl_xor_sync(full_warp, x, mask);
    }
    return x;
}

__device__ __forceinline__ float max_lanes(float x)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        x = fmaxf(x, __shfl_xor_sync(full_warp, x, mask));
    }
    return x;
}

__device__ __forceinline__ int add_lanes(int x)
{
    return __reduce_add_sync(full_warp, x);
}

} /* namespace tkv_cuda */

#endif
