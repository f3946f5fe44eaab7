/* One shift: what the cache holds after it, and what is refused. */
#include "shift_rows.h"

#include <limits.h>

/* A shifted cache is as close to one built from scratch at the new positions as coding allows. */
static void shifting_equals_recomputing(void **state)
{
    (void)state;
    const struct {
        tkv_type type;
        double bound; /* relative error of keys against exact ones: one coding, and one more */
    } cases[] = {{TKV_TYPE_F16, 1e-3},
                 {TKV_TYPE_TURBO8, 0.013},
                 {TKV_TYPE_TURBO4, 0.15},
                 {TKV_TYPE_TURBO3, 0.29}};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    uint64_t seed = 5;
    float *k = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    float *v = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *v);
    fill_gauss(&seed, N_TOKENS * N_KV_HEADS * DIM, k);
    fill_gauss(&seed, N_TOKENS * N_KV_HEADS * DIM, v);
    float frequencies[DIM / 2];
    for (int i = 0; i < DIM / 2; i++) {
        frequencies[i] = (float)pow(10000.0, -2.0 * i / DIM);
    }
    for (int variant = 0; variant < 16; variant++) {
        const tkv_rope rope = {variant & 1, variant & 2 ? DIM : DIM / 2, frequencies};
        const int first = variant & 4 ? 4 : 70;
        const int n_drop = variant & 8 ? 1 : 131;
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            tkv_cache *cache =
                create(context, cases[c].type, 4, variant & 1 ? 64 : 0, variant & 2 ? 64 : 0);
            for (int i = 0; i < 300; i++) {
                append(cache, &rope, k, v, i, i);
            }
            assert_ok(tkv_cache_shift(cache, first, n_drop, &rope, &error));
            assert_int_equal(tkv_cache_length(cache, 0), 300 - n_drop);
            for (int i = 300; i < 320; i++) {
                append(cache, &rope, k, v, i, i - n_drop);
            }
            const int n = 320 - n_drop;
            const size_t size = (size_t)n * N_KV_HEADS * DIM;
            float *x = allocate(4 * size * sizeof *x);
            assert_ok(tkv_cache_read(cache, 0, 0, n, x, x + size, &error));
            for (int i = 0; i < n * N_KV_HEADS; i++) {
                const int position = i / N_KV_HEADS;
                const int index =
                    (position < first ? position : position + n_drop) * N_KV_HEADS + i % N_KV_HEADS;
                turn(&rope, position, k + index * DIM, x + 2 * size + (size_t)i * DIM);
                memcpy(x + 3 * size + (size_t)i * DIM, v + index * DIM, DIM * sizeof *x);
            }
            assert_true(relative_error(size, x, x + 2 * size) < cases[c].bound);
            assert_true(relative_error(size, x + size, x + 3 * size) < cases[c].bound);
            free(x);
            tkv_cache_free(cache);
        }
    }
    free(k);
    free(v);
    tkv_context_free(context);
}

/* Means that tokens are coded with stay, whatever became of those that they were made of. */
static void what_is_coded_stays_as_it_is(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    uint64_t seed = 6;
    float *k = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    float *before = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    float *after = allocate(N_TOKENS * N_KV_HEADS * DIM * sizeof *k);
    fill_gauss(&seed, N_TOKENS * N_KV_HEADS * DIM, k);
    for (int i = 0; i < N_TOKENS * N_KV_HEADS * DIM; i++) {
        k[i] += 4.0f;
    }
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 0, 0, 64);
    assert_ok(tkv_cache_append(cache, 0, 200, k, k, &error));
    assert_ok(tkv_cache_read(cache, 0, 170, 30, before, NULL, &error));
    const size_t bytes = tkv_cache_bytes(cache);
    assert_ok(tkv_cache_shift(cache, 0, 170, NULL, &error));
    assert_ok(tkv_cache_read(cache, 0, 0, 30, after, NULL, &error));
    assert_memory_equal(before, after, 30 * N_KV_HEADS * DIM * sizeof *k);
    assert_true(tkv_cache_bytes(cache) < bytes); /* pages of dropped tokens are given back */
    tkv_cache_free(cache);
    free(k);
    free(before);
    free(after);
    tkv_context_free(context);
}

