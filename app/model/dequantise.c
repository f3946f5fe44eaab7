/* ggml's weight formats. Layouts: https://github.com/ggml-org/ggml, ggml-common.h. */
#include "model/dequantise.h"

#include "model/dequantise_k.h"
#include "model/half.h"
#include "model/simd_clones.h"

#include <inttypes.h>
#include <string.h>

#define BLOCK 32

static void dequantise_f32(const void *blocks, size_t n, float *values)
{
    memcpy(values, blocks, n * sizeof *values);
}

TKV_SIMD_CLONES
static void dequantise_f16(const void *blocks, size_t n, float *values)
{
    const uint16_t *halves = blocks;
    for (size_t i = 0; i < n; i++) {
        values[i] = tkv_weight_from_half(halves[i]);
    }
}

TKV_SIMD_CLONES
static void dequantise_bf16(const void *blocks, size_t n, float *values)
{
    const uint16_t *halves = blocks;
    for (size_t i = 0; i < n; i++) {
        values[i] = tkv_weight_from_bfloat(halves[i]);
    }
}

/* half scale, int8 values[32] */
TKV_SIMD_CLONES
static void dequantise_q8_0(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += BLOCK, block += 34) {
        const float scale = tkv_weight_at(block);
        const int8_t *codes = (const int8_t *)block + 2;
        for (int j = 0; j < BLOCK; j++) {
            values[i + j] = scale * (float)codes[j];
        }
    }
}

/* half scale, 16 bytes: low nibbles are values 0-15, high nibbles 16-31 */
TKV_SIMD_CLONES
static void dequantise_q4_0(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += BLOCK, block += 18) {
        const float scale = tkv_weight_at(block);
        const uint8_t *codes = block + 2;
        for (int j = 0; j < BLOCK / 2; j++) {
            values[i + j] = scale * (float)((codes[j] & 15) - 8);
            values[i + j + BLOCK / 2] = scale * (float)((codes[j] >> 4) - 8);
        }
    }
}

/* half scale, half minimum, nibbles as in Q4_0 */
TKV_SIMD_CLONES
static void dequantise_q4_1(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += BLOCK, block += 20) {
        const float scale = tkv_weight_at(block);
        const float minimum = tkv_weight_at(block + 2);
        const uint8_t *codes = block + 4;
        for (int j = 0; j < BLOCK / 2; j++) {
            values[i + j] = scale * (float)(codes[j] & 15) + minimum;
            values[i + j + BLOCK / 2] = scale * (float)(codes[j] >> 4) + minimum;
        }
    }
}

/* Codes 0-31 of Q5_0 and Q5_1: 32 fifth bits, then nibbles as in Q4_0. */
static inline void unpack_five_bits(const uint8_t *at, int codes[BLOCK])
{
    uint32_t high;
    memcpy(&high, at, sizeof high);
    for (int j = 0; j < BLOCK / 2; j++) {
        codes[j] = (at[4 + j] & 15) | (int)(high >> j & 1u) << 4;
        codes[j + BLOCK / 2] = at[4 + j] >> 4 | (int)(high >> (j + BLOCK / 2) & 1u) << 4;
    }
}

TKV_SIMD_CLONES
static void dequantise_q5_0(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += BLOCK, block += 22) {
        const float scale = tkv_weight_at(block);
        int codes[BLOCK];
        unpack_five_bits(block + 2, codes);
        for (int j = 0; j < BLOCK; j++) {
            values[i + j] = scale * (float)(codes[j] - 16);
        }
    }
}

TKV_SIMD_CLONES
static void dequantise_q5_1(const void *blocks, size_t n, float *values)
{
    const uint8_t *block = blocks;
    for (size_t i = 0; i < n; i += BLOCK, block += 24) {
        const float scale = tkv_weight_at(block);
        const float minimum = tkv_weight_at(block + 2);
        int codes[BLOCK];
        unpack_five_bits(block + 4, codes);
        for (int j = 0; j < BLOCK; j++) {
            values[i + j] = scale * (float)codes[j] + minimum;
        }
    }
}

static const tkv_weight_format formats[] = {
    {TKV_WEIGHT_F32, "F32", 1, 4, dequantise_f32},
    {TKV_WEIGHT_F16, "F16", 1, 2, dequantise_f16},
    {TKV_WEIGHT_BF16, "BF16", 1, 2, dequantise_bf16},
    {TKV_WEIGHT_Q8_0, "Q8_0", BLOCK, 34, dequantise_q8_0},
    {TKV_WEIGHT_Q4_0, "Q4_0", BLOCK, 18, dequantise_q4_0},
    {TKV_WEIGHT_Q4_1, "Q4_1", BLOCK, 20, dequantise_q4_1},
    {TKV_WEIGHT_Q5_0, "Q5_0", BLOCK, 22, dequantise_q5_0},
    {TKV_WEIGHT_Q5_1, "Q5_1", BLOCK, 24, dequantise_q5_1},
    {TKV_WEIGHT_Q4_K, "Q4_K", TKV_K_BLOCK, 144, tkv_dequantise_q4_k},
    {TKV_WEIGHT_Q5_K, "Q5_K", TKV_K_BLOCK, 176, tkv_dequantise_q5_k},
    {TKV_WEIGHT_Q6_K, "Q6_K", TKV_K_BLOCK, 210, tkv_dequantise_q6_k},
};

const tkv_weight_format *tkv_weight_format_get(uint32_t type)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if ((uint32_t)formats[i].type == type) {
            return &formats[i];
        }
    }
    return NULL;
}

const char *tkv_weight_type_name(uint32_t type)
{
    static const char *const names[] = {
        "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
        "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
        "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
        "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
        "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
        "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",    "NVFP4",    "Q1_0",
        "Q2_0"};
    return type < sizeof names / sizeof *names ? names[type] : "of an unknown type";
}

tkv_status tkv_dequantise_tensor_row(const tkv_gguf_tensor *tensor, size_t row, float *out,
                                     tkv_error *error)
{
    const tkv_weight_format *format = tkv_weight_format_get(tensor->type);
    if (!format) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "tensor %.64s is %s (ggml type %" PRIu32
                        "): expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or "
                        "Q6_K",
                        tensor->name, tkv_weight_type_name(tensor->type), tensor->type);
    }
    const uint64_t n_rows = tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
    if (row >= n_rows) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "row %zu of tensor %.64s: it has %" PRIu64 " rows", row, tensor->name,
                        n_rows);
    }
    const size_t row_bytes = (size_t)tensor->dims[0] / format->block_length * format->block_bytes;
    format->dequantise((const uint8_t *)tensor->data + row * row_bytes, (size_t)tensor->dims[0],
                       out);
    return TKV_OK;
}
