/* What the conformance tests share, in the manner of dav1d's checkasm: every table of kernels that
 * this machine can run, outputs between guards, random and adversarial rows. The random numbers
 * follow from TKV_TEST_SEED, 0 by default, which is printed. */
#ifndef TKV_TESTS_CONFORMANCE_H
#define TKV_TESTS_CONFORMANCE_H

#include "kernels/kernels.h"
#include "support/support.h"

#define GUARD 64
#define GUARD_BYTE 0xa5

/* A buffer with guards on both sides. */
typedef struct guarded {
    uint8_t *memory;
    uint8_t *data;
    size_t bytes;
} guarded;

static inline guarded guard(size_t bytes)
{
    guarded g = {.bytes = bytes};
    g.memory = aligned_alloc(GUARD, (bytes + 3 * GUARD - 1) / GUARD * GUARD);
    assert_non_null(g.memory);
    memset(g.memory, GUARD_BYTE, bytes + 2 * GUARD);
    g.data = g.memory + GUARD;
    return g;
}

static inline void release(guarded *g)
{
    for (int i = 0; i < GUARD; i++) {
        assert_int_equal(g->memory[i], GUARD_BYTE);
        assert_int_equal(g->data[g->bytes + (size_t)i], GUARD_BYTE);
    }
    free(g->memory);
}

/* One coordinate of a row: Gaussian, a spike, zero, tiny, huge, constant, on a grid, denormal, near
 * the largest float, not finite. */
enum { N_FINITE_KINDS = 9, N_KINDS = 10 };

static inline float row_value(int kind, float gauss, bool is_spike)
{
    switch (kind) {
    case 1: return is_spike ? 7.0f : 0.0f;
    case 2: return 0.0f;
    case 3: return gauss * 1e-13f;
    case 4: return gauss * 1e30f;
    case 5: return 1.0f;
    case 6: return rintf(4.0f * gauss) / 4.0f;
    case 7: return gauss * 1e-42f;
    case 8: return gauss < 0.0f ? -3e38f : 3e38f;
    case 9: return is_spike ? NAN : gauss;
    default: return gauss;
    }
}

/* Row i is of kind i modulo n_kinds; 1 kind: all Gaussian. */
static inline void fill_rows(uint64_t *seed, int n_rows, int head_dim, size_t stride, int n_kinds,
                             float *x)
{
    for (int i = 0; i < n_rows; i++) {
        for (int j = 0; j < head_dim; j++) {
            x[(size_t)i * stride + (size_t)j] =
                row_value(i % n_kinds, random_gauss(seed), j == i % head_dim);
        }
    }
}

/* The seed of check `index`. */
static inline uint64_t seed_of(uint64_t index)
{
    const char *text = getenv("TKV_TEST_SEED");
    return (text ? strtoull(text, NULL, 10) : 0) * 1000003 + index;
}

/* Runs a check on every table that this machine can run; the reference checks the checks. */
static inline void on_all_tables(void (*check)(const tkv_kernels *))
{
    const tkv_kernels *kernels;
    const char *seed = getenv("TKV_TEST_SEED");
    print_message("TKV_TEST_SEED=%s\n", seed ? seed : "0");
    for (int i = 0; (kernels = tkv_kernels_available(i)); i++) {
        print_message("kernels: %s\n", kernels->name);
        check(kernels);
    }
}

#endif
