/* A row of head_dim values in the registers of a half-warp: value 16 i + lane is v[i] of lane
 * `lane`, so that the sums of docs/FORMAT.md section 9 add registers in order and then fold lanes.
 * All lanes of a warp must be in step; its halves hold different rows.
 *
 * N is head_dim / 16 where it is known at compile time; 0 stands for any, in local memory. Products
 * and sums are rounded one by one: compile with -fmad=false. */
#ifndef TKV_DEVICE_CUDA_CODEC_ROW_CUH
#define TKV_DEVICE_CUDA_CODEC_ROW_CUH

#include "device/cuda/codec/codec.cuh"

namespace tkv_cuda
{

constexpr int half_warp = 16;

__constant__ const uint32_t rotation_signs[2][TKV_MAX_HEAD_DIM / 32] = {TKV_ROTATION_SIGNS_0,
                                                                        TKV_ROTATION_SIGNS_1};
__constant__ const uint32_t sketch_signs[TKV_MAX_HEAD_DIM / 32] = TKV_SKETCH_SIGNS;

template <int N> struct row_shape {
    static constexpr int capacity = N ? N : TKV_MAX_HEAD_DIM / half_warp;
    static constexpr int unroll = N ? N : 1; /* of loops over values: registers, or little code */
    int head_dim;

    /* Values a lane. */
    __device__ int n() const
    {
        return N ? N : head_dim / half_warp;
    }

    /* Values a lane in a Walsh-Hadamard block. */
    __device__ int block() const
    {
        return 1 << (31 - __clz(n()));
    }
};

__device__ inline int lane_of_row()
{
    return threadIdx.x % half_warp;
}

/* Orthonormal Walsh-Hadamard transform of the values v[first .. first + count) of all lanes; count
 * is a power of two. */
template <int N> __device__ void transform(int first, int count, float *v)
{
    const int lane = lane_of_row();
#pragma unroll
    for (int half = 1; half < half_warp; half *= 2) {
        const float sign = lane & half ? -1.0f : 1.0f;
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < (N ? N : count); i++) {
            if (i < count) {
                /* The product is exact: one rounding. */
                const float other = __shfl_xor_sync(full_warp, v[first + i], half);
                v[first + i] = __fmaf_rn(v[first + i], sign, other);
            }
        }
    }
#pragma unroll(row_shape <N>::unroll)
    for (int half = 1; half < (N ? N : count); half *= 2) {
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < (N ? N : count); i++) {
            if (half < count && i < count && !(i & half)) {
                const float a = v[first + i];
                const float b = v[first + i + half];
                v[first + i] = a + b;
                v[first + i + half] = a - b;
            }
        }
    }
    /* 1 / sqrt(16 count) as a float. */
    const int log2_count = 31 - __clz(count);
    const float norm = __uint_as_float((uint32_t)(125 - log2_count / 2) << 23) *
                       (log2_count % 2 ? 0.707106781f : 1.0f);
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < (N ? N : count); i++) {
        if (i < count) {
            v[first + i] *= norm;
        }
    }
}

template <int N> __device__ void flip_signs(int first, int count, const uint32_t *signs, float *v)
{
    const int lane = lane_of_row();
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < (N ? N : count); i++) {
        if (i < count) {
            const int at = first + i;
            const uint32_t sign = signs[at / 2] << (31 - lane - half_warp * (at % 2)) & 0x80000000u;
            v[at] = __uint_as_float(__float_as_uint(v[at]) ^ sign);
        }
    }
}

/* One round of the rotation, as `mix` and `unmix` of src/format/rotation.c. */
template <int N> __device__ void mix(const row_shape<N> &shape, const uint32_t *signs, float *v)
{
    const int block = shape.block();
    const int last = shape.n() - block;
    flip_signs<N>(0, block, signs, v);
    transform<N>(0, block, v);
    if (last > 0) {
        flip_signs<N>(last, block, signs, v);
        transform<N>(last, block, v);
    }
}

template <int N> __device__ void unmix(const row_shape<N> &shape, const uint32_t *signs, float *v)
{
    const int block = shape.block();
    const int last = shape.n() - block;
    if (last > 0) {
        transform<N>(last, block, v);
        flip_signs<N>(last, block, signs, v);
    }
    transform<N>(0, block, v);
    flip_signs<N>(0, block, signs, v);
}

template <int N> __device__ void rotate_row(const row_shape<N> &shape, float *v)
{
    mix(shape, rotation_signs[0], v);
    mix(shape, rotation_signs[1], v);
}

template <int N> __device__ void unrotate_row(const row_shape<N> &shape, float *v)
{
    unmix(shape, rotation_signs[1], v);
    unmix(shape, rotation_signs[0], v);
}

/* Lane sums to the sum of the row, in all lanes: 8, 4, 2, 1. */
__device__ inline float fold_lanes(float sum)
{
#pragma unroll
    for (int width = half_warp / 2; width > 0; width /= 2) {
        sum += __shfl_xor_sync(full_warp, sum, width);
    }
    return sum;
}

/* <a, b> in the order of the format. */
template <int N> __device__ float dot_row(const row_shape<N> &shape, const float *a, const float *b)
{
    float sum = a[0] * b[0];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 1; i < shape.n(); i++) {
        sum += a[i] * b[i];
    }
    return fold_lanes(sum);
}

template <int N> __device__ float max_magnitude(const row_shape<N> &shape, const float *v)
{
    float maximum = 0.0f;
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        maximum = fmaxf(maximum, fabsf(v[i]));
    }
#pragma unroll
    for (int width = half_warp / 2; width > 0; width /= 2) {
        maximum = fmaxf(maximum, __shfl_xor_sync(full_warp, maximum, width));
    }
    return maximum;
}

/* The bits of the lanes of this row for which `is_set` holds, lane 0 lowest. */
__device__ inline uint32_t row_ballot(bool is_set)
{
    return __ballot_sync(full_warp, is_set) >> (threadIdx.x & 16) & 0xffffu;
}

} /* namespace tkv_cuda */

#endif
