/* Matrix products by cuBLAS, which is loaded when it is first needed: the command starts without
 * it. */
#ifndef TKV_MODEL_CUDA_CUBLAS_H
#define TKV_MODEL_CUDA_CUBLAS_H

#include "turbokv.h"

#include <cuda_runtime_api.h>

typedef struct tkv_cublas tkv_cublas;

/* `workspace` is device memory that stays its: without one of the caller's it could not be captured
 * in a graph. The caller frees it with tkv_cublas_close. */
tkv_status tkv_cublas_open(cudaStream_t stream, void *workspace, size_t bytes, tkv_cublas **cublas,
                           tkv_error *error);
void tkv_cublas_close(tkv_cublas *cublas);

/* y [n_rows][n_out] := x [n_rows][n_in] w^T, w [n_out][n_in], both halves; sums in float. */
tkv_status tkv_cublas_multiply(tkv_cublas *cublas, int n_rows, int n_in, int n_out,
                               const uint16_t *x, const uint16_t *w, float *y, tkv_error *error);

#endif
