/* Prefill attention: planning, the queries' preparation and the merge of partial results. The work
 * itself is in attend_prefill_coded.cu and attend_prefill_exact.cu. */
#include "device/cuda/prefill/attend_prefill.cuh"

#include "device/cuda/kernels_cuda.h"
#include "format/constants.h"

#include <string.h>

namespace tkv_cuda
{
namespace
{

constexpr int row_warps = 4; /* a CTA of prepare and finish; a warp has one row */

#ifdef TKV_HAVE_HOPPER
constexpr bool has_page_kernels = true;
#else
constexpr bool has_page_kernels =
    false; /* nor are there launch_prefill_coded and launch_prefill_exact */
#endif

__constant__ uint32_t rotation_signs[2][32] = {TKV_ROTATION_SIGNS_0, TKV_ROTATION_SIGNS_1};

/* Orthonormal Walsh-Hadamard transform of a row: a lane holds coordinates 32 i + lane. */
template <int HeadDim> __device__ inline void transform(float (&x)[HeadDim / 32])
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int half = 1; half < 32; half *= 2) {
#pragma unroll
        for (int i = 0; i < HeadDim / 32; i++) {
            const float other = __shfl_xor_sync(full_warp, x[i], half);
            x[i] = lane & half ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int half = 1; half < HeadDim / 32; half *= 2) {
#pragma unroll
        for (int i = 0; i < HeadDim / 32; i++) {
            if ((i & half) == 0) {
                const float a = x[i];
                const float b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < HeadDim / 32; i++) {
        x[i] *= HeadDim == 64 ? 0.125f : HeadDim == 128 ? 0.08838834764831845f : 0.0625f;
    }
}

template <int HeadDim> __device__ inline void flip_signs(int round, float (&x)[HeadDim / 32])
{
#pragma unroll
    for (int i = 0; i < HeadDim / 32; i++) {
        x[i] = rotation_signs[round][i] >> (threadIdx.x & 31) & 1u ? -x[i] : x[i];
    }
}

__device__ inline float warp_max(float x)
{
    for (int i = 16; i > 0; i /= 2) {
        x = fmaxf(x, __shfl_xor_sync(full_warp, x, i));
    }
    return x;
}

__device__ inline float warp_sum(float x)
{
    for (int i = 16; i > 0; i /= 2) {
        x += __shfl_xor_sync(full_warp, x, i);
    }
    return x;
}

/* Where coordinate j of an int8 query lies, so that it meets the keys' unpacked order. */
__device__ inline int place_of(int j, bool natural)
{
    const int u = j & 15;
    return natural ? j : (j & ~15) + 4 * (u & 3) + (u >> 2);
}

template <int HeadDim>
__global__ void __launch_bounds__(row_warps * 32) prepare(const __grid_constant__ prefill_job job)
{
    constexpr int N = HeadDim / 32;
    const int lane = threadIdx.x & 31;
    const int row = blockIdx.x * row_warps + threadIdx.x / 32;
    const int unit = blockIdx.y;
    const unit_place u = unit_of(job, unit);
    const tkv_device_sequence &sequence = sequence_of(job, u.sequence);
    const size_t at = (size_t)unit * padded_rows(job) + row;
    const bool is_real = row < job.n_rows;
    const size_t query = (size_t)u.sequence * job.params.n_queries + row / job.group;
    const size_t head = (size_t)u.kv_head * job.group + row % job.group;
    const float *q = (const float *)job.params.q + (query * job.params.n_heads + head) * HeadDim;
    float x[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = is_real ? q[32 * i + lane] : 0.0f;
        if (job.has_exact) {
            job.q16[at * HeadDim + 32 * i + lane] =
                __float2half_rn(fminf(fmaxf(x[i], -65504.0f), 65504.0f));
        }
    }
    if (!job.has_coded) {
        return;
    }
    const float to_logits = job.params.scale * log2_e;
    float bias = 0.0f;
    if (sequence.mean_k) {
        const float *mean = (const float *)sequence.mean_k + u.kv_head * HeadDim;
#pragma unroll
        for (int i = 0; i < N; i++) {
            bias += x[i] * mean[32 * i + lane];
        }
        bias = warp_sum(bias) * to_logits;
    }
    for (int round = 0; round < 2; round++) {
        flip_signs<HeadDim>(round, x);
        transform<HeadDim>(x);
    }
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
    }
    largest = warp_max(largest);
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    const bool natural = is_natural(job.params.layer.type_k);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float scaled = fminf(fmaxf(x[i] * inverse, -127.0f), 127.0f);
        job.q8[at * HeadDim + place_of(32 * i + lane, natural)] = (int8_t)__float2int_rn(scaled);
    }
    if (lane == 0) {
        /* Never zero: what a row does not see has a score of -infinity, whatever its scale. */
        job.q_scale[at] = fmaxf(largest * (1.0f / 127.0f) * to_logits, 1e-30f);
        job.q_bias[at] = bias;
    }
}

/* The largest logit of a row over all partial results. */
__device__ float largest_logit(const prefill_job &job, int unit, int row)
{
    float largest = -INFINITY;
    for (int kind = 0; kind < 2; kind++) {
        for (int split = 0; (kind ? job.has_exact : job.has_coded) && split < job.n_splits[kind];
             split++) {
            largest = fmaxf(largest, job.part_stats[part_index(job, unit, kind, split, row)].x);
        }
    }
    return largest;
}

/* Adds the splits of one kind to x, relative to `largest`; returns the sum of their weights. */
template <int HeadDim>
__device__ float merge_kind(const prefill_job &job, int unit, int kind, int row, float largest,
                            float (&x)[HeadDim / 32])
{
    float total = 0.0f;
    for (int split = 0; split < job.n_splits[kind]; split++) {
        const size_t part = part_index(job, unit, kind, split, row);
        const float2 stats = job.part_stats[part];
        if (stats.x == -INFINITY) {
            continue;
        }
        const float factor = exp2f(stats.x - largest);
        total += factor * stats.y;
#pragma unroll
        for (int i = 0; i < HeadDim / 32; i++) {
            x[i] += factor * job.part_sums[part * HeadDim + 32 * i + (threadIdx.x & 31)];
        }
    }
    return total;
}

template <int HeadDim>
__global__ void __launch_bounds__(row_warps * 32) finish(const __grid_constant__ prefill_job job)
{
    constexpr int N = HeadDim / 32;
    const int lane = threadIdx.x & 31;
    const int row = blockIdx.x * row_warps + threadIdx.x / 32;
    const int unit = blockIdx.y;
    if (row >= job.n_rows) {
        return;
    }
    const unit_place u = unit_of(job, unit);
    const tkv_device_sequence &sequence = sequence_of(job, u.sequence);
    const size_t query = (size_t)u.sequence * job.params.n_queries + row / job.group;
    const int head = u.kv_head * job.group + row % job.group;
    const float sink =
        job.params.sinks ? ((const float *)job.params.sinks)[head] * log2_e : -INFINITY;
    const float largest = fmaxf(sink, largest_logit(job, unit, row));
    float total = job.params.sinks ? exp2f(sink - largest) : 0.0f;
    float x[N] = {};
    if (job.has_coded) {
        const float coded = merge_kind<HeadDim>(job, unit, 0, row, largest, x);
        total += coded;
        for (int round = 1; round >= 0; round--) {
            transform<HeadDim>(x);
            flip_signs<HeadDim>(round, x);
        }
        if (sequence.mean_v) {
            const float *mean = (const float *)sequence.mean_v + u.kv_head * HeadDim;
#pragma unroll
            for (int i = 0; i < N; i++) {
                x[i] += coded * mean[32 * i + lane];
            }
        }
    }
    if (job.has_exact) {
        total += merge_kind<HeadDim>(job, unit, 1, row, largest, x);
    }
    if (job.params.log_sums && lane == 0) {
        ((float *)job.params.log_sums)[query * job.params.n_heads + head] =
            (largest + log2f(total)) / log2_e;
    }
    float *out = (float *)job.params.out + (query * job.params.n_heads + head) * HeadDim;
#pragma unroll
    for (int i = 0; i < N; i++) {
        out[32 * i + lane] = x[i] / total;
    }
}

template <int HeadDim> cudaError_t launch(const prefill_job &job, cudaStream_t stream)
{
    const int n_units = job.params.n_sequences * job.params.layer.n_kv_heads;
    prepare<HeadDim>
        <<<dim3(padded_rows(job) / row_warps, n_units), row_warps * 32, 0, stream>>>(job);
    cudaError_t error = cudaGetLastError();
    if constexpr (has_page_kernels) {
        if (error == cudaSuccess && job.has_coded) {
            error = launch_prefill_coded(job, stream);
        }
        if (error == cudaSuccess && job.has_exact) {
            error = launch_prefill_exact(job, stream);
        }
    }
    if (error == cudaSuccess) {
        finish<HeadDim><<<dim3((job.n_rows + row_warps - 1) / row_warps, n_units), row_warps * 32,
                          0, stream>>>(job);
        error = cudaGetLastError();
    }
    return error;
}

/* Splits the context where there are fewer row tiles than the multiprocessors can hold. */
int count_splits(const prefill_job &job, int n_ctas_that_fit)
{
    const int64_t n_ctas =
        (int64_t)job.n_row_tiles * job.params.n_sequences * job.params.layer.n_kv_heads;
    const int n_blocks = job.params.max_tokens / page_tokens;
    const int wanted = (int)(n_ctas_that_fit / (n_ctas > 0 ? n_ctas : 1));
    const int most = n_blocks / 8; /* eight pages are worth a CTA */
    const int n = wanted < most ? wanted : most;
    return n < 1 ? 1 : n;
}

constexpr size_t alignment = 256;

/* All of a plan but the addresses of the call. */
prefill_job make_plan(const tkv_device_attend &a, int n_multiprocessors)
{
    prefill_job job = {};
    job.params = a;
    job.group = a.n_heads / a.layer.n_kv_heads;
    job.n_rows = a.n_queries * job.group;
    job.n_row_tiles = (job.n_rows + cta_rows - 1) / cta_rows;
    job.n_splits[0] = count_splits(job, n_multiprocessors);
    job.n_splits[1] = count_splits(job, n_multiprocessors);
    job.has_coded = a.layer.type_k != TKV_TYPE_F16;
    job.has_exact = 1; /* only the device knows */
    return job;
}

/* Places the buffers from `base` on; returns their size. */
size_t place_buffers(uint64_t base, prefill_job *job)
{
    const tkv_device_attend &a = job->params;
    const size_t units = (size_t)a.n_sequences * a.layer.n_kv_heads;
    const size_t rows = units * padded_rows(*job);
    const size_t parts = rows * (job->n_splits[0] + job->n_splits[1]);
    const size_t head_dim = a.layer.head_dim_k;
    const size_t sizes[] = {rows * head_dim,
                            rows * sizeof(float),
                            rows * sizeof(float),
                            rows * head_dim * sizeof(__half),
                            parts * head_dim * sizeof(float),
                            parts * sizeof(float2)};
    uint64_t at[7] = {base};
    for (int i = 0; i < 6; i++) {
        at[i + 1] = at[i] + (sizes[i] + alignment - 1) / alignment * alignment;
    }
    job->q8 = (int8_t *)at[0];
    job->q_scale = (float *)at[1];
    job->q_bias = (float *)at[2];
    job->q16 = (__half *)at[3];
    job->part_sums = (float *)at[4];
    job->part_stats = (float2 *)at[5];
    return at[6] - base;
}

bool is_coded_type(int type)
{
    return type != TKV_TYPE_F16 && type != TKV_TYPE_TURBO4Q && type != TKV_TYPE_TURBO3Q;
}

} /* namespace */
} /* namespace tkv_cuda */

