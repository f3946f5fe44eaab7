/* The cache on a device, the reference one or what TKV_TEST_DEVICE names: whatever is done to it,
 * it holds to the bit what a cache on the CPU holds, its bytes are those of the device, any call of
 * the device may fail, and a captured step goes on working. */
#include "cache/cache.h"
#include "support/reference_device.h"
#include "support/support.h"

enum { N_LAYERS = 2, N_KV_HEADS = 2, N_HEADS = 4, DIM_K = 48, DIM_V = 32, MAX_TOKENS = 400 };
enum { CPU, DEVICE, N_PLACES };
enum { MAX_APPEND = 150, K_ROW = N_KV_HEADS * DIM_K, V_ROW = N_KV_HEADS * DIM_V };

/* The same on the CPU and on the device. */
typedef struct twin {
    tkv_context *contexts[N_PLACES];
    tkv_cache *caches[N_PLACES];
    float *k[N_PLACES]; /* [MAX_TOKENS][N_KV_HEADS][DIM_K], where the context computes */
    float *v[N_PLACES];
    float *out[N_PLACES];     /* for reading and attending */
    float *results[N_PLACES]; /* [MAX_TOKENS][K_ROW + V_ROW] on the host */
    uint64_t seed;
} twin;

static const size_t data_bytes[2] = {(size_t)MAX_TOKENS * K_ROW * sizeof(float),
                                     (size_t)MAX_TOKENS *V_ROW * sizeof(float)};

static float *upload(tkv_context *context, const float *x, size_t bytes)
{
    void *memory = NULL;
    assert_ok(tkv_memory_allocate(context, bytes, &memory, &error));
    assert_ok(tkv_memory_upload(context, memory, x, bytes, &error));
    return memory;
}

static tkv_context *create_device_context(void)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = 1, .device = test_device()};
    if (!params.device) {
        return create_reference_context();
    }
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

static twin *create_twin(uint64_t seed, const tkv_cache_params *params)
{
    twin *t = allocate(sizeof *t);
    t->seed = seed;
    t->contexts[CPU] = NULL;
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &t->contexts[CPU], &error));
    t->contexts[CPU]->kernels = &tkv_kernels_scalar; /* as the device */
    t->contexts[DEVICE] = create_device_context();
    float *x = allocate(data_bytes[0] + data_bytes[1]);
    for (int i = 0; i < MAX_TOKENS * (K_ROW + V_ROW); i++) {
        x[i] = random_gauss(&seed) + (i % 16 == 3 ? 4.0f : 0.0f);
    }
    for (int p = 0; p < N_PLACES; p++) {
        t->k[p] = upload(t->contexts[p], x, data_bytes[0]);
        t->v[p] = upload(t->contexts[p], x + MAX_TOKENS * K_ROW, data_bytes[1]);
        t->out[p] = upload(t->contexts[p], x, data_bytes[0] + data_bytes[1]);
        t->results[p] = allocate(data_bytes[0] + data_bytes[1]);
        assert_ok(tkv_cache_create(t->contexts[p], params, &t->caches[p], &error));
    }
    free(x);
    return t;
}

static void free_twin(twin *t)
{
    for (int p = 0; p < N_PLACES; p++) {
        tkv_cache_free(t->caches[p]);
        tkv_memory_free(t->contexts[p], t->k[p]);
        tkv_memory_free(t->contexts[p], t->v[p]);
        tkv_memory_free(t->contexts[p], t->out[p]);
        free(t->results[p]);
        tkv_context_free(t->contexts[p]);
    }
    free(t);
    assert_int_equal(reference_device_bytes(), 0);
}

static tkv_cache_params random_params(uint64_t *seed, tkv_type *types)
{
    const int sinks[] = {0, 4, 70};
    const int recent[] = {0, 20, 70};
    const int centre[] = {0, 30, 100};
    for (int i = 0; i < 2 * N_LAYERS; i++) {
        types[i] = (tkv_type)random_below(seed, TKV_TYPE_COUNT);
    }
    return (tkv_cache_params){.n_layers = N_LAYERS,
                              .n_kv_heads = N_KV_HEADS,
                              .head_dim_k = DIM_K,
                              .head_dim_v = DIM_V,
                              .max_tokens = MAX_TOKENS,
                              .types_k = types,
                              .types_v = types + N_LAYERS,
                              .n_sinks = sinks[random_below(seed, 3)],
                              .n_recent = recent[random_below(seed, 3)],
                              .centre_tokens = centre[random_below(seed, 3)]};
}

static void download(const twin *t, int place, size_t bytes)
{
    assert_ok(
        tkv_memory_download(t->contexts[place], t->results[place], t->out[place], bytes, &error));
}

static void assert_same_layer(const twin *t, int layer)
{
    const int n = tkv_cache_length(t->caches[CPU], layer);
    assert_int_equal(tkv_cache_length(t->caches[DEVICE], layer), n);
    const size_t bytes = (size_t)n * (K_ROW + V_ROW) * sizeof(float);
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(
            tkv_cache_read(t->caches[p], layer, 0, n, t->out[p], t->out[p] + n * K_ROW, &error));
        download(t, p, bytes);
    }
    assert_memory_equal(t->results[CPU], t->results[DEVICE], bytes);
}

static void assert_same_content(const twin *t)
{
    for (int layer = 0; layer < N_LAYERS; layer++) {
        assert_same_layer(t, layer);
    }
    assert_int_equal(tkv_cache_shared_bytes(t->caches[CPU]) == 0,
                     tkv_cache_shared_bytes(t->caches[DEVICE]) == 0);
}

