/* Several threads use one context at a time: they read and attend to the same cache, and change
 * caches of their own. Whatever another thread does, each gets what it gets alone, to the bit. Run
 * under ThreadSanitizer too (make sanitize-threads). */
#include "support/support.h"

#include <pthread.h>

enum {
    N_CALLERS = 4,
    N_ROUNDS = 6,
    N_KV_HEADS = 2,
    N_HEADS = 4,
    HEAD_DIM = 64,
    N_TOKENS = 1200, /* enough for the work to be cut into splits, one a thread and more */
    N_MORE = 150,
    N_QUERIES = 24,
    N_LAYERS = 2,
    ROW = N_KV_HEADS * HEAD_DIM,
    N_OUT = N_QUERIES * N_HEADS * HEAD_DIM
};

typedef struct inputs {
    tkv_context *context;
    tkv_cache *cache; /* N_TOKENS in each layer */
    float k[(N_TOKENS + N_MORE) * ROW];
    float v[(N_TOKENS + N_MORE) * ROW];
    float q[N_OUT];
} inputs;

/* What one thread sees of a cache. */
typedef struct view {
    int length;
    size_t bytes;
    float out[N_LAYERS][N_OUT];
    float k[N_TOKENS * ROW];
    float v[N_TOKENS * ROW];
    tkv_attend_stats stats;
} view;

typedef struct caller {
    const inputs *in;
    const view *expected;
    view *seen;
    int index;
    tkv_cache *own; /* of extend */
    bool is_right;
    tkv_error error; /* of the call that failed */
} caller;

static inputs *create_inputs(void)
{
    inputs *in = allocate(sizeof *in);
    uint64_t seed = 12;
    const tkv_type types_k[N_LAYERS] = {TKV_TYPE_TRELLIS3, TKV_TYPE_F16};
    const tkv_type types_v[N_LAYERS] = {TKV_TYPE_TURBO3, TKV_TYPE_TURBO4Q};
    const tkv_context_params on_threads = {.n_threads = N_CALLERS, .effort = TKV_EFFORT_FAST};
    const tkv_cache_params params = {.n_layers = N_LAYERS,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = HEAD_DIM,
                                     .head_dim_v = HEAD_DIM,
                                     .max_tokens = N_TOKENS + N_MORE,
                                     .types_k = types_k,
                                     .types_v = types_v,
                                     .n_sinks = 4,
                                     .n_recent = 32,
                                     .centre_tokens = 64};
    fill_gauss(&seed, sizeof in->k / sizeof *in->k, in->k);
    fill_gauss(&seed, sizeof in->v / sizeof *in->v, in->v);
    fill_gauss(&seed, N_OUT, in->q);
    assert_ok(tkv_context_create(&on_threads, &in->context, &error));
    assert_ok(tkv_cache_create(in->context, &params, &in->cache, &error));
    for (int layer = 0; layer < N_LAYERS; layer++) {
        assert_ok(tkv_cache_append(in->cache, layer, N_TOKENS, in->k, in->v, &error));
    }
    return in;
}

static void free_inputs(inputs *in)
{
    tkv_cache_free(in->cache);
    tkv_context_free(in->context);
    free(in);
}

/* Everything that only reads, of the last n_queries positions before `length`. */
static tkv_status look(const inputs *in, const tkv_cache *cache, view *seen, tkv_error *error)
{
    seen->length = tkv_cache_length(cache, 0);
    seen->bytes = tkv_cache_bytes(cache);
    seen->stats = (tkv_attend_stats){0, 0};
    tkv_attend_params params = {.n_queries = N_QUERIES,
                                .n_heads = N_HEADS,
                                .first_position = seen->length - N_QUERIES,
                                .sparse_v = 1e-3f,
                                .stats = &seen->stats};
    tkv_status status = TKV_OK;
    for (int layer = 0; status == TKV_OK && layer < N_LAYERS; layer++) {
        status = tkv_attend(cache, layer, &params, in->q, seen->out[layer], error);
    }
    if (status == TKV_OK) {
        status =
            tkv_cache_read(cache, 0, seen->length - N_TOKENS, N_TOKENS, seen->k, seen->v, error);
    }
    return status;
}

/* A cache's life: a fork of the common one that takes tokens, drops some, takes others. */
static tkv_status live(const inputs *in, int index, view *seen, tkv_error *error)
{
    tkv_cache *own = NULL;
    const int kept = N_TOKENS - 10 * index;
    tkv_status status = tkv_cache_fork(in->cache, kept, &own, error);
    for (int layer = 0; status == TKV_OK && layer < N_LAYERS; layer++) {
        status =
            tkv_cache_append(own, layer, N_MORE, in->k + kept * ROW, in->v + kept * ROW, error);
    }
    if (status == TKV_OK) {
        status = tkv_cache_truncate(own, N_TOKENS + 7, error);
    }
    for (int layer = 0; status == TKV_OK && layer < N_LAYERS; layer++) {
        status = tkv_cache_append(own, layer, 3, in->k + index * ROW, in->v + index * ROW, error);
    }
    if (status == TKV_OK) {
        status = look(in, own, seen, error);
    }
    tkv_cache_free(own);
    return status;
}

