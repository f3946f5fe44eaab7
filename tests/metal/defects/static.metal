// Pieces that the gates before execution must refuse, or accept. A line "//= GATE: TEXT" begins a piece
// and says which gate is to report what; "//= accepted" that none may. BODY(...) is a kernel's body.
#include <metal_stdlib>
using namespace metal;
#define BODY(...) \
    [[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[buffer(0)]], \
        constant uint &n [[buffer(1)]], uint i [[thread_position_in_grid]]) { __VA_ARGS__ }

//= accepted
struct Pair { float a; uint b; };
static Pair twice(Pair p) { p.a *= 2.0f; return p; }
static float first(thread const float *values) { return values[0]; }
template <typename T> static T scaled(device const T *values, uint i) { return values[i] * T(2); }
constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
struct Table { device Pair *pairs; constant Pair *fixed; };
struct Sum { float total; void add(float x) { total += x; } };
[[max_total_threads_per_threadgroup(64)]] kernel void k(device Pair *pairs [[buffer(0)]],
    device const Table &tables [[buffer(1)]], constant Pair &fixed [[buffer(2)]],
    threadgroup half4 *halves [[threadgroup(0)]],
    ushort3 position [[threadgroup_position_in_grid]], ushort lane [[thread_index_in_simdgroup]])
{
    threadgroup Pair shared[2];
    shared[0] = pairs[position.x];
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    Pair mine = twice(shared[0]);
    const float values[2] = {mine.a, table[lane % 4]};
    mine.a = first(values) + float(halves[0].x) + fixed.a;
    device Pair *target = tables.pairs + position.y;
    *target = mine;
    device const float *floats = reinterpret_cast<device const float *>(pairs);
    Sum sum;
    sum.total = 0.0f;
    sum.add(1.0f);
    pairs[1].a = sum.total + scaled(floats, 2u) + select(1.0f, 2.0f, mine.b > 3u);
}

//= accepted
// A constant that only the host knows, in conditions and loops.
constant bool flag [[function_constant(0)]];
constant ushort width [[function_constant(3)]];
constant bool has_width = is_function_constant_defined(width);
BODY(if (flag) { for (ushort j = 0; j < width; j++) { x[i] += 1.0h * half(j); } })

//= front end: from incompatible type
BODY(device float *p = x; threadgroup float t[4]; p = t; t[0] = n;)

//= front end: non-kernel function variable
BODY(x[i] = n;) static float helper() { threadgroup float tile[4]; return tile[0]; }

//= front end: initializer
BODY(threadgroup float tile[4] = {1.0f}; x[i] = tile[n];)

//= front end: constant address space
float global_value; BODY(x[i] = global_value + n;)

//= front end: read-only
constant float fixed[2] = {1.0f, 2.0f}; BODY(fixed[0] = x[i] + n;)

//= front end: virtual
struct A { virtual float f() { return 1.0f; } }; BODY(A a; x[i] = a.f() + n;)

//= front end: error
BODY(x[i] = half4(1.0h).x + float4(1.0f) + half4(1.0h);)

//= front end: error
#include <math.h>
BODY(x[i] = n;)

//= front end: undeclared
BODY(x[i] = __shfl_xor_sync(~0u, x[i], 1) + n;)

//= front end: undeclared
BODY(x[i] = get_global_id(0) + n;)

//= front end: no member named
struct Block { float d; }; BODY(Block b; x[i] = b.scale + n;)

//= front end: no matching function
BODY(x[i] = simd_sum(ulong(n));)

//= front end: no matching function
BODY(x[i] = simd_shuffle_xor(n > 1u, ushort(1));)

//= front end: no matching function
BODY(x[i] = max(n, 1);)

//= front end: double
BODY(double d = 1.0; x[i] = float(d) + n;)

//= front end: unused
BODY(float unused = x[i] + n;)

//= lint: no address space: p
static float load(const float *p) { return p[0]; } BODY(thread float y = n; x[i] = load(&y);)

//= lint: no address space: p
BODY(float y = n; float *p = &y; x[i] = *p;)

//= lint: no address space: p
template <typename T> static T load(T *p) { return p[0]; } BODY(float y[1] = {float(n)}; x[i] = load<float>(y);)

//= lint: no address space: r
static void twice(float &r) { r *= 2.0f; } BODY(float y = n; twice(y); x[i] = y;)

//= lint: no address space: cast
BODY(uint y = n; x[i] = *(float *)&y;)