/* No sum of arguments overflows, in a check or in its message. */
static void the_largest_arguments_are_refused(void **state)
{
    (void)state;
    tkv_context *context = create_context();
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 4, 0, 0);
    float *x = gauss_rows(1, 100);
    assert_ok(tkv_cache_append(cache, 0, 100, x, x, &error));
    assert_fails(tkv_cache_shift(cache, INT_MAX, INT_MAX, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "drops 2147483647 tokens from position 2147483647 on, but layer 0 holds 100");
    assert_fails(tkv_cache_shift(cache, 1, INT_MAX, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "holds 100");
    assert_fails(tkv_cache_shift(cache, INT_MAX, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "holds 100");
    assert_fails(tkv_cache_shift(cache, INT_MIN, INT_MIN, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "-2147483648");
    assert_fails(tkv_cache_read(cache, 0, INT_MAX, INT_MAX, x, x, &error), TKV_ERR_INVALID_ARGUMENT,
                 "holds 100");
    assert_fails(tkv_cache_append(cache, 0, INT_MAX, x, x, &error), TKV_ERR_INVALID_ARGUMENT,
                 "full");
    assert_ok(tkv_cache_truncate(cache, INT_MAX, &error));
    assert_int_equal(tkv_cache_length(cache, 0), 100);
    free(x);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

/* A layer with a window has given back what is behind it. */
static tkv_cache *create_windowed(tkv_context *context, int window, const float *x, int n)
{
    const tkv_type type = TKV_TYPE_TURBO4;
    const tkv_layer_shape shape = {
        .n_kv_heads = N_KV_HEADS, .head_dim_k = DIM, .head_dim_v = DIM, .window = window};
    const tkv_cache_params params = {.n_layers = 1,
                                     .max_tokens = N_TOKENS,
                                     .types_k = &type,
                                     .types_v = &type,
                                     .shapes = &shape};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    for (int i = 0; i < n; i++) {
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    }
    return cache;
}

/* A shift may drop all tokens that a layer with a window still holds: queries of tokens that are no
 * longer there have nothing to see. */
static void queries_of_tokens_that_are_gone_are_refused(void **state)
{
    (void)state;
    enum { N = 205, LEFT = 55 };
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    uint64_t seed = 9;
    float *x = allocate(20 * N_KV_HEADS * DIM * sizeof *x);
    float *out = allocate(20 * N_KV_HEADS * DIM * sizeof *out);
    fill_gauss(&seed, 20 * N_KV_HEADS * DIM, x);
    for (int n_kept = 0; n_kept < 6; n_kept += 5) { /* of the tokens that are held */
        tkv_error refusal;
        tkv_cache *cache = create_windowed(context, 16, x, N);
        assert_ok(tkv_cache_shift(cache, LEFT - n_kept, N - LEFT, NULL, &error));
        assert_int_equal(tkv_cache_length(cache, 0), LEFT);
        tkv_attend_params params = {
            .n_queries = 20, .n_heads = N_KV_HEADS, .first_position = LEFT - 20};
        assert_int_equal(tkv_attend(cache, 0, &params, x, out, &refusal), TKV_ERR_INVALID_ARGUMENT);
        params.n_queries = 1;
        params.first_position = LEFT - 1 - n_kept;
        assert_int_equal(tkv_attend(cache, 0, &params, x, out, &refusal), TKV_ERR_INVALID_ARGUMENT);
        /* The next token sees itself. */
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
        params.first_position = LEFT;
        assert_ok(tkv_attend(cache, 0, &params, x, out, &error));
        assert_true(isfinite(out[0]));
        tkv_cache_free(cache);
    }
    free(x);
    free(out);
    tkv_context_free(context);
}

/* What a window misses because of a shift is no licence to miss all of it. */
static void a_shift_does_not_bring_back_what_a_window_lost(void **state)
{
    (void)state;
    enum { N = 300 };
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    const float x[N_KV_HEADS * DIM] = {1.0f};
    tkv_error refusal;
    tkv_cache *fork = NULL;
    tkv_cache *cache = create_windowed(context, 16, x, N);
    assert_ok(tkv_cache_shift(cache, 4, 1, NULL, &error));
    assert_int_equal(tkv_cache_truncate(cache, 100, &refusal), TKV_ERR_INVALID_ARGUMENT);
    assert_int_equal(tkv_cache_fork(cache, 100, &fork, &refusal), TKV_ERR_INVALID_ARGUMENT);
    assert_int_equal(tkv_cache_length(cache, 0), N - 1);
    /* A token or two are no trouble, nor are drafts from after a shift that windows notice. */
    assert_ok(tkv_cache_truncate(cache, N - 2, &error));
    assert_ok(tkv_cache_shift(cache, 50, N - 2 - 55, NULL, &error));
    for (int i = 0; i < 3; i++) {
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    }
    assert_ok(tkv_cache_truncate(cache, 55, &error));
    assert_int_equal(tkv_cache_truncate(cache, 54, &refusal), TKV_ERR_INVALID_ARGUMENT);
    assert_ok(tkv_cache_truncate(cache, 0, &error));
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void another_rope_is_refused(void **state)
{
    (void)state;
    float frequencies[DIM / 2];
    fill_frequencies(frequencies);
    const tkv_rope rope = {false, DIM, frequencies};
    const tkv_rope others[] = {{true, DIM, frequencies}, {false, DIM / 2, frequencies}};
    tkv_context *context = create_context();
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 4, 0, 0);
    float *x = gauss_rows(1, 100);
    assert_ok(tkv_cache_append(cache, 0, 100, x, x, &error));
    assert_ok(tkv_cache_shift(cache, 10, 5, &rope, &error));
    for (int i = 0; i < 2; i++) {
        assert_fails(tkv_cache_shift(cache, 10, 5, &others[i], &error), TKV_ERR_INVALID_ARGUMENT,
                     "another RoPE");
    }
    assert_int_equal(tkv_cache_length(cache, 0), 95);
    free(x);
    tkv_cache_free(cache);
    tkv_context_free(context);
}

static void wrong_shifts_are_refused(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    tkv_cache *cache = create(context, TKV_TYPE_TURBO4, 0, 0, 0);
    const tkv_rope odd = {false, 3, (const float[]){1.0f, 1.0f}};
    const tkv_rope wide = {false, DIM + 2, (const float[]){1.0f}};
    assert_fails(tkv_cache_shift(cache, 0, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "holds 0");
    assert_fails(tkv_cache_shift(cache, 0, 0, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "at least one");
    assert_fails(tkv_cache_shift(cache, -1, 1, NULL, &error), TKV_ERR_INVALID_ARGUMENT, "-1");
    assert_fails(tkv_cache_shift(cache, 0, 1, &odd, &error), TKV_ERR_INVALID_ARGUMENT, "3");
    assert_fails(tkv_cache_shift(cache, 0, 1, &wide, &error), TKV_ERR_INVALID_ARGUMENT, "66");
    tkv_cache_free(cache);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shifting_equals_recomputing),
        cmocka_unit_test(what_is_coded_stays_as_it_is),
        cmocka_unit_test(the_largest_arguments_are_refused),
        cmocka_unit_test(queries_of_tokens_that_are_gone_are_refused),
        cmocka_unit_test(a_shift_does_not_bring_back_what_a_window_lost),
        cmocka_unit_test(another_rope_is_refused),
        cmocka_unit_test(wrong_shifts_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
