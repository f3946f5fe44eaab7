#include "base/half.h"
#include "format/codec.h"
#include "format/trellis.h"

#include <math.h>
#include <string.h>

/* Below TINY a row's scale rounds to zero in fp16; above HUGE_ROW it saturates, and the rotation
 * and the squares of the coordinates could overflow, so such rows are first scaled down by an exact
 * power of two, which leaves them above TINY. */
static const float TINY = 0x1p-40f;
static const float HUGE_ROW = 0x1p40f;
static const float HUGE_FACTOR = 0x1p-72f;

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

float tkv_dot16(int n, const float *a, const float *b)
{
    float products[TKV_MAX_HEAD_DIM];
    for (int j = 0; j < n; j++) {
        products[j] = a[j] * b[j];
    }
    return tkv_sum16(n, products);
}

size_t tkv_find_non_finite(size_t n, const float *values)
{
    enum { BLOCK = 64 };
    size_t i = 0;
    /* Whole blocks without a branch in them: an exponent of all ones carries into the sign. */
    for (uint32_t carried = 0; i + BLOCK <= n; i += BLOCK) {
        for (size_t j = i; j < i + BLOCK; j++) {
            carried |= (tkv_float_bits(values[j]) & 0x7f800000u) + 0x00800000u;
        }
        if (carried & 0x80000000u) {
            break;
        }
    }
    for (; i < n; i++) {
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

/* The scale that makes inner products unbiased over random rotations: |y|^2 / <y, levels>
 * (RaBitQ, Gao and Long 2024; docs/FORMAT.md section 5). */
static float unbiased_scale(const tkv_rotated_row *in, float dot)
{
    return fminf(in->norm2 / dot * TKV_LEVEL_UNIT, TKV_HALF_MAX);
}

static void quantise_uniform(const tkv_rotated_row *in, tkv_row_codes *row)
{
    float levels[TKV_MAX_HEAD_DIM];
    const float factor = 127.0f / in->maximum;
    for (int j = 0; j < in->head_dim; j++) {
        levels[j] = rintf(in->y[j] * factor);
        row->codes[j] = (uint8_t)(int8_t)levels[j];
    }
    row->side[0] = tkv_float_to_half(unbiased_scale(in, tkv_dot16(in->head_dim, in->y, levels)));
}

/* Codes and levels of the nearest codebook entries. */
static void choose_codes(const tkv_codebook *codebook, const tkv_rotated_row *in, uint8_t *codes,
                         float *levels)
{
    for (int j = 0; j < in->head_dim; j++) {
        int code = 0;
        for (int k = 0; k < codebook->n_levels - 1; k++) {
            code += in->z[j] > codebook->thresholds[k];
        }
        codes[j] = (uint8_t)code;
        levels[j] = (float)codebook->levels[code];
    }
}

static void quantise_codebook(const tkv_codebook *codebook, const tkv_rotated_row *in,
                              tkv_row_codes *row)
{
    float levels[TKV_MAX_HEAD_DIM];
    choose_codes(codebook, in, row->codes, levels);
    const float dot = tkv_dot16(in->head_dim, in->z, levels) / in->to_unit;
    row->side[0] = tkv_float_to_half(unbiased_scale(in, dot));
}

/* The fp16 number nearest to `scale` that carries the start bits. */
static uint16_t trellis_field(float scale, unsigned start)
{
    const uint16_t low = start & 31u;
    const uint16_t half = tkv_float_to_half(scale);
    uint16_t best = (uint16_t)((half & ~31u) | low);
    for (int step = -32; step <= 32; step += 64) {
        const int candidate = (int)((half & ~31u) | low) + step;
        if (candidate >= 0 && candidate < 0x7c00 &&
            fabsf(tkv_half_to_float((uint16_t)candidate) - scale) <
                fabsf(tkv_half_to_float(best) - scale)) {
            best = (uint16_t)candidate;
        }
    }
    return (uint16_t)(best | (start >> 5) << 15);
}

void tkv_offer_path(const tkv_trellis *trellis, const tkv_rotated_row *in,
                    const tkv_trellis_path *path, float *best, tkv_row_codes *row)
{
    float levels[TKV_MAX_HEAD_DIM];
    tkv_trellis_levels(trellis, in->head_dim, path->codes, path->start, levels);
    const float dot = tkv_dot16(in->head_dim, in->z, levels);
    const float correlation = dot * dot / tkv_dot16(in->head_dim, levels, levels);
    if (correlation > *best) {
        *best = correlation;
        memcpy(row->codes, path->codes, (size_t)in->head_dim);
        row->side[0] = trellis_field(unbiased_scale(in, dot / in->to_unit), path->start);
    }
}

static void quantise_trellis(const tkv_trellis *trellis, tkv_effort effort,
                             const tkv_rotated_row *in, tkv_row_codes *row)
{
    const tkv_trellis_effort *how = tkv_trellis_get_effort(effort);
    float best = -1.0f;
    for (int g = 0; g < how->n_gains; g++) {
        tkv_trellis_path path;
        tkv_trellis_search(trellis, how->survivor_bits, how->gains[g], in->head_dim, in->z, &path);
        tkv_offer_path(trellis, in, &path, &best, row);
    }
}

/* TurboQuant_prod (Zandieh et al., arXiv 2504.19874, algorithm 2) with an orthonormal sketch:
 * levels at the scale of least squares, then the signs of the sketched residual (QJL, arXiv
 * 2406.03482). The residual step |r| / (d E|u|), u a coordinate of a random unit vector, makes it
 * unbiased; E|u| = sqrt(2 / (pi d)) (1 + 1/(4d) + ...). */
static void quantise_sketch(int level_bits, const tkv_rotated_row *in, tkv_row_codes *row)
{
    const int head_dim = in->head_dim;
    float levels[TKV_MAX_HEAD_DIM];
    float residual[TKV_MAX_HEAD_DIM];
    choose_codes(tkv_codebook_get(level_bits), in, row->codes, levels);
    const float scale = tkv_dot16(head_dim, in->z, levels) / in->to_unit /
                        tkv_dot16(head_dim, levels, levels) * TKV_LEVEL_UNIT;
    row->side[0] = tkv_float_to_half(fminf(scale, TKV_HALF_MAX));
    const float stored = tkv_half_to_float(row->side[0]) / TKV_LEVEL_UNIT;
    for (int j = 0; j < head_dim; j++) {
        residual[j] = in->y[j] - stored * levels[j];
    }
    const float norm2 = tkv_dot16(head_dim, residual, residual);
    tkv_sketch_row(head_dim, residual);
    for (int j = 0; j < head_dim; j++) {
        row->codes[j] |= (uint8_t)((residual[j] < 0.0f) << level_bits);
    }
    const float step =
        sqrtf(norm2 / (float)head_dim) * (1.25331414f * (1.0f - 0.25f / (float)head_dim));
    row->side[1] = tkv_float_to_half(fminf(step, TKV_HALF_MAX));
}

static void quantise(tkv_type type, tkv_effort effort, const tkv_rotated_row *in,
                     tkv_row_codes *row)
{
    const int level_bits = tkv_type_level_bits(type);
    switch (tkv_type_kind(type)) {
    case TKV_CODE_UNIFORM: quantise_uniform(in, row); break;
    case TKV_CODE_CODEBOOK: quantise_codebook(tkv_codebook_get(level_bits), in, row); break;
    case TKV_CODE_TRELLIS: quantise_trellis(tkv_trellis_get(level_bits), effort, in, row); break;
    case TKV_CODE_SKETCH: quantise_sketch(level_bits, in, row); break;
    case TKV_CODE_HALF: break;
    }
}

/* What in->y holds is measured; false if it is zero. */
static bool measure_row(tkv_rotated_row *in)
{
    in->maximum = max_magnitude(in->head_dim, in->y);
    if (in->maximum < TINY) {
        return false;
    }
    in->norm2 = tkv_dot16(in->head_dim, in->y, in->y);
    in->to_unit = sqrtf((float)in->head_dim / in->norm2);
    for (int j = 0; j < in->head_dim; j++) {
        in->z[j] = in->y[j] * in->to_unit;
    }
    return true;
}

static void clear_codes(int head_dim, tkv_row_codes *row)
{
    memset(row->codes, 0, (size_t)head_dim);
    memset(row->side, 0, sizeof row->side);
}

bool tkv_begin_rotated_row(int head_dim, const float *y, tkv_rotated_row *in, tkv_row_codes *row)
{
    clear_codes(head_dim, row);
    in->head_dim = head_dim;
    in->is_huge = false;
    memcpy(in->y, y, (size_t)head_dim * sizeof *y);
    return measure_row(in);
}

bool tkv_begin_row(int head_dim, const float *x, tkv_rotated_row *in, tkv_row_codes *row)
{
    clear_codes(head_dim, row);
    if (tkv_find_non_finite((size_t)head_dim, x) < (size_t)head_dim) {
        row->side[0] = TKV_HALF_NAN;
        return false;
    }
    in->head_dim = head_dim;
    in->is_huge = max_magnitude(head_dim, x) > HUGE_ROW;
    for (int j = 0; j < head_dim; j++) {
        in->y[j] = in->is_huge ? x[j] * HUGE_FACTOR : x[j];
    }
    tkv_rotate_row(head_dim, in->y);
    return measure_row(in);
}

/* The scale field at its largest; start bits stay, and the residual of a sketch is left out. */
void tkv_end_row(tkv_type type, const tkv_rotated_row *in, tkv_row_codes *row)
{
    if (in->is_huge) {
        row->side[0] = tkv_type_kind(type) == TKV_CODE_TRELLIS
                           ? trellis_field(TKV_HALF_MAX, tkv_trellis_start(row->side[0]))
                           : tkv_float_to_half(TKV_HALF_MAX);
        row->side[1] = 0;
    }
}

void tkv_quantise_row(tkv_type type, tkv_effort effort, int head_dim, const float *y,
                      tkv_row_codes *row)
{
    tkv_rotated_row in;
    if (tkv_begin_rotated_row(head_dim, y, &in, row)) {
        quantise(type, effort, &in, row);
    }
}

void tkv_encode_row(tkv_type type, tkv_effort effort, int head_dim, const float *x,
                    tkv_row_codes *row)
{
    tkv_rotated_row in;
    if (tkv_begin_row(head_dim, x, &in, row)) {
        quantise(type, effort, &in, row);
        tkv_end_row(type, &in, row);
    }
}

/* y += step * sketch transposed times signs. */
static void add_residual(const tkv_row_codes *row, int sign_shift, int head_dim, float *y)
{
    float signs[TKV_MAX_HEAD_DIM];
    const float step = tkv_half_to_float(row->side[1]);
    for (int j = 0; j < head_dim; j++) {
        signs[j] = row->codes[j] >> sign_shift & 1 ? -step : step;
    }
    tkv_unsketch_row(head_dim, signs);
    for (int j = 0; j < head_dim; j++) {
        y[j] += signs[j];
    }
}

void tkv_dequantise_row(tkv_type type, int head_dim, const tkv_row_codes *row, float *y)
{
    const tkv_code_kind kind = tkv_type_kind(type);
    const int level_bits = tkv_type_level_bits(type);
    const bool is_trellis = kind == TKV_CODE_TRELLIS;
    const float scale =
        tkv_half_to_float(is_trellis ? tkv_trellis_scale(row->side[0]) : row->side[0]) /
        TKV_LEVEL_UNIT;
    if (kind == TKV_CODE_UNIFORM) {
        for (int j = 0; j < head_dim; j++) {
            y[j] = (float)(int8_t)row->codes[j];
        }
    } else if (is_trellis) {
        tkv_trellis_levels(tkv_trellis_get(level_bits), head_dim, row->codes,
                           tkv_trellis_start(row->side[0]), y);
    } else {
        const tkv_codebook *codebook = tkv_codebook_get(level_bits);
        for (int j = 0; j < head_dim; j++) {
            y[j] = (float)codebook->levels[row->codes[j] & (codebook->n_levels - 1)];
        }
    }
    for (int j = 0; j < head_dim; j++) {
        y[j] *= scale;
    }
    if (kind == TKV_CODE_SKETCH) {
        add_residual(row, level_bits, head_dim, y);
    }
}
