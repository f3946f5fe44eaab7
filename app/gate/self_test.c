#include "gate/self_test.h"

#include <stdio.h>
#include <string.h>

static void add(void *user, const tkv_check_result *found)
{
    tkv_self_test *test = user;
    const int type = found->type == TKV_TYPE_COUNT ? 0 : (int)found->type;
    tkv_operation_result *result = &test->results[found->operation][type];
    result->n_cases++;
    if (found->fault && result->n_failed++ == 0) {
        snprintf(result->reason, sizeof result->reason, "%s: %s", found->text, found->fault);
    }
}

tkv_status tkv_self_test_run(tkv_context *context, uint32_t operations, int max_head_dim,
                             tkv_self_test *test, tkv_error *error)
{
    const tkv_check_params params = {
        .mode = TKV_CHECK_ANSWERS, .operations = operations, .max_head_dim = max_head_dim};
    memset(test, 0, sizeof *test);
    test->operations = operations;
    return tkv_check_run(context, &params, add, test, error);
}

bool tkv_self_test_passed(const tkv_self_test *test, tkv_type type)
{
    for (int i = 0; i < TKV_OPERATION_COUNT * TKV_TYPE_COUNT; i++) {
        const tkv_operation operation = (tkv_operation)(i / TKV_TYPE_COUNT);
        const int of = i % TKV_TYPE_COUNT;
        const tkv_operation_result *result = &test->results[operation][of];
        const bool matters = tkv_operation_has_types(operation)
                                 ? type == TKV_TYPE_COUNT || of == (int)type
                                 : of == 0;
        if ((test->operations >> operation & 1u) && matters &&
            (result->n_cases == 0 || result->n_failed > 0)) {
            return false;
        }
    }
    return true;
}
