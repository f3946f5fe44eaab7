/* The splits of a unit come together: flash decoding's second step, by the CTA that is done last,
 * so that there is no second kernel to wait for. */
#ifndef TKV_DEVICE_CUDA_DECODE_MERGE_CUH
#define TKV_DEVICE_CUDA_DECODE_MERGE_CUH

#include "device/cuda/decode/work.cuh"

namespace tkv_cuda
{

/* Sums of one row of one split, or of several joined. */
struct row_sums {
    float maximum, sum, coded_sum, unused;
};

/* Whether this CTA is the last of its unit to get here; all that the others wrote can be read: the
 * barrier and the ticket's release and acquire carry it. */
__device__ __forceinline__ bool is_last_part(const decode_job &job, const decode_work &work)
{
    __shared__ bool is_last;
    __syncthreads();
    if (work.n_active == 1) {
        return true;
    }
    if (threadIdx.x == 0) {
        const unsigned last = work.n_active - 1;
        unsigned ticket; /* goes back to 0 after the last */
        asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                     : "=r"(ticket)
                     : "l"(&job.counters[work.unit].ticket), "r"(last)
                     : "memory");
        is_last = ticket == last;
        if (is_last) {
            job.counters[work.unit].drawn = 0;
        }
    }
    __syncthreads();
    return is_last;
}

/* What the parts of a row count for. */
template <int Rows> struct part_factors {
    float factor[Rows][max_splits];
    float total[Rows]; /* of all weights */
    float coded[Rows]; /* of those of coded tokens */
};

template <int Rows>
__device__ __forceinline__ void weigh_parts(const decode_job &job, const decode_work &work, int r,
                                            part_factors<Rows> &factors)
{
    const int lane = threadIdx.x % 32;
    const int head = work.kv_head * work.group + (work.first_row + r) % work.group;
    const float sink =
        job.params.sinks ? ((const float *)job.params.sinks)[head] * log2_e : -CUDART_INF_F;
    const float4 *stats = (const float4 *)job.stats + (size_t)work.unit * job.n_splits * Rows + r;
    float4 part[max_splits / 32];
    float maximum = fmaxf(sink, no_maximum);
#pragma unroll
    for (int i = 0; i < max_splits / 32; i++) {
        const int s = 32 * i + lane;
        part[i] = s < work.n_active ? __ldcg(stats + (size_t)s * Rows)
                                    : make_float4(no_maximum, 0.0f, 0.0f, 0.0f);
        maximum = fmaxf(maximum, part[i].x);
    }
    maximum = max_lanes(maximum);
    float total = 0.0f;
    float coded = 0.0f;
#pragma unroll
    for (int i = 0; i < max_splits / 32; i++) {
        const float factor = part[i].y == 0.0f ? 0.0f : exp2_fast(part[i].x - maximum);
        total = fmaf(factor, part[i].y, total);
        coded = fmaf(factor, part[i].z, coded);
        factors.factor[r][32 * i + lane] = factor;
    }
    total = add_lanes(total);
    coded = add_lanes(coded);
    if (lane == 0) {
        factors.total[r] = total + exp2_fast(sink - maximum);
        factors.coded[r] = coded;
        if (job.params.log_sums && r < work.n_rows) {
            const int row = work.first_row + r;
            const size_t query = (size_t)blockIdx.z * job.params.n_queries + row / work.group;
            ((float *)job.params.log_sums)[query * job.params.n_heads + head] =
                log_sum(maximum, factors.total[r]);
        }
    }
}

/* Joins the parts of all rows: flash decoding's second step, in the CTA that came last. Bound by
 * the latency of the parts' loads, of which each thread has 8 in flight. */
template <int HeadDim, int RowTiles, int Warps>
__device__ __forceinline__ void merge_parts(const decode_job &job, const decode_work &work,
                                            float *shared)
{
    constexpr int n_rows = 4 * RowTiles;
    constexpr int n = HeadDim / 32;
    constexpr int columns = n_rows * HeadDim / 4; /* of 4 floats */
    constexpr int shares = Warps * 32 / columns > 0 ? Warps * 32 / columns : 1;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    float4 *sums = (float4 *)shared; /* [shares][columns] */
    auto &factors = *(part_factors<n_rows> *)(shared + shares * columns * 4);
    const float4 *parts = (const float4 *)job.sums + (size_t)work.unit * job.n_splits * columns;
    float4 four[8];
    const auto load_parts = [&](int at, int base) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int s = min(base + k * shares, work.n_active - 1);
            four[k] = __ldcg(parts + (size_t)s * columns + at % columns);
        }
    };
    load_parts(threadIdx.x, threadIdx.x / columns); /* they travel while factors are worked out */
    for (int r = warp; r < n_rows; r += Warps) {
        weigh_parts(job, work, r, factors);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < shares * columns; at += Warps * 32) {
        const float *factor = factors.factor[at % columns / (HeadDim / 4)];
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int base = at / columns; base < work.n_active; base += 8 * shares) {
            if (at != threadIdx.x || base != at / columns) {
                load_parts(at, base);
            }
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const int s = base + k * shares;
                const float f = s < work.n_active ? factor[s] : 0.0f;
                sum.x = fmaf(f, four[k].x, sum.x);
                sum.y = fmaf(f, four[k].y, sum.y);
                sum.z = fmaf(f, four[k].z, sum.z);
                sum.w = fmaf(f, four[k].w, sum.w);
            }
        }
        sums[at] = sum;
    }
    __syncthreads();
    for (int r = warp; r < work.n_rows; r += Warps) {
        float x[n] = {};
#pragma unroll
        for (int s = 0; s < shares; s++) {
            float part[n];
            load_runs(shared + (s * n_rows + r) * HeadDim, part);
#pragma unroll
            for (int j = 0; j < n; j++) {
                x[j] += part[j];
            }
        }
        unrotate_runs(x);
        float *out = output_of_row(job, work, r) + lane * n;
        const float *mean = (const float *)work.sequence.mean_v + work.kv_head * HeadDim + lane * n;
        const float inverse = factors.total[r] != 0.0f ? 1.0f / factors.total[r] : 0.0f;
#pragma unroll
        for (int j = 0; j < n; j++) {
            float value = x[j] * (1.0f / TKV_LEVEL_UNIT);
            if (work.sequence.mean_v) {
                value = fmaf(factors.coded[r], mean[j], value);
            }
            out[j] = value * inverse;
        }
    }
}

/* The same for parts that are in the domain of the output, of any head_dim. */
template <int Rows>
__device__ __forceinline__ void merge_plain_parts(const decode_job &job, const decode_work &work)
{
    const tkv_device_attend &p = job.params;
    const int d = p.layer.head_dim_v;
    __shared__ part_factors<Rows> factors;
    for (int r = threadIdx.x / 32; r < Rows; r += blockDim.x / 32) {
        weigh_parts(job, work, r, factors);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < work.n_rows * d; at += blockDim.x) {
        const int r = at / d;
        const float *part = job.sums + (size_t)work.unit * job.n_splits * Rows * d + at;
        float sum = 0.0f;
#pragma unroll 8
        for (int s = 0; s < work.n_active; s++) {
            sum = fmaf(factors.factor[r][s], __ldcg(part + (size_t)s * Rows * d), sum);
        }
        const float total = factors.total[r];
        output_of_row(job, work, r)[at % d] = total != 0.0f ? sum / total : 0.0f;
    }
}

} /* namespace tkv_cuda */

#endif
