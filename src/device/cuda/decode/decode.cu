/* Plans and launches of decode attention: which kernel, how many splits, where the workspace lies.
 */
#include "device/cuda/base/page.cuh"
#include "device/cuda/decode/launch.cuh"
#include "device/cuda/decode/merge.cuh"
#include "device/cuda/heuristics.h"
#include "device/cuda/kernels_cuda.h"

#include <string.h>

namespace tkv_cuda
{
namespace
{

/* Of a kernel, beside what it asks for at its launch: no more than this. */
constexpr int static_shared_bytes = 1024;

/* Whether the device has the shared memory; sm_86 and its like have less than half of Hopper's. */
bool fits(const decode_kernel &kernel)
{
    int device = 0;
    int bytes = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
               cudaSuccess &&
           kernel.shared_bytes + static_shared_bytes <= bytes;
}

decode_kernel find_kernel(const tkv_device_attend &params)
{
    const tkv_device_layer &layer = params.layer;
    const int n_rows = params.n_queries * (params.n_heads / layer.n_kv_heads);
    const decode_kernel kernel =
        layer.type_k == layer.type_v ? find_paged_kernel(layer, n_rows) : find_mixed_kernel(layer);
    return kernel.launch && fits(kernel) ? kernel : find_any_kernel(layer);
}

/* Hopper and newer can launch a kernel before the one before it has ended. Only code for them waits
 * for that one (await_launch): they may be running Ampere's. */
bool has_early_launches()
{
    int version = 0;
    return tkv_cuda_code_version(&version) == cudaSuccess && version >= 90;
}

/* A plan's own part. */
struct decode_plan {
    decode_kernel kernel;
    decode_job job; /* but for addresses */
    size_t sums_at; /* in the workspace */
};

static_assert(sizeof(decode_plan) <= sizeof(tkv_attend_plan::own), "it fits");

decode_plan plan_job(const tkv_device_attend &params, const decode_kernel &kernel,
                     int n_multiprocessors, size_t *bytes)
{
    const tkv_device_layer &layer = params.layer;
    const int group = params.n_heads / layer.n_kv_heads;
    const int n_rows = params.n_queries * group;
    decode_job job = {};
    job.group = group;
    job.n_tiles = (n_rows + kernel.n_rows - 1) / kernel.n_rows;
    job.blocks_a_split = kernel.n_warps;
    job.is_early = has_early_launches();
    const int n_units = params.n_sequences * layer.n_kv_heads * job.n_tiles;
    const int n_blocks = (params.max_tokens + page_tokens - 1) / page_tokens + 1;
    job.n_splits =
        choose_decode_splits(n_units, n_blocks, kernel.n_warps, kernel.n_ctas * n_multiprocessors);
    if ((size_t)n_units * sizeof(unit_counters) > TKV_CUDA_ATTEND_COUNTER_BYTES) {
        job.n_splits = 1; /* so many units fill the device, and need no counters */
    }
    const size_t n_parts = (size_t)n_units * job.n_splits * kernel.n_rows;
    const size_t sums_at = align_buffer(n_parts * sizeof(row_sums));
    *bytes = sums_at + align_buffer(n_parts * layer.head_dim_v * sizeof(float));
    return {kernel, job, sums_at};
}

} /* namespace */
} /* namespace tkv_cuda */

using namespace tkv_cuda;

void tkv_cuda_plan_decode(tkv_attend_plan *plan, int n_multiprocessors)
{
    tkv_device_attend &params = plan->params;
    if (params.scale == 0.0f) {
        params.scale = 1.0f / sqrtf((float)params.layer.head_dim_k);
    }
    const decode_plan own =
        plan_job(params, find_kernel(params), n_multiprocessors, &plan->workspace_bytes);
    memcpy(plan->own, &own, sizeof own);
}

cudaError_t tkv_cuda_attend_decode(const tkv_attend_plan *plan, uint64_t workspace, void *counters,
                                   cudaStream_t stream)
{
    decode_plan own;
    memcpy(&own, plan->own, sizeof own);
    decode_job &job = own.job;
    job.params = plan->params;
    job.stats = (float *)workspace;
    job.sums = (float *)(workspace + own.sums_at);
    job.counters = (unit_counters *)counters;
    /* Neighbours among CTAs get the same share of the memory, some 20 % more or less than others:
     * so they are of different units, and each unit has some of all. */
    const dim3 grid(job.params.layer.n_kv_heads * job.n_tiles, job.n_splits,
                    job.params.n_sequences);
    return own.kernel.launch(job, grid, stream);
}
