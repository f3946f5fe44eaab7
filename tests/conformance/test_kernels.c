/* Every kernel of every instruction set of this machine against the reference: all cases of
 * src/check. The reference checks the checks. The random numbers follow from TKV_TEST_SEED, 0 by
 * default, which is printed. An argument names the operations: "encode,decode". */
#include "check/check.h"
#include "support/support.h"

/* What came of the cases of a table. */
typedef struct outcome {
    int n_cases[TKV_OPERATION_COUNT];
    int n_failed;
    double worst[TKV_OPERATION_COUNT]; /* error in units of its bound */
} outcome;

static void note(void *user, const tkv_check_result *result)
{
    outcome *o = user;
    o->n_cases[result->operation]++;
    if (result->bound > 0.0 && result->error > o->worst[result->operation] * result->bound) {
        o->worst[result->operation] = result->error / result->bound;
    }
    if (result->fault && o->n_failed++ < 10) {
        print_error("%s: %s: %s\n", result->kernels, result->text, result->fault);
    }
}

static uint32_t operations_of(const char *names)
{
    uint32_t operations = 0;
    for (int i = 0; names && i < TKV_OPERATION_COUNT; i++) {
        const char *name = tkv_operation_name((tkv_operation)i);
        const char *found = strstr(names, name);
        const size_t n = strlen(name);
        const bool is_whole =
            found && (found == names || found[-1] == ',') && (found[n] == ',' || !found[n]);
        operations |= is_whole ? 1u << i : 0u;
    }
    return operations;
}

static void every_kernel_is_right(void **state)
{
    const tkv_check_params params = {
        .mode = TKV_CHECK_ALL, .operations = operations_of(*state), .seed = test_seed()};
    const tkv_kernels *kernels;
    for (int i = 0; (kernels = tkv_kernels_available(i)); i++) {
        outcome o = {.n_failed = 0};
        assert_ok(tkv_check_kernels(&kernels, 1, &params, note, &o, &error));
        for (int k = 0; k < TKV_OPERATION_COUNT; k++) {
            if (o.n_cases[k] > 0) {
                print_message("%s, %s: %d cases, worst error %.2g of the bound\n", kernels->name,
                              tkv_operation_name((tkv_operation)k), o.n_cases[k], o.worst[k]);
            }
        }
        assert_int_equal(o.n_failed, 0);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(every_kernel_is_right, argc > 1 ? argv[1] : NULL)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