static bool is_same(const view *a, const view *b)
{
    return a->length == b->length && a->bytes == b->bytes &&
           a->stats.n_weights == b->stats.n_weights && a->stats.n_skipped == b->stats.n_skipped &&
           memcmp(a->out, b->out, sizeof a->out) == 0 && memcmp(a->k, b->k, sizeof a->k) == 0 &&
           memcmp(a->v, b->v, sizeof a->v) == 0;
}

static void *read_often(void *argument)
{
    caller *c = argument;
    for (int round = 0; c->is_right && round < N_ROUNDS; round++) {
        c->is_right = look(c->in, c->in->cache, c->seen, &c->error) == TKV_OK &&
                      is_same(c->seen, c->expected);
    }
    return NULL;
}

static void *live_often(void *argument)
{
    caller *c = argument;
    for (int round = 0; c->is_right && round < N_ROUNDS; round++) {
        c->is_right =
            live(c->in, c->index, c->seen, &c->error) == TKV_OK && is_same(c->seen, c->expected);
    }
    return NULL;
}

/* Runs `works` at the same time, one a thread, and checks what each has seen. */
static void run_callers(const inputs *in, void *(*const works[N_CALLERS])(void *))
{
    caller callers[N_CALLERS];
    pthread_t threads[N_CALLERS];
    for (int i = 0; i < N_CALLERS; i++) {
        view *expected = allocate(sizeof *expected);
        assert_ok(works[i] == live_often ? live(in, i, expected, &error)
                                         : look(in, in->cache, expected, &error));
        callers[i] = (caller){.in = in,
                              .expected = expected,
                              .seen = allocate(sizeof *expected),
                              .index = i,
                              .is_right = true};
    }
    for (int i = 0; i < N_CALLERS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, works[i], &callers[i]), 0);
    }
    for (int i = 0; i < N_CALLERS; i++) {
        pthread_join(threads[i], NULL);
        if (!callers[i].is_right) {
            fail_msg("caller %d saw something else than alone, or: '%s'", i,
                     callers[i].error.message);
        }
        free((void *)callers[i].expected);
        free(callers[i].seen);
    }
}

static void several_threads_read_one_cache(void **state)
{
    (void)state;
    inputs *in = create_inputs();
    run_callers(
        in, (void *(*const[N_CALLERS])(void *)){read_often, read_often, read_often, read_often});
    free_inputs(in);
}

/* Forks share pages with the cache that others read. */
static void threads_change_caches_of_one_context(void **state)
{
    (void)state;
    inputs *in = create_inputs();
    run_callers(
        in, (void *(*const[N_CALLERS])(void *)){live_often, read_often, live_often, live_often});
    assert_int_equal(tkv_cache_shared_bytes(in->cache), 0);
    free_inputs(in);
}

static void *extend(void *argument)
{
    caller *c = argument;
    for (int layer = 0; c->is_right && layer < N_LAYERS; layer++) {
        c->is_right = tkv_cache_append(c->own, layer, 60, c->in->k, c->in->v, &c->error) == TKV_OK;
    }
    c->is_right = c->is_right && look(c->in, c->own, c->seen, &c->error) == TKV_OK;
    tkv_cache_free(c->own);
    return NULL;
}

/* All have the page that they write in common, until each but the last has copied it. */
static void forks_of_one_cache_are_written(void **state)
{
    (void)state;
    inputs *in = create_inputs();
    caller callers[N_CALLERS];
    pthread_t threads[N_CALLERS];
    for (int round = 0; round < N_ROUNDS; round++) {
        for (int i = 0; i < N_CALLERS; i++) {
            callers[i] =
                (caller){.in = in, .seen = allocate(sizeof(view)), .index = i, .is_right = true};
            assert_ok(tkv_cache_fork(in->cache, N_TOKENS - 5, &callers[i].own, &error));
        }
        for (int i = 0; i < N_CALLERS; i++) {
            assert_int_equal(pthread_create(&threads[i], NULL, extend, &callers[i]), 0);
        }
        for (int i = 0; i < N_CALLERS; i++) {
            pthread_join(threads[i], NULL);
            assert_true(callers[i].is_right);
            assert_true(is_same(callers[i].seen, callers[0].seen));
        }
        for (int i = 0; i < N_CALLERS; i++) {
            free(callers[i].seen);
        }
    }
    free_inputs(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(several_threads_read_one_cache),
                                       cmocka_unit_test(threads_change_caches_of_one_context),
                                       cmocka_unit_test(forks_of_one_cache_are_written)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
