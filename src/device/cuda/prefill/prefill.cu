/* Prefill attention: planning, the queries' preparation and the merge of partial results. The work
 * itself is in coded.cu and exact.cu. */
#include "device/cuda/prefill/job.cuh"

#include "device/cuda/base/head_dim.cuh"
#include "device/cuda/base/transform.cuh"
#include "device/cuda/heuristics.h"
#include "device/cuda/kernels_cuda.h"

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
                __float2half_rn(fminf(fmaxf(x[i], -half_max), half_max));
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
        bias = add_lanes(bias) * to_logits;
    }
    rotate_strided(x);
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
    }
    largest = max_lanes(largest);
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
        unrotate_strided(x);
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
        ((float *)job.params.log_sums)[query * job.params.n_heads + head] = log_sum(largest, total);
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

/* All of a plan but the addresses of the call. */
prefill_job make_plan(const tkv_device_attend &a, int n_multiprocessors)
{
    prefill_job job = {};
    job.params = a;
    job.group = a.n_heads / a.layer.n_kv_heads;
    job.n_rows = a.n_queries * job.group;
    job.n_row_tiles = (job.n_rows + cta_rows - 1) / cta_rows;
    const int64_t n_ctas = (int64_t)job.n_row_tiles * a.n_sequences * a.layer.n_kv_heads;
    job.n_splits[0] = choose_prefill_splits(n_ctas, a.max_tokens / page_tokens, n_multiprocessors);
    job.n_splits[1] = job.n_splits[0];
    job.has_coded = a.layer.type_k != TKV_TYPE_F16;
    job.has_exact = 1; /* only the device knows */
    job.key_bytes = (int)page_bytes(a.layer.type_k, a.layer.head_dim_k, page_tokens);
    job.value_bytes = (int)page_bytes(a.layer.type_v, a.layer.head_dim_v, page_tokens);
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
        at[i + 1] = at[i] + align_buffer(sizes[i]);
    }
    job->q8 = (int8_t *)at[0];
    job->q_scale = (float *)at[1];
    job->q_bias = (float *)at[2];
    job->q16 = (__half *)at[3];
    job->part_sums = (float *)at[4];
    job->part_stats = (float2 *)at[5];
    return at[6] - base;
}

} /* namespace */
} /* namespace tkv_cuda */

using namespace tkv_cuda;

bool tkv_cuda_prefills(const tkv_device_attend *params, int compute_major)
{
    const tkv_device_layer &layer = params->layer;
    const bool has_types = (has_byte_products(layer.type_k) && has_byte_products(layer.type_v)) ||
                           (layer.type_k == TKV_TYPE_F16 && layer.type_v == TKV_TYPE_F16);
    const int d = layer.head_dim_k;
    const int n_rows = params->n_queries * (params->n_heads / layer.n_kv_heads);
    return has_page_kernels && n_rows >= min_prefill_rows && compute_major == 9 && has_types &&
           layer.head_dim_v == d && with_head_dim(d, [](auto) {}) && params->scale >= 0.0f &&
           !params->stats && params->begin == 0 && params->end == 0;
}

static_assert(sizeof(prefill_job) <= sizeof(tkv_attend_plan::own), "it fits");

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
    cudaError_t error = cudaErrorInvalidValue;
    with_head_dim(own.params.layer.head_dim_k,
                  [&](auto size) { error = launch<decltype(size)::value>(own, stream); });
    return error;
}
