/* Any bytes are a row and a page of every type: all kernels read the same from them. Any floats are
 * coded alike by all, and a row of finite ones stays finite. */
#include "fuzz/fuzz.h"

#include "base/half.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HEADER 6
#define MAX_ROWS 20 /* kernels take few rows and many in different ways */

const int fuzz_runs = 1200;

/* head_dim in steps of 16 from 16, and few large ones: scalar code reads them slowly. */
static const int head_dims[] = {16, 32, 48, 64, 80, 112, 128, 144, 192, 256, 576};

/* For every type bits of all kinds and floats, at one head_dim after the other. */
size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    const size_t size = HEADER + 600;
    const int n_head_dims = sizeof head_dims / sizeof *head_dims;
    if (index >= 2 * TKV_TYPE_COUNT) {
        return 0;
    }
    const uint8_t header[HEADER] = {(uint8_t)(index % TKV_TYPE_COUNT),
                                    (uint8_t)(index % n_head_dims),
                                    (uint8_t)(index / 2 % 2),
                                    (uint8_t)index,
                                    (uint8_t)(7 * index),
                                    0};
    memcpy(data, header, sizeof header);
    for (size_t i = HEADER; i + 4 <= size; i += 4) {
        const float value = sinf((float)(i + (size_t)index)) * 3.0f;
        const uint32_t bits = (uint32_t)(i + 1) * 2654435761u;
        memcpy(data + i, index < TKV_TYPE_COUNT ? (const void *)&bits : (const void *)&value, 4);
    }
    return size;
}

static void *allocate(size_t size)
{
    void *memory = calloc(1, size);
    if (!memory) {
        fuzz_fail("no memory");
    }
    return memory;
}

/* The payload again and again. */
static void fill(void *to, size_t size, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)to)[i] = n ? data[i % n] : 0;
    }
}

/* The format has no level -128 and does not say what it decodes to. */
static void leave_out_minus_128(uint8_t *page, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        page[i] = page[i] == 0x80 ? 0x81 : page[i];
    }
}

static void compare(const char *what, const tkv_kernels *kernels, const tkv_page_span *span,
                    const float *found, const float *expected)
{
    for (int i = 0; i < span->n_rows * span->head_dim; i++) {
        const bool are_numbers = !isnan(found[i]) || !isnan(expected[i]);
        if (are_numbers && tkv_float_bits(found[i]) != tkv_float_bits(expected[i])) {
            fuzz_fail("%s, %s, head_dim %d, row %d: coordinate %d is %a, expected %a",
                      kernels->name, what, span->head_dim, i / span->head_dim, i % span->head_dim,
                      (double)found[i], (double)expected[i]);
        }
    }
}

static void check_decoding(const tkv_page_span *span, const uint8_t *data, size_t size)
{
    tkv_error error;
    const size_t head_dim = (size_t)span->head_dim;
    const size_t page_bytes = tkv_page_bytes(span->type, span->head_dim);
    const size_t n = (size_t)span->n_rows * head_dim;
    void *page = allocate(page_bytes);
    float *expected = allocate(n * sizeof *expected);
    float *found = allocate(n * sizeof *found);
    fill(page, page_bytes, data, size);
    if (span->type == TKV_TYPE_TURBO8) {
        leave_out_minus_128(page, page_bytes);
    }
    tkv_kernels_scalar.decode(span, page, expected, head_dim);
    const tkv_kernels *kernels;
    for (int i = 1; (kernels = tkv_kernels_available(i)); i++) {
        kernels->decode(span, page, found, head_dim);
        compare("decoding", kernels, span, found, expected);
    }
    /* A row on its own; what it holds does not matter, only that it is read within its bounds. */
    void *row = allocate(tkv_row_bytes(span->type, span->head_dim));
    fill(row, tkv_row_bytes(span->type, span->head_dim), data, size);
    if (tkv_decode_rows(NULL, span->type, span->head_dim, 1, row, found, &error) != TKV_OK) {
        fuzz_fail("%s", error.message);
    }
    free(row);
    free(page);
    free(expected);
    free(found);
}

static void check_encoding(const tkv_page_span *span, const uint8_t *data, size_t size)
{
    tkv_error error;
    const size_t head_dim = (size_t)span->head_dim;
    const size_t page_bytes = tkv_page_bytes(span->type, span->head_dim);
    const size_t n = (size_t)span->n_rows * head_dim;
    float *x = allocate(n * sizeof *x);
    float *decoded = allocate(n * sizeof *decoded);
    void *expected = allocate(page_bytes);
    void *found = allocate(page_bytes);
    fill(x, n * sizeof *x, data, size);
    tkv_kernels_scalar.encode(span, x, head_dim, expected);
    const tkv_kernels *kernels;
    for (int i = 1; (kernels = tkv_kernels_available(i)); i++) {
        memset(found, 0, page_bytes);
        kernels->encode(span, x, head_dim, found);
        if (memcmp(found, expected, page_bytes) != 0) {
            fuzz_fail("%s, type %d, head_dim %d: another page than the reference", kernels->name,
                      (int)span->type, span->head_dim);
        }
    }
    const tkv_status status = tkv_encode_page(NULL, span->type, span->order, span->head_dim,
                                              span->first_slot, span->n_rows, x, found, &error);
    fuzz_check_error(status, &error);
    tkv_kernels_scalar.decode(span, expected, decoded, head_dim);
    for (size_t i = 0; status == TKV_OK && i < n; i++) {
        if (!isfinite(decoded[i])) {
            fuzz_fail("type %d: %a became %a", (int)span->type, (double)x[i], (double)decoded[i]);
        }
    }
    free(x);
    free(decoded);
    free(expected);
    free(found);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEADER) {
        return 0;
    }
    const int n_rows = 1 + data[3] % MAX_ROWS;
    const tkv_page_span span = {.type = (tkv_type)(data[0] % TKV_TYPE_COUNT),
                                .head_dim =
                                    head_dims[data[1] % (sizeof head_dims / sizeof *head_dims)],
                                .order = data[2] % 2 ? TKV_ORDER_VALUE : TKV_ORDER_KEY,
                                .first_slot = data[4] % (TKV_PAGE_TOKENS + 1 - n_rows),
                                .n_rows = n_rows,
                                .effort = (tkv_effort)(data[5] % TKV_EFFORT_COUNT)};
    check_decoding(&span, data + HEADER, size - HEADER);
    check_encoding(&span, data + HEADER, size - HEADER);
    return 0;
}
