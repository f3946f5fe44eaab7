#include "codec/codec.h"
#include "common/half.h"
#include "support/support.h"

/* The scalar trellis search takes its time. */
#define N_ROWS 600

/* Encodes and decodes rows; returns E|x-x'|^2 / E|x|^2 and the slope of <x, x'>. */
static double round_trip(tkv_type type, int head_dim, size_t n_rows, const float *x, double *slope)
{
    const size_t n = n_rows * (size_t)head_dim;
    void *rows = allocate(n_rows * tkv_row_bytes(type, head_dim));
    float *y = allocate(n * sizeof *y);
    assert_ok(tkv_encode_rows(type, head_dim, n_rows, x, rows, &error));
    assert_ok(tkv_decode_rows(type, head_dim, n_rows, rows, y, &error));
    double difference = 0.0;
    double norm = 0.0;
    double product = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        norm += (double)x[i] * (double)x[i];
        product += (double)x[i] * (double)y[i];
    }
    free(rows);
    free(y);
    *slope = product / norm;
    return difference / norm;
}

/* Theory for long rows is D/(1-D); short rows are a few percent better, since their norm is known.
 */
static void error_on_gaussian_rows_is_what_theory_says(void **state)
{
    (void)state;
    const double distortion[TKV_TYPE_COUNT] = {
        [TKV_TYPE_TURBO4] = 0.009501, [TKV_TYPE_TURBO3] = 0.034548, [TKV_TYPE_TURBO2] = 0.117482};
    /* The fp16 scale of a trellis row has five bits less; a sketch is unbiased on average only. */
    const double slope_bound[TKV_TYPE_COUNT] = {1e-4, 2e-4, 2e-4, 2e-4, 2e-4,
                                                1e-3, 1e-3, 2e-3, 4e-3};
    for (int d = 0; d < N_HEAD_DIMS; d++) {
        const int head_dim = all_head_dims[d];
        float *x = allocate(N_ROWS * (size_t)head_dim * sizeof *x);
        uint64_t seed = 7;
        fill_gauss(&seed, N_ROWS * (size_t)head_dim, x);
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            double slope;
            const double nmse = round_trip((tkv_type)type, head_dim, N_ROWS, x, &slope);
            if (!(fabs(slope - 1.0) < slope_bound[type])) {
                fail_msg("type %d, head_dim %d: slope %g", type, head_dim, slope);
            }
            if (distortion[type] > 0.0) {
                const double limit = distortion[type] / (1.0 - distortion[type]);
                assert_true(nmse < 1.01 * limit && nmse > 0.92 * limit);
            } else if (type <= TKV_TYPE_TURBO8) {
                assert_true(nmse < (type == TKV_TYPE_F16 ? 1e-7 : 7e-5));
            }
            if (head_dim == 128) {
                const double stated = tkv_type_get_info((tkv_type)type)->expected_nmse;
                assert_true(nmse < 1.05 * stated && nmse > 0.95 * stated);
            }
        }
        free(x);
    }
}

/* The scale is |y|^2 / <y, levels>: for every row <y, y'> = |y|^2 but for fp16. */
static void scale_is_unbiased_for_every_row(void **state)
{
    (void)state;
    uint64_t seed = 11;
    for (int trial = 0; trial < 1000; trial++) {
        const int head_dim = all_head_dims[trial % N_HEAD_DIMS];
        const tkv_type type = (tkv_type)(1 + trial % 6);
        const bool is_trellis = type >= TKV_TYPE_TRELLIS3;
        float y[TKV_MAX_HEAD_DIM];
        float back[TKV_MAX_HEAD_DIM];
        tkv_row_codes row;
        fill_gauss(&seed, (size_t)head_dim, y);
        tkv_quantise_row(type, TKV_EFFORT_DEFAULT, head_dim, y, &row);
        tkv_dequantise_row(type, head_dim, &row, back);
        double norm = 0.0;
        double product = 0.0;
        for (int j = 0; j < head_dim; j++) {
            norm += (double)y[j] * (double)y[j];
            product += (double)y[j] * (double)back[j];
        }
        assert_true(fabs(product / norm - 1.0) < (is_trellis ? 0.017 : 6e-4));
    }
}

/* E|x-x'|^2 / E|x|^2 of rows with a few equal coordinates; with one, of every such row. */
static double spiky_error(tkv_type type, int head_dim, int spikes)
{
    const int n_rows = spikes == 1 ? head_dim : 200;
    float *x = allocate((size_t)n_rows * (size_t)head_dim * sizeof *x);
    uint64_t seed = 3;
    for (int i = 0; i < n_rows; i++) {
        float *row = x + (size_t)i * (size_t)head_dim;
        row[i % head_dim] = 5.0f;
        for (int s = 1; s < spikes; s++) {
            row[random_below(&seed, head_dim)] = 5.0f;
        }
    }
    double slope;
    const double nmse = round_trip(type, head_dim, (size_t)n_rows, x, &slope);
    free(x);
    return nmse;
}