using namespace tkv_cuda;

bool tkv_cuda_can_prefill(const tkv_device_attend *params, int compute_major)
{
    const tkv_device_layer &layer = params->layer;
    const bool has_types = (is_coded_type(layer.type_k) && is_coded_type(layer.type_v)) ||
                           (layer.type_k == TKV_TYPE_F16 && layer.type_v == TKV_TYPE_F16);
    const int d = layer.head_dim_k;
    return has_page_kernels && compute_major == 9 && has_types && layer.head_dim_v == d &&
           (d == 64 || d == 128 || d == 256) && params->scale >= 0.0f && !params->stats &&
           params->begin == 0 && params->end == 0;
}

static_assert(sizeof(prefill_job) <= sizeof(tkv_attend_plan::own));

void tkv_cuda_plan_prefill(tkv_attend_plan *plan, int n_multiprocessors)
{
    prefill_job own = make_plan(plan->params, n_multiprocessors);
    plan->workspace_bytes = place_buffers(0, &own);
    memcpy(plan->own, &own, sizeof own);
}

cudaError_t tkv_cuda_attend_prefill(const tkv_attend_plan *plan, uint64_t workspace,
                                    cudaStream_t stream)
{
    prefill_job own;
    memcpy(&own, plan->own, sizeof own);
    own.params = plan->params;
    place_buffers(workspace, &own);
    switch (own.params.layer.head_dim_k) {
    case 64: return launch<64>(own, stream);
    case 128: return launch<128>(own, stream);
    default: return launch<256>(own, stream);
    }
}
