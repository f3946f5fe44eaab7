#include "model/sampler.h"
#include "support/support.h"

static tkv_sampler *create(float temperature, int top_k, float top_p, float min_p, uint64_t seed,
                           int n_tokens)
{
    const tkv_sampler_params params = {temperature, top_k, top_p, min_p, seed};
    tkv_sampler *sampler = NULL;
    assert_ok(tkv_sampler_create(&params, n_tokens, &sampler, &error));
    return sampler;
}

static int32_t draw(tkv_sampler *sampler, const float *logits)
{
    int32_t token = -1;
    assert_ok(tkv_sampler_draw(sampler, logits, &token, &error));
    return token;
}

/* Draws many times; counts [n]. */
static void count(tkv_sampler *sampler, const float *logits, int n, int n_draws, int *counts)
{
    memset(counts, 0, (size_t)n * sizeof *counts);
    for (int i = 0; i < n_draws; i++) {
        counts[draw(sampler, logits)]++;
    }
    tkv_sampler_free(sampler);
}

static void greedy_takes_the_first_largest(void **state)
{
    (void)state;
    const float logits[] = {1.0f, 3.0f, -INFINITY, 3.0f, 2.0f};
    tkv_sampler *sampler = create(0.0f, 0, 1.0f, 0.0f, 1, 5);
    assert_int_equal(draw(sampler, logits), 1);
    tkv_sampler_free(sampler);
    sampler = create(5.0f, 1, 1.0f, 0.0f, 1, 5);
    assert_int_equal(draw(sampler, logits), 1);
    tkv_sampler_free(sampler);
}

/* Chi-square of draws against softmax probabilities: 5 degrees of freedom, 0.1 % at 20.5. */
static void frequencies_follow_the_softmax(void **state)
{
    (void)state;
    const float logits[] = {0.0f, 1.0f, 2.0f, 0.5f, -1.0f, 1.5f};
    const float temperatures[] = {0.5f, 1.0f, 2.0f};
    for (int k = 0; k < 3; k++) {
        int counts[6];
        count(create(temperatures[k], 0, 1.0f, 0.0f, 42, 6), logits, 6, 20000, counts);
        double total = 0.0;
        double chi2 = 0.0;
        for (int i = 0; i < 6; i++) {
            total += exp((double)(logits[i] / temperatures[k]));
        }
        for (int i = 0; i < 6; i++) {
            const double expected = 20000.0 * exp((double)(logits[i] / temperatures[k])) / total;
            chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
        }
        assert_true(chi2 < 20.5);
    }
}

static void filters_keep_what_they_promise(void **state)
{
    (void)state;
    /* probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625, not in order */
    const float logits[] = {logf(0.125f), logf(0.5f), logf(0.0625f), logf(0.25f), logf(0.0625f)};
    int counts[5];
    count(create(1.0f, 2, 1.0f, 0.0f, 1, 5), logits, 5, 2000, counts);
    assert_true(counts[1] > 0 && counts[3] > 0 && counts[0] + counts[2] + counts[4] == 0);
    count(create(1.0f, 0, 0.7f, 0.0f, 1, 5), logits, 5, 2000, counts);
    assert_true(counts[1] > 0 && counts[3] > 0 && counts[0] + counts[2] + counts[4] == 0);
    count(create(1.0f, 0, 0.0f, 0.0f, 1, 5), logits, 5, 200, counts);
    assert_int_equal(counts[1], 200);
    count(create(1.0f, 0, 1.0f, 0.24f, 1, 5), logits, 5, 2000, counts);
    assert_true(counts[0] > 0 && counts[1] > 0 && counts[3] > 0 && counts[2] + counts[4] == 0);
    count(create(1.0f, 0, 1.0f, 1.0f, 1, 5), logits, 5, 200, counts);
    assert_int_equal(counts[1], 200);
    count(create(1.0f, 100, 1.0f, 0.0f, 1, 5), logits, 5, 2000, counts);
    assert_true(counts[2] > 0 && counts[4] > 0);
}

