/* Parts of a sequence: rows on their way to a segment's frame, and what attention makes of each
 * segment joined. Bound by memory, a read and a write a value. */
#include "device/cuda/kernels_cuda.h"

namespace tkv_cuda
{
namespace
{

constexpr int n_threads = 256;

/* The pair of a coordinate, and whether it is the pair's second. */
struct pair_place {
    int pair;
    bool is_second;
};

__device__ pair_place place_of(const tkv_device_rows &rows, int coordinate)
{
    if (rows.is_interleaved) {
        return {coordinate / 2, coordinate % 2 != 0};
    }
    const bool is_second = coordinate >= rows.n_pairs;
    return {is_second ? coordinate - rows.n_pairs : coordinate, is_second};
}

/* One coordinate of a row that is turned. Products are rounded before they are added: this file is
 * compiled without contraction. */
__device__ float turn(const tkv_device_rows &rows, const float *row, int coordinate)
{
    const pair_place place = place_of(rows, coordinate);
    const float *turns = (const float *)rows.turns;
    const float x = row[rows.is_interleaved ? 2 * place.pair : place.pair];
    const float y = row[rows.is_interleaved ? 2 * place.pair + 1 : place.pair + rows.n_pairs];
    const float cosine = turns[place.pair];
    const float sine =
        rows.is_back ? -turns[rows.n_pairs + place.pair] : turns[rows.n_pairs + place.pair];
    return place.is_second ? x * sine + y * cosine : x * cosine - y * sine;
}

__global__ void __launch_bounds__(n_threads) move_rows(const __grid_constant__ tkv_device_rows rows)
{
    const uint64_t at = (uint64_t)blockIdx.x * n_threads + threadIdx.x;
    if (at >= rows.n_rows * rows.to_width) {
        return;
    }
    const int coordinate = (int)(at % rows.to_width);
    const float *row = (const float *)rows.from + at / rows.to_width * rows.from_width;
    float value = coordinate < rows.from_width ? row[coordinate] : 0.0f;
    if (rows.turns && coordinate < 2 * rows.n_pairs) {
        value = turn(rows, row, coordinate);
    }
    ((float *)rows.to)[at] = value;
}

/* A warp for each row. */
__global__ void __launch_bounds__(n_threads)
    join_parts(const __grid_constant__ tkv_device_join join)
{
    const uint64_t row = (uint64_t)blockIdx.x * (n_threads / 32) + threadIdx.x / 32;
    if (row >= join.n_rows) {
        return;
    }
    const int lane = threadIdx.x % 32;
    const float *log_sums = (const float *)join.log_sums + row;
    float maximum = -INFINITY;
    for (int p = 0; p < join.n_parts; p++) {
        maximum = fmaxf(maximum, log_sums[p * join.n_rows]);
    }
    float total = 0.0f;
    for (int p = 0; p < join.n_parts; p++) {
        total += expf(log_sums[p * join.n_rows] - maximum);
    }
    for (int j = lane; j < join.to_width; j += 32) {
        float sum = 0.0f;
        for (int p = 0; p < join.n_parts; p++) {
            const float weight = expf(log_sums[p * join.n_rows] - maximum) / total;
            const uint64_t at = (p * join.n_rows + row) * join.from_width + j;
            /* What sees nothing of a part may hold anything; a weight that is NaN is not hidden. */
            sum += weight != 0.0f ? weight * ((const float *)join.parts)[at] : 0.0f;
        }
        ((float *)join.out)[row * join.to_width + j] = sum;
    }
    if (join.log_sums_out && lane == 0) {
        ((float *)join.log_sums_out)[row] = maximum + logf(total);
    }
}

unsigned blocks_for(uint64_t n, int a_block)
{
    return (unsigned)((n + a_block - 1) / a_block);
}

} /* namespace */
} /* namespace tkv_cuda */

using namespace tkv_cuda;

cudaError_t tkv_cuda_move_rows(const tkv_device_rows *rows, cudaStream_t stream)
{
    if (rows->n_rows == 0) {
        return cudaSuccess;
    }
    move_rows<<<blocks_for(rows->n_rows * rows->to_width, n_threads), n_threads, 0, stream>>>(
        *rows);
    return cudaGetLastError();
}

cudaError_t tkv_cuda_join(const tkv_device_join *join, cudaStream_t stream)
{
    if (join->n_rows == 0) {
        return cudaSuccess;
    }
    join_parts<<<blocks_for(join->n_rows, n_threads / 32), n_threads, 0, stream>>>(*join);
    return cudaGetLastError();
}
