/* The measures of KV types, against what is known of them. */
#include "eval/bandwidth.h"
#include "eval/codec_quality.h"
#include "support/support.h"

enum { HEAD_DIM = 128, N_ROWS = 1024 };

static tkv_codec_quality measure(tkv_type type, const float *rows, int n_heads, int n_rows,
                                 int centre_rows)
{
    tkv_context *context = NULL;
    tkv_codec_quality quality = {0};
    const tkv_codec_quality_params params = {.type = type,
                                             .head_dim = HEAD_DIM,
                                             .rows = rows,
                                             .n_heads = n_heads,
                                             .n_rows = n_rows,
                                             .centre_rows = centre_rows,
                                             .n_queries = 50,
                                             .seed = 9};
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error));
    assert_ok(tkv_codec_quality_measure(context, &params, &quality, &error));
    tkv_context_free(context);
    return quality;
}

static void gaussian_rows_have_the_expected_errors(void **state)
{
    (void)state;
    float *rows = allocate(N_ROWS * HEAD_DIM * sizeof *rows);
    uint64_t seed = 3;
    fill_gauss(&seed, N_ROWS * HEAD_DIM, rows);
    for (int i = 1; i < TKV_TYPE_COUNT; i++) {
        const tkv_type type = (tkv_type)i;
        const tkv_codec_quality q = measure(type, rows, 2, N_ROWS / 2, 0);
        const double expected = tkv_type_get_info(type)->expected_nmse;
        assert_float_equal(q.nmse, expected, 0.05 * expected);
        /* Rows of mean zero: the spread is the energy, and errors have no favourite direction. */
        assert_float_equal(q.spread_error, q.nmse, 0.01 * q.nmse);
        assert_float_equal(q.logit_error, q.nmse, 0.1 * q.nmse);
        assert_float_equal(q.slope, 1.0, 0.01);
        assert_true(q.recall > 0.3 && q.recall <= 1.0);
    }
    const double exact = measure(TKV_TYPE_TURBO8, rows, 1, N_ROWS, 0).recall;
    assert_true(exact > measure(TKV_TYPE_TURBO2, rows, 1, N_ROWS, 0).recall);
    free(rows);
}

/* A constant many times the spread hides it from the codec, unless it is taken off. */
static void centring_removes_offsets(void **state)
{
    (void)state;
    float *rows = allocate(N_ROWS * HEAD_DIM * sizeof *rows);
    uint64_t seed = 4;
    fill_gauss(&seed, N_ROWS * HEAD_DIM, rows);
    for (int i = 0; i < N_ROWS * HEAD_DIM; i++) {
        rows[i] += i % HEAD_DIM == 7 ? 60.0f : 0.0f;
    }
    const tkv_codec_quality plain = measure(TKV_TYPE_TURBO4, rows, 1, N_ROWS, 0);
    const tkv_codec_quality centred = measure(TKV_TYPE_TURBO4, rows, 1, N_ROWS, N_ROWS);
    assert_float_equal(centred.spread_error, 0.0093, 0.0005);
    assert_true(plain.spread_error > 10.0 * centred.spread_error);
    assert_true(plain.logit_error > 10.0 * centred.logit_error);
    free(rows);
}

/* Distortions of Lloyd-Max quantisers of N(0,1) as published: 0.1175, 0.03454, 0.0095 (Max
 * 1960). */
static void theory_is_that_of_the_books(void **state)
{
    (void)state;
    assert_float_equal(tkv_codec_expected_error(TKV_TYPE_TURBO2, 128), 0.1175 / (1 - 0.1175), 1e-4);
    assert_float_equal(tkv_codec_expected_error(TKV_TYPE_TURBO3, 128), 0.03454 / (1 - 0.03454),
                       1e-5);
    assert_float_equal(tkv_codec_expected_error(TKV_TYPE_TURBO4, 128), 0.0095 / (1 - 0.0095), 1e-5);
    assert_float_equal(tkv_codec_expected_error(TKV_TYPE_TURBO4Q, 128), 0.03454 * 0.570796, 1e-5);
    /* The larger square of two values of N(0,1) is 1 + 2/pi on average. */
    assert_float_equal(tkv_codec_expected_error(TKV_TYPE_TURBO8, 2) * 12 * 127 * 127,
                       1.0 + 2.0 / 3.14159265, 1e-5);
    assert_true(isnan(tkv_codec_expected_error(TKV_TYPE_TRELLIS3, 128)));
    assert_float_equal(tkv_codec_shannon_bound(TKV_TYPE_TRELLIS3), 1.0 / 64.0, 1e-12);
}

static void times_are_positive(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    tkv_codec_speed speed = {0};
    double bandwidth = 0.0;
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error));
    assert_ok(
        tkv_codec_speed_measure(context, TKV_TYPE_TURBO3, TKV_ORDER_VALUE, 64, 2, &speed, &error));
    assert_true(speed.encode_seconds > 0.0 && speed.decode_seconds > 0.0);
    assert_ok(tkv_read_bandwidth(2, 1 << 22, &bandwidth, &error));
    assert_true(bandwidth > 0.0);
    assert_fails(
        tkv_codec_speed_measure(context, TKV_TYPE_TURBO3, TKV_ORDER_KEY, 65, 2, &speed, &error),
        TKV_ERR_INVALID_ARGUMENT, "65");
    assert_fails(
        tkv_codec_speed_measure(context, TKV_TYPE_TURBO3, TKV_ORDER_KEY, 64, 0, &speed, &error),
        TKV_ERR_INVALID_ARGUMENT, "0 pages");
    tkv_context_free(context);
}

static void wrong_rows_are_errors(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    tkv_codec_quality quality;
    float rows[2 * 64] = {0};
    rows[64 + 5] = NAN;
    assert_ok(tkv_context_create(NULL, &context, &error));
    tkv_codec_quality_params params = {.type = TKV_TYPE_TURBO3,
                                       .head_dim = 64,
                                       .rows = rows,
                                       .n_heads = 1,
                                       .n_rows = 2,
                                       .n_queries = 1};
    assert_fails(tkv_codec_quality_measure(context, &params, &quality, &error), TKV_ERR_NOT_FINITE,
                 "row 1, coordinate 5 is nan");
    params.centre_rows = 3;
    assert_fails(tkv_codec_quality_measure(context, &params, &quality, &error),
                 TKV_ERR_INVALID_ARGUMENT, "1 heads of 2 rows, the first 3 for the mean");
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gaussian_rows_have_the_expected_errors),
        cmocka_unit_test(centring_removes_offsets),
        cmocka_unit_test(theory_is_that_of_the_books),
        cmocka_unit_test(times_are_positive),
        cmocka_unit_test(wrong_rows_are_errors),
    };
    return cmocka_run_group_tests_name("codec_quality", tests, NULL, NULL);
}
