/* One call for several sequences does what a call for each does, on the CPU, on the reference
 * device and on what TKV_TEST_DEVICE names; and it can be captured. */
#include "support/reference_device.h"
#include "support/support.h"

enum { N_CACHES = 3, N_LAYERS = 2, N_KV_HEADS = 2, N_HEADS = 4, DIM = 64, MAX_TOKENS = 300 };
enum { KV_ROW = N_KV_HEADS * DIM, Q_ROW = N_HEADS * DIM, MAX_QUERIES = 5 };

static const int lengths[N_CACHES] = {5, 200, 67};

/* Caches of different lengths, and rows to append and to ask with. */
typedef struct batch {
    tkv_context *context;
    tkv_cache *caches[N_CACHES];
    float *rows; /* [MAX_TOKENS][KV_ROW], where the context computes */
    float *out;  /* [N_CACHES][MAX_QUERIES][Q_ROW] */
} batch;

static const tkv_type types[2 * N_LAYERS] = {TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS2, TKV_TYPE_TURBO3,
                                             TKV_TYPE_TURBO8};

static tkv_cache *create_cache(tkv_context *context, int n_sinks)
{
    const tkv_cache_params params = {.n_layers = N_LAYERS,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = MAX_TOKENS,
                                     .types_k = types,
                                     .types_v = types + N_LAYERS,
                                     .n_sinks = n_sinks,
                                     .n_recent = 20,
                                     .centre_tokens = 40};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    return cache;
}

static void *allocate_there(tkv_context *context, size_t n_values)
{
    void *memory = NULL;
    assert_ok(tkv_memory_allocate(context, n_values * sizeof(float), &memory, &error));
    return memory;
}

static batch create_batch(tkv_context *context)
{
    batch b = {.context = context};
    uint64_t seed = 4;
    float *rows = allocate(MAX_TOKENS * KV_ROW * sizeof *rows);
    fill_gauss(&seed, MAX_TOKENS * KV_ROW, rows);
    b.rows = allocate_there(context, MAX_TOKENS * KV_ROW);
    b.out = allocate_there(context, N_CACHES * MAX_QUERIES * Q_ROW);
    assert_ok(tkv_memory_upload(context, b.rows, rows, MAX_TOKENS * KV_ROW * sizeof *rows, &error));
    free(rows);
    for (int i = 0; i < N_CACHES; i++) {
        b.caches[i] = create_cache(context, 4);
        for (int layer = 0; layer < N_LAYERS; layer++) {
            assert_ok(tkv_cache_append(b.caches[i], layer, lengths[i], b.rows + i * KV_ROW,
                                       b.rows + (i + 9) * KV_ROW, &error));
        }
    }
    return b;
}

static void free_batch(batch *b)
{
    for (int i = 0; i < N_CACHES; i++) {
        tkv_cache_free(b->caches[i]);
    }
    tkv_memory_free(b->context, b->rows);
    tkv_memory_free(b->context, b->out);
    tkv_context_free(b->context);
}

static float *download(const batch *b, size_t n_values)
{
    float *x = allocate(n_values * sizeof *x);
    assert_ok(tkv_memory_download(b->context, x, b->out, n_values * sizeof *x, &error));
    return x;
}

static const tkv_cache *const *constant(const batch *b)
{
    return (const tkv_cache *const *)b->caches;
}

static void append_each(const batch *b, int layer, int n_tokens)
{
    for (int i = 0; i < N_CACHES; i++) {
        const float *k = b->rows + (size_t)(20 + i * n_tokens) * KV_ROW;
        assert_ok(tkv_cache_append(b->caches[i], layer, n_tokens, k, k + 50 * KV_ROW, &error));
    }
}

static void attend_each(const batch *b, int layer, int n_queries)
{
    for (int i = 0; i < N_CACHES; i++) {
        const tkv_attend_params params = {.n_queries = n_queries,
                                          .n_heads = N_HEADS,
                                          .first_position =
                                              tkv_cache_length(b->caches[i], layer) - n_queries};
        assert_ok(tkv_attend(b->caches[i], layer, &params, b->rows + i * n_queries * Q_ROW,
                             b->out + i * n_queries * Q_ROW, &error));
    }
}

static void append_and_attend_batch(const batch *b, int layer, int n_tokens)
{
    const float *k = b->rows + 20 * KV_ROW;
    const tkv_attend_params params = {.n_queries = n_tokens, .n_heads = N_HEADS};
    assert_ok(
        tkv_cache_append_batch(b->caches, N_CACHES, layer, n_tokens, k, k + 50 * KV_ROW, &error));
    assert_ok(tkv_attend_batch(constant(b), N_CACHES, layer, &params, b->rows, b->out, &error));
}

/* Devices that take other sums for several sequences differ in the last bits. */
static void assert_same(const batch *a, const batch *b, size_t n_values)
{
    float *x = download(a, n_values);
    float *y = download(b, n_values);
    if (test_device()) {
        assert_true(relative_error(n_values, x, y) < 0.01);
    } else {
        assert_memory_equal(x, y, n_values * sizeof *x);
    }
    free(x);
    free(y);
}

