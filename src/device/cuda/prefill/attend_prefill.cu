// Prefill attention: planning, the queries' preparation and the merge of partial results. The work
// itself is in attend_prefill_coded.cu and attend_prefill_exact.cu.
#include "device/cuda/prefill/attend_prefill.cuh"

#include "device/cuda/kernels_cuda.h"
#include "format/constants.h"

#include <string.h>

namespace tkv_prefill
{
namespace
{

constexpr int WARPS = 4; // a CTA of prepare and finish; a warp has one row

#ifdef TKV_HAVE_HOPPER
constexpr bool HAS_PAGE_KERNELS = true;
#else
constexpr bool HAS_PAGE_KERNELS = false; // nor are there launch_coded and launch_exact
#endif

__constant__ unsigned rotation_signs[2][32] = {TKV_ROTATION_SIGNS_0, TKV_ROTATION_SIGNS_1};

// Orthonormal Walsh-Hadamard transform of a row: a lane holds coordinates 32 i + lane.
template <int D> __device__ inline void transform(float (&x)[D / 32])
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int half = 1; half < 32; half *= 2) {
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            const float other = __shfl_xor_sync(~0u, x[i], half);
            x[i] = lane & half ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int half = 1; half < D / 32; half *= 2) {
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            if ((i & half) == 0) {
                const float a = x[i];
                const float b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        x[i] *= D == 64 ? 0.125f : D == 128 ? 0.08838834764831845f : 0.0625f;
    }
}

template <int D> __device__ inline void flip_signs(int round, float (&x)[D / 32])
{
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        x[i] = rotation_signs[round][i] >> (threadIdx.x & 31) & 1u ? -x[i] : x[i];
    }
}

__device__ inline float warp_max(float x)
{
    for (int i = 16; i > 0; i /= 2) {
        x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    }
    return x;
}

__device__ inline float warp_sum(float x)
{
    for (int i = 16; i > 0; i /= 2) {
        x += __shfl_xor_sync(~0u, x, i);
    }
    return x;
}

// Where coordinate j of an int8 query lies, so that it meets the keys' unpacked order.
__device__ inline int place_of(int j, bool natural)
{
    const int u = j & 15;
    return natural ? j : (j & ~15) + 4 * (u & 3) + (u >> 2);
}

template <int D>
__global__ void __launch_bounds__(WARPS * 32) prepare(const __grid_constant__ Plan plan)
{
    constexpr int N = D / 32;
    const int lane = threadIdx.x & 31;
    const int row = blockIdx.x * WARPS + threadIdx.x / 32;
    const int unit = blockIdx.y;
    const Unit u = unit_of(plan, unit);
    const tkv_device_sequence &sequence = sequence_of(plan, u.sequence);
    const size_t at = static_cast<size_t>(unit) * padded_rows(plan) + row;
    const bool is_real = row < plan.n_rows;
    const size_t query = static_cast<size_t>(u.sequence) * plan.a.n_queries + row / plan.group;
    const size_t head = static_cast<size_t>(u.kv_head) * plan.group + row % plan.group;
    const float *q =
        reinterpret_cast<const float *>(plan.a.q) + (query * plan.a.n_heads + head) * D;
    float x[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = is_real ? q[32 * i + lane] : 0.0f;
        if (plan.has_exact) {
            plan.q16[at * D + 32 * i + lane] =
                __float2half_rn(fminf(fmaxf(x[i], -65504.0f), 65504.0f));
        }
    }
    if (!plan.has_coded) {
        return;
    }
    const float to_logits = plan.a.scale * LOG2E;
    float bias = 0.0f;
    if (sequence.mean_k) {
        const float *mean = reinterpret_cast<const float *>(sequence.mean_k) + u.kv_head * D;
#pragma unroll
        for (int i = 0; i < N; i++) {
            bias += x[i] * mean[32 * i + lane];
        }
        bias = warp_sum(bias) * to_logits;
    }
    for (int round = 0; round < 2; round++) {
        flip_signs<D>(round, x);
        transform<D>(x);
    }
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
    }
    largest = warp_max(largest);
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    const bool natural = is_natural(plan.a.layer.type_k);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float scaled = fminf(fmaxf(x[i] * inverse, -127.0f), 127.0f);
        plan.q8[at * D + place_of(32 * i + lane, natural)] =
            static_cast<signed char>(__float2int_rn(scaled));
    }
    if (lane == 0) {
        // Never zero: what a row does not see has a score of -infinity, whatever its scale.
        plan.q_scale[at] = fmaxf(largest * (1.0f / 127.0f) * to_logits, 1e-30f);
        plan.q_bias[at] = bias;
    }
}

