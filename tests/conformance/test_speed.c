/* Times of the harness: one for each operation and shape, of kernels in turns, and a fault where
 * what is timed is wrong. */
#include "check/check.h"
#include "support/reference_device.h"
#include "support/support.h"

enum { MAX_TIMES = 64 };

typedef struct times {
    int n;
    tkv_check_result results[MAX_TIMES];
    bool are_wrong[MAX_TIMES];
} times;

static void note(void *user, const tkv_check_result *result)
{
    times *t = user;
    assert_true(t->n < MAX_TIMES);
    assert_true(result->seconds > 0.0 && result->bytes > 0.0 && result->limit_seconds > 0.0);
    t->are_wrong[t->n] = result->fault != NULL;
    t->results[t->n++] = *result;
}

static const tkv_type types[] = {TKV_TYPE_TURBO3, TKV_TYPE_F16};
static const int head_dims[] = {48, 80};
static const tkv_check_params params = {.mode = TKV_CHECK_SPEED,
                                        .types = types,
                                        .n_types = 2,
                                        .head_dims = head_dims,
                                        .n_head_dims = 2,
                                        .n_tokens = 100,
                                        .seconds = 1e-4};

static void wrong_decode(const tkv_page_span *span, const void *page, float *x, size_t stride)
{
    tkv_kernels_scalar.decode(span, page, x, stride);
    if (span->head_dim == 80 && span->type == TKV_TYPE_TURBO3) {
        x[0] = -x[0];
    }
}

static void kernels_are_timed_in_turns(void **state)
{
    (void)state;
    static times t;
    tkv_kernels wrong = tkv_kernels_scalar;
    wrong.name = "wrong";
    wrong.decode = wrong_decode;
    const tkv_kernels *const tables[] = {&tkv_kernels_scalar, &wrong};
    assert_ok(tkv_check_kernels(tables, 2, &params, note, &t, &error));
    /* Rotations of two sizes, a softmax, five operations on two sizes and types. */
    assert_int_equal(t.n, 2 * (2 * 2 + 1 + 5 * 2 * 2));
    for (int i = 0; i < t.n; i++) {
        const tkv_check_result *r = &t.results[i];
        assert_string_equal(r->kernels, i % 2 ? "wrong" : "scalar");
        assert_int_equal(t.are_wrong[i], i % 2 && r->operation == TKV_OPERATION_DECODE &&
                                             r->type == TKV_TYPE_TURBO3 && r->head_dim == 80);
    }
}

static void devices_are_timed(void **state)
{
    (void)state;
    static times t;
    tkv_context *context = create_reference_context();
    assert_ok(tkv_check_run(context, &params, note, &t, &error));
    tkv_context_free(context);
    /* Rotations of two sizes; storing, loading and attention on two sizes and types. */
    assert_int_equal(t.n, 2 * 2 + 3 * 2 * 2);
    for (int i = 0; i < t.n; i++) {
        assert_false(t.are_wrong[i]);
        assert_int_equal(t.results[i].limit, TKV_LIMIT_MEMORY);
    }
    assert_int_equal(reference_device_bytes(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kernels_are_timed_in_turns),
                                       cmocka_unit_test(devices_are_timed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
