/* The rotation of docs/FORMAT.md section 3 on the device: one warp a row. */
#ifndef TKV_CUDA_ROTATION_CUH
#define TKV_CUDA_ROTATION_CUH

#include "device.cuh"
#include "turbokv.h"

/* Sign words of the rounds 0, 1 and of the sketch, made at compile time as the format says. */
struct sign_tables {
    uint32_t words[3][TKV_MAX_HEAD_DIM / 32];
};

constexpr uint64_t split_mix(uint64_t state)
{
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    return state ^ (state >> 31);
}

constexpr sign_tables make_sign_tables()
{
    sign_tables tables = {};
    const uint64_t seeds[3] = {1, 82689, 3};
    for (int table = 0; table < 3; table++) {
        uint64_t state = seeds[table];
        for (int i = 0; i < TKV_MAX_HEAD_DIM / 32; i += 2) {
            state += 0x9e3779b97f4a7c15u;
            const uint64_t output = split_mix(state);
            tables.words[table][i] = (uint32_t)output;
            tables.words[table][i + 1] = (uint32_t)(output >> 32);
        }
    }
    return tables;
}

static __constant__ sign_tables rotation_signs = make_sign_tables();

/* A row of D = 64, 128 or 256 values lies in a warp's registers: value lane * (D / 32) + i in x[i].
 * The additions are those of the reference, in the same order, so the results are equal bit for
 * bit. */
template <int D> static __device__ __forceinline__ void transform_row(float (&x)[D / 32])
{
    constexpr int n = D / 32;
    const int lane = (int)(threadIdx.x % TKV_WARP);
#pragma unroll
    for (int half = 1; half < n; half *= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            if ((i & half) == 0) {
                const float a = x[i];
                const float b = x[i + half];
                x[i] = __fadd_rn(a, b);
                x[i + half] = __fsub_rn(a, b);
            }
        }
    }
#pragma unroll
    for (int distance = 1; distance < TKV_WARP; distance *= 2) {
        const bool is_upper = (lane & distance) != 0;
#pragma unroll
        for (int i = 0; i < n; i++) {
            const float other = __shfl_xor_sync(TKV_FULL_MASK, x[i], distance);
            x[i] = __fadd_rn(other, is_upper ? -x[i] : x[i]);
        }
    }
    constexpr float norm = D == 64 ? 0.125f : D == 128 ? 0.0883883461356163f : 0.0625f;
#pragma unroll
    for (int i = 0; i < n; i++) {
        x[i] = __fmul_rn(x[i], norm);
    }
}

template <int D>
static __device__ __forceinline__ void flip_row_signs(const uint32_t *signs, float (&x)[D / 32])
{
    constexpr int n = D / 32;
    const int first = (int)(threadIdx.x % TKV_WARP) * n;
    const uint32_t bits = signs[first / 32] >> (first % 32);
#pragma unroll
    for (int i = 0; i < n; i++) {
        x[i] = __uint_as_float(__float_as_uint(x[i]) ^ (bits >> i & 1u) << 31);
    }
}

template <int D> static __device__ __forceinline__ void rotate_row(float (&x)[D / 32])
{
    for (int round = 0; round < 2; round++) {
        flip_row_signs<D>(rotation_signs.words[round], x);
        transform_row<D>(x);
    }
}

template <int D> static __device__ __forceinline__ void unrotate_row(float (&x)[D / 32])
{
    for (int round = 1; round >= 0; round--) {
        transform_row<D>(x);
        flip_row_signs<D>(rotation_signs.words[round], x);
    }
}

#endif
