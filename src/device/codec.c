/* The public codec functions: rows and pages by a context's kernels, which are equal to the bit. */
#include "format/codec.h"
#include "base/error.h"
#include "base/half.h"
#include "device/context.h"

#include <string.h>

/* Of a context, or, without one, the reference and its effort. */
static const tkv_kernels *kernels_of(const tkv_context *context)
{
    return context ? context->kernels : &tkv_kernels_scalar;
}

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
    TKV_TRY(check_arguments(TKV_TYPE_TURBO8, head_dim, x, x, error));
    return tkv_check_padded_dim(TKV_TYPE_TURBO8, head_dim, error);
}

/* As many rows at a time as kernels count. */
static void rotate_rows(void (*rotate)(int head_dim, int n_rows, float *x), int head_dim,
                        size_t n_rows, float *x)
{
    for (size_t done = 0; done < n_rows; done += TKV_PAGE_TOKENS) {
        const size_t left = n_rows - done;
        rotate(head_dim, left < TKV_PAGE_TOKENS ? (int)left : TKV_PAGE_TOKENS,
               x + done * (size_t)head_dim);
    }
}

tkv_status tkv_rotate(const tkv_context *context, int head_dim, size_t n_rows, float *x,
                      tkv_error *error)
{
    const tkv_status status = check_rotation(head_dim, x, error);
    if (status == TKV_OK) {
        rotate_rows(kernels_of(context)->rotate, head_dim, n_rows, x);
    }
    return status;
}

tkv_status tkv_unrotate(const tkv_context *context, int head_dim, size_t n_rows, float *x,
                        tkv_error *error)
{
    const tkv_status status = check_rotation(head_dim, x, error);
    if (status == TKV_OK) {
        rotate_rows(kernels_of(context)->unrotate, head_dim, n_rows, x);
    }
    return status;
}

/* Reports the first NaN or infinity of [n_rows][head_dim], if there is one. */
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

/* Whether a page may hold rows in slots of the span that were not finite: it says so in fewer
 * places than the rows have. */
static bool may_hold_non_finite(const tkv_page_span *span, const void *page)
{
    const uint16_t *halves = page;
    const size_t padded_dim = (size_t)tkv_padded_dim(span->head_dim);
    if (span->type == TKV_TYPE_F16) {
        uint16_t carried = 0; /* beyond an exponent that is all ones */
        const size_t first = (size_t)span->first_slot * padded_dim;
        for (size_t i = first; i < first + (size_t)span->n_rows * padded_dim; i++) {
            carried |= (uint16_t)((halves[i] & 0x7c00u) + 0x0400u);
        }
        return carried & 0x8000u;
    }
    const size_t n_sides = (size_t)tkv_type_side_fields(span->type) * TKV_PAGE_TOKENS;
    const size_t page_bytes = tkv_page_bytes(span->type, span->head_dim);
    const uint16_t *scales = halves + page_bytes / sizeof *halves - n_sides + span->first_slot;
    bool is_found = false;
    for (int i = 0; i < span->n_rows; i++) {
        is_found |= scales[i] == TKV_HALF_NAN;
    }
    return is_found;
}

/* A row as wide as it is stored. */
static void pad_row(int head_dim, const float *x, float *padded)
{
    memcpy(padded, x, (size_t)head_dim * sizeof *x);
    memset(padded + head_dim, 0, (size_t)(tkv_padded_dim(head_dim) - head_dim) * sizeof *x);
}

/* Rows into slots of a page. Those that have to be padded go one by one. */
static void encode_slots(const tkv_context *context, const tkv_page_span *span, const float *x,
                         void *page)
{
    const int padded_dim = tkv_padded_dim(span->head_dim);
    if (padded_dim == span->head_dim) {
        kernels_of(context)->encode(span, x, (size_t)span->head_dim, page);
        return;
    }
    float padded[TKV_MAX_HEAD_DIM];
    tkv_page_span slot = *span;
    slot.head_dim = padded_dim;
    slot.n_rows = 1;
    for (int i = 0; i < span->n_rows; i++, slot.first_slot++) {
        pad_row(span->head_dim, x + (size_t)i * (size_t)span->head_dim, padded);
        kernels_of(context)->encode(&slot, padded, 0, page);
    }
}

static void decode_slots(const tkv_context *context, const tkv_page_span *span, const void *page,
                         float *x)
{
    const int padded_dim = tkv_padded_dim(span->head_dim);
    if (padded_dim == span->head_dim) {
        kernels_of(context)->decode(span, page, x, (size_t)span->head_dim);
        return;
    }
    float padded[TKV_MAX_HEAD_DIM];
    tkv_page_span slot = *span;
    slot.head_dim = padded_dim;
    slot.n_rows = 1;
    for (int i = 0; i < span->n_rows; i++, slot.first_slot++) {
        kernels_of(context)->decode(&slot, page, padded, 0);
        memcpy(x + (size_t)i * (size_t)span->head_dim, padded, (size_t)span->head_dim * sizeof *x);
    }
}

