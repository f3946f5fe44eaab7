/* Products with weights in ggml's types. */
#ifndef TKV_MODEL_MATMUL_H
#define TKV_MODEL_MATMUL_H

#include "model/blas.h"
#include "model/gguf.h"

/* What products are computed with. */
typedef struct tkv_matmul_means {
    const tkv_context *context; /* its threads, and whether to stop; NULL: the caller alone */
    const tkv_blas *blas;       /* NULL: none, many rows are taken as groups of few */
} tkv_matmul_means;

/* y [n_rows][n_out] := x [n_rows][n_in] W^T, W a two-dimensional tensor [n_out][n_in] of any type
 * of dequantise.h. Many rows: tiles of W are dequantised and multiplied by the BLAS; few rows: W is
 * read once in its own type. Fails for other types and shapes, if there is no memory for a tile,
 * and with TKV_ERR_INTERRUPTED if the context says so meanwhile. */
tkv_status tkv_matmul(const tkv_gguf_tensor *weight, int n_rows, const float *x, float *y,
                      const tkv_matmul_means *means, tkv_error *error);

#endif
