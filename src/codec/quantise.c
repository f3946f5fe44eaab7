#include "codec/codec.h"
#include "common/half.h"

#include <math.h>
#include <string.h>

/* Below TINY a row's scale rounds to zero in fp16; above HUGE_ROW it saturates, and the squares of
 * the coordinates could overflow, so such rows are first scaled down by an exact power of two. */
static const float TINY = 0x1p-40f;
static const float HUGE_ROW = 0x1p40f;
static const float HUGE_FACTOR = 0x1p-88f;

float tkv_sum16(int n, const float *values)
{
    float lanes[16];
    memcpy(lanes, values, sizeof lanes);
    for (int i = 16; i < n; i += 16) {
        for (int lane = 0; lane < 16; lane++) {
            lanes[lane] += values[i + lane];
        }
    }
    for (int width = 8; width > 0; width /= 2) {
        for (int lane = 0; lane < width; lane++) {
            lanes[lane] += lanes[lane + width];
        }
    }
    return lanes[0];
}

static float dot16(int n, const float *a, const float *b)
{
    float products[TKV_MAX_HEAD_DIM];
    for (int j = 0; j < n; j++) {
        products[j] = a[j] * b[j];
    }
    return tkv_sum16(n, products);
}

size_t tkv_find_non_finite(size_t n, const float *values)
{
    for (size_t i = 0; i < n; i++) {
        if ((tkv_float_bits(values[i]) & 0x7f800000u) == 0x7f800000u) {
            return i;
        }
    }
    return n;
}

static float max_magnitude(int n, const float *values)
{
    float maximum = 0.0f;
    for (int j = 0; j < n; j++) {
        maximum = fmaxf(maximum, fabsf(values[j]));
    }
    return maximum;
}

/* Codes of the 255-level uniform quantiser; returns <y, levels>. */
static float quantise_uniform(int head_dim, const float *y, float maximum, uint8_t *codes)
{
    float levels[TKV_MAX_HEAD_DIM];
    const float factor = 127.0f / maximum;
    for (int j = 0; j < head_dim; j++) {
        levels[j] = rintf(y[j] * factor);
        codes[j] = (uint8_t)(int8_t)levels[j];
    }
    return dot16(head_dim, y, levels);
}

/* Codes of a Lloyd-Max quantiser; returns <y, levels>. norm2 = |y|^2. */
static float quantise_codebook(const tkv_codebook *codebook, int head_dim, const float *y,
                               float norm2, uint8_t *codes)
{
    float z[TKV_MAX_HEAD_DIM];
    float levels[TKV_MAX_HEAD_DIM];
    const float to_unit = sqrtf((float)head_dim / norm2);
    for (int j = 0; j < head_dim; j++) {
        z[j] = y[j] * to_unit;
        int code = 0;
        for (int k = 0; k < codebook->n_levels - 1; k++) {
            code += z[j] > codebook->thresholds[k];
        }
        codes[j] = (uint8_t)code;
        levels[j] = (float)codebook->levels[code];
    }
    return dot16(head_dim, z, levels) / to_unit;
}

/* The scale that makes inner products unbiased over random rotations: |y|^2 / <y, levels>
 * (RaBitQ, Gao and Long 2024; docs/FORMAT.md section 4). */
static uint16_t scale_field(float norm2, float dot)
{
    const float field = norm2 / dot * TKV_LEVEL_UNIT;
    return tkv_float_to_half(fminf(field, TKV_HALF_MAX));
}

void tkv_quantise_row(tkv_type type, int head_dim, const float *y, tkv_row_codes *row)
{
    memset(row->codes, 0, (size_t)head_dim);
    memset(row->side, 0, sizeof row->side);
    if (tkv_find_non_finite((size_t)head_dim, y) < (size_t)head_dim) {
        row->side[0] = TKV_HALF_NAN;
        return;
    }
    float maximum = max_magnitude(head_dim, y);
    if (maximum < TINY) {
        return;
    }
    float reduced[TKV_MAX_HEAD_DIM];
    const bool is_huge = maximum > HUGE_ROW;
    if (is_huge) {
        for (int j = 0; j < head_dim; j++) {
            reduced[j] = y[j] * HUGE_FACTOR;
        }
        maximum *= HUGE_FACTOR;
        y = reduced;
    }
    const float norm2 = dot16(head_dim, y, y);
    const float dot = type == TKV_TYPE_TURBO8
                          ? quantise_uniform(head_dim, y, maximum, row->codes)
                          : quantise_codebook(tkv_codebook_get(tkv_type_get_info(type)->code_bits),
                                              head_dim, y, norm2, row->codes);
    row->side[0] = is_huge ? tkv_float_to_half(TKV_HALF_MAX) : scale_field(norm2, dot);
}

void tkv_dequantise_row(tkv_type type, int head_dim, const tkv_row_codes *row, float *y)
{
    const float scale = tkv_half_to_float(row->side[0]) / TKV_LEVEL_UNIT;
    if (type == TKV_TYPE_TURBO8) {
        for (int j = 0; j < head_dim; j++) {
            y[j] = scale * (float)(int8_t)row->codes[j];
        }
        return;
    }
    const int8_t *levels = tkv_codebook_get(tkv_type_get_info(type)->code_bits)->levels;
    for (int j = 0; j < head_dim; j++) {
        y[j] = scale * (float)levels[row->codes[j]];
    }
}
