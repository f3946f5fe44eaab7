#include "support/support.h"

enum { DIM = 64, N_KV_HEADS = 2, N_TOKENS = 400 };

/* RoPE by definition, in double. */
static void turn(const tkv_rope *rope, int position, const float *in, float *out)
{
    memcpy(out, in, DIM * sizeof *out);
    for (int i = 0; i < rope->n_rotated / 2; i++) {
        const int a = rope->is_interleaved ? 2 * i : i;
        const int b = rope->is_interleaved ? 2 * i + 1 : i + rope->n_rotated / 2;
        const double angle = position * (double)rope->frequencies[i];
        out[a] = (float)((double)in[a] * cos(angle) - (double)in[b] * sin(angle));
        out[b] = (float)((double)in[a] * sin(angle) + (double)in[b] * cos(angle));
    }
}

static tkv_cache *create(tkv_context *context, tkv_type type, int sinks, int recent, int centre)
{
    const tkv_type types[1] = {type};
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = N_TOKENS,
                                     .types_k = types,
                                     .types_v = types,
                                     .n_sinks = sinks,
                                     .n_recent = recent,
                                     .centre_tokens = centre};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    return cache;
}

/* Appends token `index` as if it stood at `position`. */
static void append(tkv_cache *cache, const tkv_rope *rope, const float *k, const float *v,
                   int index, int position)
{
    float turned[N_KV_HEADS * DIM];
    for (int h = 0; h < N_KV_HEADS; h++) {
        turn(rope, position, k + (index * N_KV_HEADS + h) * DIM, turned + h * DIM);
    }
    assert_ok(tkv_cache_append(cache, 0, 1, turned, v + index * N_KV_HEADS * DIM, &error));
}

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
    const struct CMUnitTest tests[] = {cmocka_unit_test(shifting_equals_recomputing),
                                       cmocka_unit_test(what_is_coded_stays_as_it_is),
                                       cmocka_unit_test(wrong_shifts_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
