#include "format/codec.h"
#include "support/support.h"

/* Sylvester's Hadamard matrix times a vector, by definition. */
static void hadamard(int n, double *x)
{
    double *y = allocate((size_t)n * sizeof *y);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            y[i] += __builtin_parity((unsigned)(i & j)) ? -x[j] : x[j];
        }
    }
    for (int i = 0; i < n; i++) {
        x[i] = y[i] / sqrt((double)n);
    }
    free(y);
}

static void flip_by_definition(int first, int end, const uint32_t *signs, double *x)
{
    for (int j = first; j < end; j++) {
        x[j] *= signs[j / 32] >> (j % 32) & 1 ? -1.0 : 1.0;
    }
}

static void rotate_by_definition(int head_dim, double *x)
{
    int block = 1;
    while (2 * block <= head_dim) {
        block *= 2;
    }
    for (int round = 0; round < 2; round++) {
        flip_by_definition(0, block, tkv_rotation_signs[round], x);
        hadamard(block, x);
        if (block < head_dim) {
            flip_by_definition(head_dim - block, head_dim, tkv_rotation_signs[round], x);
            hadamard(block, x + head_dim - block);
        }
    }
}

static void rotation_matches_its_definition(void **state)
{
    (void)state;
    for (int head_dim = 16; head_dim <= 1024; head_dim += head_dim < 256 ? 16 : 64) {
        uint64_t seed = (uint64_t)head_dim;
        float x[1024];
        float original[1024];
        double expected[1024];
        fill_gauss(&seed, (size_t)head_dim, x);
        memcpy(original, x, sizeof x);
        for (int j = 0; j < head_dim; j++) {
            expected[j] = (double)x[j];
        }
        rotate_by_definition(head_dim, expected);
        tkv_rotate_row(head_dim, x);
        for (int j = 0; j < head_dim; j++) {
            assert_true(fabs((double)x[j] - expected[j]) < 2e-6);
        }
        tkv_unrotate_row(head_dim, x);
        assert_true(relative_error((size_t)head_dim, x, original) < 1e-6);
    }
}

/* Two rounds spread a few equal spikes like a Gaussian vector, which one round does not. */
static void spikes_are_spread(void **state)
{
    (void)state;
    for (int spikes = 1; spikes <= 16; spikes *= 2) {
        uint64_t seed = (uint64_t)spikes;
        double fourth = 0.0;
        for (int trial = 0; trial < 200; trial++) {
            float x[128] = {0};
            for (int i = 0; i < spikes; i++) {
                x[random_below(&seed, 128)] = 1.0f;
            }
            tkv_rotate_row(128, x);
            double second = 0.0;
            double sum = 0.0;
            for (int j = 0; j < 128; j++) {
                const double square = (double)x[j] * (double)x[j];
                second += square / 128;
                sum += square * square / 128;
            }
            fourth += sum / (second * second) / 200;
        }
        /* The kurtosis of a Gaussian is 3; one round gives 1 for one spike. */
        assert_true(fourth > 2.2 && fourth < 4.0);
    }
}

static void public_functions_check_their_arguments(void **state)
{
    (void)state;
    float x[64] = {1.0f};
    assert_ok(tkv_rotate(NULL, 64, 1, x, &error));
    assert_true(fabsf(x[0]) < 1.0f);
    assert_ok(tkv_unrotate(NULL, 64, 1, x, &error));
    assert_true(fabsf(x[0] - 1.0f) < 1e-6f);
    assert_fails(tkv_rotate(NULL, 65, 1, x, &error), TKV_ERR_INVALID_ARGUMENT, "even number");
    assert_fails(tkv_rotate(NULL, 40, 1, x, &error), TKV_ERR_INVALID_ARGUMENT, "multiple of 16");
    assert_fails(tkv_rotate(NULL, 0, 1, x, &error), TKV_ERR_INVALID_ARGUMENT, "2 to 1024");
    assert_fails(tkv_unrotate(NULL, 2048, 1, x, &error), TKV_ERR_INVALID_ARGUMENT, "1024");
    assert_fails(tkv_rotate(NULL, 64, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rotation_matches_its_definition),
                                       cmocka_unit_test(spikes_are_spread),
                                       cmocka_unit_test(public_functions_check_their_arguments)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
