/* What the public interface promises beside caches and codes: versions, zeroed ends of structs, and
 * what a context gives to bridges. */
#include "support/support.h"

enum { DIM = 32, N_ITEMS = 100 };

static void versions(void **state)
{
    (void)state;
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", TKV_VERSION_MAJOR, TKV_VERSION_MINOR,
             TKV_VERSION_PATCH);
    assert_string_equal(tkv_version(), text);
    assert_int_equal(tkv_version_number(), TKV_VERSION_NUMBER);
    assert_int_equal(tkv_api_version(), TKV_API_VERSION);
}

static void failing_as_the_library_does(void **state)
{
    (void)state;
    tkv_error error;
    assert_int_equal(tkv_fail(&error, TKV_ERR_IO, "line\n%d", 7), TKV_ERR_IO);
    assert_int_equal(error.status, TKV_ERR_IO);
    assert_string_equal(error.message, "line?7");
    assert_int_equal(tkv_fail(NULL, TKV_ERR_FORMAT, "nobody reads it"), TKV_ERR_FORMAT);
}

/* A later version's field at each place that is kept for one. */
static void unknown_fields_are_refused(void **state)
{
    (void)state;
    const float x[DIM] = {0};
    float out[DIM];
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    tkv_context_params c = {.n_threads = 1};
    c.reserved[7] = 1;
    assert_fails(tkv_context_create(&c, &context, &error), TKV_ERR_INVALID_ARGUMENT,
                 "tkv_context_params");
    assert_ok(tkv_context_create(NULL, &context, &error));
    const tkv_type type = TKV_TYPE_TURBO4;
    tkv_layer_shape shape = {.n_kv_heads = 1, .head_dim_k = DIM, .head_dim_v = DIM};
    tkv_cache_params p = {
        .n_layers = 1, .max_tokens = 8, .types_k = &type, .types_v = &type, .shapes = &shape};
    p.reserved[0] = 1;
    assert_fails(tkv_cache_create(context, &p, &cache, &error), TKV_ERR_INVALID_ARGUMENT,
                 "tkv_cache_params");
    p.reserved[0] = 0;
    shape.reserved[3] = 1;
    assert_fails(tkv_cache_create(context, &p, &cache, &error), TKV_ERR_INVALID_ARGUMENT,
                 "tkv_layer_shape");
    shape.reserved[3] = 0;
    assert_ok(tkv_cache_create(context, &p, &cache, &error));
    assert_int_equal(tkv_cache_max_tokens(cache), 8);
    assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    tkv_attend_params a = {.n_queries = 1, .n_heads = 1};
    a.reserved[1] = 1;
    assert_fails(tkv_attend(cache, 0, &a, x, out, &error), TKV_ERR_INVALID_ARGUMENT,
                 "tkv_attend_params");
    tkv_policy policy;
    assert_ok(tkv_policy_preset("4bit", &policy, &error));
    policy.reserved[0] = 1;
    tkv_type types[2];
    assert_fails(tkv_policy_layer_types(&policy, 1, types, types + 1, &error),
                 TKV_ERR_INVALID_ARGUMENT, "tkv_policy");
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void add_line(void *user, const char *message)
{
    char *lines = user;
    const size_t used = strlen(lines);
    snprintf(lines + used, 512 - used, "%s\n", message);
}

static void kernels_by_name_and_a_log(void **state)
{
    (void)state;
    char lines[512] = "";
    const tkv_context_params params = {
        .n_threads = 1, .kernels = "scalar", .log = add_line, .log_user = lines};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&params, &context, &error));
    assert_string_equal(tkv_context_kernels(context), "scalar");
    assert_string_equal(lines, "context on cpu: scalar kernels, 1 threads\n");
    assert_int_equal(tkv_context_device_kind(context), TKV_DEVICE_CPU);
    assert_int_equal(tkv_context_device_index(context), 0);
    assert_null(tkv_context_stream(context));
    assert_int_equal(tkv_context_effort(context), TKV_EFFORT_DEFAULT);
    tkv_context_free(context);
    assert_fails(tkv_context_create(&(tkv_context_params){.kernels = "abacus"}, &context, &error),
                 TKV_ERR_UNSUPPORTED, "abacus");
}

static void count_item(void *argument, int item, int thread)
{
    int *counts = argument;
    counts[item]++;
    assert_true(thread >= 0 && thread < 2);
}

