/* An allocator of the caller's: all that a context and its caches take comes from it and goes back,
 * whichever of its calls fails. */
#include "support/support.h"

#include <stdatomic.h>

enum { DIM = 32, N_HEADS = 2, N_TOKENS = 200, ROW = N_HEADS * DIM };

typedef struct counter {
    atomic_int n_calls;
    atomic_int n_live;
    int failing; /* from 1; 0: none */
} counter;

static void *allocate_counted(void *user, size_t bytes, size_t alignment)
{
    counter *c = user;
    assert_true(bytes > 0 && alignment >= 16 && alignment <= 256);
    if (atomic_fetch_add(&c->n_calls, 1) + 1 == c->failing) {
        return NULL;
    }
    atomic_fetch_add(&c->n_live, 1);
    void *memory = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    assert_non_null(memory);
    return memset(memory, 0xa5, bytes); /* nobody may count on zeros */
}

static void release_counted(void *user, void *memory)
{
    counter *c = user;
    assert_non_null(memory);
    atomic_fetch_sub(&c->n_live, 1);
    free(memory);
}

typedef struct objects {
    tkv_context *context;
    tkv_cache *cache;
    tkv_cache *fork;
} objects;

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const tkv_status tried = (call);                                                           \
        if (tried != TKV_OK) {                                                                     \
            return tried;                                                                          \
        }                                                                                          \
    } while (0)

/* What takes memory, one after the other. */
static tkv_status use(counter *c, const float *x, objects *o, tkv_error *error)
{
    static const float frequencies[DIM / 2] = {1.0f, 0.5f, 1e-3f, 1e-4f};
    static float out[2 * N_TOKENS * ROW];
    const tkv_allocator allocator = {allocate_counted, release_counted, c};
    const tkv_rope rope = {false, 8, frequencies};
    const tkv_attend_params attend = {
        .n_queries = 1, .n_heads = N_HEADS, .first_position = N_TOKENS - 1};
    const tkv_cache_params params = {.n_layers = 2,
                                     .n_kv_heads = N_HEADS,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = 2 * N_TOKENS,
                                     .rope = &rope};
    tkv_policy policy;
    TRY(tkv_context_create(&(tkv_context_params){.n_threads = 2, .allocator = &allocator},
                           &o->context, error));
    TRY(tkv_policy_preset("4bit", &policy, error));
    TRY(tkv_policy_create_cache(o->context, &params, &policy, &o->cache, error));
    for (int layer = 0; layer < 2; layer++) {
        for (int t = 0; t < N_TOKENS; t++) {
            const float *row = x + (size_t)t * ROW;
            TRY(tkv_cache_append(o->cache, layer, 1, row, row, error));
        }
    }
    TRY(tkv_attend(o->cache, 0, &attend, x, out, error));
    TRY(tkv_cache_fork(o->cache, N_TOKENS - 7, &o->fork, error));
    TRY(tkv_cache_append(o->fork, 0, 20, x, x, error));
    TRY(tkv_cache_shift(o->cache, 70, 5, &rope, error));
    TRY(tkv_cache_append(o->cache, 0, 5, x, x, error));
    TRY(tkv_attend(o->cache, 0, &attend, x, out, error));
    TRY(tkv_cache_read(o->cache, 0, 60, 80, out, out + N_TOKENS * ROW, error));
    return tkv_cache_truncate(o->cache, 100, error);
}

static tkv_status use_and_free(counter *c, const float *x, tkv_error *error)
{
    objects o = {NULL, NULL, NULL};
    const tkv_status status = use(c, x, &o, error);
    tkv_cache_free(o.fork);
    tkv_cache_free(o.cache);
    tkv_context_free(o.context);
    assert_int_equal(atomic_load(&c->n_live), 0);
    return status;
}

static float *make_rows(void)
{
    float *x = allocate(N_TOKENS * ROW * sizeof *x);
    uint64_t seed = 3;
    fill_gauss(&seed, N_TOKENS * ROW, x);
    return x;
}

static void everything_comes_back(void **state)
{
    (void)state;
    float *x = make_rows();
    counter c = {.failing = 0};
    assert_ok(use_and_free(&c, x, &error));
    print_message("%d allocations\n", atomic_load(&c.n_calls));
    assert_true(atomic_load(&c.n_calls) > 30);
    free(x);
}

static void each_may_fail(void **state)
{
    (void)state;
    float *x = make_rows();
    int n_failed = 0;
    for (int failing = 1;; failing++) {
        counter c = {.failing = failing};
        tkv_error error = {TKV_OK, ""};
        const tkv_status status = use_and_free(&c, x, &error);
        if (atomic_load(&c.n_calls) < failing) {
            assert_int_equal(status, TKV_OK);
            break;
        }
        /* Coding what has aged can wait: no error then. */
        assert_true(status == TKV_OK || status == TKV_ERR_OUT_OF_MEMORY);
        n_failed += status != TKV_OK;
    }
    assert_true(n_failed > 20);
    free(x);
}

static void both_functions_are_needed(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    const tkv_allocator half = {.allocate = allocate_counted};
    assert_fails(tkv_context_create(&(tkv_context_params){.allocator = &half}, &context, &error),
                 TKV_ERR_INVALID_ARGUMENT, "allocator");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_comes_back),
        cmocka_unit_test(each_may_fail),
        cmocka_unit_test(both_functions_are_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
