/* A CUDA device, for those who launch kernels of their own on it. */
#ifndef TKV_DEVICE_CUDA_DEVICE_CUDA_H
#define TKV_DEVICE_CUDA_DEVICE_CUDA_H

#include "device/device.h"

#include <cuda_runtime_api.h>

extern const tkv_device_table tkv_device_table_cuda;

cudaStream_t tkv_cuda_stream(const tkv_device *device);

/* Makes a device current; afterwards the one that was current before is so again. */
typedef struct tkv_cuda_current {
    int previous;
    int index;
} tkv_cuda_current;

tkv_cuda_current tkv_cuda_enter(const tkv_device *device);
void tkv_cuda_leave(tkv_cuda_current current);

/* TKV_OK, or the failure in CUDA's own words, of what was being done. */
tkv_status tkv_cuda_check(cudaError_t result, const char *what, tkv_error *error);

#endif
