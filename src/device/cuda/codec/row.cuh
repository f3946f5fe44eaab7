/* A row of head_dim values in the registers of a half-warp: value 16 i + lane is v[i] of lane
 * `lane`, so that the sums of docs/FORMAT.md section 9 add registers in order and then fold lanes.
 * All lanes of a warp must be in step; its halves hold different rows.
 *
 * N is head_dim / 16 where it is known at compile time; 0 stands for any, in local memory. Products
 * and sums are rounded one by one: compile with -fmad=false. */
#ifndef TKV_DEVICE_CUDA_CODEC_ROW_CUH
#define TKV_DEVICE_CUDA_CODEC_ROW_CUH

#include "device/cuda/base/head_dim.cuh"
#include "device/cuda/base/transform.cuh"

namespace tkv_cuda
{

constexpr int half_warp = 16;

__constant__ const uint32_t sketch_signs[n_sign_words] = TKV_SKETCH_SIGNS;

template <int N> struct row_shape {
    static constexpr int capacity = N ? N : TKV_MAX_HEAD_DIM / half_warp;
    static constexpr int unroll = unroll_of<N>;
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

/* One round of the rotation, as `mix` and `unmix` of src/format/rotation.c. */
template <int N> __device__ void mix(const row_shape<N> &shape, const uint32_t *signs, float *v)
{
    const int block = shape.block();
    const int last = shape.n() - block;
    flip_strided<N, half_warp>(0, block, signs, v);
    transform<N, half_warp>(block, v);
    if (last > 0) {
        flip_strided<N, half_warp>(last, block, signs, v);
        transform<N, half_warp>(block, v + last);
    }
}

template <int N> __device__ void unmix(const row_shape<N> &shape, const uint32_t *signs, float *v)
{
    const int block = shape.block();
    const int last = shape.n() - block;
    if (last > 0) {
        transform<N, half_warp>(block, v + last);
        flip_strided<N, half_warp>(last, block, signs, v);
    }
    transform<N, half_warp>(block, v);
    flip_strided<N, half_warp>(0, block, signs, v);
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

/* <a, b> in the order of the format. */
template <int N> __device__ float dot_row(const row_shape<N> &shape, const float *a, const float *b)
{
    float sum = a[0] * b[0];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 1; i < shape.n(); i++) {
        sum += a[i] * b[i];
    }
    return add_lanes<half_warp>(sum);
}

template <int N> __device__ float max_magnitude(const row_shape<N> &shape, const float *v)
{
    float maximum = 0.0f;
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        maximum = fmaxf(maximum, fabsf(v[i]));
    }
    return max_lanes<half_warp>(maximum);
}

/* The bits of the lanes of this row for which `is_set` holds, lane 0 lowest. */
__device__ inline uint32_t row_ballot(bool is_set)
{
    return __ballot_sync(full_warp, is_set) >> (threadIdx.x & 16) & 0xffffu;
}

/* Calls launch(N) with what a lane has of the rows' values, 0 where there is no kernel for as many
 *. */
template <typename F> cudaError_t with_row_size(int head_dim, F launch)
{
    cudaError_t error = cudaSuccess;
    const bool is_known = with_head_dim(head_dim, [&](auto size) {
        error = launch(std::integral_constant<int, decltype(size)::value / half_warp>{});
    });
    return is_known ? error : launch(std::integral_constant<int, 0>{});
}

} /* namespace tkv_cuda */

#endif
