/* What a step of decoding asks the C library for: nothing that grows with the context, however it
 * is split. The linker puts our functions in front of the C library's (--wrap). */
#include "support/support.h"

#include <malloc.h>
#include <stdatomic.h>

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

static atomic_long allocated;
static atomic_long peak;

static void *count(void *memory)
{
    const long n = (long)malloc_usable_size(memory);
    const long now = atomic_fetch_add(&allocated, n) + n;
    if (now > atomic_load(&peak)) {
        atomic_store(&peak, now);
    }
    return memory;
}

static void discount(void *memory)
{
    atomic_fetch_sub(&allocated, (long)malloc_usable_size(memory));
}

void *__wrap_malloc(size_t size)
{
    return count(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return count(__real_calloc(n, size));
}

void *__wrap_realloc(void *old, size_t size)
{
    discount(old);
    return count(__real_realloc(old, size));
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return count(__real_aligned_alloc(alignment, size));
}

void __wrap_free(void *memory)
{
    discount(memory);
    __real_free(memory);
}

enum { DIM = 64, GROUP = 4, STEP = 512 };

static tkv_cache *fill_cache(tkv_context *context, tkv_type type, int n_tokens)
{
    static float rows[STEP * DIM];
    uint64_t seed = 5;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = 1,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = n_tokens + 1,
                                     .types_k = &type,
                                     .types_v = &type};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    fill_gauss(&seed, STEP * DIM, rows);
    for (int done = 0; done < n_tokens; done += STEP) {
        assert_ok(tkv_cache_append(cache, 0, STEP, rows, rows, &error));
    }
    return cache;
}

/* Bytes beyond what is allocated before and after, at the height of one step, the cache's growth
 * aside. */
static long step_bytes(tkv_context *context, tkv_type type, int n_tokens, int n_queries)
{
    static float q[STEP * GROUP * DIM];
    static float out[STEP * GROUP * DIM];
    const tkv_attend_params params = {
        .n_queries = n_queries, .n_heads = GROUP, .first_position = n_tokens + 1 - n_queries};
    uint64_t seed = 6;
    fill_gauss(&seed, (size_t)(n_queries * GROUP * DIM), q);
    tkv_cache *cache = fill_cache(context, type, n_tokens);
    assert_ok(tkv_cache_append(cache, 0, 1, q, q, &error));
    const long before = atomic_load(&allocated);
    atomic_store(&peak, before);
    assert_ok(tkv_attend(cache, 0, &params, q, out, &error));
    assert_int_equal(atomic_load(&allocated), before);
    const long bytes = atomic_load(&peak) - before;
    tkv_cache_free(cache);
    return bytes;
}

/* The C library rounds up; a byte for each of the 28672 tokens more would be seen. */
static void assert_near(long found, long expected)
{
    if (labs(found - expected) > 8192) {
        fail_msg("a step on a longer context takes %ld bytes instead of %ld", found, expected);
    }
}

static void the_context_does_not_matter(void **state)
{
    (void)state;
    const tkv_type types[] = {TKV_TYPE_F16, TKV_TYPE_TURBO3, TKV_TYPE_TRELLIS3, TKV_TYPE_TURBO4Q};
    for (int i = 0; i < 4 * 2; i++) {
        tkv_context *context = NULL;
        const tkv_context_params params = {.n_threads = 1 + i / 4, .effort = TKV_EFFORT_FAST};
        assert_ok(tkv_context_create(&params, &context, &error));
        const long decode = step_bytes(context, types[i % 4], 4096, 1);
        assert_true(decode > 0 && decode < 1 << 20);
        assert_near(step_bytes(context, types[i % 4], 32768, 1), decode);
        const long prefill = step_bytes(context, types[i % 4], 4096, 64);
        assert_near(step_bytes(context, types[i % 4], 32768, 64), prefill);
        tkv_context_free(context);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_context_does_not_matter)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
