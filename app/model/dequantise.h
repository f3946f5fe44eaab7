/* Weights in ggml's types to float. A row is cut into blocks of block_length values. */
#ifndef TKV_MODEL_DEQUANTISE_H
#define TKV_MODEL_DEQUANTISE_H

#include "model/gguf.h"

typedef enum tkv_weight_type {
    TKV_WEIGHT_F32 = 0,
    TKV_WEIGHT_F16 = 1,
    TKV_WEIGHT_Q4_0 = 2,
    TKV_WEIGHT_Q4_1 = 3,
    TKV_WEIGHT_Q5_0 = 6,
    TKV_WEIGHT_Q5_1 = 7,
    TKV_WEIGHT_Q8_0 = 8,
    TKV_WEIGHT_Q4_K = 12,
    TKV_WEIGHT_Q5_K = 13,
    TKV_WEIGHT_Q6_K = 14,
    TKV_WEIGHT_BF16 = 30
} tkv_weight_type;

typedef struct tkv_weight_format {
    tkv_weight_type type;
    const char *name;
    uint32_t block_length; /* values */
    uint32_t block_bytes;
    /* n is a multiple of block_length */
    void (*dequantise)(const void *blocks, size_t n, float *values);
} tkv_weight_format;

/* NULL if the type is not one of those above. Static storage. */
const tkv_weight_format *tkv_weight_format_get(uint32_t type);

/* "IQ4_XS", ... of any type that ggml has or had; "of an unknown type" for others. Static storage.
 */
const char *tkv_weight_type_name(uint32_t type);

/* Row `row` of a tensor, counted over all but the first dimension, to out [dims[0]]. */
tkv_status tkv_dequantise_tensor_row(const tkv_gguf_tensor *tensor, size_t row, float *out,
                                     tkv_error *error);

#endif
