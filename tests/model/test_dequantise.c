/* Dequantisation and products against values of the package gguf and against double precision. */
#include "model/dequantise.h"
#include "model/matmul.h"
#include "support/support.h"

typedef struct golden {
    uint32_t type;
    size_t n_bytes;
    size_t n_values;
    const uint8_t *bytes;
    const float *values;
} golden;

static uint8_t *read_golden(size_t *size)
{
    FILE *file = fopen(TKV_SOURCE_DIR "/tests/model/data/dequantise_golden.bin", "rb");
    assert_non_null(file);
    uint8_t *data = allocate(1 << 20);
    *size = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

static golden next_golden(const uint8_t *data, size_t *at)
{
    uint32_t header[3];
    memcpy(header, data + *at, sizeof header);
    golden g = {header[0], header[1], header[2], data + *at + 12, NULL};
    g.values = (const float *)(const void *)(g.bytes + g.n_bytes);
    *at += 12 + g.n_bytes + 4 * g.n_values;
    return g;
}

static void values_are_those_of_ggml(void **state)
{
    (void)state;
    size_t size;
    uint8_t *data = read_golden(&size);
    int n_types = 0;
    for (size_t at = 0; at < size; n_types++) {
        const golden g = next_golden(data, &at);
        const tkv_weight_format *format = tkv_weight_format_get(g.type);
        assert_non_null(format);
        assert_int_equal(g.n_bytes, g.n_values / format->block_length * format->block_bytes);
        float *values = allocate(g.n_values * sizeof *values);
        format->dequantise(g.bytes, g.n_values, values);
        for (size_t i = 0; i < g.n_values; i++) {
            float expected;
            memcpy(&expected, (const uint8_t *)g.values + 4 * i, sizeof expected);
            assert_true(fabsf(values[i] - expected) <= 4e-7f * (fabsf(expected) + 1.0f));
        }
        free(values);
    }
    assert_int_equal(n_types, 11);
    assert_null(tkv_weight_format_get(4));
    assert_null(tkv_weight_format_get(1000));
    free(data);
}

/* Few and many rows, one and several threads, against the dequantised matrix in double. */
static void check_product(uint32_t type, int n_in, int n_out, int n_rows, int n_threads,
                          bool has_blas)
{
    const tkv_weight_format *format = tkv_weight_format_get(type);
    uint64_t seed = type;
    const size_t row_bytes = (size_t)n_in / format->block_length * format->block_bytes;
    uint8_t *weights = allocate((size_t)n_out * row_bytes);
    size_t size;
    uint8_t *data = read_golden(&size);
    size_t at = 0;
    golden g;
    do {
        g = next_golden(data, &at);
    } while (at < size && g.type != type);
    assert_int_equal(g.type, type);
    /* Blocks with finite scales: those of the golden file, in any order. */
    const size_t unit = format->block_bytes;
    for (size_t i = 0; i < (size_t)n_out * row_bytes; i += unit) {
        memcpy(weights + i, g.bytes + (size_t)random_below(&seed, (int)(g.n_bytes / unit)) * unit,
               unit);
    }
    const tkv_gguf_tensor tensor = {.name = "w",
                                    .type = type,
                                    .n_dims = 2,
                                    .dims = {(uint64_t)n_in, (uint64_t)n_out, 1, 1},
                                    .data = weights,
                                    .n_bytes = (size_t)n_out * row_bytes};
    float *x = allocate((size_t)n_rows * (size_t)n_in * sizeof *x);
    float *y = allocate((size_t)n_rows * (size_t)n_out * sizeof *y);
    float *row = allocate((size_t)n_in * sizeof *row);
    fill_gauss(&seed, (size_t)n_rows * (size_t)n_in, x);
    tkv_context *context = NULL;
    tkv_blas *blas = NULL;
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = n_threads}, &context, &error));
    assert_ok(tkv_blas_open(has_blas ? n_threads : 0, &blas, &error));
    assert_int_equal(blas != NULL, has_blas);
    assert_ok(tkv_matmul(&tensor, n_rows, x, y, &(tkv_matmul_means){context, blas}, &error));
    tkv_blas_free(blas);
    tkv_context_free(context);
    for (int out = 0; out < n_out; out++) {
        assert_ok(tkv_dequantise_tensor_row(&tensor, (size_t)out, row, &error));
        for (int r = 0; r < n_rows; r++) {
            double sum = 0.0;
            double size_of_sum = 0.0;
            for (int i = 0; i < n_in; i++) {
                const double term = (double)row[i] * (double)x[r * n_in + i];
                sum += term;
                size_of_sum += fabs(term);
            }
            assert_true(fabs((double)y[r * n_out + out] - sum) <= 2e-6 * size_of_sum + 1e-6);
        }
    }
    free(weights);
    free(data);
    free(x);
    free(y);
    free(row);
}

static void products(void **state)
{
    (void)state;
    const uint32_t types[] = {0, 1, 30, 8, 2, 3, 6, 7, 12, 13, 14};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        check_product(types[t], 512, 37, 1, 1, true);
        check_product(types[t], 1536, 300, 3, 2, true);
        check_product(types[t], 256, 300, 8, 2, true);
        check_product(types[t], 256, 301, 9, 2, true);
        check_product(types[t], 768, 130, 70, 3, true);
        check_product(types[t], 768, 130, 21, 2, false);
    }
    check_product(0, 7, 5, 2, 1, true);
    check_product(1, 45, 5, 12, 1, true);
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    float x[64] = {0};
    float y[64];
    tkv_gguf_tensor tensor = {
        .name = "strange", .type = 99, .n_dims = 2, .dims = {32, 2, 1, 1}, .data = x};
    assert_fails(tkv_matmul(&tensor, 1, x, y, &(tkv_matmul_means){0}, &error), TKV_ERR_UNSUPPORTED,
                 "strange");
    assert_fails(tkv_dequantise_tensor_row(&tensor, 0, y, &error), TKV_ERR_UNSUPPORTED, "type 99");
    tensor.type = TKV_WEIGHT_F32;
    assert_fails(tkv_dequantise_tensor_row(&tensor, 2, y, &error), TKV_ERR_INVALID_ARGUMENT,
                 "has 2 rows");
    tensor.dims[2] = 2;
    assert_fails(tkv_matmul(&tensor, 1, x, y, &(tkv_matmul_means){0}, &error), TKV_ERR_UNSUPPORTED,
                 "matrix");
}

static void types_have_names(void **state)
{
    (void)state;
    int n_supported = 0;
    for (uint32_t type = 0; type < 64; type++) {
        const tkv_weight_format *format = tkv_weight_format_get(type);
        if (format) {
            assert_string_equal(tkv_weight_type_name(type), format->name);
            n_supported++;
        }
    }
    assert_int_equal(n_supported, 11);
    assert_string_equal(tkv_weight_type_name(23), "IQ4_XS");
    assert_string_equal(tkv_weight_type_name(38), "IQ4_NL_8_8");
    assert_string_equal(tkv_weight_type_name(41), "Q1_0");
    assert_string_equal(tkv_weight_type_name(43), "of an unknown type");
    assert_string_equal(tkv_weight_type_name(UINT32_MAX), "of an unknown type");
    const tkv_gguf_tensor tensor = {.name = "x", .type = 19, .dims = {32, 1, 1, 1}};
    float row[32];
    assert_fails(tkv_dequantise_tensor_row(&tensor, 0, row, &error), TKV_ERR_UNSUPPORTED,
                 "tensor x is IQ1_S");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_those_of_ggml), cmocka_unit_test(products),
        cmocka_unit_test(types_have_names), cmocka_unit_test(mistakes_are_explained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
