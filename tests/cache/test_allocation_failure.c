/* Fails the n-th allocation, for every n that an operation makes (as SQLite's tests do): each gives
 * "out of memory" and leaves everything as it was. The linker puts our functions in front of the C
 * library's (--wrap). */
#include "support/support.h"

#include <stdatomic.h>

static atomic_int until_failure = -1; /* -1: never */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static bool fails_now(void)
{
    if (until_failure < 0) {
        return false;
    }
    return until_failure == 0 || atomic_fetch_sub(&until_failure, 1) == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails_now() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails_now() ? NULL : __real_aligned_alloc(alignment, size);
}

enum { DIM = 64, N = 200 };

static float k[N * DIM];
static float v[N * DIM];

static tkv_status create(tkv_context *context, tkv_cache **cache, tkv_error *error)
{
    const tkv_type types[1] = {TKV_TYPE_TURBO3};
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = 1,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = 1000,
                                     .types_k = types,
                                     .types_v = types,
                                     .n_sinks = 4,
                                     .centre_tokens = 32};
    return tkv_cache_create(context, &params, cache, error);
}

static tkv_context *create_context(void)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = 1};
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

static void creating(void **state)
{
    (void)state;
    tkv_context *context = create_context();
    tkv_error error;
    int n_failures = 0;
    for (;; n_failures++) {
        tkv_cache *cache = NULL;
        until_failure = n_failures;
        const tkv_status status = create(context, &cache, &error);
        until_failure = -1;
        if (status == TKV_OK) {
            tkv_cache_free(cache);
            break;
        }
        assert_int_equal(status, TKV_ERR_OUT_OF_MEMORY);
        assert_null(cache);
    }
    assert_true(n_failures >= 4);
    tkv_context_free(context);
}

/* Runs an operation on a cache of 100 tokens with every allocation failing in turn. */
static void check_operation(tkv_status (*operation)(tkv_cache *, tkv_error *), int min_failures)
{
    tkv_context *context = create_context();
    for (int n_failures = 0;; n_failures++) {
        tkv_cache *cache = NULL;
        float before[100 * DIM];
        float after[100 * DIM];
        tkv_error error;
        assert_int_equal(create(context, &cache, &error), TKV_OK);
        assert_int_equal(tkv_cache_append(cache, 0, 100, k, v, &error), TKV_OK);
        assert_int_equal(tkv_cache_read(cache, 0, 0, 100, before, NULL, &error), TKV_OK);
        until_failure = n_failures;
        const tkv_status status = operation(cache, &error);
        until_failure = -1;
        if (status != TKV_OK) {
            assert_int_equal(status, TKV_ERR_OUT_OF_MEMORY);
            assert_int_equal(tkv_cache_length(cache, 0), 100);
            assert_int_equal(tkv_cache_read(cache, 0, 0, 100, after, NULL, &error), TKV_OK);
            assert_memory_equal(before, after, sizeof before);
        }
        tkv_cache_free(cache);
        if (status == TKV_OK) {
            assert_true(n_failures >= min_failures);
            break;
        }
    }
    tkv_context_free(context);
}

static tkv_status append_more(tkv_cache *cache, tkv_error *error)
{
    return tkv_cache_append(cache, 0, 100, k + 100 * DIM, v + 100 * DIM, error);
}

static tkv_status shift(tkv_cache *cache, tkv_error *error)
{
    return tkv_cache_shift(cache, 10, 20, NULL, error);
}

static tkv_status fork_and_free(tkv_cache *cache, tkv_error *error)
{
    tkv_cache *fork = NULL;
    const tkv_status status = tkv_cache_fork(cache, 90, &fork, error);
    tkv_cache_free(fork);
    return status;
}

static tkv_status attend(tkv_cache *cache, tkv_error *error)
{
    float out[DIM];
    const tkv_attend_params params = {.n_queries = 1, .n_heads = 1, .first_position = 99};
    return tkv_attend(cache, 0, &params, k, out, error);
}

static void appending(void **state)
{
    (void)state;
    check_operation(append_more, 2);
}

static void shifting(void **state)
{
    (void)state;
    check_operation(shift, 6);
}

static void forking(void **state)
{
    (void)state;
    check_operation(fork_and_free, 4);
}

static void attending(void **state)
{
    (void)state;
    check_operation(attend, 1);
}

int main(void)
{
    uint64_t seed = 1;
    fill_gauss(&seed, N * DIM, k);
    fill_gauss(&seed, N * DIM, v);
    const struct CMUnitTest tests[] = {cmocka_unit_test(creating), cmocka_unit_test(appending),
                                       cmocka_unit_test(shifting), cmocka_unit_test(forking),
                                       cmocka_unit_test(attending)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
