#include "eval/divergence.h"
#include "support/support.h"

/* Two distributions over three tokens, by hand: p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4). */
static void values_are_those_of_the_definition(void **state)
{
    (void)state;
    tkv_divergence d = {0};
    const float p[] = {logf(2.0f) + 3.0f, 3.0f, 3.0f};
    const float q[] = {-1.0f, logf(2.0f) - 1.0f, -1.0f};
    assert_ok(tkv_divergence_add(&d, p, q, 3, 1, &error));
    assert_ok(tkv_divergence_add(&d, p, p, 3, 0, &error));
    const tkv_divergence_summary s = tkv_divergence_summarise(&d);
    assert_int_equal(s.n, 2);
    assert_true(fabs(s.mean_kl - 0.5 * 0.25 * log(2.0)) < 1e-6);
    assert_true(fabs(s.max_kl - 0.25 * log(2.0)) < 1e-6);
    assert_true(s.same_top == 0.5);
    assert_true(fabs(s.perplexity - exp(0.5 * (log(2.0) + log(2.0)))) < 1e-5);
    assert_true(fabs(s.perplexity_reference - exp(0.5 * (log(4.0) + log(2.0)))) < 1e-5);
    tkv_divergence_free(&d);
    assert_int_equal(tkv_divergence_summarise(&d).n, 0);
}

static void percentiles(void **state)
{
    (void)state;
    tkv_divergence d = {0};
    for (int i = 0; i < 3001; i++) {
        /* q favours the other token more and more: the divergence grows with i */
        const float p[] = {0.0f, 0.0f};
        const float q[] = {0.0f, (float)((i * 1009) % 3001) * 1e-3f};
        assert_ok(tkv_divergence_add(&d, p, q, 2, 0, &error));
    }
    const tkv_divergence_summary s = tkv_divergence_summarise(&d);
    const double x[] = {1.5, 2.997};
    const double expected_median = -0.5 * x[0] - log(2.0) + log(1.0 + exp(x[0]));
    const double expected_999 = -0.5 * x[1] - log(2.0) + log(1.0 + exp(x[1]));
    assert_true(fabs(s.median_kl - expected_median) < 1e-5);
    assert_true(fabs(s.kl_999 - expected_999) < 1e-5);
    tkv_divergence_free(&d);
}

static void logits_must_be_numbers(void **state)
{
    (void)state;
    tkv_divergence d = {0};
    const float p[] = {0.0f, 1.0f};
    const float q[] = {0.0f, NAN};
    assert_fails(tkv_divergence_add(&d, p, q, 2, 0, &error), TKV_ERR_NOT_FINITE, "position 0");
    const float masked[] = {0.0f, -INFINITY};
    assert_ok(tkv_divergence_add(&d, masked, p, 2, 0, &error));
    assert_int_equal(d.n, 1);
    tkv_divergence_free(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(values_are_those_of_the_definition),
                                       cmocka_unit_test(percentiles),
                                       cmocka_unit_test(logits_must_be_numbers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