static void check_batch(tkv_context *context, tkv_context *again)
{
    batch one_by_one = create_batch(context);
    batch at_once = create_batch(again);
    const int steps[] = {1, MAX_QUERIES, 1, 2};
    for (size_t step = 0; step < sizeof steps / sizeof *steps; step++) {
        for (int layer = 0; layer < N_LAYERS; layer++) {
            append_each(&one_by_one, layer, steps[step]);
            attend_each(&one_by_one, layer, steps[step]);
            append_and_attend_batch(&at_once, layer, steps[step]);
            assert_same(&one_by_one, &at_once, (size_t)(N_CACHES * steps[step] * Q_ROW));
        }
        if (step == 1) { /* a truncated sequence is as long as it says */
            assert_ok(tkv_cache_truncate(one_by_one.caches[1], 150, &error));
            assert_ok(tkv_cache_truncate(at_once.caches[1], 150, &error));
        }
    }
    free_batch(&one_by_one);
    free_batch(&at_once);
}

static tkv_context *create_context(const char *device)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = 2, .device = device};
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

static void batches_are_their_parts(void **state)
{
    (void)state;
    check_batch(create_context(NULL), create_context(NULL));
    check_batch(create_reference_context(), create_reference_context());
    if (test_device()) {
        check_batch(create_context(test_device()), create_context(test_device()));
    }
    assert_int_equal(reference_device_bytes(), 0);
}

static void reserve_all(const batch *b)
{
    for (int i = 0; i < N_CACHES; i++) {
        assert_ok(tkv_cache_reserve(b->caches[i], 1, 0, &error));
    }
}

static void commit_all(const batch *b)
{
    for (int i = 0; i < N_CACHES; i++) {
        assert_ok(tkv_cache_commit(b->caches[i], &error));
    }
}

static void batches_can_be_captured(void **state)
{
    (void)state;
    batch one_by_one = create_batch(create_reference_context());
    batch captured = create_batch(create_reference_context());
    for (int step = 0; step < 60; step++) {
        append_each(&one_by_one, 0, 1);
        append_each(&one_by_one, 1, 1);
        attend_each(&one_by_one, 1, 1);
        reserve_all(&captured);
        if (step < 2) { /* runs, then is captured */
            if (step == 1) {
                reference_device_capture();
            }
            append_and_attend_batch(&captured, 0, 1);
            append_and_attend_batch(&captured, 1, 1);
            reference_device_end_capture();
        }
        if (step > 0) {
            reference_device_replay();
        }
        commit_all(&captured);
        /* The step that completes the first one's means is still as before. */
        if (tkv_cache_length(captured.caches[0], 0) != 4 + 40) {
            assert_same(&one_by_one, &captured, N_CACHES * Q_ROW);
        }
    }
    free_batch(&one_by_one);
    free_batch(&captured);
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    batch b = create_batch(create_reference_context());
    tkv_context *other = create_context(NULL);
    tkv_cache *stranger = create_cache(other, 4);
    tkv_cache *with_sinks = create_cache(b.context, 50);
    const tkv_cache *pair[] = {b.caches[0], stranger};
    const tkv_attend_params params = {.n_queries = 1, .n_heads = N_HEADS};
    const tkv_attend_params many = {.n_queries = 6, .n_heads = N_HEADS};
    assert_fails(tkv_attend_batch(pair, 2, 0, &params, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "cache 1 of a batch");
    pair[1] = with_sinks;
    assert_fails(tkv_attend_batch(pair, 2, 0, &params, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "sinks");
    assert_fails(tkv_attend_batch(constant(&b), 0, 0, &params, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "0 caches");
    assert_fails(tkv_attend_batch(constant(&b), N_CACHES, 2, &params, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "layer 2");
    assert_fails(tkv_attend_batch(constant(&b), N_CACHES, 0, NULL, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "params");
    assert_fails(tkv_attend_batch(constant(&b), N_CACHES, 0, &many, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "within the 5 tokens");
    assert_ok(tkv_cache_reserve(b.caches[0], 1, 0, &error));
    assert_fails(tkv_attend_batch(constant(&b), N_CACHES, 0, &params, b.rows, b.out, &error),
                 TKV_ERR_INVALID_ARGUMENT, "reservation");
    assert_ok(tkv_cache_reserve(b.caches[1], 1, 0, &error));
    assert_ok(tkv_cache_reserve(b.caches[2], 1, 0, &error));
    assert_fails(tkv_cache_append_batch(b.caches, N_CACHES, 0, 2, b.rows, b.rows, &error),
                 TKV_ERR_INVALID_ARGUMENT, "1 are reserved");
    tkv_cache_free(stranger);
    tkv_cache_free(with_sinks);
    tkv_context_free(other);
    free_batch(&b);
}

int main(void)
{
    if (test_device_is_missing()) {
        return EXIT_SKIPPED;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(batches_are_their_parts),
                                       cmocka_unit_test(batches_can_be_captured),
                                       cmocka_unit_test(mistakes_are_explained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
