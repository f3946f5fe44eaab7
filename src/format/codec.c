/* The public codec functions: argument checks around the reference. */
#include "format/codec.h"
#include "base/error.h"
#include "base/half.h"
#include "kernels/kernels.h"

#include <string.h>

static tkv_status check_arguments(tkv_type type, int head_dim, const void *a, const void *b,
                                  tkv_error *error)
{
    if (!a || !b) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "source or destination is NULL");
    }
    return tkv_check_head_dim(type, head_dim, error);
}

/* Rotation mixes all coordinates of a padded row. */
static tkv_status check_rotation(int head_dim, const float *x, tkv_error *error)
{
    const tkv_status status = check_arguments(TKV_TYPE_TURBO8, head_dim, x, x, error);
    return status == TKV_OK ? tkv_check_padded_dim(TKV_TYPE_TURBO8, head_dim, error) : status;
}

tkv_status tkv_rotate(int head_dim, size_t n_rows, float *x, tkv_error *error)
{
    const tkv_status status = check_rotation(head_dim, x, error);
    for (size_t i = 0; status == TKV_OK && i < n_rows; i++) {
        tkv_rotate_row(head_dim, x + i * (size_t)head_dim);
    }
    return status;
}

tkv_status tkv_unrotate(int head_dim, size_t n_rows, float *x, tkv_error *error)
{
    const tkv_status status = check_rotation(head_dim, x, error);
    for (size_t i = 0; status == TKV_OK && i < n_rows; i++) {
        tkv_unrotate_row(head_dim, x + i * (size_t)head_dim);
    }
    return status;
}

/* Reports the first NaN or infinity of [n_rows][head_dim]. */
static tkv_status report_non_finite(int head_dim, size_t n_rows, const float *x, tkv_error *error)
{
    const size_t n = n_rows * (size_t)head_dim;
    const size_t at = tkv_find_non_finite(n, x);
    if (at == n) {
        return TKV_OK;
    }
    return tkv_fail(error, TKV_ERR_NOT_FINITE,
                    "row %zu, coordinate %zu is %g: expected finite values", at / (size_t)head_dim,
                    at % (size_t)head_dim, (double)x[at]);
}

static void encode_f16(size_t n, const float *x, uint8_t *record)
{
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = tkv_float_to_finite_half(x[i]);
        record[2 * i] = (uint8_t)(half & 0xff);
        record[2 * i + 1] = (uint8_t)(half >> 8);
    }
}

static void decode_f16(size_t n, const uint8_t *record, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = tkv_half_to_float((uint16_t)(record[2 * i] | record[2 * i + 1] << 8));
    }
}

/* A row as wide as it is stored. */
static void pad_row(int head_dim, const float *x, float *padded)
{
    memcpy(padded, x, (size_t)head_dim * sizeof *x);
    memset(padded + head_dim, 0, (size_t)(tkv_padded_dim(head_dim) - head_dim) * sizeof *x);
}

static void encode_record(tkv_type type, int head_dim, const float *x, uint8_t *record)
{
    const int padded_dim = tkv_padded_dim(head_dim);
    float padded[TKV_MAX_HEAD_DIM];
    pad_row(head_dim, x, padded);
    if (type == TKV_TYPE_F16) {
        encode_f16((size_t)padded_dim, padded, record);
        return;
    }
    tkv_row_codes row;
    tkv_encode_row(type, TKV_EFFORT_DEFAULT, padded_dim, padded, &row);
    tkv_pack_row(type, padded_dim, &row, record);
}

static void decode_record(tkv_type type, int head_dim, const uint8_t *record, float *x)
{
    const int padded_dim = tkv_padded_dim(head_dim);
    float padded[TKV_MAX_HEAD_DIM];
    if (type == TKV_TYPE_F16) {
        decode_f16((size_t)head_dim, record, x);
        return;
    }
    tkv_row_codes row;
    tkv_unpack_row(type, padded_dim, record, &row);
    tkv_dequantise_row(type, padded_dim, &row, padded);
    tkv_unrotate_row(padded_dim, padded);
    memcpy(x, padded, (size_t)head_dim * sizeof *x);
}

