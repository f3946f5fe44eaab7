/* What the cache asks the C library for: the bytes that it reports are those that it holds, and the
 * n-th allocation fails, for every n that an operation makes (as SQLite's tests do): each gives
 * "out of memory" and leaves everything as it was. The linker puts our functions in front of the C
 * library's (--wrap). */
#include "support/support.h"

static int until_failure = -1; /* -1: never */
static bool fails_once;        /* or from then on */
static bool has_failed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void __wrap_free(void *memory);

/* What is allocated now. Only one thread allocates. */
typedef struct allocation {
    void *memory;
    size_t bytes;
} allocation;

static allocation allocations[1000];
static int n_allocations;

static void *record(void *memory, size_t bytes)
{
    if (memory) {
        assert_true(n_allocations < 1000);
        allocations[n_allocations++] = (allocation){memory, bytes};
    }
    return memory;
}

static void forget(const void *memory)
{
    for (int i = 0; i < n_allocations; i++) {
        if (allocations[i].memory == memory) {
            allocations[i] = allocations[--n_allocations];
            return;
        }
    }
}

static size_t allocated_bytes(void)
{
    size_t bytes = 0;
    for (int i = 0; i < n_allocations; i++) {
        bytes += allocations[i].bytes;
    }
    return bytes;
}