static void running_items(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 2}, &context, &error));
    int counts[N_ITEMS] = {0};
    tkv_context_run(context, 0, N_ITEMS, count_item, counts);
    tkv_context_run(context, 1, N_ITEMS, count_item, counts);
    tkv_context_run(NULL, 0, N_ITEMS, count_item, counts);
    for (int i = 0; i < N_ITEMS; i++) {
        assert_int_equal(counts[i], 3);
    }
    assert_false(tkv_context_is_stopped(context));
    assert_false(tkv_context_is_stopped(NULL));
    tkv_context_free(context);
}

static int n_released;

static void note_release(void *value)
{
    *(int *)value = ++n_released;
}

static void attached_objects(void **state)
{
    (void)state;
    static const char keys[3];
    int values[4] = {0};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    assert_null(tkv_context_attached(context, &keys[0]));
    for (int i = 0; i < 3; i++) {
        assert_ok(tkv_context_attach(context, &keys[i], &values[i], note_release, &error));
    }
    assert_ok(tkv_context_attach(context, &keys[1], NULL, NULL, &error));
    assert_ok(tkv_context_attach(context, &keys[2], &values[3], note_release, &error));
    assert_ptr_equal(tkv_context_attached(context, &keys[0]), &values[0]);
    assert_null(tkv_context_attached(context, &keys[1]));
    assert_ptr_equal(tkv_context_attached(context, &keys[2]), &values[3]);
    assert_fails(tkv_context_attach(NULL, keys, values, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "NULL");
    n_released = 0;
    tkv_context_free(context);
    assert_int_equal(values[0], 2);
    assert_int_equal(values[1], 0);
    assert_int_equal(values[2], 0);
    assert_int_equal(values[3], 1);
}

static void memory_and_halves(void **state)
{
    (void)state;
    const float x[4] = {1.0f, -0.5f, 1e6f, 0x1p-24f};
    uint16_t halves[4];
    float back[4];
    tkv_floats_to_halves(4, x, halves);
    tkv_halves_to_floats(4, halves, back);
    const float expected[4] = {1.0f, -0.5f, 65504.0f, 0x1p-24f};
    assert_memory_equal(back, expected, sizeof back);
    tkv_context *context = NULL;
    void *memory = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    assert_ok(tkv_memory_allocate(context, 32, &memory, &error));
    assert_ok(tkv_memory_upload(context, memory, x, 16, &error));
    assert_ok(tkv_memory_copy(context, (char *)memory + 16, memory, 16, &error));
    assert_ok(tkv_memory_download(context, back, (char *)memory + 16, 16, &error));
    assert_memory_equal(back, x, sizeof back);
    assert_fails(tkv_memory_copy(context, NULL, memory, 16, &error), TKV_ERR_INVALID_ARGUMENT,
                 "NULL");
    tkv_memory_free(context, memory);
    tkv_context_free(context);
}

static void tables_and_codes_of_the_format(void **state)
{
    (void)state;
    const tkv_codebook *book = tkv_type_codebook(TKV_TYPE_TURBO3);
    assert_int_equal(book->n_levels, 8);
    assert_int_equal(book->levels[7], 127);
    assert_null(tkv_type_codebook(TKV_TYPE_TURBO8));
    assert_null(tkv_type_codebook(TKV_TYPE_COUNT));
    assert_int_equal(tkv_type_get_info(TKV_TYPE_TURBO4Q)->coding, TKV_CODING_SKETCH);
    assert_non_null(tkv_rotation_sign_words(1));
    assert_null(tkv_rotation_sign_words(2));
    /* A row of the codebook's own levels, as they stand in the rotated domain. */
    uint8_t record[2 * DIM];
    uint8_t codes[DIM];
    uint16_t side;
    float x[DIM];
    for (int j = 0; j < DIM; j++) {
        x[j] = (float)book->levels[j * 5 % 8];
    }
    assert_ok(tkv_unrotate(NULL, DIM, 1, x, &error));
    assert_ok(tkv_encode_rows(NULL, TKV_TYPE_TURBO3, DIM, 1, x, record, &error));
    assert_ok(tkv_unpack_codes(TKV_TYPE_TURBO3, DIM, 1, record, codes, &side, &error));
    for (int j = 0; j < DIM; j++) {
        assert_int_equal(codes[j] & 4, j * 5 % 8 & 4); /* the sign */
    }
    assert_fails(tkv_unpack_codes(TKV_TYPE_F16, DIM, 1, record, codes, &side, &error),
                 TKV_ERR_INVALID_ARGUMENT, "no codes");
    assert_fails(tkv_unpack_codes(TKV_TYPE_TURBO3, DIM, 1, NULL, codes, &side, &error),
                 TKV_ERR_INVALID_ARGUMENT, "NULL");
}

/* Kernels are equal to the bit, whatever the rows are padded to and however many there are. */
static void codes_of_a_context(void **state)
{
    (void)state;
    enum { N = 70, WIDTH = 90 };
    static float x[N * WIDTH];
    static float decoded[2][N * WIDTH];
    static uint8_t rows[2][N * 2 * (WIDTH + 16)];
    static uint32_t pages[2][TKV_PAGE_TOKENS * (WIDTH + 16)];
    tkv_context *context = NULL;
    uint64_t seed = 7;
    fill_gauss(&seed, N * WIDTH, x);
    x[69 * 80 - 1] = INFINITY; /* in the last rows of both widths, which no page here takes */
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error));
    for (int i = 0; i < 2 * TKV_TYPE_COUNT; i++) {
        const tkv_type type = (tkv_type)(i / 2);
        const int dim = i % 2 ? WIDTH : 80;
        for (int c = 0; c < 2; c++) {
            const tkv_context *with = c ? context : NULL;
            assert_fails(tkv_encode_rows(with, type, dim, N, x, rows[c], &error),
                         TKV_ERR_NOT_FINITE, "is inf");
            assert_ok(tkv_decode_rows(with, type, dim, 60, rows[c], decoded[c], &error));
            assert_ok(
                tkv_encode_page(with, type, TKV_ORDER_VALUE, dim, 3, 61, x, pages[c], &error));
            assert_ok(tkv_decode_page(with, type, TKV_ORDER_VALUE, dim, 3, 61, pages[c], decoded[c],
                                      &error));
        }
        assert_memory_equal(rows[0], rows[1], N * tkv_row_bytes(type, dim));
        assert_memory_equal(pages[0], pages[1], tkv_page_bytes(type, dim));
        assert_memory_equal(decoded[0], decoded[1], 61 * (size_t)dim * sizeof(float));
    }
    tkv_context_free(context);
}

