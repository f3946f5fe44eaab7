/* The cache on a device, the reference one or what TKV_TEST_DEVICE names: whatever is done to it,
 * it holds to the bit what a cache on the CPU holds, its bytes are those of the device, any call of
 * the device may fail, and a captured step goes on working. */
#include "device/context.h"
#include "support/reference_device.h"
#include "twin.h"

/* Few runs on emulated devices, which take their time. */
static void holds_what_the_cpu_holds(void **state)
{
    (void)state;
    const char *quick = getenv("TKV_TEST_QUICK");
    const int n_runs = quick && *quick == '1' ? 4 : 40;
    uint64_t seed = 5;
    for (int run = 0; run < n_runs; run++) {
        tkv_type types[2 * N_LAYERS];
        const tkv_cache_params params = random_params(&seed, types);
        twin *t = create_twin(seed, &params);
        for (int i = 0; i < 25; i++) {
            do_something(t);
            assert_same_content(t);
            assert_bytes(t);
        }
        free_twin(t);
    }
}

/* One step of decoding on both; on the device as a graph, which is captured if it is not yet. */
static void decode_step(twin *t, bool captures)
{
    const int position = tkv_cache_length(t->caches[CPU], 0);
    const tkv_attend_params params = {
        .n_queries = 1, .n_heads = N_HEADS, .first_position = position};
    assert_ok(tkv_cache_reserve(t->caches[DEVICE], 1, 0, &error));
    if (captures) {
        reference_device_capture();
    }
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(p == DEVICE && !captures ? TKV_OK : append_to(t, p, t->caches[p], 7, 1, &error));
        for (int layer = 0; layer < N_LAYERS && (p == CPU || captures); layer++) {
            assert_ok(tkv_attend(t->caches[p], layer, &params, t->k[p],
                                 t->out[p] + layer * N_HEADS * DIM_V, &error));
        }
    }
    reference_device_end_capture();
    reference_device_replay();
    assert_ok(tkv_cache_commit(t->caches[DEVICE], &error));
    const size_t bytes = (size_t)N_LAYERS * N_HEADS * DIM_V * sizeof(float);
    for (int p = 0; p < N_PLACES; p++) {
        download(t, p, bytes);
    }
    assert_same_output(t, bytes / sizeof(float));
}

static void step_uncaptured(twin *t)
{
    const int position = tkv_cache_length(t->caches[CPU], 0);
    const tkv_attend_params params = {
        .n_queries = 1, .n_heads = N_HEADS, .first_position = position};
    assert_ok(tkv_cache_reserve(t->caches[DEVICE], 1, 0, &error));
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(append_to(t, p, t->caches[p], 3, 1, &error));
        assert_ok(tkv_attend(t->caches[p], 0, &params, t->k[p], t->out[p], &error));
    }
    assert_ok(tkv_cache_commit(t->caches[DEVICE], &error));
}

/* As a caller would ask: after the reservation, which is given back here. */
static bool is_graph_old(const twin *t, int64_t generation)
{
    tkv_cache *cache = t->caches[DEVICE];
    assert_ok(tkv_cache_reserve(cache, 1, 0, &error));
    const bool is_old = tkv_cache_generation(cache) != generation;
    assert_ok(tkv_cache_truncate(cache, tkv_cache_length(cache, 0), &error));
    return is_old;
}

static void captured_steps_go_on_working(void **state)
{
    (void)state;
    uint64_t seed = 9;
    for (int run = 0; run < 12; run++) {
        tkv_type types[2 * N_LAYERS];
        const tkv_cache_params params = random_params(&seed, types);
        twin *t = create_twin(seed, &params);
        if (run % 2) {
            append(t, 100);
        }
        /* Workspaces are there after a step that is not captured. */
        step_uncaptured(t);
        decode_step(t, true);
        int64_t generation = tkv_cache_generation(t->caches[DEVICE]);
        for (int i = 0; i < 80; i++) {
            if (is_graph_old(t, generation)) {
                step_uncaptured(t);
                decode_step(t, true);
                generation = tkv_cache_generation(t->caches[DEVICE]);
            }
            decode_step(t, false);
            if (i == 30) {
                shift(t);
            } else if (i == 50) {
                fork_and_write(t, false);
            }
        }
        assert_same_content(t);
        assert_bytes(t);
        free_twin(t);
    }
}

