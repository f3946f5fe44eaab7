/* Rotation, encoding and decoding: equal to the reference to the bit, and the reference to known
 * digests. */
#include "base/random.h"
#include "check/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { LARGEST_DIM = 576 }; /* of tkv_check_dims */

/* What the reference made of the rows of the known answers when it agreed with the independent
 * decoder and encoder of tests/vectors. A fault names the digest that was found. */
typedef struct digests {
    uint64_t pages;
    uint64_t rows;
} digests;

static const digests known_digests[TKV_TYPE_COUNT] = {
    [TKV_TYPE_F16] = {0x51f7ee2a6aa1a5d6, 0x5f5a268636cc1c09},
    [TKV_TYPE_TURBO8] = {0xbf7266c93fedadc9, 0xaadb2ab34a9a39ca},
    [TKV_TYPE_TURBO4] = {0x0298d462ef831130, 0x0d72a1993540634b},
    [TKV_TYPE_TURBO3] = {0xab78df4c661c0b33, 0x1567f92f1611ab7f},
    [TKV_TYPE_TURBO2] = {0x7f544cdf777e98f6, 0x1506401376215085},
    [TKV_TYPE_TRELLIS3] = {0xa57ac6601eb88952, 0x5f2251581f093973},
    [TKV_TYPE_TRELLIS2] = {0x37af930bd4739f71, 0x52699db544089801},
    [TKV_TYPE_TURBO4Q] = {0x780bddb2f445d204, 0x5cd978f3916ffa09},
    [TKV_TYPE_TURBO3Q] = {0x83be97f2ac91eace, 0x6998e7c35d661ed0},
};

static void rotate_rows(tkv_check *check, const tkv_kernels *kernels, int head_dim, bool is_inverse,
                        uint64_t seed)
{
    enum { N_ROWS = 5 };
    tkv_check_memory memory = {.check = check};
    const size_t n = (size_t)N_ROWS * (size_t)head_dim;
    float *expected = tkv_check_take_floats(&memory, n);
    float *found = tkv_check_take_floats(&memory, n);
    if (tkv_check_is_on(check)) {
        tkv_random_fill(&seed, n, expected);
        memcpy(found, expected, n * sizeof *found);
        (is_inverse ? tkv_kernels_scalar.unrotate : tkv_kernels_scalar.rotate)(head_dim, N_ROWS,
                                                                               expected);
        (is_inverse ? kernels->unrotate : kernels->rotate)(head_dim, N_ROWS, found);
        tkv_check_name(check, is_inverse ? TKV_OPERATION_UNROTATE : TKV_OPERATION_ROTATE,
                       TKV_TYPE_COUNT, head_dim, "%d rows", N_ROWS);
        tkv_check_tell_equal(check, &memory, found, expected, n * sizeof *found);
    }
    tkv_check_give_back(&memory);
}

void tkv_check_rotation(tkv_check *check, const tkv_kernels *kernels)
{
    const bool is_all = check->params->mode == TKV_CHECK_ALL;
    const int n = is_all ? TKV_MAX_HEAD_DIM / 16 : TKV_CHECK_DIMS;
    for (int i = 0; i < 2 * n; i++) {
        const int head_dim = is_all ? 16 + i / 2 * 16 : tkv_check_dims[i / 2];
        if (tkv_check_takes_dim(check, head_dim) &&
            tkv_check_wants(check, i % 2 ? TKV_OPERATION_UNROTATE : TKV_OPERATION_ROTATE)) {
            rotate_rows(check, kernels, head_dim, i % 2, tkv_check_seed(check, i));
        }
    }
}

void tkv_check_rotation_shape(tkv_check *check, const tkv_kernels *kernels, int head_dim)
{
    for (int is_inverse = 0; is_inverse < 2; is_inverse++) {
        rotate_rows(check, kernels, head_dim, is_inverse, tkv_check_seed(check, head_dim));
    }
}

