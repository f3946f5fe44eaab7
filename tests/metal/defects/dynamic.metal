// Kernels that pass the gates before execution and are wrong. test_dynamic.m says what reports each.
#include <metal_stdlib>
using namespace metal;

[[max_total_threads_per_threadgroup(128)]]
kernel void correct(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                    uint i [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float other = tile[t ^ 64u];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile[t] = other + float(n);
    x[i] = tile[t];
}

// Without the second barrier a thread may overwrite what another has still to read.
[[max_total_threads_per_threadgroup(128)]]
kernel void missing_barrier(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                            uint i [[thread_position_in_grid]],
                            uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float other = tile[t ^ 64u];
    tile[t] = other + float(n);
    x[i] = tile[t];
}

// A barrier that orders no memory is none.
[[max_total_threads_per_threadgroup(128)]]
kernel void barrier_without_memory(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                                   uint i [[thread_position_in_grid]],
                                   uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    tile[t] = x[i];
    threadgroup_barrier(mem_flags::mem_none);
    x[i] = tile[t ^ 64u] + float(n);
}

// Within a simdgroup too, threads are not in step.
[[max_total_threads_per_threadgroup(32)]]
kernel void missing_simdgroup_barrier(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                                      uint i [[thread_position_in_grid]],
                                      uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[32];
    tile[t] = x[i];
    x[i] = tile[t ^ 1u] + float(n);
}

[[max_total_threads_per_threadgroup(128)]]
kernel void divergent_barrier(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                              uint i [[thread_position_in_grid]],
                              uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    tile[t] = x[i];
    if (t < 64u) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    x[i] = tile[t] + float(n);
}

[[max_total_threads_per_threadgroup(128)]]
kernel void divergent_barriers(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                               uint i [[thread_position_in_grid]],
                               uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    tile[t] = x[i];
    if (t < 64u) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        x[i] = tile[t] + float(n);
    } else {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        x[i] = tile[t] - float(n);
    }
}

[[max_total_threads_per_threadgroup(32)]]
kernel void divergent_shuffle(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                              uint i [[thread_position_in_grid]])
{
    if (i % 32u < 16u) {
        x[i] = simd_shuffle_xor(x[i], ushort(1)) + float(n);
    }
}

[[max_total_threads_per_threadgroup(32)]]
kernel void divergent_functions(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                                uint i [[thread_position_in_grid]])
{
    if (i % 32u < 16u) {
        x[i] = simd_sum(x[i]) + float(n);
    } else {
        x[i] = simd_max(x[i]) + float(n);
    }
}

[[max_total_threads_per_threadgroup(32)]]
kernel void early_return(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                         uint i [[thread_position_in_grid]])
{
    if (i % 32u == n) {
        return;
    }
    x[i] = simd_sum(x[i]);
}

[[max_total_threads_per_threadgroup(32)]]
kernel void absent_lane(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                        uint i [[thread_position_in_grid]])
{
    x[i] = simd_shuffle(x[i], ushort(i % 32u + n));
}

[[max_total_threads_per_threadgroup(128)]]
kernel void uninitialised_tile(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                               uint i [[thread_position_in_grid]],
                               uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    if (t >= n) {
        tile[t] = 1.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x[i] += tile[t];
}

// One past the end, n being the number of elements.
[[max_total_threads_per_threadgroup(32)]]
kernel void beyond_buffer(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                          uint i [[thread_position_in_grid]])
{
    x[i < n ? i + 1u : n] = 1.0f;
}

[[max_total_threads_per_threadgroup(32)]]
kernel void far_beyond_buffer(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                              uint i [[thread_position_in_grid]])
{
    x[i + 1024u + n * 0u] = 1.0f;
}

[[max_total_threads_per_threadgroup(32)]]
kernel void beyond_bytes(device float *x [[buffer(0)]], constant uint *n [[buffer(1)]],
                         uint i [[thread_position_in_grid]])
{
    x[i] = float(n[i]);
}

[[max_total_threads_per_threadgroup(128)]]
kernel void beyond_tile(device float *x [[buffer(0)]], constant uint &n [[buffer(1)]],
                        uint i [[thread_position_in_grid]],
                        uint t [[thread_index_in_threadgroup]])
{
    threadgroup float tile[128];
    tile[t + n / 128u] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x[i] = tile[t ^ 1u];
}

struct Pointer {
    device float *memory;
};

[[max_total_threads_per_threadgroup(32)]]
kernel void through_pointer(device Pointer *pointer [[buffer(0)]],
                            uint i [[thread_position_in_grid]])
{
    pointer->memory[i] += 1.0f;
}

[[max_total_threads_per_threadgroup(32)]]
kernel void with_memory(device float *x [[buffer(0)]], threadgroup float *tile [[threadgroup(0)]],
                        uint i [[thread_position_in_grid]])
{
    tile[i % 32u] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    x[i] = tile[i % 32u ^ 1u];
}