/* Quickselect finds the same tokens as sorting, ties included. */
static void top_k_of_a_large_vocabulary(void **state)
{
    (void)state;
    enum { N = 5000 };
    float *logits = allocate(N * sizeof *logits);
    uint64_t seed = 3;
    for (int trial = 0; trial < 20; trial++) {
        const int k = 1 + random_below(&seed, 50);
        for (int i = 0; i < N; i++) {
            logits[i] = (float)random_below(&seed, 400);
        }
        tkv_sampler *sampler = create(1e6f, k, 1.0f, 0.0f, (uint64_t)trial, N);
        for (int i = 0; i < 200; i++) {
            const int32_t token = draw(sampler, logits);
            int better = 0;
            for (int j = 0; j < N; j++) {
                better += logits[j] > logits[token] || (logits[j] == logits[token] && j < token);
            }
            assert_true(better < k);
        }
        tkv_sampler_free(sampler);
    }
    free(logits);
}

/* Values beyond a filter's range switch it off, as in llama.cpp. */
static void values_out_of_range_switch_off(void **state)
{
    (void)state;
    float logits[64];
    uint64_t seed = 3;
    fill_gauss(&seed, 64, logits);
    tkv_sampler *plain = create(1.0f, 0, 1.0f, 0.0f, 5, 64);
    tkv_sampler *off = create(1.0f, -1, 1.5f, -1.0f, 5, 64);
    tkv_sampler *greedy = create(0.0f, 40, 0.95f, 0.05f, 5, 64);
    tkv_sampler *below = create(-1.0f, 40, 0.95f, 0.05f, 5, 64);
    bool differs = false;
    for (int i = 0; i < 200; i++) {
        const int32_t token = draw(plain, logits);
        const int32_t best = draw(greedy, logits);
        assert_int_equal(token, draw(off, logits));
        assert_int_equal(best, draw(below, logits));
        differs = differs || token != best;
    }
    assert_true(differs);
    tkv_sampler_free(plain);
    tkv_sampler_free(off);
    tkv_sampler_free(greedy);
    tkv_sampler_free(below);
}

static void seeds_decide_the_text(void **state)
{
    (void)state;
    float logits[64];
    uint64_t seed = 1;
    fill_gauss(&seed, 64, logits);
    tkv_sampler *a = create(1.0f, 40, 0.95f, 0.05f, 5, 64);
    tkv_sampler *b = create(1.0f, 40, 0.95f, 0.05f, 5, 64);
    tkv_sampler *c = create(1.0f, 40, 0.95f, 0.05f, 6, 64);
    int differences = 0;
    for (int i = 0; i < 100; i++) {
        const int32_t token = draw(a, logits);
        assert_int_equal(token, draw(b, logits));
        differences += token != draw(c, logits);
    }
    assert_true(differences > 20);
    tkv_sampler_free(a);
    tkv_sampler_free(b);
    tkv_sampler_free(c);
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    tkv_sampler *sampler = NULL;
    const tkv_sampler_params wrong[] = {{-INFINITY, 0, 1.0f, 0.0f, 0}, {NAN, 0, 1.0f, 0.0f, 0},
                                        {1.0f, 0, INFINITY, 0.0f, 0},  {1.0f, 0, NAN, 0.0f, 0},
                                        {1.0f, 0, 1.0f, NAN, 0},       {1.0f, 0, 1.0f, 1.1f, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_fails(tkv_sampler_create(&wrong[i], 5, &sampler, &error), TKV_ERR_INVALID_ARGUMENT,
                     "expected");
    }
    assert_null(sampler);
    sampler = create(1.0f, 0, 1.0f, 0.0f, 0, 2);
    const float nan_logits[] = {0.0f, NAN};
    const float no_logits[] = {-INFINITY, -INFINITY};
    int32_t token;
    assert_fails(tkv_sampler_draw(sampler, nan_logits, &token, &error), TKV_ERR_NOT_FINITE,
                 "token 1");
    assert_fails(tkv_sampler_draw(sampler, no_logits, &token, &error), TKV_ERR_NOT_FINITE,
                 "no logit");
    tkv_sampler_free(sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(greedy_takes_the_first_largest),
                                       cmocka_unit_test(frequencies_follow_the_softmax),
                                       cmocka_unit_test(filters_keep_what_they_promise),
                                       cmocka_unit_test(top_k_of_a_large_vocabulary),
                                       cmocka_unit_test(values_out_of_range_switch_off),
                                       cmocka_unit_test(seeds_decide_the_text),
                                       cmocka_unit_test(mistakes_are_explained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
