#include "twin.h"

#include "cache/cache.h"
#include "support/reference_device.h"

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

twin *create_twin(uint64_t seed, const tkv_cache_params *params)
{
    twin *t = allocate(sizeof *t);
    t->seed = seed;
    t->contexts[CPU] = NULL;
    const tkv_context_params cpu = {.n_threads = 1, .kernels = "scalar"}; /* as the device */
    assert_ok(tkv_context_create(&cpu, &t->contexts[CPU], &error));
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

void free_twin(twin *t)
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

tkv_cache_params random_params(uint64_t *seed, tkv_type *types)
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

void download(const twin *t, int place, size_t bytes)
{
    assert_ok(
        tkv_memory_download(t->contexts[place], t->results[place], t->out[place], bytes, &error));
}

void assert_same_layer(const twin *t, int layer)
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

void assert_same_content(const twin *t)
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
        bytes += tkv_layer_published_bytes(layer);
        for (int b = 0; b < layer->n_blocks; b++) {
            if (b > 0 && layer->blocks[b] == layer->blocks[b - 1]) {
                continue;
            }
            bytes += tkv_block_bytes(layer, layer->blocks[b]) - sizeof(tkv_block);
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

void assert_bytes(const twin *t)
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

tkv_status append_to(const twin *t, int place, tkv_cache *cache, int from, int n, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int layer = 0; layer < N_LAYERS && status == TKV_OK; layer++) {
        status = tkv_cache_append(cache, layer, n, t->k[place] + from * K_ROW,
                                  t->v[place] + from * V_ROW, error);
    }
    return status;
}

void append(twin *t, int n)
{
    const int from = random_below(&t->seed, MAX_TOKENS - n);
    for (int p = 0; p < N_PLACES; p++) {
        assert_ok(append_to(t, p, t->caches[p], from, n, &error));
    }
}

void assert_same_output(const twin *t, size_t n_values)
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

void fork_and_write(twin *t, bool keeps_fork)
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

void shift(twin *t)
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

void do_something(twin *t)
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
