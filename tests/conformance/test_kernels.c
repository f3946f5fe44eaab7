/* Every kernel of every instruction set of this machine against the reference: all cases of
 * src/check. The reference checks the checks. The random numbers follow from TKV_TEST_SEED, 0 by
 * default, which is printed. The build says which operations. */
#include "check/check.h"
#include "conformance/outcome.h"

static void every_kernel_is_right(void **state)
{
    const tkv_check_params params = {
        .mode = TKV_CHECK_ALL, .operations = operations_of(OPERATIONS), .seed = test_seed()};
    const tkv_kernels *kernels;
    (void)state;
    for (int i = 0; (kernels = tkv_kernels_available(i)); i++) {
        outcome o = {.n_failed = 0};
        assert_ok(tkv_check_kernels(&kernels, 1, &params, outcome_note, &o, &error));
        outcome_assert(&o, kernels->name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_kernel_is_right)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