static void a_cache_from_a_policy(void **state)
{
    (void)state;
    tkv_policy policy;
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    assert_ok(tkv_policy_preset("4bit", &policy, &error));
    tkv_cache_params p = {
        .n_layers = 3, .n_kv_heads = 2, .head_dim_k = DIM, .head_dim_v = DIM, .max_tokens = 256};
    assert_ok(tkv_policy_create_cache(context, &p, &policy, &cache, &error));
    float *x = allocate(200 * 2 * DIM * sizeof *x);
    uint64_t seed = 1;
    fill_gauss(&seed, 200 * 2 * DIM, x);
    const tkv_layer_shape shape = {.n_kv_heads = 2, .head_dim_k = DIM, .head_dim_v = DIM};
    size_t bytes = tkv_policy_object_bytes();
    for (int layer = 0; layer < 3; layer++) {
        for (int t = 0; t < 200; t++) {
            const float *row = x + (size_t)t * 2 * DIM;
            assert_ok(tkv_cache_append(cache, layer, 1, row, row, &error));
        }
        bytes += tkv_policy_layer_bytes(&policy, policy.type_k, policy.type_v, &shape, 200, 1);
    }
    assert_int_equal(tkv_cache_bytes(cache), bytes);
    assert_int_equal(tkv_policy_layer_bytes(NULL, policy.type_k, policy.type_v, &shape, 200, 1), 0);
    p.n_sinks = 4;
    assert_fails(tkv_policy_create_cache(context, &p, &policy, &cache, &error),
                 TKV_ERR_INVALID_ARGUMENT, "beside a policy");
    free(x);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions),
        cmocka_unit_test(failing_as_the_library_does),
        cmocka_unit_test(unknown_fields_are_refused),
        cmocka_unit_test(kernels_by_name_and_a_log),
        cmocka_unit_test(running_items),
        cmocka_unit_test(attached_objects),
        cmocka_unit_test(memory_and_halves),
        cmocka_unit_test(tables_and_codes_of_the_format),
        cmocka_unit_test(codes_of_a_context),
        cmocka_unit_test(a_cache_from_a_policy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