/* Bytes of the device's memory that a cache holds. */
static size_t device_bytes(const tkv_cache *cache)
{
    size_t bytes = 0;
    for (int i = 0; i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        bytes += tkv_layer_device_bytes(layer);
        for (int b = 0; b < layer->n_blocks; b++) {
            if (b > 0 && layer->blocks[b] == layer->blocks[b - 1]) {
                continue;
            }
            bytes += tkv_block_bytes(layer, layer->blocks[b]) - TKV_BLOCK_HEADER;
        }
    }
    return bytes;
}

static size_t workspace_bytes(const tkv_context *context)
{
    size_t bytes = 0;
    for (int use = 0; use < TKV_WORKSPACE_USES; use++) {
        assert_true(context->workspaces[use].n < 2);
        bytes += context->workspaces[use].bytes;
    }
    return bytes;
}

static void assert_bytes(const twin *t)
{
    if (test_device()) {
        return; /* which does not count */
    }
    assert_int_equal(device_bytes(t->caches[DEVICE]) + workspace_bytes(t->contexts[DEVICE]) +
                         2 * (data_bytes[0] + data_bytes[1]),
                     reference_device_bytes());
    /* Exact blocks are whole there. */
    assert_true(tkv_cache_bytes(t->caches[DEVICE]) >= tkv_cache_bytes(t->caches[CPU]));
}

static tkv_status append_to(const twin *t, int place, tkv_cache *cache, int from, int n,
                            tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int layer = 0; layer < N_LAYERS && status == TKV_OK; layer++) {
        status = tkv_cache_append(cache, layer, n, t->k[place] + from * K_ROW,
                                  t->v[place] + from * V_ROW, error);
    }
    return status;
}

static void append(twin *t, int n)
{
    const int from = random_below(&t->seed, MAX_TOKENS - n);
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(append_to(t, p, t->caches[p], from, n, &error));
    }
}

/* A device that is not the reference sums in its own order, and rounds; so does the reference where
 * it joins segments. */
static void assert_same_output(const twin *t, size_t n_values)
{
    const bool is_shifted = t->caches[DEVICE]->layers[0].n_segments > 1;
    if (test_device() || is_shifted) {
        assert_true(relative_error(n_values, t->results[DEVICE], t->results[CPU]) <
                    (test_device() ? 0.02 : 1e-5));
    } else {
        assert_memory_equal(t->results[CPU], t->results[DEVICE], n_values * sizeof(float));
    }
}

/* Attends from the last tokens; queries are rows of k. */
static void attend(twin *t, int n_queries, int window)
{
    const int length = tkv_cache_length(t->caches[CPU], 0);
    const tkv_attend_params params = {.n_queries = n_queries,
                                      .n_heads = N_HEADS,
                                      .first_position = length - n_queries,
                                      .window = window};
    const size_t bytes = (size_t)n_queries * N_HEADS * DIM_V * sizeof(float);
    for (int layer = 0; layer < N_LAYERS; layer++) {
        for (int p = 0; p < N_PLACES; p++) {
            assert_ok(tkv_attend(t->caches[p], layer, &params, t->k[p] + K_ROW, t->out[p], &error));
            download(t, p, bytes);
        }
        assert_same_output(t, bytes / sizeof(float));
    }
}

static void fork_and_write(twin *t, bool keeps_fork)
{
    const int length = tkv_cache_length(t->caches[CPU], 0);
    const int at = random_below(&t->seed, length + 1);
    const int n = 1 + random_below(&t->seed, MAX_TOKENS - at < 80 ? MAX_TOKENS - at : 80);
    twin forked = *t;
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(tkv_cache_fork(t->caches[p], at, &forked.caches[p], &error));
    }
    assert_same_content(&forked);
    append(&forked, n);
    assert_same_content(&forked);
    assert_same_content(t);
    for (int p = 0; p < N_PLACES; p++) {
        tkv_cache_free(keeps_fork ? t->caches[p] : forked.caches[p]);
        t->caches[p] = keeps_fork ? forked.caches[p] : t->caches[p];
    }
    t->seed = forked.seed;
}

static void shift(twin *t)
{
    const float frequencies[] = {1.0f, 0.1f, 0.01f};
    const tkv_rope rope = {false, 6, frequencies};
    const int length = tkv_cache_length(t->caches[CPU], 0);
    if (length == 0) {
        return;
    }
    const int first = random_below(&t->seed, length);
    const int n_drop = 1 + random_below(&t->seed, length - first);
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(tkv_cache_shift(t->caches[p], first, n_drop, &rope, &error));
    }
}

static void do_something(twin *t)
{
    const int length = tkv_cache_length(t->caches[CPU], 0);
    const int room = MAX_TOKENS - length;
    const int n = 1 + random_below(&t->seed, room < MAX_APPEND ? room + 1 : MAX_APPEND);
    switch (random_below(&t->seed, 9)) {
    case 0:
    case 1:
    case 2:
    case 3:
        if (n <= room) {
            append(t, n);
        }
        break;
    case 4:
        for (int p = 0, left = random_below(&t->seed, length + 20); p < N_PLACES; p++) {
            assert_ok(tkv_cache_truncate(t->caches[p], left, &error));
        }
        break;
    case 5: shift(t); break;
    case 6:
        if (room > 0) {
            fork_and_write(t, random_below(&t->seed, 2) == 0);
        }
        break;
    case 7:
        if (length > 0) {
            attend(t, 1 + random_below(&t->seed, length < 40 ? length : 40),
                   random_below(&t->seed, 2) * 50);
        }
        break;
    case 8:
        if (random_below(&t->seed, 4) == 0) {
            tkv_cache_clear(t->caches[CPU]);
            tkv_cache_clear(t->caches[DEVICE]);
        }
        break;
    }
}

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
