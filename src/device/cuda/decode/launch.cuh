/* What decode.cu knows of the decode kernels in the other files. */
#ifndef TKV_DEVICE_CUDA_DECODE_LAUNCH_CUH
#define TKV_DEVICE_CUDA_DECODE_LAUNCH_CUH

#include "device/cuda/decode/rows.cuh"

namespace tkv_cuda
{

/* A kernel with what planning must know of it. */
struct decode_kernel {
    cudaError_t (*launch)(const decode_job &job, dim3 grid, cudaStream_t stream);
    int n_rows;  /* of a tile */
    int n_warps; /* of a CTA that take blocks on their own */
    int n_ctas;  /* a multiprocessor */
    int shared_bytes;
};

/* For pages of one type and a head_dim of 64, 128 or 256; launch is NULL if there is none. */
decode_kernel find_paged_kernel(const tkv_device_layer &layer, int n_rows);

/* For head_dim 128 and values of fewer bits than the keys have. */
decode_kernel find_mixed_kernel(const tkv_device_layer &layer);

/* For everything. */
decode_kernel find_any_kernel(const tkv_device_layer &layer);

} /* namespace tkv_cuda */

#endif