static bool fails_now(void)
{
    const bool is_due = until_failure == 0;
    if (until_failure > 0 || (is_due && fails_once)) {
        until_failure--;
    }
    has_failed = has_failed || is_due;
    return is_due;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : record(__real_malloc(size), size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : record(__real_calloc(n, size), n * size);
}

void *__wrap_realloc(void *old, size_t size)
{
    if (fails_now()) {
        return NULL;
    }
    forget(old);
    return record(__real_realloc(old, size), size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails_now() ? NULL : record(__real_aligned_alloc(alignment, size), size);
}

void __wrap_free(void *memory)
{
    forget(memory);
    __real_free(memory);
}

static void start_failing(int after, bool is_once)
{
    until_failure = after;
    fails_once = is_once;
    has_failed = false;
}

static void stop_failing(void)
{
    until_failure = -1;
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

/* Of several layers, each with a copy of the rope. */
static tkv_status create_with_rope(tkv_context *context, tkv_cache **cache, tkv_error *error)
{
    const float frequencies[2] = {1.0f, 0.1f};
    const tkv_rope rope = {true, 4, frequencies};
    const tkv_type types[3] = {TKV_TYPE_TURBO3, TKV_TYPE_TURBO4, TKV_TYPE_F16};
    const tkv_cache_params params = {.n_layers = 3,
                                     .n_kv_heads = 1,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = 1000,
                                     .types_k = types,
                                     .types_v = types,
                                     .rope = &rope};
    return tkv_cache_create(context, &params, cache, error);
}

static tkv_context *create_context(void)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = 1};
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

/* Runs what makes a cache, of a context or of another cache, with each allocation failing. */
static void check_making(tkv_status (*make)(void *from, tkv_cache **cache, tkv_error *error),
                         void *from, int min_allocations)
{
    tkv_error error;
    for (int is_once = 0; is_once < 2; is_once++) {
        int n = 0;
        do {
            tkv_cache *cache = NULL;
            const size_t before = allocated_bytes();
            start_failing(n, is_once != 0);
            const tkv_status status = make(from, &cache, &error);
            stop_failing();
            assert_int_equal(status, has_failed ? TKV_ERR_OUT_OF_MEMORY : TKV_OK);
            assert_true(has_failed == !cache);
            tkv_cache_free(cache);
            assert_int_equal(allocated_bytes(), before);
            n++;
        } while (has_failed);
        assert_true(n > min_allocations);
    }
}

static tkv_status make_plain(void *context, tkv_cache **cache, tkv_error *error)
{
    return create(context, cache, error);
}

static tkv_status make_with_rope(void *context, tkv_cache **cache, tkv_error *error)
{
    return create_with_rope(context, cache, error);
}

static tkv_status make_fork(void *cache, tkv_cache **fork, tkv_error *error)
{
    return tkv_cache_fork(cache, 0, fork, error);
}

static void creating(void **state)
{
    (void)state;
    tkv_context *context = create_context();
    tkv_cache *cache = NULL;
    check_making(make_plain, context, 2);
    check_making(make_with_rope, context, 5);
    assert_ok(create_with_rope(context, &cache, &error));
    check_making(make_fork, cache, 5);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

/* Runs an operation on a cache of 100 tokens with one allocation failing; returns whether one did.
 * It may succeed all the same: what cannot be coded for want of memory stays exact. */
static bool check_failure(tkv_status (*operation)(tkv_cache *, tkv_error *), int after,
                          bool is_once)
{
    tkv_context *context = create_context();
    tkv_cache *cache = NULL;
    float before[100 * DIM];
    float now[100 * DIM];
    tkv_error error;
    assert_int_equal(create(context, &cache, &error), TKV_OK);
    assert_int_equal(tkv_cache_append(cache, 0, 100, k, v, &error), TKV_OK);
    assert_int_equal(tkv_cache_read(cache, 0, 0, 100, before, NULL, &error), TKV_OK);
    const size_t held = allocated_bytes();
    start_failing(after, is_once);
    const tkv_status status = operation(cache, &error);
    stop_failing();
    if (status != TKV_OK) {
        assert_true(has_failed);
        assert_int_equal(status, TKV_ERR_OUT_OF_MEMORY);
        assert_int_equal(error.status, TKV_ERR_OUT_OF_MEMORY);
        assert_non_null(strstr(error.message, "no memory"));
        assert_int_equal(tkv_cache_length(cache, 0), 100);
        assert_int_equal(tkv_cache_read(cache, 0, 0, 100, now, NULL, &error), TKV_OK);
        assert_memory_equal(before, now, sizeof before);
        /* A table of pages may have grown in vain. */
        assert_true(allocated_bytes() - held <= 64 * sizeof(void *));
        assert_int_equal(operation(cache, &error), TKV_OK);
    }
    tkv_cache_free(cache);
    tkv_context_free(context);
    return has_failed;
}

static void check_operation(tkv_status (*operation)(tkv_cache *, tkv_error *), int min_allocations)
{
    const size_t before = allocated_bytes(); /* what libraries have taken for themselves */
    for (int is_once = 0; is_once < 2; is_once++) {
        int n = 0;
        while (check_failure(operation, n, is_once != 0)) {
            n++;
        }
        assert_true(n >= min_allocations);
    }
    assert_int_equal(allocated_bytes(), before);
}

static tkv_status append_more(tkv_cache *cache, tkv_error *error)
{
    return tkv_cache_append(cache, 0, 100, k + 100 * DIM, v + 100 * DIM, error);
}

static tkv_status shift(tkv_cache *cache, tkv_error *error)
{
    const float frequencies[2] = {1.0f, 0.1f};
    return tkv_cache_shift(cache, 10, 20, &(tkv_rope){true, 4, frequencies}, error);
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
    check_operation(shift, 5);
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

/* A page that could not be coded when its turn came is coded with the next token. */
static void coding_is_made_up_for(void **state)
{
    (void)state;
    tkv_context *context = create_context();
    tkv_cache *cache = NULL;
    float rows[N * DIM];
    float expected[N * DIM];
    assert_ok(create(context, &cache, &error));
    assert_ok(tkv_cache_append(cache, 0, 99, k, v, &error));
    assert_ok(tkv_cache_append(cache, 0, 1, k + 99 * DIM, v + 99 * DIM, &error));
    assert_ok(tkv_cache_read(cache, 0, 0, 100, expected, NULL, &error));
    tkv_cache_clear(cache);
    assert_ok(tkv_cache_append(cache, 0, 20, k, v, &error));
    /* The first block grows to the 48 tokens that stay exact, one is added: each has a struct and
     * pages. */
    start_failing(4, false);
    assert_ok(tkv_cache_append(cache, 0, 79, k + 20 * DIM, v + 20 * DIM, &error));
    stop_failing();
    assert_true(has_failed);
    assert_ok(tkv_cache_read(cache, 0, 0, 99, rows, NULL, &error));
    assert_true(relative_error(99 * DIM, rows, k) < 1e-3);
    assert_ok(tkv_cache_append(cache, 0, 1, k + 99 * DIM, v + 99 * DIM, &error));
    assert_ok(tkv_cache_read(cache, 0, 0, 100, rows, NULL, &error));
    assert_memory_equal(rows, expected, 100 * DIM * sizeof *rows);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

/* tkv_cache_bytes is what was asked of malloc, at every length and after every operation. */
static void bytes_are_those_allocated(void **state)
{
    (void)state;
    const tkv_type types_k[2] = {TKV_TYPE_TURBO3, TKV_TYPE_F16};
    const tkv_type types_v[2] = {TKV_TYPE_TURBO2, TKV_TYPE_TURBO8};
    tkv_context *context = create_context();
    for (int policy = 0; policy < 8; policy++) {
        const tkv_cache_params params = {.n_layers = 2,
                                         .n_kv_heads = 2,
                                         .head_dim_k = 48,
                                         .head_dim_v = 32,
                                         .max_tokens = 1000,
                                         .types_k = types_k,
                                         .types_v = types_v,
                                         .n_sinks = policy & 1 ? 5 : 0,
                                         .n_recent = policy & 2 ? 70 : 0,
                                         .centre_tokens = policy & 4 ? 66 : 0};
        const size_t before = allocated_bytes();
        tkv_cache *cache = NULL;
        tkv_cache *fork = NULL;
        assert_ok(tkv_cache_create(context, &params, &cache, &error));
        for (int n = 0; n < 300; n += 7) {
            assert_int_equal(tkv_cache_bytes(cache), allocated_bytes() - before);
            assert_ok(tkv_cache_append(cache, n % 2, 14, k, v, &error));
        }
        assert_ok(tkv_cache_truncate(cache, 150, &error));
        assert_int_equal(tkv_cache_bytes(cache), allocated_bytes() - before);
        assert_ok(tkv_cache_shift(cache, 20, 90, NULL, &error));
        assert_int_equal(tkv_cache_bytes(cache), allocated_bytes() - before);
        assert_ok(tkv_cache_fork(cache, 40, &fork, &error));
        assert_ok(tkv_cache_append(fork, 0, 30, k, v, &error));
        assert_int_equal(tkv_cache_bytes(cache) + tkv_cache_bytes(fork) -
                             tkv_cache_shared_bytes(cache),
                         allocated_bytes() - before);
        tkv_cache_free(cache);
        assert_int_equal(tkv_cache_bytes(fork), allocated_bytes() - before);
        tkv_cache_clear(fork);
        assert_int_equal(tkv_cache_bytes(fork), allocated_bytes() - before);
        tkv_cache_free(fork);
        assert_int_equal(allocated_bytes(), before);
    }
    tkv_context_free(context);
}

/* No second copy of what is coded: 10,000 tokens cost what their rows do, within 2 %. */
static void long_contexts_cost_their_rows(void **state)
{
    (void)state;
    const tkv_type types[] = {TKV_TYPE_TURBO2, TKV_TYPE_TURBO4};
    tkv_context *context = create_context();
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = 1,
                                     .head_dim_k = 192,
                                     .head_dim_v = 128,
                                     .max_tokens = 10000,
                                     .types_k = types,
                                     .types_v = types + 1};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    for (int n = 0; n < 10000; n += 25) {
        assert_ok(tkv_cache_append(cache, 0, 25, k, v, &error));
    }
    const size_t rows =
        10000 * (tkv_row_bytes(TKV_TYPE_TURBO2, 192) + tkv_row_bytes(TKV_TYPE_TURBO4, 128));
    assert_true(tkv_cache_bytes(cache) >= rows);
    assert_true(tkv_cache_bytes(cache) < rows + rows / 50);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

int main(void)
{
    uint64_t seed = 1;
    fill_gauss(&seed, N * DIM, k);
    fill_gauss(&seed, N * DIM, v);
    const struct CMUnitTest tests[] = {cmocka_unit_test(creating),
                                       cmocka_unit_test(appending),
                                       cmocka_unit_test(shifting),
                                       cmocka_unit_test(forking),
                                       cmocka_unit_test(attending),
                                       cmocka_unit_test(coding_is_made_up_for),
                                       cmocka_unit_test(bytes_are_those_allocated),
                                       cmocka_unit_test(long_contexts_cost_their_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