/* Of every type. */
typedef union page_buffer {
    uint32_t words[TKV_PAGE_TOKENS * (TKV_MAX_HEAD_DIM / 4 + TKV_MAX_SIDE_FIELDS)];
    uint16_t halves[TKV_PAGE_TOKENS * TKV_MAX_HEAD_DIM];
} page_buffer;

/* Between a row's record and a slot of a key page. An f16 row is the same in both. */
static void copy_slot(tkv_type type, int head_dim, int slot, bool is_to_record, uint8_t *record,
                      page_buffer *page)
{
    const int padded_dim = tkv_padded_dim(head_dim);
    uint16_t *halves = page->halves + (size_t)slot * (size_t)padded_dim;
    tkv_row_codes row;
    if (type == TKV_TYPE_F16 && is_to_record) {
        memcpy(record, halves, (size_t)padded_dim * sizeof *halves);
    } else if (type == TKV_TYPE_F16) {
        memcpy(halves, record, (size_t)padded_dim * sizeof *halves);
    } else if (is_to_record) {
        tkv_unpack_slot(type, TKV_ORDER_KEY, padded_dim, slot, page, &row);
        tkv_pack_row(type, padded_dim, &row, record);
    } else {
        tkv_unpack_row(type, padded_dim, record, &row);
        tkv_pack_slot(type, TKV_ORDER_KEY, padded_dim, slot, &row, page);
    }
}

/* The next rows, as many as a page holds. */
static tkv_page_span next_span(const tkv_context *context, tkv_type type, int head_dim, size_t left)
{
    return (tkv_page_span){.type = type,
                           .order = TKV_ORDER_KEY,
                           .head_dim = head_dim,
                           .n_rows = left < TKV_PAGE_TOKENS ? (int)left : TKV_PAGE_TOKENS,
                           .effort = tkv_context_effort(context)};
}

tkv_status tkv_encode_rows(const tkv_context *context, tkv_type type, int head_dim, size_t n_rows,
                           const float *x, void *rows, tkv_error *error)
{
    TKV_TRY(check_arguments(type, head_dim, x, rows, error));
    page_buffer page;
    uint8_t *record = rows;
    bool may_fail = false;
    for (size_t done = 0; done < n_rows; done += TKV_PAGE_TOKENS) {
        const tkv_page_span span = next_span(context, type, head_dim, n_rows - done);
        memset(&page, 0, tkv_page_bytes(type, head_dim));
        encode_slots(context, &span, x + done * (size_t)head_dim, &page);
        may_fail |= may_hold_non_finite(&span, &page);
        for (int i = 0; i < span.n_rows; i++, record += tkv_row_bytes(type, head_dim)) {
            copy_slot(type, head_dim, i, true, record, &page);
        }
    }
    return may_fail ? report_non_finite(head_dim, n_rows, x, error) : TKV_OK;
}

tkv_status tkv_decode_rows(const tkv_context *context, tkv_type type, int head_dim, size_t n_rows,
                           const void *rows, float *x, tkv_error *error)
{
    TKV_TRY(check_arguments(type, head_dim, rows, x, error));
    page_buffer page;
    uint8_t *record = (uint8_t *)(uintptr_t)rows;
    for (size_t done = 0; done < n_rows; done += TKV_PAGE_TOKENS) {
        const tkv_page_span span = next_span(context, type, head_dim, n_rows - done);
        memset(&page, 0, tkv_page_bytes(type, head_dim));
        for (int i = 0; i < span.n_rows; i++, record += tkv_row_bytes(type, head_dim)) {
            copy_slot(type, head_dim, i, false, record, &page);
        }
        decode_slots(context, &span, &page, x + done * (size_t)head_dim);
    }
    return TKV_OK;
}

static tkv_status check_span(const tkv_page_span *span, const float *x, const void *page,
                             tkv_error *error)
{
    TKV_TRY(check_arguments(span->type, span->head_dim, x, page, error));
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

tkv_status tkv_encode_page(const tkv_context *context, tkv_type type, tkv_page_order order,
                           int head_dim, int first_slot, int n_rows, const float *x, void *page,
                           tkv_error *error)
{
    const tkv_page_span span = {type,       order,  head_dim,
                                first_slot, n_rows, tkv_context_effort(context)};
    TKV_TRY(check_span(&span, x, page, error));
    encode_slots(context, &span, x, page);
    return may_hold_non_finite(&span, page) ? report_non_finite(head_dim, (size_t)n_rows, x, error)
                                            : TKV_OK;
}

tkv_status tkv_decode_page(const tkv_context *context, tkv_type type, tkv_page_order order,
                           int head_dim, int first_slot, int n_rows, const void *page, float *x,
                           tkv_error *error)
{
    const tkv_page_span span = {type,       order,  head_dim,
                                first_slot, n_rows, tkv_context_effort(context)};
    const tkv_status status = check_span(&span, x, page, error);
    if (status == TKV_OK) {
        decode_slots(context, &span, page, x);
    }
    return status;
}
