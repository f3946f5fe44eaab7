/* Every public function that takes a pointer, with NULL in place of each one that is needed: an
 * error with a message, or, of what returns no status, nothing. */
#include "support/support.h"

enum { HEAD_DIM = 32 };

#define assert_null_fails(call) assert_fails(call, TKV_ERR_INVALID_ARGUMENT, "")

static tkv_cache *create_cache(tkv_context *context)
{
    const tkv_type type = TKV_TYPE_TURBO4;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = 1,
                                     .head_dim_k = HEAD_DIM,
                                     .head_dim_v = HEAD_DIM,
                                     .max_tokens = 8,
                                     .types_k = &type,
                                     .types_v = &type};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    return cache;
}

static void types_and_codec(void **state)
{
    (void)state;
    float x[HEAD_DIM] = {0};
    tkv_type type = TKV_TYPE_TURBO4;
    uint32_t page[TKV_PAGE_TOKENS * HEAD_DIM] = {0};
    assert_null_fails(tkv_type_from_name(NULL, &type, &error));
    assert_null_fails(tkv_type_from_name("turbo4", NULL, &error));
    assert_null_fails(tkv_rotate(NULL, HEAD_DIM, 1, NULL, &error));
    assert_null_fails(tkv_unrotate(NULL, HEAD_DIM, 1, NULL, &error));
    assert_null_fails(tkv_encode_rows(NULL, type, HEAD_DIM, 1, NULL, page, &error));
    assert_null_fails(tkv_encode_rows(NULL, type, HEAD_DIM, 1, x, NULL, &error));
    assert_null_fails(tkv_decode_rows(NULL, type, HEAD_DIM, 1, NULL, x, &error));
    assert_null_fails(tkv_decode_rows(NULL, type, HEAD_DIM, 1, page, NULL, &error));
    assert_null_fails(
        tkv_encode_page(NULL, type, TKV_ORDER_KEY, HEAD_DIM, 0, 1, NULL, page, &error));
    assert_null_fails(tkv_encode_page(NULL, type, TKV_ORDER_KEY, HEAD_DIM, 0, 1, x, NULL, &error));
    assert_null_fails(tkv_decode_page(NULL, type, TKV_ORDER_KEY, HEAD_DIM, 0, 1, NULL, x, &error));
    assert_null_fails(
        tkv_decode_page(NULL, type, TKV_ORDER_KEY, HEAD_DIM, 0, 1, page, NULL, &error));
    assert_int_equal(tkv_type_from_name(NULL, NULL, NULL), TKV_ERR_INVALID_ARGUMENT);
    assert_null(tkv_type_get_info(TKV_TYPE_COUNT));
    assert_null(tkv_policy_preset_name(-1));
    assert_string_equal(tkv_status_name((tkv_status)1000), "unknown status");
}

static void contexts_and_memory(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    void *memory = NULL;
    char byte = 1;
    assert_string_equal(tkv_context_kernels(NULL), "none");
    assert_string_equal(tkv_context_device(NULL), "none");
    assert_int_equal(tkv_context_threads(NULL), 0);
    tkv_context_free(NULL);
    assert_null_fails(tkv_context_wait(NULL, &error));
    assert_null_fails(tkv_context_create(NULL, NULL, &error));
    assert_ok(tkv_context_create(NULL, &context, &error));
    assert_null_fails(tkv_memory_allocate(NULL, 1, &memory, &error));
    assert_null_fails(tkv_memory_allocate(context, 1, NULL, &error));
    assert_null(memory);
    assert_ok(tkv_memory_allocate(context, 1, &memory, &error));
    assert_null_fails(tkv_memory_upload(NULL, memory, &byte, 1, &error));
    assert_null_fails(tkv_memory_upload(context, NULL, &byte, 1, &error));
    assert_null_fails(tkv_memory_upload(context, memory, NULL, 1, &error));
    assert_null_fails(tkv_memory_download(NULL, &byte, memory, 1, &error));
    assert_null_fails(tkv_memory_download(context, NULL, memory, 1, &error));
    assert_null_fails(tkv_memory_download(context, &byte, NULL, 1, &error));
    tkv_memory_free(NULL, NULL);
    tkv_memory_free(context, NULL);
    /* Whose it is is not known: it stays. */
    tkv_memory_free(NULL, memory);
    assert_ok(tkv_memory_download(context, &byte, memory, 1, &error));
    assert_int_equal(byte, 0);
    tkv_memory_free(context, memory);
    tkv_context_free(context);
}

static void getters_of_no_cache(void **state)
{
    (void)state;
    assert_int_equal(tkv_cache_length(NULL, 0), 0);
    assert_int_equal(tkv_cache_bytes(NULL), 0);
    assert_int_equal(tkv_cache_shared_bytes(NULL), 0);
    tkv_cache_clear(NULL);
    tkv_cache_free(NULL);
}