/* The rotation makes them look Gaussian, whatever the size. */
static void spiky_rows_are_coded_as_well_as_gaussian_ones(void **state)
{
    (void)state;
    for (int d = 0; d < N_HEAD_DIMS; d++) {
        for (int type = TKV_TYPE_TURBO4; type <= TKV_TYPE_TURBO2; type++) {
            for (int spikes = 1; spikes <= 16; spikes *= 2) {
                const double nmse = spiky_error((tkv_type)type, all_head_dims[d], spikes);
                if (!(nmse < 1.25 * tkv_type_get_info((tkv_type)type)->expected_nmse)) {
                    fail_msg("type %d, head_dim %d, %d spikes: error %g", type, all_head_dims[d],
                             spikes, nmse);
                }
            }
        }
    }
}

static void scaling_a_row_scales_the_result(void **state)
{
    (void)state;
    const float factors[] = {1e-3f, 1.0f, 300.0f, 1e4f};
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        for (size_t f = 0; f < sizeof factors / sizeof *factors; f++) {
            uint64_t seed = 5;
            float x[128 * 64];
            fill_gauss(&seed, 128 * 64, x);
            for (int i = 0; i < 128 * 64; i++) {
                x[i] *= factors[f];
            }
            double slope;
            const double nmse = round_trip((tkv_type)type, 128, 64, x, &slope);
            assert_true(nmse < 1.1 * tkv_type_get_info((tkv_type)type)->expected_nmse);
        }
    }
}

/* One row of equal magnitude `size`; returns the decoded row. */
static void code_constant(tkv_type type, float size, tkv_row_codes *row, float decoded[128])
{
    float y[128];
    for (int j = 0; j < 128; j++) {
        y[j] = j % 3 ? size : -size;
    }
    tkv_quantise_row(type, TKV_EFFORT_DEFAULT, 128, y, row);
    tkv_dequantise_row(type, 128, row, decoded);
}

static void extreme_rows_have_defined_results(void **state)
{
    (void)state;
    for (int i = 1; i < TKV_TYPE_COUNT; i++) {
        const tkv_type type = (tkv_type)i;
        tkv_row_codes row;
        float decoded[128];
        code_constant(type, 0.0f, &row, decoded);
        assert_int_equal(row.side[0], 0);
        for (int j = 0; j < 128; j++) {
            assert_int_equal(row.codes[j], 0);
            assert_true(decoded[j] == 0.0f);
        }
        code_constant(type, 1e-40f, &row, decoded);
        assert_int_equal(row.side[0], 0);
        assert_int_equal(row.codes[0], 0);
        for (int huge = 0; huge < 2; huge++) {
            code_constant(type, huge ? 3e38f : 1e9f, &row, decoded);
            /* The largest scale, but for a trellis row's start bits. */
            assert_int_equal(row.side[0] & 0x7fe0, 0x7be0);
            double product = 0.0;
            for (int j = 0; j < 128; j++) {
                assert_true(isfinite(decoded[j]));
                product += (double)(j % 3 ? decoded[j] : -decoded[j]);
            }
            assert_true(product > 0.0);
        }
        code_constant(type, 30000.0f, &row, decoded);
        assert_true(fabsf(decoded[1] - 30000.0f) < 9000.0f);
    }
}

static void one_non_finite_value_makes_the_row_nan(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        for (int b = 0; b < 3; b++) {
            float x[3 * 80];
            uint64_t seed = 1;
            fill_gauss(&seed, 3 * 80, x);
            x[80 + 17] = bad[b];
            const size_t row_bytes = tkv_row_bytes((tkv_type)type, 80);
            uint8_t *rows = allocate(3 * row_bytes);
            float y[3 * 80];
            assert_fails(tkv_encode_rows((tkv_type)type, 80, 3, x, rows, &error),
                         TKV_ERR_NOT_FINITE, "row 1, coordinate 17");
            assert_ok(tkv_decode_rows((tkv_type)type, 80, 3, rows, y, &error));
            for (int j = 0; j < 80; j++) {
                assert_true(isfinite(y[j]) && isnan(y[80 + j]) && isfinite(y[160 + j]));
            }
            free(rows);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_on_gaussian_rows_is_what_theory_says),
        cmocka_unit_test(scale_is_unbiased_for_every_row),
        cmocka_unit_test(spiky_rows_are_coded_as_well_as_gaussian_ones),
        cmocka_unit_test(scaling_a_row_scales_the_result),
        cmocka_unit_test(extreme_rows_have_defined_results),
        cmocka_unit_test(one_non_finite_value_makes_the_row_nan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
