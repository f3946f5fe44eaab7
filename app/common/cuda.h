/* The CUDA device of a context, for kernels and graphs beside the library's. */
#ifndef TKV_COMMON_CUDA_H
#define TKV_COMMON_CUDA_H

#include "turbokv.h"

#include <cuda_runtime_api.h>

static inline cudaStream_t tkv_stream_of(const tkv_context *context)
{
    return (cudaStream_t)tkv_context_stream(context);
}

/* Makes a context's device current; afterwards the one that was current before is so again. */
typedef struct tkv_current_device {
    int previous;
    int index;
} tkv_current_device;

static inline tkv_current_device tkv_enter_device(const tkv_context *context)
{
    tkv_current_device current = {.index = tkv_context_device_index(context)};
    if (cudaGetDevice(&current.previous) != cudaSuccess) {
        current.previous = current.index;
    }
    if (current.previous != current.index) {
        cudaSetDevice(current.index);
    }
    return current;
}

static inline void tkv_leave_device(tkv_current_device current)
{
    if (current.previous != current.index) {
        cudaSetDevice(current.previous);
    }
}

/* TKV_OK, or the failure in CUDA's own words, of what was being done. */
static inline tkv_status tkv_check_cuda(cudaError_t result, const char *what, tkv_error *error)
{
    if (result == cudaSuccess) {
        return TKV_OK;
    }
    (void)cudaGetLastError(); /* errors that do not last are forgotten */
    return tkv_fail(
        error, result == cudaErrorMemoryAllocation ? TKV_ERR_OUT_OF_MEMORY : TKV_ERR_DEVICE,
        "CUDA, %s: %s (%s)", what, cudaGetErrorString(result), cudaGetErrorName(result));
}

#endif