// The largest logit of a row over all partial results.
__device__ float largest_logit(const Plan &plan, int unit, int row)
{
    float largest = -INFINITY;
    for (int kind = 0; kind < 2; kind++) {
        for (int split = 0; (kind ? plan.has_exact : plan.has_coded) && split < plan.n_splits[kind];
             split++) {
            largest = fmaxf(largest, plan.part_stats[part_index(plan, unit, kind, split, row)].x);
        }
    }
    return largest;
}

// Adds the splits of one kind to x, relative to `largest`; returns the sum of their weights.
template <int D>
__device__ float merge_kind(const Plan &plan, int unit, int kind, int row, float largest,
                            float (&x)[D / 32])
{
    float total = 0.0f;
    for (int split = 0; split < plan.n_splits[kind]; split++) {
        const size_t part = part_index(plan, unit, kind, split, row);
        const float2 stats = plan.part_stats[part];
        if (stats.x == -INFINITY) {
            continue;
        }
        const float factor = exp2f(stats.x - largest);
        total += factor * stats.y;
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            x[i] += factor * plan.part_sums[part * D + 32 * i + (threadIdx.x & 31)];
        }
    }
    return total;
}

template <int D>
__global__ void __launch_bounds__(WARPS * 32) finish(const __grid_constant__ Plan plan)
{
    constexpr int N = D / 32;
    const int lane = threadIdx.x & 31;
    const int row = blockIdx.x * WARPS + threadIdx.x / 32;
    const int unit = blockIdx.y;
    if (row >= plan.n_rows) {
        return;
    }
    const Unit u = unit_of(plan, unit);
    const tkv_device_sequence &sequence = sequence_of(plan, u.sequence);
    const size_t query = static_cast<size_t>(u.sequence) * plan.a.n_queries + row / plan.group;
    const int head = u.kv_head * plan.group + row % plan.group;
    const float sink =
        plan.a.sinks ? reinterpret_cast<const float *>(plan.a.sinks)[head] * LOG2E : -INFINITY;
    const float largest = fmaxf(sink, largest_logit(plan, unit, row));
    float total = plan.a.sinks ? exp2f(sink - largest) : 0.0f;
    float x[N] = {};
    if (plan.has_coded) {
        const float coded = merge_kind<D>(plan, unit, 0, row, largest, x);
        total += coded;
        for (int round = 1; round >= 0; round--) {
            transform<D>(x);
            flip_signs<D>(round, x);
        }
        if (sequence.mean_v) {
            const float *mean = reinterpret_cast<const float *>(sequence.mean_v) + u.kv_head * D;
#pragma unroll
            for (int i = 0; i < N; i++) {
                x[i] += coded * mean[32 * i + lane];
            }
        }
    }
    if (plan.has_exact) {
        total += merge_kind<D>(plan, unit, 1, row, largest, x);
    }
    if (plan.a.log_sums && lane == 0) {
        reinterpret_cast<float *>(plan.a.log_sums)[query * plan.a.n_heads + head] =
            (largest + log2f(total)) / LOG2E;
    }
    float *out = reinterpret_cast<float *>(plan.a.out) + (query * plan.a.n_heads + head) * D;
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[32 * i + lane] = x[i] / total;
    }
}

template <int D> cudaError_t launch(const Plan &plan, cudaStream_t stream)
{
    const int n_units = plan.a.n_sequences * plan.a.layer.n_kv_heads;
    prepare<D><<<dim3(padded_rows(plan) / WARPS, n_units), WARPS * 32, 0, stream>>>(plan);
    cudaError_t error = cudaGetLastError();
    if constexpr (HAS_PAGE_KERNELS) {
        if (error == cudaSuccess && plan.has_coded) {
            error = launch_coded(plan, stream);
        }
        if (error == cudaSuccess && plan.has_exact) {
            error = launch_exact(plan, stream);
        }
    }
    if (error == cudaSuccess) {
        finish<D>
            <<<dim3((plan.n_rows + WARPS - 1) / WARPS, n_units), WARPS * 32, 0, stream>>>(plan);
        error = cudaGetLastError();
    }
    return error;
}

