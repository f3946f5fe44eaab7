// Functions of the standard library, one result per lane of one simdgroup. test_library.m knows the
// answers.
#include <metal_stdlib>
using namespace metal;

struct Result {
    uint bits[48];
    float numbers[32];
};

static_assert(sizeof(packed_float3) == 12 && sizeof(packed_half4) == 8 && sizeof(float3) == 16,
              "sizes of vectors");

[[max_total_threads_per_threadgroup(32)]]
kernel void integers(device Result *results [[buffer(0)]], uint lane [[thread_index_in_simdgroup]],
                     ushort width [[threads_per_simdgroup]])
{
    device Result &r = results[lane];
    const uint x = lane * 0x9e3779b9u;
    r.bits[0] = popcount(x);
    r.bits[1] = clz(x);
    r.bits[2] = ctz(x);
    r.bits[3] = reverse_bits(x);
    r.bits[4] = rotate(x, lane);
    r.bits[5] = extract_bits(x, lane % 24u, 7u);
    r.bits[6] = uint(extract_bits(int(x), lane % 24u, 7u));
    r.bits[7] = insert_bits(x, lane, 5u, 6u);
    r.bits[8] = mulhi(x, x);
    r.bits[9] = uint(clamp(int(x), -1000, 1000));
    r.bits[10] = addsat(x, x);
    r.bits[11] = absdiff(x, 0x80000000u);
    r.bits[12] = min(x, 0x40000000u) ^ max(x, 0x40000000u);
    r.bits[13] = select(1u, 2u, x > 0x80000000u);
    const uint4 v = select(uint4(1, 2, 3, 4), uint4(5), uint4(x, lane, x, lane) > uint4(16u));
    r.bits[14] = v.x + 10u * v.y + 100u * v.z + 1000u * v.w;
    r.bits[15] = any(uint2(lane, 3u) < uint2(2u)) ? 1u : 0u;
    r.bits[16] = all(uint2(lane, 3u) < uint2(4u)) ? 1u : 0u;
    r.bits[17] = as_type<uint>(half2(half(lane), -half(lane)));
    r.bits[18] = as_type<uint>(uchar4(uchar(lane), 1, 2, uchar(x)));
    r.bits[19] = as_type<uint>(char4(as_type<uchar4>(x)).wzyx);
    r.bits[20] = uint(ushort(x)) + width;
    r.bits[21] = uint(short4(int4(int(x)))[2] < short(0));
    r.bits[22] = simd_shuffle(x, ushort(31 - lane));
    r.bits[23] = simd_shuffle_xor(x, ushort(5));
    r.bits[24] = simd_shuffle_up(x, ushort(3));
    r.bits[25] = simd_shuffle_down(x, ushort(3));
    r.bits[26] = simd_shuffle_rotate_up(x, ushort(3));
    r.bits[27] = simd_shuffle_rotate_down(x, ushort(3));
    r.bits[28] = simd_broadcast(x, ushort(7));
    r.bits[29] = simd_broadcast_first(x + 1u);
    r.bits[30] = simd_sum(x);
    r.bits[31] = simd_prefix_exclusive_sum(x);
    r.bits[32] = simd_prefix_inclusive_sum(x);
    r.bits[33] = simd_and(x | 1u) + simd_or(x) + simd_xor(x);
    r.bits[34] = uint(ulong(simd_ballot(popcount(x) % 2u == 1u)));
    r.bits[35] = (simd_all(lane < 32u) ? 1u : 0u) + (simd_all(lane < 31u) ? 2u : 0u) +
                 (simd_any(lane == 31u) ? 4u : 0u) + (simd_any(lane == 32u) ? 8u : 0u);
    r.bits[36] = quad_sum(x) + quad_max(lane) + quad_min(lane);
    r.bits[37] = quad_shuffle_xor(x, ushort(3)) + quad_broadcast(lane, ushort(2));
    r.bits[38] = quad_shuffle_up(x, ushort(1)) + quad_shuffle_down(x, ushort(2));
    const ushort4 u = simd_max(ushort4(ushort(lane), ushort(31 - lane), ushort(x), 9));
    r.bits[39] = u.x + u.y + u.z + u.w;
    r.bits[40] = (quad_any(lane % 5u == 0u) ? 1u : 0u) + (quad_all(lane > 3u) ? 2u : 0u);
}

