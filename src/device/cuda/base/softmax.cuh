/* Pieces of the online softmax. Logits are of base 2 throughout: one instruction makes a weight. */
#ifndef TKV_DEVICE_CUDA_BASE_SOFTMAX_CUH
#define TKV_DEVICE_CUDA_BASE_SOFTMAX_CUH

#include "device/cuda/base/warp.cuh"

namespace tkv_cuda
{

constexpr float log2_e = 1.44269504f; /* a logit's base 2 for base e */

/* Of a row that has met no token; below every logit, which logit_limit bounds. */
constexpr float no_maximum = -1e30f;
constexpr float logit_limit = 1e30f;

/* A soft cap: c * tanh(logit / c), with the cap in the base of the logit. */
__device__ __forceinline__ float cap_logit(float cap, float logit)
{
    return cap * tanhf(logit / cap);
}

/* Logarithm of the sum of a row's exponentials, of which `total` are relative to `maximum`. */
__device__ __forceinline__ float log_sum(float maximum, float total)
{
    return (maximum + log2f(total)) / log2_e;
}

} // namespace tkv_cuda

#endif
