/* The known answers of a context on this machine: what tkv_check_run reports, summed up. */
#ifndef TKV_GATE_SELF_TEST_H
#define TKV_GATE_SELF_TEST_H

#include "turbokv.h"

/* What there is to be tested: a bit for each operation. */
#define TKV_SELF_TEST_OF_CPU                                                                       \
    (1u << TKV_OPERATION_ROTATE | 1u << TKV_OPERATION_UNROTATE | 1u << TKV_OPERATION_SOFTMAX |     \
     1u << TKV_OPERATION_ENCODE | 1u << TKV_OPERATION_DECODE | 1u << TKV_OPERATION_SCORES |        \
     1u << TKV_OPERATION_ACCUMULATE)
#define TKV_SELF_TEST_OF_DEVICE                                                                    \
    (1u << TKV_OPERATION_ROTATE | 1u << TKV_OPERATION_UNROTATE | 1u << TKV_OPERATION_MOVE_ROWS |   \
     1u << TKV_OPERATION_JOIN | 1u << TKV_OPERATION_STORE | 1u << TKV_OPERATION_LOAD |             \
     1u << TKV_OPERATION_ATTEND)

typedef struct tkv_operation_result {
    int n_cases;
    int n_failed;
    char reason[256]; /* of the first failure */
} tkv_operation_result;

typedef struct tkv_self_test {
    uint32_t operations; /* that there are */
    /* Operations without types have one result, at type 0. */
    tkv_operation_result results[TKV_OPERATION_COUNT][TKV_TYPE_COUNT];
} tkv_self_test;

/* Runs all cases with heads of up to max_head_dim (0: every size) of `operations` on what a context
 * computes with. */
tkv_status tkv_self_test_run(tkv_context *context, uint32_t operations, int max_head_dim,
                             tkv_self_test *test, tkv_error *error);

/* Whether everything that a type needs was tested and passed; TKV_TYPE_COUNT: everything. */
bool tkv_self_test_passed(const tkv_self_test *test, tkv_type type);

#endif
