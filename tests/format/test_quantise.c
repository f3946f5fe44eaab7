#include "base/half.h"
#include "format/codec.h"
#include "support/support.h"

/* The scalar trellis search takes its time. */
#define N_ROWS 600

/* Encodes and decodes rows; returns E|x-x'|^2 / E|x|^2 and the slope of <x, x'>. */
static double round_trip(tkv_type type, int head_dim, size_t n_rows, const float *x, double *slope)
{
    const size_t n = n_rows * (size_t)head_dim;
    void *rows = allocate(n_rows * tkv_row_bytes(type, head_dim));
    float *y = allocate(n * sizeof *y);
    assert_ok(tkv_encode_rows(NULL, type, head_dim, n_rows, x, rows, &error));
    assert_ok(tkv_decode_rows(NULL, type, head_dim, n_rows, rows, y, &error));
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

/* Theory for long rows is D/(1-D); short rows are better, since their norm is known: by a few
 * percent, of 16 coordinates by a fifth. */
static void error_on_gaussian_rows_is_what_theory_says(void **state)
{
    (void)state;
    const double distortion[TKV_TYPE_COUNT] = {
        [TKV_TYPE_TURBO4] = 0.009501, [TKV_TYPE_TURBO3] = 0.034548, [TKV_TYPE_TURBO2] = 0.117482};
    /* The fp16 scale of a trellis row has five bits less; a sketch is unbiased on average only:
     * over fewer values less so. */
    const double slope_bound[TKV_TYPE_COUNT] = {1e-4, 2e-4, 2e-4, 2e-4, 2e-4,
                                                1e-3, 1e-3, 2e-3, 4e-3};
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        const int head_dim = page_head_dims[d];
        float *x = allocate(N_ROWS * (size_t)head_dim * sizeof *x);
        uint64_t seed = 7;
        fill_gauss(&seed, N_ROWS * (size_t)head_dim, x);
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            double slope;
            const double nmse = round_trip((tkv_type)type, head_dim, N_ROWS, x, &slope);
            if (!(fabs(slope - 1.0) < slope_bound[type] * (head_dim < 64 ? 2.0 : 1.0))) {
                fail_msg("type %d, head_dim %d: slope %g", type, head_dim, slope);
            }
            if (distortion[type] > 0.0) {
                const double limit = distortion[type] / (1.0 - distortion[type]);
                const double lowest = head_dim < 32 ? 0.75 : 0.92;
                assert_true(nmse < 1.01 * limit && nmse > lowest * limit);
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
        const int head_dim = page_head_dims[trial % N_PAGE_HEAD_DIMS];
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

/* The rotation makes them look Gaussian, whatever the size; 16 coordinates are too few for sums of
 * a few signs to be Gaussian, and cost up to 1.6 times the error. */
static void spiky_rows_are_coded_as_well_as_gaussian_ones(void **state)
{
    (void)state;
    for (int d = 0; d < N_PAGE_HEAD_DIMS; d++) {
        for (int type = TKV_TYPE_TURBO4; type <= TKV_TYPE_TURBO2; type++) {
            for (int spikes = 1; spikes <= 16; spikes *= 2) {
                const double nmse = spiky_error((tkv_type)type, page_head_dims[d], spikes);
                const double margin = page_head_dims[d] < 32 ? 1.7 : 1.3;
                if (!(nmse < margin * tkv_type_get_info((tkv_type)type)->expected_nmse)) {
                    fail_msg("type %d, head_dim %d, %d spikes: error %g", type, page_head_dims[d],
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
static void code_constant(tkv_type type, int head_dim, float size, tkv_row_codes *row,
                          float *decoded)
{
    float x[TKV_MAX_HEAD_DIM];
    for (int j = 0; j < head_dim; j++) {
        x[j] = j % 3 ? size : -size;
    }
    tkv_encode_row(type, TKV_EFFORT_DEFAULT, head_dim, x, row);
    tkv_dequantise_row(type, head_dim, row, decoded);
    tkv_unrotate_row(head_dim, decoded);
}

static void tiny_rows_become_zero(void **state)
{
    (void)state;
    const float sizes[] = {0.0f, -0.0f, 1e-45f, 1e-40f, 0x1p-43f};
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            tkv_row_codes row;
            float decoded[64];
            code_constant((tkv_type)type, 64, sizes[s], &row, decoded);
            for (int j = 0; j < 64; j++) {
                assert_int_equal(row.codes[j], 0);
                assert_true(decoded[j] == 0.0f);
            }
            assert_int_equal(row.side[0], 0);
            assert_int_equal(row.side[1], 0);
        }
    }
}

/* Finite rows decode to finite ones, at the largest scale (but for a trellis row's start bits), in
 * the right direction. */
static void huge_rows_saturate(void **state)
{
    (void)state;
    const float sizes[] = {1e9f, 0x1p40f, 0x1.000002p40f, 1e20f, 1e37f, 3.4028235e38f};
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (int head_dim = 16; head_dim <= TKV_MAX_HEAD_DIM;
                 head_dim += 16 + head_dim / 4 * 3) {
                tkv_row_codes row;
                float decoded[TKV_MAX_HEAD_DIM];
                head_dim = head_dim / 16 * 16;
                code_constant((tkv_type)type, head_dim, sizes[s], &row, decoded);
                assert_int_equal(row.side[0] & 0x7fe0, 0x7be0);
                double product = 0.0;
                double norm = 0.0;
                for (int j = 0; j < head_dim; j++) {
                    product += (double)(j % 3 ? decoded[j] : -decoded[j]);
                    norm += (double)decoded[j] * (double)decoded[j];
                }
                assert_true(isfinite(norm) && product > 0.8 * sqrt(norm * head_dim));
            }
        }
    }
}

/* The codes of a row do not depend on its size, up to the limit of float. */
static void size_does_not_change_codes(void **state)
{
    (void)state;
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        uint64_t seed = 23;
        float x[80];
        tkv_row_codes reference;
        tkv_row_codes row;
        fill_gauss(&seed, 80, x);
        tkv_encode_row((tkv_type)type, TKV_EFFORT_DEFAULT, 80, x, &reference);
        for (int exponent = -20; exponent <= 120; exponent += 35) {
            float scaled[80];
            for (int j = 0; j < 80; j++) {
                scaled[j] = ldexpf(x[j], exponent);
            }
            tkv_encode_row((tkv_type)type, TKV_EFFORT_DEFAULT, 80, scaled, &row);
            /* The residual of a q type depends on the rounding of its scale. */
            const uint8_t mask = type == TKV_TYPE_TURBO4Q ? 7 : type == TKV_TYPE_TURBO3Q ? 3 : 255;
            for (int j = 0; j < 80; j++) {
                assert_int_equal(row.codes[j] & mask, reference.codes[j] & mask);
            }
        }
    }
}

/* One coordinate is a million times larger than the others: the error is relative to the row. */
static void mixed_magnitudes_keep_the_large_value(void **state)
{
    (void)state;
    for (int type = 1; type < TKV_TYPE_COUNT; type++) {
        uint64_t seed = 29;
        float x[64 * 128];
        double slope;
        fill_gauss(&seed, 64 * 128, x);
        for (int i = 0; i < 64; i++) {
            x[i * 128 + i] = 1e4f;
        }
        const double nmse = round_trip((tkv_type)type, 128, 64, x, &slope);
        assert_true(nmse < 1.25 * tkv_type_get_info((tkv_type)type)->expected_nmse);
    }
}

/* A row with `first` in front whose variance is 1 to the bit, so that nothing is scaled. */
static void fill_unit_row(float first, float *y)
{
    y[0] = first;
    for (int j = 1; j < 64; j++) {
        y[j] = (float)sqrt((64.0 - (double)first * (double)first) / 63.0);
    }
    for (int i = 0; i < 100 && sqrtf(64.0f / tkv_dot16(64, y, y)) != 1.0f; i++) {
        y[63] *= sqrtf(64.0f / tkv_dot16(64, y, y)) > 1.0f ? 1.000002f : 0.999998f;
    }
    assert_true(sqrtf(64.0f / tkv_dot16(64, y, y)) == 1.0f);
}

static void values_on_a_threshold_have_the_lower_code(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 4; bits++) {
        const tkv_codebook *codebook = tkv_codebook_get(bits);
        const tkv_type type = (tkv_type)(TKV_TYPE_TURBO4 + 4 - bits);
        for (int k = 0; k < codebook->n_levels - 1; k++) {
            float y[64];
            tkv_row_codes row;
            fill_unit_row(codebook->thresholds[k], y);
            tkv_quantise_row(type, TKV_EFFORT_DEFAULT, 64, y, &row);
            assert_int_equal(row.codes[0], k);
            fill_unit_row(nextafterf(codebook->thresholds[k], 10.0f), y);
            tkv_quantise_row(type, TKV_EFFORT_DEFAULT, 64, y, &row);
            assert_int_equal(row.codes[0], k + 1);
        }
    }
}

static void f16_rows_are_halves(void **state)
{
    (void)state;
    float x[64];
    float back[64];
    uint8_t record[128];
    uint64_t seed = 37;
    fill_gauss(&seed, 64, x);
    x[3] = 1e6f;
    x[4] = -3e38f;
    x[5] = 1e-9f;
    assert_ok(tkv_encode_rows(NULL, TKV_TYPE_F16, 64, 1, x, record, &error));
    assert_ok(tkv_decode_rows(NULL, TKV_TYPE_F16, 64, 1, record, back, &error));
    for (int j = 0; j < 64; j++) {
        assert_true(back[j] == tkv_half_to_float(tkv_float_to_finite_half(x[j])));
        assert_true(isfinite(back[j]));
    }
    x[7] = -INFINITY;
    x[8] = NAN;
    assert_fails(tkv_encode_rows(NULL, TKV_TYPE_F16, 64, 1, x, record, &error), TKV_ERR_NOT_FINITE,
                 "row 0, coordinate 7");
    assert_ok(tkv_decode_rows(NULL, TKV_TYPE_F16, 64, 1, record, back, &error));
    assert_true(back[7] == -INFINITY && isnan(back[8]) && isfinite(back[9]));
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
            assert_fails(tkv_encode_rows(NULL, (tkv_type)type, 80, 3, x, rows, &error),
                         TKV_ERR_NOT_FINITE, "row 1, coordinate 17");
            assert_ok(tkv_decode_rows(NULL, (tkv_type)type, 80, 3, rows, y, &error));
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
        cmocka_unit_test(tiny_rows_become_zero),
        cmocka_unit_test(huge_rows_saturate),
        cmocka_unit_test(size_does_not_change_codes),
        cmocka_unit_test(mixed_magnitudes_keep_the_large_value),
        cmocka_unit_test(values_on_a_threshold_have_the_lower_code),
        cmocka_unit_test(f16_rows_are_halves),
        cmocka_unit_test(one_non_finite_value_makes_the_row_nan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