// Splits the context where there are fewer row tiles than the multiprocessors can hold.
int count_splits(const Plan &plan, int n_ctas_that_fit)
{
    const long long n_ctas =
        static_cast<long long>(plan.n_row_tiles) * plan.a.n_sequences * plan.a.layer.n_kv_heads;
    const int n_blocks = plan.a.max_tokens / PAGE;
    const int wanted = static_cast<int>(n_ctas_that_fit / (n_ctas > 0 ? n_ctas : 1));
    const int most = n_blocks / 8; // eight pages are worth a CTA
    const int n = wanted < most ? wanted : most;
    return n < 1 ? 1 : n;
}

constexpr size_t ALIGNMENT = 256;

// All of a plan but the addresses of the call.
Plan make_plan(const tkv_device_attend &a, int n_multiprocessors)
{
    Plan plan = {};
    plan.a = a;
    plan.group = a.n_heads / a.layer.n_kv_heads;
    plan.n_rows = a.n_queries * plan.group;
    plan.n_row_tiles = (plan.n_rows + CTA_ROWS - 1) / CTA_ROWS;
    plan.n_splits[0] = count_splits(plan, n_multiprocessors);
    plan.n_splits[1] = count_splits(plan, n_multiprocessors);
    plan.has_coded = a.layer.type_k != TKV_TYPE_F16;
    plan.has_exact = 1; // only the device knows
    return plan;
}

// Places the buffers from `base` on; returns their size.
size_t place_buffers(uint64_t base, Plan *plan)
{
    const tkv_device_attend &a = plan->a;
    const size_t units = static_cast<size_t>(a.n_sequences) * a.layer.n_kv_heads;
    const size_t rows = units * padded_rows(*plan);
    const size_t parts = rows * (plan->n_splits[0] + plan->n_splits[1]);
    const size_t head_dim = a.layer.head_dim_k;
    const size_t sizes[] = {rows * head_dim,
                            rows * sizeof(float),
                            rows * sizeof(float),
                            rows * head_dim * sizeof(__half),
                            parts * head_dim * sizeof(float),
                            parts * sizeof(float2)};
    uint64_t at[7] = {base};
    for (int i = 0; i < 6; i++) {
        at[i + 1] = at[i] + (sizes[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    plan->q8 = reinterpret_cast<signed char *>(at[0]);
    plan->q_scale = reinterpret_cast<float *>(at[1]);
    plan->q_bias = reinterpret_cast<float *>(at[2]);
    plan->q16 = reinterpret_cast<__half *>(at[3]);
    plan->part_sums = reinterpret_cast<float *>(at[4]);
    plan->part_stats = reinterpret_cast<float2 *>(at[5]);
    return at[6] - base;
}

bool is_coded_type(int type)
{
    return type != TKV_TYPE_F16 && type != TKV_TYPE_TURBO4Q && type != TKV_TYPE_TURBO3Q;
}

} // namespace
} // namespace tkv_prefill

using namespace tkv_prefill;

bool tkv_cuda_can_prefill(const tkv_device_attend *params, int compute_major)
{
    const tkv_device_layer &layer = params->layer;
    const bool has_types = (is_coded_type(layer.type_k) && is_coded_type(layer.type_v)) ||
                           (layer.type_k == TKV_TYPE_F16 && layer.type_v == TKV_TYPE_F16);
    const int d = layer.head_dim_k;
    return HAS_PAGE_KERNELS && compute_major == 9 && has_types && layer.head_dim_v == d &&
           (d == 64 || d == 128 || d == 256) && params->scale >= 0.0f && !params->stats &&
           params->begin == 0 && params->end == 0;
}

static_assert(sizeof(Plan) <= sizeof(tkv_attend_plan::own));

void tkv_cuda_plan_prefill(tkv_attend_plan *plan, int n_multiprocessors)
{
    Plan own = make_plan(plan->params, n_multiprocessors);
    plan->workspace_bytes = place_buffers(0, &own);
    memcpy(plan->own, &own, sizeof own);
}

cudaError_t tkv_cuda_attend_prefill(const tkv_attend_plan *plan, uint64_t workspace,
                                    cudaStream_t stream)
{
    Plan own;
    memcpy(&own, plan->own, sizeof own);
    own.a = plan->params;
    place_buffers(workspace, &own);
    switch (own.a.layer.head_dim_k) {
    case 64: return launch<64>(own, stream);
    case 128: return launch<128>(own, stream);
    default: return launch<256>(own, stream);
    }
}