tkv_status tkv_encode_rows(tkv_type type, int head_dim, size_t n_rows, const float *x, void *rows,
                           tkv_error *error)
{
    const tkv_status status = check_arguments(type, head_dim, x, rows, error);
    if (status != TKV_OK) {
        return status;
    }
    const size_t row_bytes = tkv_row_bytes(type, head_dim);
    for (size_t i = 0; i < n_rows; i++) {
        encode_record(type, head_dim, x + i * (size_t)head_dim, (uint8_t *)rows + i * row_bytes);
    }
    return report_non_finite(head_dim, n_rows, x, error);
}

tkv_status tkv_decode_rows(tkv_type type, int head_dim, size_t n_rows, const void *rows, float *x,
                           tkv_error *error)
{
    const tkv_status status = check_arguments(type, head_dim, rows, x, error);
    if (status != TKV_OK) {
        return status;
    }
    const size_t row_bytes = tkv_row_bytes(type, head_dim);
    for (size_t i = 0; i < n_rows; i++) {
        decode_record(type, head_dim, (const uint8_t *)rows + i * row_bytes,
                      x + i * (size_t)head_dim);
    }
    return TKV_OK;
}

static tkv_status check_span(const tkv_page_span *span, const float *x, const void *page,
                             tkv_error *error)
{
    const tkv_status status = check_arguments(span->type, span->head_dim, x, page, error);
    if (status != TKV_OK) {
        return status;
    }
    if ((uintptr_t)page % sizeof(uint32_t) != 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "page at %p: expected an address that is a multiple of %zu", page,
                        sizeof(uint32_t));
    }
    if (span->order != TKV_ORDER_KEY && span->order != TKV_ORDER_VALUE) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "page order %d: expected 0 (key) or 1 (value)", (int)span->order);
    }
    if (span->first_slot < 0 || span->n_rows < 0 || span->first_slot > TKV_PAGE_TOKENS ||
        span->n_rows > TKV_PAGE_TOKENS - span->first_slot) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "page slots %d and %d following: expected slots within 0 to %d",
                        span->first_slot, span->n_rows, TKV_PAGE_TOKENS - 1);
    }
    return TKV_OK;
}

tkv_status tkv_encode_page(tkv_type type, tkv_page_order order, int head_dim, int first_slot,
                           int n_rows, const float *x, void *page, tkv_error *error)
{
    const tkv_page_span span = {type, order, head_dim, first_slot, n_rows, TKV_EFFORT_DEFAULT};
    const tkv_status status = check_span(&span, x, page, error);
    if (status != TKV_OK) {
        return status;
    }
    float padded[TKV_MAX_HEAD_DIM];
    for (int i = 0; i < n_rows; i++) {
        const tkv_page_span slot = {type,           order, tkv_padded_dim(head_dim),
                                    first_slot + i, 1,     TKV_EFFORT_DEFAULT};
        pad_row(head_dim, x + (size_t)i * (size_t)head_dim, padded);
        tkv_kernels_scalar.encode(&slot, padded, 0, page);
    }
    return report_non_finite(head_dim, (size_t)n_rows, x, error);
}

tkv_status tkv_decode_page(tkv_type type, tkv_page_order order, int head_dim, int first_slot,
                           int n_rows, const void *page, float *x, tkv_error *error)
{
    const tkv_page_span span = {type, order, head_dim, first_slot, n_rows, TKV_EFFORT_DEFAULT};
    const tkv_status status = check_span(&span, x, page, error);
    if (status != TKV_OK) {
        return status;
    }
    float padded[TKV_MAX_HEAD_DIM];
    for (int i = 0; i < n_rows; i++) {
        const tkv_page_span slot = {type,           order, tkv_padded_dim(head_dim),
                                    first_slot + i, 1,     TKV_EFFORT_DEFAULT};
        tkv_kernels_scalar.decode(&slot, page, padded, 0);
        memcpy(x + (size_t)i * (size_t)head_dim, padded, (size_t)head_dim * sizeof *x);
    }
    return TKV_OK;
}
