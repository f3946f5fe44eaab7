/* What came of the cases of a table, for the conformance tests. */
#ifndef TKV_TESTS_OUTCOME_H
#define TKV_TESTS_OUTCOME_H

#include "support/support.h"

typedef struct outcome {
    int n_cases[TKV_OPERATION_COUNT];
    int n_failed;
    double worst[TKV_OPERATION_COUNT]; /* error in units of its bound */
} outcome;

/* A tkv_check_report; `user` is an outcome. */
static inline void outcome_note(void *user, const tkv_check_result *result)
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

/* Prints it; fails if a case has. */
static inline void outcome_assert(const outcome *o, const char *name)
{
    int n = 0;
    for (int i = 0; i < TKV_OPERATION_COUNT; i++) {
        n += o->n_cases[i];
        if (o->n_cases[i] > 0) {
            print_message("%s, %s: %d cases, worst error %.2g of the bound\n", name,
                          tkv_operation_name((tkv_operation)i), o->n_cases[i], o->worst[i]);
        }
    }
    assert_true(n > 0);
    assert_int_equal(o->n_failed, 0);
}

/* The bits of operations that a list names: "encode,decode"; NULL: 0. */
static inline uint32_t operations_of(const char *names)
{
    uint32_t operations = 0;
    for (int i = 0; names && i < TKV_OPERATION_COUNT; i++) {
        const char *name = tkv_operation_name((tkv_operation)i);
        const size_t n = strlen(name);
        for (const char *at = names; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
            const bool is_it = strncmp(at, name, n) == 0 && (at[n] == ',' || !at[n]);
            operations |= is_it ? 1u << i : 0u;
        }
    }
    return operations;
}

#endif