static void reservations(void **state)
{
    (void)state;
    const tkv_type types[2 * N_LAYERS] = {TKV_TYPE_TURBO3, TKV_TYPE_F16, TKV_TYPE_TURBO2,
                                          TKV_TYPE_TURBO8};
    uint64_t seed = 11;
    tkv_type unused[2 * N_LAYERS];
    tkv_cache_params params = random_params(&seed, unused);
    params.types_k = types;
    params.types_v = types + N_LAYERS;
    twin *t = create_twin(seed, &params);
    tkv_cache *cache = t->caches[DEVICE];
    tkv_attend_params attend_params = {.n_queries = 1, .n_heads = N_HEADS, .first_position = 64};
    assert_fails(tkv_cache_reserve(t->caches[CPU], 1, 0, &error), TKV_ERR_UNSUPPORTED, "device");
    assert_fails(tkv_cache_reserve(cache, 0, 0, &error), TKV_ERR_INVALID_ARGUMENT, "0 tokens");
    assert_fails(tkv_cache_reserve(cache, 1, MAX_TOKENS + 1, &error), TKV_ERR_INVALID_ARGUMENT,
                 "maximum of 400");
    assert_fails(tkv_cache_commit(cache, &error), TKV_ERR_INVALID_ARGUMENT, "reserved");
    append(t, 64);
    assert_fails(tkv_cache_reserve(cache, 9, 70, &error), TKV_ERR_INVALID_ARGUMENT, "length of 70");
    assert_ok(tkv_cache_reserve(cache, 3, 70, &error));
    assert_int_equal(tkv_cache_length(cache, 0), 64);
    assert_fails(tkv_cache_reserve(cache, 1, 0, &error), TKV_ERR_INVALID_ARGUMENT, "commit first");
    assert_fails(tkv_cache_shift(cache, 0, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "commit first");
    assert_fails(append_to(t, DEVICE, cache, 0, 2, &error), TKV_ERR_INVALID_ARGUMENT,
                 "3 are reserved");
    assert_fails(tkv_attend(cache, 0, &attend_params, t->k[DEVICE], t->out[DEVICE], &error),
                 TKV_ERR_INVALID_ARGUMENT, "reserved from position 64");
    assert_ok(tkv_cache_truncate(cache, 64, &error)); /* gives the reservation back */
    assert_same_content(t);
    assert_bytes(t);
    assert_ok(tkv_cache_append(cache, 1, 1, t->k[DEVICE], t->v[DEVICE], &error));
    assert_fails(tkv_cache_reserve(cache, 1, 0, &error), TKV_ERR_INVALID_ARGUMENT, "equal lengths");
    free_twin(t);
}

/* ---- Any call of the device fails ---- */

/* Appends to the layers that have 100 tokens, so that it can be taken up again. */
static tkv_status append_to_rest(twin *t, int place, int n, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int layer = 0; layer < N_LAYERS && status == TKV_OK; layer++) {
        if (tkv_cache_length(t->caches[place], layer) == 100) {
            status = tkv_cache_append(t->caches[place], layer, n, t->k[place], t->v[place], error);
        }
    }
    return status;
}

static tkv_status append_more(twin *t, int place, tkv_error *error)
{
    return append_to_rest(t, place, 100, error);
}

static tkv_status append_one(twin *t, int place, tkv_error *error)
{
    return append_to_rest(t, place, 1, error);
}

static tkv_status drop_middle(twin *t, int place, tkv_error *error)
{
    return tkv_cache_shift(t->caches[place], 10, 20, NULL, error);
}

static tkv_status step(twin *t, int place, tkv_error *error)
{
    if (place == CPU) {
        return append_to(t, place, t->caches[place], 100, 1, error);
    }
    tkv_status status = tkv_cache_reserve(t->caches[place], 1, 0, error);
    if (status == TKV_OK) {
        status = append_to(t, place, t->caches[place], 100, 1, error);
        if (status == TKV_OK) {
            return tkv_cache_commit(t->caches[place], error);
        }
        assert_int_equal(tkv_cache_truncate(t->caches[place], 100, NULL), TKV_OK);
    }
    return status;
}

/* The fork takes the cache's place. */
static tkv_status fork_all(twin *t, int place, tkv_error *error)
{
    tkv_cache *fork = NULL;
    const tkv_status status = tkv_cache_fork(t->caches[place], 100, &fork, error);
    if (status == TKV_OK) {
        tkv_cache_free(t->caches[place]);
        t->caches[place] = fork;
    }
    return status;
}

