/* The small kernels of the forward pass. A row belongs to a token of the batch. Matrix products
 * take halves; where a row's values are too large for these it is stored divided by a power of two,
 * its scale [n_rows], which the reader of the product multiplies in again. */
#ifndef TKV_MODEL_CUDA_KERNELS_H
#define TKV_MODEL_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A product as it comes from the matrix multiplication: value = y * scale of its row + bias. */
typedef struct tkv_cuda_product {
    const float *y;     /* [n_rows][width] */
    const float *scale; /* [n_rows], of the input rows */
    const float *bias;  /* [width], or NULL */
} tkv_cuda_product;

/* Rows of halves with their scales. */
typedef struct tkv_cuda_halves {
    uint16_t *x;  /* [n_rows][width], the halves' bits */
    float *scale; /* [n_rows] */
} tkv_cuda_halves;

/* What the heads of a layer are. */
typedef struct tkv_cuda_heads {
    int n_heads;
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v;
    int rope_dim;
    bool is_interleaved;
    float rope_magnitude;
    const double *rope_frequencies; /* [rope_dim/2] */
    const float *query_norm;        /* [head_dim_k], or NULL */
    const float *key_norm;          /* likewise */
    float epsilon;
} tkv_cuda_heads;

/* residual [n_rows][width] := rows of the table, which holds halves */
cudaError_t tkv_cuda_embed(int n_rows, int width, const int32_t *tokens, const uint16_t *table,
                           float *residual, cudaStream_t stream);

/* residual += product (product->y NULL: nothing); out := residual / rms * weight */
cudaError_t tkv_cuda_add_and_norm(int n_rows, int width, const tkv_cuda_product *product,
                                  float *residual, const float *weight, float epsilon,
                                  const tkv_cuda_halves *out, cudaStream_t stream);

/* Queries, keys and values from their common product [n_rows][all heads, q then k then v]: bias,
 * norms and RoPE at positions *first_position + row. */
cudaError_t tkv_cuda_place_heads(int n_rows, const tkv_cuda_heads *heads,
                                 const tkv_cuda_product *product, const int32_t *first_position,
                                 float *q, float *k, float *v, cudaStream_t stream);

/* out := x */
cudaError_t tkv_cuda_halve(int n_rows, int width, const float *x, const tkv_cuda_halves *out,
                           cudaStream_t stream);

/* out [n_rows][width] := silu(gate) * up, both in one product [n_rows][gate then up] */
cudaError_t tkv_cuda_swiglu(int n_rows, int width, const tkv_cuda_product *product,
                            const tkv_cuda_halves *out, cudaStream_t stream);

/* y := the product, in place */
cudaError_t tkv_cuda_finish(int n_rows, int width, const tkv_cuda_product *product, float *y,
                            cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
