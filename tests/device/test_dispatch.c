/* Which kernels are found and chosen, and the context that holds them. */
#include "kernels/kernels.h"
#include "support/support.h"

static void the_reference_is_always_there(void **state)
{
    (void)state;
    int n = 0;
    assert_ptr_equal(tkv_kernels_available(0), &tkv_kernels_scalar);
    for (; tkv_kernels_available(n); n++) {
        const tkv_kernels *kernels = NULL;
        const char *name = tkv_kernels_available(n)->name;
        assert_ok(tkv_kernels_select(name, &kernels, &error));
        assert_ptr_equal(kernels, tkv_kernels_available(n));
        for (int other = 0; other < n; other++) {
            assert_string_not_equal(name, tkv_kernels_available(other)->name);
        }
    }
    const tkv_kernels *best = NULL;
    assert_ok(tkv_kernels_select(NULL, &best, &error));
    assert_ptr_equal(best, tkv_kernels_available(n - 1));
    assert_null(tkv_kernels_available(n));
}

static void unknown_kernels_are_refused(void **state)
{
    (void)state;
    const tkv_kernels *kernels = NULL;
    assert_fails(tkv_kernels_select("pdp11", &kernels, &error), TKV_ERR_UNSUPPORTED, "'pdp11'");
    assert_fails(tkv_kernels_select("", &kernels, &error), TKV_ERR_UNSUPPORTED, "scalar");
}

static void the_environment_chooses(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_int_equal(setenv("TKV_CPU", "scalar", 1), 0);
    assert_ok(tkv_context_create(NULL, &context, &error));
    assert_string_equal(tkv_context_kernels(context), "scalar");
    assert_true(tkv_context_threads(context) >= 1);
    tkv_context_free(context);
    context = NULL;
    assert_int_equal(setenv("TKV_CPU", "abacus", 1), 0);
    assert_fails(tkv_context_create(NULL, &context, &error), TKV_ERR_UNSUPPORTED, "abacus");
    assert_null(context);
    assert_int_equal(unsetenv("TKV_CPU"), 0);
    tkv_context_free(NULL);
}

static void impossible_contexts_are_refused(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    tkv_context_params params = {.n_threads = -1};
    assert_fails(tkv_context_create(&params, &context, &error), TKV_ERR_INVALID_ARGUMENT, "-1");
    params.n_threads = 100000;
    assert_fails(tkv_context_create(&params, &context, &error), TKV_ERR_INVALID_ARGUMENT, "100000");
    params = (tkv_context_params){.n_threads = 1, .effort = TKV_EFFORT_COUNT};
    assert_fails(tkv_context_create(&params, &context, &error), TKV_ERR_INVALID_ARGUMENT,
                 "effort 3");
    assert_fails(tkv_context_create(NULL, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
    assert_null(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_reference_is_always_there),
                                       cmocka_unit_test(unknown_kernels_are_refused),
                                       cmocka_unit_test(the_environment_chooses),
                                       cmocka_unit_test(impossible_contexts_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
