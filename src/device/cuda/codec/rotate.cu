/* Rotation of rows in place, one row a half-warp. */
#include "device/cuda/codec/row.cuh"
#include "device/cuda/kernels_cuda.h"

namespace tkv_cuda
{
namespace
{

constexpr int n_threads = 128;
constexpr int rows_per_block = n_threads / half_warp;

template <int N, bool IsInverse>
__global__ void __launch_bounds__(n_threads) rotate_rows(int head_dim, size_t n_rows, float *x)
{
    const row_shape<N> shape = {head_dim};
    const size_t row = (size_t)blockIdx.x * rows_per_block + threadIdx.x / half_warp;
    const bool is_used = row < n_rows;
    float *values = x + (is_used ? row : 0) * head_dim + lane_of_row();
    float v[row_shape<N>::capacity];
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        v[i] = is_used ? values[i * half_warp] : 0.0f;
    }
    if (IsInverse) {
        unrotate_row(shape, v);
    } else {
        rotate_row(shape, v);
    }
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        if (is_used) {
            values[i * half_warp] = v[i];
        }
    }
}

template <int N>
cudaError_t launch(int head_dim, size_t n_rows, float *x, bool is_inverse, cudaStream_t stream)
{
    const unsigned n_blocks = (unsigned)((n_rows + rows_per_block - 1) / rows_per_block);
    if (is_inverse) {
        rotate_rows<N, true><<<n_blocks, n_threads, 0, stream>>>(head_dim, n_rows, x);
    } else {
        rotate_rows<N, false><<<n_blocks, n_threads, 0, stream>>>(head_dim, n_rows, x);
    }
    return cudaGetLastError();
}

} /* namespace */
} /* namespace tkv_cuda */

extern "C" cudaError_t tkv_cuda_rotate(int head_dim, size_t n_rows, float *x, bool is_inverse,
                                       cudaStream_t stream)
{
    using namespace tkv_cuda;
    if (n_rows == 0) {
        return cudaSuccess;
    }
    return with_row_size(head_dim, [&](auto n) {
        return launch<decltype(n)::value>(head_dim, n_rows, x, is_inverse, stream);
    });
}
