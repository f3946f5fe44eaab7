/* What the tests share: cmocka's prerequisites, seeded random numbers, comparisons. */
#ifndef TKV_TESTS_SUPPORT_H
#define TKV_TESTS_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "turbokv.h"

static const int all_head_dims[] = {64, 80, 96, 112, 128, 192, 256, 576};
enum { N_HEAD_DIMS = sizeof all_head_dims / sizeof *all_head_dims };

/* The same, and others that padded rows may have. */
static const int page_head_dims[] = {64, 80, 96, 112, 128, 192, 256, 576, 16, 48, 240};
enum { N_PAGE_HEAD_DIMS = sizeof page_head_dims / sizeof *page_head_dims };

/* The library's random numbers, by short names. */
static inline uint64_t random_bits(uint64_t *state)
{
    return tkv_random_bits(state);
}

static inline double random_uniform(uint64_t *state)
{
    return tkv_random_uniform(state);
}

static inline int random_below(uint64_t *state, int n)
{
    return tkv_random_below(state, n);
}

static inline float random_gauss(uint64_t *state)
{
    return tkv_random_gauss(state);
}

static inline void fill_gauss(uint64_t *state, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = random_gauss(state);
    }
}

/* The seed of what is random, which TKV_TEST_SEED changes; prints it. */
static inline uint64_t test_seed(void)
{
    const char *text = getenv("TKV_TEST_SEED");
    print_message("TKV_TEST_SEED=%s\n", text ? text : "0");
    return text ? strtoull(text, NULL, 10) : 0;
}

/* A buffer that must be there; freed by the caller. */
static inline void *allocate(size_t bytes)
{
    void *buffer = calloc(1, bytes ? bytes : 1);
    assert_non_null(buffer);
    return buffer;
}

/* The device that a test's contexts are on: what TKV_TEST_DEVICE names; NULL: the CPU. */
static inline const char *test_device(void)
{
    return getenv("TKV_TEST_DEVICE");
}

/* Whether it is not there; says why. A test then ends with EXIT_SKIPPED. */
enum { EXIT_SKIPPED = 77 };
static inline bool test_device_is_missing(void)
{
    const tkv_context_params params = {.device = test_device()};
    tkv_context *context = NULL;
    tkv_error error;
    if (tkv_context_create(&params, &context, &error) == TKV_OK) {
        tkv_context_free(context);
        return false;
    }
    print_message("skipped: %s\n", error.message);
    return true;
}

/* |a - b| / |b| over n values. */
static inline double relative_error(size_t n, const float *a, const float *b)
{
    double difference = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
}

/* The call fails with the status and a message that holds `part`. */
#define assert_fails(call, expected_status, part)                                                  \
    do {                                                                                           \
        tkv_error error = {TKV_OK, ""};                                                            \
        assert_int_equal(call, expected_status);                                                   \
        assert_int_equal(error.status, expected_status);                                           \
        if (!strstr(error.message, part)) {                                                        \
            fail_msg("message '%s' lacks '%s'", error.message, part);                              \
        }                                                                                          \
    } while (0)

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        tkv_error error = {TKV_OK, ""};                                                            \
        if ((call) != TKV_OK) {                                                                    \
            fail_msg("%s", error.message);                                                         \
        }                                                                                          \
    } while (0)

#endif