static void name_coding(tkv_check *check, tkv_operation operation, const tkv_page_span *span,
                        int n_kinds, uint64_t seed)
{
    tkv_check_name(check, operation, span->type, span->head_dim,
                   "%d rows from slot %d in %s order, effort %d, %d kinds of rows, seed %" PRIu64,
                   span->n_rows, span->first_slot, span->order == TKV_ORDER_KEY ? "key" : "value",
                   (int)span->effort, n_kinds, seed);
}

/* Encodes x as the reference does and as the kernels do. */
static void encode_both(const tkv_kernels *kernels, const tkv_page_span *span, const float *x,
                        size_t stride, void *const pages[2])
{
    tkv_kernels_scalar.encode(span, x, stride, pages[0]);
    kernels->encode(span, x, stride, pages[1]);
}

/* Decodes the reference's page likewise. */
static void decode_both(const tkv_kernels *kernels, const tkv_page_span *span, const void *page,
                        size_t stride, float *const rows[2])
{
    const size_t n = (size_t)span->n_rows * stride;
    tkv_kernels_scalar.decode(span, page, rows[0], stride);
    kernels->decode(span, page, rows[1], stride);
    tkv_check_unify_nan(n, rows[0]);
    tkv_check_unify_nan(n, rows[1]);
}

static void add_digests(const tkv_page_span *span, const void *page, const float *rows,
                        size_t stride, digests *sums)
{
    sums->pages = tkv_check_digest(sums->pages, page, tkv_page_bytes(span->type, span->head_dim));
    for (int i = 0; i < span->n_rows; i++) {
        sums->rows = tkv_check_digest(sums->rows, rows + (size_t)i * stride,
                                      (size_t)span->head_dim * sizeof *rows);
    }
}

/* `sums` may be NULL. */
static void check_rows(tkv_check *check, const tkv_kernels *kernels, const tkv_page_span *span,
                       int n_kinds, uint64_t seed, digests *sums)
{
    const size_t stride = (size_t)span->head_dim + 3; /* rows lie apart */
    const size_t n = (size_t)span->n_rows * stride;
    const size_t bytes = tkv_page_bytes(span->type, span->head_dim);
    tkv_check_memory memory = {.check = check};
    float *x = tkv_check_take_floats(&memory, n);
    void *const pages[] = {tkv_check_take(&memory, bytes), tkv_check_take(&memory, bytes)};
    float *const rows[] = {tkv_check_take_floats(&memory, n), tkv_check_take_floats(&memory, n)};
    uint64_t state = seed;
    if (tkv_check_is_on(check)) {
        tkv_check_rows(&state, span->n_rows, span->head_dim, stride, n_kinds, x);
        encode_both(kernels, span, x, stride, pages);
        name_coding(check, TKV_OPERATION_ENCODE, span, n_kinds, seed);
        tkv_check_tell_equal(check, &memory, pages[1], pages[0], bytes);
        decode_both(kernels, span, pages[0], stride, rows);
        name_coding(check, TKV_OPERATION_DECODE, span, n_kinds, seed);
        tkv_check_tell_equal(check, &memory, rows[1], rows[0], n * sizeof(float));
    }
    if (tkv_check_is_on(check) && sums) {
        add_digests(span, pages[1], rows[1], stride, sums);
    }
    tkv_check_give_back(&memory);
}

static void tell_digest(tkv_check *check, tkv_operation operation, tkv_type type, uint64_t found,
                        uint64_t known)
{
    char fault[80];
    snprintf(fault, sizeof fault, "digest 0x%016" PRIx64 " is not the known answer", found);
    tkv_check_name(check, operation, type, LARGEST_DIM, "and smaller ones: known answers");
    tkv_check_tell(check, NULL, found != known, 0.0, fault);
}

/* Whole pages of rows of all finite kinds. Seeds are fixed, and each type has its own, so that its
 * digest does not depend on what else is checked. */
