/* The two ends of decode attention, a warp a row: a query comes in, is rotated and rounded to 16
 * bits; the sums of all splits come together, are rotated back and divided. Both are bound by
 * latency, not by work: everything stays in registers, lane l holding the values from l * n on. */
#ifndef TKV_DEVICE_CUDA_DECODE_ROWS_CUH
#define TKV_DEVICE_CUDA_DECODE_ROWS_CUH

#include "device/cuda/base/page.cuh"
#include "device/cuda/base/softmax.cuh"
#include "device/cuda/base/transform.cuh"
#include "device/cuda/heuristics.h"

namespace tkv_cuda
{

constexpr float query_limit = 32639.0f; /* 127 * 256 + 127: a high and a low signed byte */

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

template <int N> __device__ __forceinline__ void load_runs(const float *from, float (&x)[N])
{
    const float *mine = from + threadIdx.x % 32 * N;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        const float2 two = *(const float2 *)(mine + j);
        x[j] = two.x;
        x[j + 1] = two.y;
    }
}

} /* namespace tkv_cuda */

#endif
