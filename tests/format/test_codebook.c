/* Derives the published tables again. */
#include "format/codec.h"
#include "support/support.h"

static double density(double x)
{
    return exp(-0.5 * x * x) / sqrt(2.0 * 3.14159265358979323846);
}

static double tail(double x)
{
    return 0.5 * erfc(x / sqrt(2.0));
}

/* Lloyd's iteration on the positive half of N(0,1) until nothing moves. Returns the distortion. */
static double lloyd_max(int n, double *centroids)
{
    double change = 1.0;
    double distortion = 1.0;
    for (int i = 0; i < n; i++) {
        centroids[i] = 2.0 * (i + 0.5) / n;
    }
    for (int iteration = 0; change > 1e-14 && iteration < 1000000; iteration++) {
        double next[8];
        change = 0.0;
        distortion = 1.0;
        for (int i = 0; i < n; i++) {
            const double low = i ? 0.5 * (centroids[i - 1] + centroids[i]) : 0.0;
            const double high = i + 1 < n ? 0.5 * (centroids[i] + centroids[i + 1]) : 1e3;
            const double mass = tail(low) - tail(high);
            next[i] = (density(low) - density(high)) / mass;
            distortion -= 2.0 * mass * next[i] * next[i];
            change = fmax(change, fabs(next[i] - centroids[i]));
        }
        memcpy(centroids, next, (size_t)n * sizeof *next);
    }
    return distortion;
}

static void tables_are_converged(void **state)
{
    (void)state;
    const double distortions[] = {0.1174818478, 0.0345477608, 0.0095010080};
    for (int bits = 2; bits <= 4; bits++) {
        const tkv_codebook *codebook = tkv_codebook_get(bits);
        const int half = 1 << (bits - 1);
        double c[8];
        assert_true(fabs(lloyd_max(half, c) - distortions[bits - 2]) < 1e-9);
        assert_int_equal(codebook->n_levels, 2 * half);
        assert_true(codebook->thresholds[half - 1] == 0.0f);
        for (int i = 0; i < half; i++) {
            const int level = (int)rint(127.0 * c[i] / c[half - 1]);
            assert_int_equal(codebook->levels[half + i], level);
            assert_int_equal(codebook->levels[half - 1 - i], -level);
            if (i + 1 < half) {
                const float threshold = (float)(0.5 * (c[i] + c[i + 1]));
                assert_true(fabsf(codebook->thresholds[half + i] - threshold) <=
                            1.2e-7f * threshold);
                assert_true(codebook->thresholds[half - 2 - i] == -codebook->thresholds[half + i]);
            }
        }
    }
    assert_null(tkv_codebook_get(1));
    assert_null(tkv_codebook_get(5));
}

static void signs_follow_their_rule(void **state)
{
    (void)state;
    const uint64_t seeds[2] = {1, 82689};
    for (int round = 0; round < 2; round++) {
        uint64_t generator = seeds[round];
        for (int word = 0; word < TKV_SIGN_WORDS; word += 2) {
            const uint64_t bits = random_bits(&generator);
            assert_int_equal(tkv_rotation_signs[round][word], (uint32_t)bits);
            assert_int_equal(tkv_rotation_signs[round][word + 1], (uint32_t)(bits >> 32));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tables_are_converged),
                                       cmocka_unit_test(signs_follow_their_rule)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