static void check_answers(tkv_check *check, const tkv_kernels *kernels)
{
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        const tkv_type type = (tkv_type)i;
        digests sums = {TKV_CHECK_DIGEST, TKV_CHECK_DIGEST};
        bool is_whole = true;
        for (int d = 0; d < 2 * TKV_CHECK_DIMS && tkv_check_is_on(check); d++) {
            const int head_dim = tkv_check_dims[d / 2];
            const tkv_page_span span = {type, (tkv_page_order)(d % 2), head_dim,
                                        0,    TKV_PAGE_TOKENS,         TKV_EFFORT_DEFAULT};
            is_whole = is_whole && tkv_check_takes_dim(check, head_dim);
            if (tkv_check_takes_dim(check, head_dim)) {
                check_rows(check, kernels, &span, TKV_CHECK_FINITE_KINDS,
                           (uint64_t)(100 * i + d + 1), &sums);
            }
        }
        if (is_whole) {
            tell_digest(check, TKV_OPERATION_ENCODE, type, sums.pages, known_digests[i].pages);
            tell_digest(check, TKV_OPERATION_DECODE, type, sums.rows, known_digests[i].rows);
        }
    }
}

/* Rows of every size, Gaussian ones and such of all kinds; every effort. */
static void check_sizes(tkv_check *check, const tkv_kernels *kernels)
{
    const int head_dims[] = {64, 80, 96, 112, 128, 192, 256, 576, 16, 48, 240};
    for (int i = 0; i < 4 * 11 * TKV_TYPE_COUNT; i++) {
        const int d = i / 4 % 11;
        const tkv_page_span span = {
            (tkv_type)(i / 44), (tkv_page_order)(i / 2 % 2), head_dims[d], 5 * (d % 2), 54,
            TKV_EFFORT_DEFAULT};
        check_rows(check, kernels, &span, i % 2 ? 1 : TKV_CHECK_KINDS, tkv_check_seed(check, i),
                   NULL);
    }
    for (int i = 0; i < 2 * TKV_EFFORT_COUNT; i++) {
        const tkv_page_span span = {i % 2 ? TKV_TYPE_TRELLIS3 : TKV_TYPE_TRELLIS2,
                                    TKV_ORDER_KEY,
                                    80,
                                    17,
                                    20,
                                    (tkv_effort)(i / 2)};
        check_rows(check, kernels, &span, TKV_CHECK_KINDS, tkv_check_seed(check, 5000 + i), NULL);
    }
}

/* Spans of all lengths, at all places of a page, some with odd rows among the Gaussian ones, so
 * that groups of rows are coded in every way that there is; and the smallest and largest heads. */
static void check_spans(tkv_check *check, const tkv_kernels *kernels)
{
    const int head_dims[] = {16, 32, 48, 128, 80, 1008, 1024};
    uint64_t seed = tkv_check_seed(check, 7);
    for (int i = 0; i < 40 * TKV_TYPE_COUNT; i++) {
        tkv_page_span span = {(tkv_type)(i % TKV_TYPE_COUNT),
                              (tkv_page_order)(i / 9 % 2),
                              head_dims[i % 7],
                              0,
                              1 + tkv_random_below(&seed, 40),
                              TKV_EFFORT_FAST};
        span.first_slot = tkv_random_below(&seed, TKV_PAGE_TOKENS - span.n_rows + 1);
        check_rows(check, kernels, &span, i % 4 ? 1 : TKV_CHECK_KINDS,
                   tkv_check_seed(check, 6000 + i), NULL);
    }
}

void tkv_check_coding(tkv_check *check, const tkv_kernels *kernels)
{
    if (!tkv_check_wants(check, TKV_OPERATION_ENCODE) &&
        !tkv_check_wants(check, TKV_OPERATION_DECODE)) {
        return;
    }
    check_answers(check, kernels);
    if (check->params->mode == TKV_CHECK_ALL) {
        check_sizes(check, kernels);
        check_spans(check, kernels);
    }
}

void tkv_check_coding_shape(tkv_check *check, const tkv_kernels *kernels, tkv_type type,
                            int head_dim)
{
    for (int order = 0; order < 2; order++) {
        const tkv_page_span span = {type, (tkv_page_order)order, head_dim,
                                    0,    TKV_PAGE_TOKENS,       TKV_EFFORT_FAST};
        check_rows(check, kernels, &span, TKV_CHECK_KINDS, tkv_check_seed(check, order), NULL);
    }
}
