/* Operations of every device table of this build, on every device that it finds, against the
 * reference: all cases of src/check. TKV_TEST_QUICK=1 takes few and small ones: for emulated
 * devices and memory checkers. The build says which operations. */
#include "check/check.h"
#include "conformance/outcome.h"
#include "support/reference_device.h"

static void check_device(const tkv_device_table *table, int index, const tkv_device_setup *setup,
                         bool is_small)
{
    const tkv_check_params params = {.mode = is_small ? TKV_CHECK_SAMPLE : TKV_CHECK_ALL,
                                     .operations = operations_of(OPERATIONS),
                                     .seed = test_seed()};
    tkv_device *device = NULL;
    outcome o = {.n_failed = 0};
    assert_ok(table->open(index, setup, &device, &error));
    assert_ok(tkv_check_device(device, &params, outcome_note, &o, &error));
    table->close(device);
    outcome_assert(&o, table->name);
}

/* The reference device shows that the checks are right. */
static void every_device_is_right(void **state)
{
    const char *quick = getenv("TKV_TEST_QUICK");
    const tkv_device_table *table;
    (void)state;
    for (int t = 0; (table = tkv_device_tables(t)) != NULL; t++) {
        char reason[200] = "";
        const int n = table->count(reason, sizeof reason);
        if (n == 0) {
            print_message("%s: skipped, no device: %s\n", table->name, reason);
        }
        for (int i = 0; i < n; i++) {
            check_device(table, i, NULL, quick && *quick == '1');
        }
    }
    /* With the reference's kernels, which do not round; those of the others have tests of their
     * own. */
    check_device(&tkv_device_table_host, 0, &(tkv_device_setup){.kernels = &tkv_kernels_scalar},
                 true);
    check_device(&reference_device_table, 0, NULL, true);
    assert_int_equal(reference_device_bytes(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_device_is_right)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
