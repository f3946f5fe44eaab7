/* The rotation's Walsh-Hadamard transform and sign flips of a row that lies over lanes: in a warp
 * or in each of its halves, each lane with N values. All lanes of a warp must be in step.
 *
 * The transform is one of the bits of a value's index, so it does not matter which values a lane
 * has; the signs do. Strided rows have value Lanes * i + lane in register i, which is the order of
 * docs/FORMAT.md section 9 for 16 lanes, and where neighbouring lanes load neighbours; rows in runs
 * have value N * lane + i there, so that a lane loads all of its own at once. */
#ifndef TKV_DEVICE_CUDA_BASE_TRANSFORM_CUH
#define TKV_DEVICE_CUDA_BASE_TRANSFORM_CUH

#include "device/cuda/base/warp.cuh"
#include "format/constants.h"
#include "turbokv.h"

namespace tkv_cuda
{

constexpr int n_sign_words = TKV_MAX_HEAD_DIM / 32;

__constant__ const uint32_t rotation_signs[2][n_sign_words] = {TKV_ROTATION_SIGNS_0,
                                                               TKV_ROTATION_SIGNS_1};

/* How far loops over the values of a lane are unrolled: there are N, or any number (0), which then
 * lie in local memory. */
template <int N> constexpr int unroll_of = N ? N : 1;

/* The orthonormal Walsh-Hadamard transform of Lanes * count values; count, a power of two, is N
 * where that is not 0 or less. */
template <int N, int Lanes> __device__ __forceinline__ void transform(int count, float *v)
{
    const int lane = threadIdx.x % Lanes;
#pragma unroll
    for (int half = 1; half < Lanes; half *= 2) {
        const float sign = lane & half ? -1.0f : 1.0f;
#pragma unroll(unroll_of <N>)
        for (int i = 0; i < (N ? N : count); i++) {
            if (i < count) {
                /* The product is exact: one rounding. */
                const float other = __shfl_xor_sync(full_warp, v[i], half);
                v[i] = __fmaf_rn(v[i], sign, other);
            }
        }
    }
#pragma unroll(unroll_of <N>)
    for (int half = 1; half < (N ? N : count); half *= 2) {
#pragma unroll(unroll_of <N>)
        for (int i = 0; i < (N ? N : count); i++) {
            if (half < count && i < count && !(i & half)) {
                const float a = v[i];
                const float b = v[i + half];
                v[i] = a + b;
                v[i + half] = a - b;
            }
        }
    }
    /* 1 / sqrt(Lanes * count) as a float. */
    const int log2_size = 31 - __clz(Lanes * count);
    const float norm = __uint_as_float((uint32_t)(127 - log2_size / 2) << 23) *
                       (log2_size % 2 ? 0.707106781f : 1.0f);
#pragma unroll(unroll_of <N>)
    for (int i = 0; i < (N ? N : count); i++) {
        if (i < count) {
            v[i] *= norm;
        }
    }
}

/* The value with its sign flipped if bit `bit` of `signs` is set. */
__device__ __forceinline__ float flip_sign(float value, uint32_t signs, int bit)
{
    return __uint_as_float(__float_as_uint(value) ^ (signs << (31 - bit) & 0x80000000u));
}

/* Flips the signs of values first .. first + count - 1 of all lanes. */
template <int N, int Lanes>
__device__ __forceinline__ void flip_strided(int first, int count, const uint32_t *signs, float *v)
{
    constexpr int a_word = 32 / Lanes; /* registers */
    const int lane = threadIdx.x % Lanes;
#pragma unroll(unroll_of <N>)
    for (int i = 0; i < (N ? N : count); i++) {
        if (i < count) {
            const int at = first + i;
            v[at] = flip_sign(v[at], signs[at / a_word], lane + Lanes * (at % a_word));
        }
    }
}

template <int N> __device__ __forceinline__ void flip_runs(const uint32_t *signs, float (&v)[N])
{
    const int first = threadIdx.x % 32 * N;
    const uint32_t mine = signs[first / 32] >> first % 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
        v[i] = flip_sign(v[i], mine, i);
    }
}

/* The rotation of a row of 32 * N values in runs, and back. */
template <int N> __device__ __forceinline__ void rotate_runs(float (&v)[N])
{
#pragma unroll
    for (int round = 0; round < 2; round++) {
        flip_runs(rotation_signs[round], v);
        transform<N, 32>(N, v);
    }
}

template <int N> __device__ __forceinline__ void unrotate_runs(float (&v)[N])
{
#pragma unroll
    for (int round = 1; round >= 0; round--) {
        transform<N, 32>(N, v);
        flip_runs(rotation_signs[round], v);
    }
}

/* Likewise strided. */
template <int N> __device__ __forceinline__ void rotate_strided(float (&v)[N])
{
#pragma unroll
    for (int round = 0; round < 2; round++) {
        flip_strided<N, 32>(0, N, rotation_signs[round], v);
        transform<N, 32>(N, v);
    }
}

template <int N> __device__ __forceinline__ void unrotate_strided(float (&v)[N])
{
#pragma unroll
    for (int round = 1; round >= 0; round--) {
        transform<N, 32>(N, v);
        flip_strided<N, 32>(0, N, rotation_signs[round], v);
    }
}

} /* namespace tkv_cuda */

#endif
