// Kernels that use each part of the language that the product's kernels may use.
#include <metal_stdlib>
using namespace metal;

struct RotateParams {
    uint n_rows;
    float scale;
};

constant bool has_signs [[function_constant(0)]];
constant uint signs_seed [[function_constant(1)]];

// Rows of 128 rotated by a fast Walsh-Hadamard transform, a row per threadgroup of 128: five stages by
// shuffles, two through threadgroup memory.
[[max_total_threads_per_threadgroup(128)]]
kernel void rotate_128(device const half *source [[buffer(0)]],
                       device float *target [[buffer(1)]],
                       constant RotateParams &params [[buffer(2)]],
                       uint row [[threadgroup_position_in_grid]],
                       uint thread_index [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float tile[128];
    if (row >= params.n_rows) {
        return;
    }
    float x = float(source[row * 128u + thread_index]);
    if (has_signs && popcount(signs_seed * (thread_index + 1u)) % 2u == 1u) {
        x = -x;
    }
    for (ushort mask = 1; mask < 32; mask <<= 1) {
        const float other = simd_shuffle_xor(x, mask);
        x = (lane & mask) != 0u ? other - x : x + other;
    }
    for (uint mask = 32u; mask < 128u; mask <<= 1) {
        tile[thread_index] = x;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const float other = tile[thread_index ^ mask];
        x = (thread_index & mask) != 0u ? other - x : x + other;
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    target[row * 128u + thread_index] = x * params.scale;
}

// The same, a row per simdgroup, four elements per lane.
static inline float4 butterfly(float4 v)
{
    const float4 a = float4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
    return float4(a.xy + a.zw, a.xy - a.zw);
}

[[max_total_threads_per_threadgroup(128)]]
kernel void rotate_128_by_simdgroup(device const half4 *source [[buffer(0)]],
                                    device float4 *target [[buffer(1)]],
                                    constant RotateParams &params [[buffer(2)]],
                                    uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                                    uint n_simdgroups [[simdgroups_per_threadgroup]],
                                    uint threadgroup_index [[threadgroup_position_in_grid]],
                                    uint lane [[thread_index_in_simdgroup]])
{
    const uint row = threadgroup_index * n_simdgroups + simdgroup_index;
    if (row >= params.n_rows) {
        return;
    }
    float4 v = butterfly(float4(source[row * 32u + lane]));
    for (ushort mask = 1; mask < 32; mask <<= 1) {
        const float4 other = simd_shuffle_xor(v, mask);
        v = (lane & mask) != 0u ? other - v : v + other;
    }
    target[row * 32u + lane] = v * params.scale;
}

// The sum of squares of rows of 128, through threadgroup memory that the host provides.
[[max_total_threads_per_threadgroup(128)]]
kernel void sum_squares(device const half *source [[buffer(0)]],
                        device float *target [[buffer(1)]],
                        threadgroup float *partial [[threadgroup(0)]],
                        uint row [[threadgroup_position_in_grid]],
                        uint thread_index [[thread_index_in_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup_index [[simdgroup_index_in_threadgroup]])
{
    const float x = float(source[row * 128u + thread_index]);
    const float sum = simd_sum(x * x);
    if (lane == 0u) {
        partial[simdgroup_index] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0u) {
        target[row] = partial[0] + partial[1] + partial[2] + partial[3];
    }
}

// c[8][8] = a[8][16] b[16][8] of half, summed in float.
[[max_total_threads_per_threadgroup(32)]]
kernel void multiply_matrices(device const half *a [[buffer(0)]],
                              device const half *b [[buffer(1)]],
                              device float *c [[buffer(2)]])
{
    simdgroup_half8x8 left;
    simdgroup_half8x8 right;
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < 16u; k += 8u) {
        simdgroup_load(left, a + k, 16);
        simdgroup_load(right, b + k * 8u, 8);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, c, 8);
}

// Sums 16 floats of every page of a table of addresses.
struct PageTable {
    device const float *page;
    uint n_tokens;
};

[[max_total_threads_per_threadgroup(32)]]
kernel void sum_pages(device const PageTable *table [[buffer(0)]],
                      device float *sums [[buffer(1)]],
                      uint index [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]])
{
    device const float *page = table[index].page;
    const float x = lane < table[index].n_tokens ? page[lane] : 0.0f;
    const float sum = simd_sum(x);
    if (lane == 0u) {
        sums[index] = sum;
    }
}

// Counts bytes in threadgroup atomics, then adds them to device atomics.
[[max_total_threads_per_threadgroup(64)]]
kernel void count_bytes(device const uchar *bytes [[buffer(0)]],
                        device atomic_uint *counts [[buffer(1)]],
                        device atomic_float *total [[buffer(2)]],
                        uint position [[thread_position_in_grid]],
                        uint thread_index [[thread_index_in_threadgroup]])
{
    threadgroup atomic_uint histogram[4];
    if (thread_index < 4u) {
        atomic_store_explicit(&histogram[thread_index], 0u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&histogram[bytes[position] & 3u], 1u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < 4u) {
        const uint n = atomic_load_explicit(&histogram[thread_index], memory_order_relaxed);
        atomic_fetch_add_explicit(&counts[thread_index], n, memory_order_relaxed);
        atomic_fetch_add_explicit(total, float(n), memory_order_relaxed);
    }
}