//= lint: no address space: pointer
struct View { float *pointer; }; BODY(float y = n; View v; v.pointer = &y; x[i] = *v.pointer;)

//= lint: goto
BODY(again: x[i] += 1.0f; if (x[i] < n) goto again;)

//= lint: lambda
BODY(auto f = [](float y) { return y; }; x[i] = f(n);)

//= lint: recursion of down
static uint down(uint m) { return m == 0u ? 0u : down(m - 1u); } BODY(x[i] = down(n);)

//= lint: calls kernel
BODY(x[i] = n;) [[max_total_threads_per_threadgroup(32)]] kernel void l(device float *y [[buffer(0)]],
    constant uint &n [[buffer(1)]]) { k(y, n, 0u); }

//= lint: no function __builtin_popcount
BODY(x[i] = __builtin_popcount(n);)

//= lint: no function expf
BODY(x[i] = expf(x[n]);)

//= lint: has type __private _Float16
BODY(_Float16 y = x[n]; x[i] = y;)

//= lint: has type __private __int128
BODY(__int128 y = n; x[i] = (float)y;)

//= lint: reserves the name 'fragment'
BODY(float fragment = n; x[i] = fragment;)

//= lint: get: a method of an object in __global memory
struct A { float a; float get() const { return a; } }; BODY(device A *p = (device A *)x; x[i] = p->get() + n;)

//= lint: inherits
struct A { float a; }; struct B : A { float b; }; BODY(B b; b.a = n; x[i] = b.a;)

//= lint: the condition of ?: is a vector
BODY(float4 y = float4(x[i]); y = (y > float4(1.0f)) ? y : float4(n); x[i] = y.x;)

//= lint: for a vector, Metal takes the last of the list
BODY(float4 y = (float4)(x[i], x[i], x[i], x[n]); x[i] = y.x;)

//= lint: elements of a vector are x, y, z, w
BODY(float4 y = float4(x[n]); x[i] = y.lo.x;)

//= C++14: extension
BODY(if constexpr (sizeof(float) == 4) { x[i] = n; })

//= C++14: extension
inline constant float y = 1.0f; BODY(x[i] = y + n;)

//= C++14: extension
BODY(if (uint y = n; y > 1u) { x[i] = y; })

//= front end: not a constant expression
constant uint length_of [[function_constant(0)]]; BODY(float y[length_of]; y[0] = n; x[i] = y[0];)

//= signatures: index 0 of buffer is used twice
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[buffer(0)]], device float *y [[buffer(0)]]) { x[0] = y[0]; }

//= signatures: has 0 attributes
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x) { x[0] = 1.0f; }

//= signatures: expected a pointer or reference to __local memory
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[threadgroup(0)]]) { x[0] = 1.0f; }

//= signatures: expected a pointer or reference to __global or __constant memory
[[max_total_threads_per_threadgroup(32)]] kernel void k(threadgroup float *x [[buffer(0)]]) { x[0] = 1.0f; }

//= signatures: has type int
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[buffer(0)]], int i [[thread_position_in_grid]]) { x[i] = 1.0f; }

//= signatures: positions and sizes of different types
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]],
    uint3 n [[threads_per_grid]]) { x[i] = n.x; }

//= signatures: unknown attribute [[thread_index]]
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[buffer(0)]], uint i [[thread_index]]) { x[i] = 1.0f; }

//= signatures: expected an index below 31
[[max_total_threads_per_threadgroup(32)]] kernel void k(device float *x [[buffer(31)]]) { x[0] = 1.0f; }

//= signatures: no [[max_total_threads_per_threadgroup(N)]]
kernel void k(device float *x [[buffer(0)]]) { x[0] = 1.0f; }

//= signatures: expected a multiple of 32
[[max_total_threads_per_threadgroup(48)]] kernel void k(device float *x [[buffer(0)]]) { x[0] = 1.0f; }

//= signatures: share index 2
constant bool a [[function_constant(2)]]; constant bool b [[function_constant(2)]]; BODY(x[i] = a && b ? 1.0f : n;)

//= front end: conflicting types for 'k'
BODY(x[i] = n;) [[max_total_threads_per_threadgroup(32)]] kernel void k(device uint *x [[buffer(0)]]) { x[0] = 1u; }

//= signatures: 65536 bytes of threadgroup memory
BODY(threadgroup float tile[16384]; tile[i] = x[i]; threadgroup_barrier(mem_flags::mem_threadgroup); x[i] = tile[i ^ 1u] + n;)