static void caches(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    tkv_cache *cache = create_cache(context);
    tkv_cache *fork = NULL;
    const tkv_type type = TKV_TYPE_TURBO4;
    const float x[HEAD_DIM] = {0};
    tkv_cache_params params = {.n_layers = 1,
                               .n_kv_heads = 1,
                               .head_dim_k = HEAD_DIM,
                               .head_dim_v = HEAD_DIM,
                               .max_tokens = 8,
                               .types_k = &type,
                               .types_v = &type};
    assert_null_fails(tkv_cache_create(NULL, &params, &fork, &error));
    assert_null_fails(tkv_cache_create(context, NULL, &fork, &error));
    assert_null_fails(tkv_cache_create(context, &params, NULL, &error));
    params.types_k = NULL;
    assert_null_fails(tkv_cache_create(context, &params, &fork, &error));
    params.types_k = &type;
    params.types_v = NULL;
    assert_null_fails(tkv_cache_create(context, &params, &fork, &error));
    params.types_v = &type;
    params.rope = &(tkv_rope){.n_rotated = 2};
    assert_null_fails(tkv_cache_create(context, &params, &fork, &error));
    assert_null_fails(tkv_cache_append(NULL, 0, 1, x, x, &error));
    assert_null_fails(tkv_cache_append(cache, 0, 1, NULL, x, &error));
    assert_null_fails(tkv_cache_append(cache, 0, 1, x, NULL, &error));
    assert_null_fails(tkv_cache_reserve(NULL, 1, 0, &error));
    assert_null_fails(tkv_cache_commit(NULL, &error));
    assert_null_fails(tkv_cache_truncate(NULL, 0, &error));
    assert_null_fails(tkv_cache_fork(NULL, 0, &fork, &error));
    assert_null_fails(tkv_cache_fork(cache, 0, NULL, &error));
    assert_null_fails(tkv_cache_read(NULL, 0, 0, 0, NULL, NULL, &error));
    assert_null_fails(tkv_cache_shift(NULL, 0, 1, NULL, &error));
    assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    assert_null_fails(tkv_cache_shift(cache, 0, 1, params.rope, &error));
    assert_ok(tkv_cache_read(cache, 0, 0, 1, NULL, NULL, &error));
    assert_int_equal(tkv_cache_length(cache, 0), 1);
    assert_null(fork);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void attention(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    tkv_cache *cache = create_cache(context);
    const float x[HEAD_DIM] = {0};
    float out[HEAD_DIM];
    const tkv_attend_params params = {.n_queries = 1, .n_heads = 1};
    assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    assert_null_fails(tkv_attend(NULL, 0, &params, x, out, &error));
    assert_null_fails(tkv_attend(cache, 0, NULL, x, out, &error));
    assert_null_fails(tkv_attend(cache, 0, &params, NULL, out, &error));
    assert_null_fails(tkv_attend(cache, 0, &params, x, NULL, &error));

    tkv_cache *written[2] = {cache, NULL};
    const tkv_cache *const read[2] = {cache, NULL};
    assert_null_fails(tkv_cache_append_batch(NULL, 1, 0, 1, x, x, &error));
    assert_null_fails(tkv_cache_append_batch(written + 1, 1, 0, 1, x, x, &error));
    assert_null_fails(tkv_cache_append_batch(written, 2, 0, 1, x, x, &error));
    assert_null_fails(tkv_cache_append_batch(written, 1, 0, 1, NULL, x, &error));
    assert_null_fails(tkv_cache_append_batch(written, 1, 0, 1, x, NULL, &error));
    assert_null_fails(tkv_attend_batch(NULL, 1, 0, &params, x, out, &error));
    assert_null_fails(tkv_attend_batch(read + 1, 1, 0, &params, x, out, &error));
    assert_null_fails(tkv_attend_batch(read, 2, 0, &params, x, out, &error));
    assert_null_fails(tkv_attend_batch(read, 1, 0, NULL, x, out, &error));
    assert_null_fails(tkv_attend_batch(read, 1, 0, &params, NULL, out, &error));
    assert_null_fails(tkv_attend_batch(read, 1, 0, &params, x, NULL, &error));
    assert_int_equal(tkv_cache_length(cache, 0), 1);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void policies(void **state)
{
    (void)state;
    tkv_policy policy = {0};
    tkv_type types[2];
    char text[64];
    assert_null_fails(tkv_policy_preset(NULL, &policy, &error));
    assert_null_fails(tkv_policy_preset("4bit", NULL, &error));
    assert_null_fails(tkv_policy_parse(NULL, &policy, &error));
    assert_null_fails(tkv_policy_parse("k f16", NULL, &error));
    assert_null_fails(tkv_policy_format(NULL, text, sizeof text, &error));
    assert_null_fails(tkv_policy_format(&policy, NULL, 0, &error));
    assert_null_fails(tkv_policy_layer_types(NULL, 2, types, types, &error));
    assert_null_fails(tkv_policy_layer_types(&policy, 2, NULL, types, &error));
    assert_null_fails(tkv_policy_layer_types(&policy, 2, types, NULL, &error));
    assert_true(tkv_policy_bits(NULL, 1, 1, HEAD_DIM, HEAD_DIM, 1) == 0.0);
}

static void note_nothing(void *user, const tkv_check_result *result)
{
    (void)user;
    (void)result;
}

static void checks(void **state)
{
    (void)state;
    const tkv_check_params params = {0};
    tkv_context *context = NULL;
    char reason[64];
    assert_ok(tkv_context_create(NULL, &context, &error));
    assert_null_fails(tkv_check_run(NULL, &params, note_nothing, NULL, &error));
    assert_null_fails(tkv_check_run(context, NULL, note_nothing, NULL, &error));
    assert_null_fails(tkv_check_run(context, &params, NULL, NULL, &error));
    assert_string_equal(tkv_kernels_name(0, NULL), "scalar");
    assert_null(tkv_kernels_name(-1, NULL));
    assert_null(tkv_device_name(-1));
    assert_int_equal(tkv_device_count(NULL, NULL, 0), 0);
    assert_int_equal(tkv_device_count("abacus", reason, sizeof reason), 0);
    assert_string_equal(reason, "not in this build");
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(types_and_codec),
                                       cmocka_unit_test(contexts_and_memory),
                                       cmocka_unit_test(getters_of_no_cache),
                                       cmocka_unit_test(caches),
                                       cmocka_unit_test(attention),
                                       cmocka_unit_test(policies),
                                       cmocka_unit_test(checks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
