/* ggml's K-quants: blocks of 256 values with scales of their own for groups of 16 or 32. */
#ifndef TKV_MODEL_DEQUANTISE_K_H
#define TKV_MODEL_DEQUANTISE_K_H

#include <stddef.h>

#define TKV_K_BLOCK 256

/* n is a multiple of TKV_K_BLOCK. */
void tkv_dequantise_q4_k(const void *blocks, size_t n, float *values);
void tkv_dequantise_q5_k(const void *blocks, size_t n, float *values);
void tkv_dequantise_q6_k(const void *blocks, size_t n, float *values);

#endif
