/* The known-answer test of a kernel table on this machine: every kernel on every type and on many
 * head sizes, against the scalar reference, and the reference against known digests. A quick form
 * of tests/conformance, in the field. */
#ifndef TKV_GATE_SELF_TEST_H
#define TKV_GATE_SELF_TEST_H

#include "kernels/kernels.h"

typedef enum tkv_kernel_kind {
    TKV_KERNEL_ROTATE = 0,
    TKV_KERNEL_SOFTMAX,
    TKV_KERNEL_ENCODE, /* this one and the next ones: for each type */
    TKV_KERNEL_DECODE,
    TKV_KERNEL_SCORES,
    TKV_KERNEL_ACCUMULATE,
    TKV_KERNEL_ATTENTION, /* of devices, whose kernels do all of it */
    TKV_KERNEL_KINDS
} tkv_kernel_kind;

/* The kinds that a kernel table consists of, and that a device's table does: a bit for each. */
#define TKV_KERNELS_OF_CPU ((1u << TKV_KERNEL_ATTENTION) - 1u)
#define TKV_KERNELS_OF_DEVICE                                                                      \
    (1u << TKV_KERNEL_ROTATE | 1u << TKV_KERNEL_ENCODE | 1u << TKV_KERNEL_DECODE |                 \
     1u << TKV_KERNEL_ATTENTION)

typedef struct tkv_kernel_result {
    int n_cases;
    int n_failed;
    char reason[128]; /* of the first failure */
} tkv_kernel_result;

typedef struct tkv_self_test {
    unsigned kinds; /* that are tested */
    /* Rotation and softmax have one result, at type 0. */
    tkv_kernel_result results[TKV_KERNEL_KINDS][TKV_TYPE_COUNT];
} tkv_self_test;

/* "rotate", "softmax", ... Static storage. */
const char *tkv_kernel_kind_name(tkv_kernel_kind kind);

/* True for kinds that are tested for each type. */
bool tkv_kernel_kind_has_types(tkv_kernel_kind kind);

/* Runs all cases on a table. */
tkv_status tkv_self_test_run(const tkv_kernels *kernels, tkv_self_test *test, tkv_error *error);

/* Whether everything that a type needs was tested and passed; TKV_TYPE_COUNT: everything. */
bool tkv_self_test_passed(const tkv_self_test *test, tkv_type type);

#endif
