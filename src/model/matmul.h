/* Products with weights in ggml's types. */
#ifndef TKV_MODEL_MATMUL_H
#define TKV_MODEL_MATMUL_H

#include "common/threads.h"
#include "model/gguf.h"

/* y [n_rows][n_out] := x [n_rows][n_in] W^T, W a two-dimensional tensor [n_out][n_in] of any type
 * of dequantise.h. Many rows: tiles of W are dequantised and multiplied by the BLAS; few rows: W is
 * read once in its own type. Fails for other types and shapes and if
 * there is no memory for a tile. */
tkv_status tkv_matmul(const tkv_gguf_tensor *weight, int n_rows, const float *x, float *y,
                      tkv_threads *threads, tkv_error *error);

#endif