/* A fork is written, so that its last block is copied. */
static tkv_status fork_and_append(twin *t, int place, tkv_error *error)
{
    tkv_cache *fork = NULL;
    tkv_status status = tkv_cache_fork(t->caches[place], 90, &fork, error);
    if (status == TKV_OK) {
        status = append_to(t, place, fork, 30, 80, error);
    }
    tkv_cache_free(fork);
    return status;
}

typedef tkv_status (*twin_operation)(twin *t, int place, tkv_error *error);

/* Does an operation on 100 tokens with the call after n more ones failing; false if it needs fewer.
 * If it succeeds all the same, what stayed exact is coded with the next token. */
static bool survives_failure(twin_operation operation, int n, bool is_once)
{
    const tkv_type types[2 * N_LAYERS] = {TKV_TYPE_TURBO3, TKV_TYPE_TURBO4Q, TKV_TYPE_TURBO2,
                                          TKV_TYPE_F16};
    const tkv_cache_params params = {.n_layers = N_LAYERS,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = DIM_K,
                                     .head_dim_v = DIM_V,
                                     .max_tokens = MAX_TOKENS,
                                     .types_k = types,
                                     .types_v = types + N_LAYERS,
                                     .n_sinks = 4,
                                     .n_recent = 10,
                                     .centre_tokens = 100};
    twin *t = create_twin(3, &params);
    tkv_error error = {TKV_OK, ""};
    append(t, 100);
    reference_device_fail(n, is_once);
    const tkv_status status = operation(t, DEVICE, &error);
    const bool has_failed = reference_device_recover();
    if (status != TKV_OK) {
        assert_true(has_failed);
        assert_int_equal(error.status, status);
        assert_non_null(strstr(error.message, "reference device"));
        for (int layer = 0; layer < N_LAYERS; layer++) {
            if (tkv_cache_length(t->caches[DEVICE], layer) == 100) {
                assert_same_layer(t, layer);
            }
        }
        assert_int_equal(operation(t, DEVICE, &error), TKV_OK);
    }
    assert_int_equal(operation(t, CPU, &error), TKV_OK);
    assert_int_equal(tkv_cache_length(t->caches[CPU], 1), tkv_cache_length(t->caches[DEVICE], 1));
    append(t, 1);
    assert_same_content(t);
    free_twin(t);
    return has_failed;
}

static void any_call_may_fail(void **state)
{
    (void)state;
    const struct {
        twin_operation operation;
        int min_calls;
    } cases[] = {{append_more, 10}, {append_one, 4}, {drop_middle, 9},
                 {step, 3},         {fork_all, 7},   {fork_and_append, 21}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int is_once = 0; is_once < 2; is_once++) {
            int n = 0;
            while (survives_failure(cases[i].operation, n, is_once != 0)) {
                n++;
            }
            assert_true(n >= cases[i].min_calls);
        }
    }
}

static void creating_may_fail(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    tkv_error error;
    reference_device_fail(0, true);
    assert_int_equal(tkv_context_create_on(&reference_device_table, 0, NULL, &context, &error),
                     TKV_ERR_DEVICE);
    context = create_reference_context();
    uint64_t seed = 1;
    tkv_type types[2 * N_LAYERS] = {TKV_TYPE_F16};
    tkv_cache_params params = random_params(&seed, types);
    types[0] = types[1] = TKV_TYPE_TURBO3;
    params.centre_tokens = 20;
    for (int n = 0; n < 1; n++) {
        tkv_cache *cache = NULL;
        reference_device_fail(n, true);
        assert_int_equal(tkv_cache_create(context, &params, &cache, &error), TKV_ERR_OUT_OF_MEMORY);
        assert_true(reference_device_recover());
        assert_null(cache);
        assert_int_equal(reference_device_bytes(), 0);
    }
    tkv_context_free(context);
}

int main(void)
{
    if (test_device()) {
        const struct CMUnitTest on_device[] = {cmocka_unit_test(holds_what_the_cpu_holds)};
        return test_device_is_missing() ? EXIT_SKIPPED
                                        : cmocka_run_group_tests(on_device, NULL, NULL);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_what_the_cpu_holds), cmocka_unit_test(captured_steps_go_on_working),
        cmocka_unit_test(reservations), cmocka_unit_test(any_call_may_fail),
        cmocka_unit_test(creating_may_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