[[max_total_threads_per_threadgroup(32)]]
kernel void reals(device Result *results [[buffer(0)]], device packed_float3 *triples [[buffer(1)]],
                  uint lane [[thread_index_in_simdgroup]])
{
    device Result &r = results[lane];
    const float x = float(lane) * 0.37f - 4.0f;
    r.numbers[0] = exp(x);
    r.numbers[1] = exp2(x) + fast::exp2(x) + precise::exp2(x);
    r.numbers[2] = rsqrt(fabs(x) + 1.0f);
    r.numbers[3] = fma(x, x, x);
    r.numbers[4] = rint(x);
    r.numbers[5] = floor(x) + 100.0f * ceil(x);
    r.numbers[6] = round(x) + 100.0f * trunc(x);
    r.numbers[7] = clamp(x, -1.0f, 2.0f);
    r.numbers[8] = mix(x, 1.0f, 0.25f);
    r.numbers[9] = dot(float4(x, 1, 2, 3), float4(1, 2, 3, x));
    r.numbers[10] = length(float2(x, 1.0f));
    r.numbers[11] = fmin(x, NAN) + fmax(NAN, x);
    r.numbers[12] = sign(x) + copysign(10.0f, x);
    r.numbers[13] = ldexp(x, 3);
    r.numbers[14] = float(half(x)) + float(half(x) * half(x) + half(x));
    r.numbers[15] = float(half4(float4(x)).y) + float(1.5h);
    r.numbers[16] = simd_sum(x);
    r.numbers[17] = simd_max(x) + simd_min(x);
    r.numbers[18] = simd_product(1.0f + x * 0.001f);
    r.numbers[19] = simd_shuffle_xor(float4(x, x + 1, x + 2, x + 3), ushort(1)).z;
    r.numbers[20] = float(simd_sum(half2(half(lane), 1.0h)).y);
    r.numbers[21] = step(0.0f, x) + saturate(x) + fract(x);
    r.numbers[22] = isnan(x) || isinf(x) ? 1.0f : 0.0f;
    r.numbers[23] = unpack_snorm4x8_to_float(lane << 8).y;
    const float3 v = float3(x, float2(1.0f, 2.0f));
    r.numbers[24] = dot(v, v.zyx);
    triples[lane] = v * 2.0f;
    const float3 stored = triples[lane];
    r.numbers[25] = stored.x + stored.y + stored.z + triples[lane][2];
    r.numbers[26] = log2(fabs(x) + 1.0f) + pow(2.0f, x);
    r.numbers[27] = max3(x, 0.0f, -x);
    vec<float, 4> w = float4(v, 4.0f);
    w.yw = w.wy;
    r.numbers[28] = w.y + 10.0f * w.w;
}

// Element (row, column) of a product with a transposed matrix, and of a diagonal one.
[[max_total_threads_per_threadgroup(32)]]
kernel void matrices(device const half *a [[buffer(0)]], device float *c [[buffer(1)]],
                     uint lane [[thread_index_in_simdgroup]])
{
    threadgroup half tile[64];
    tile[lane] = a[lane];
    tile[lane + 32u] = a[lane + 32u];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_half8x8 plain;
    simdgroup_half8x8 transposed;
    simdgroup_load(plain, tile, 8);
    simdgroup_load(transposed, tile, 8, ulong2(0, 0), true);
    simdgroup_float8x8 product;
    simdgroup_multiply(product, plain, transposed);
    simdgroup_float8x8 diagonal = simdgroup_float8x8(2.0f);
    simdgroup_multiply_accumulate(product, plain, diagonal, product);
    product.thread_elements() += float2(1.0f, 1.0f);
    simdgroup_store(product, c, 16, ulong2(8, 0));
}

// The largest value by compare and exchange, in memory of the threadgroup and of the device.
[[max_total_threads_per_threadgroup(64)]]
kernel void atomics(device atomic_uint *largest [[buffer(0)]], device atomic_int *sums [[buffer(1)]],
                    uint index [[thread_index_in_threadgroup]])
{
    threadgroup atomic_int count;
    if (index == 0u) {
        atomic_store_explicit(&count, 0, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint value = index * 37u % 64u;
    uint seen = atomic_load_explicit(largest, memory_order_relaxed);
    while (seen < value && !atomic_compare_exchange_weak_explicit(
                               largest, &seen, value, memory_order_relaxed, memory_order_relaxed)) {
    }
    atomic_fetch_max_explicit(&largest[1], value, memory_order_relaxed);
    atomic_fetch_sub_explicit(&count, 2, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index == 63u) {
        atomic_store_explicit(sums, atomic_load_explicit(&count, memory_order_relaxed),
                              memory_order_relaxed);
    }
}
