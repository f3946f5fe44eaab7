/* Fork and rollback, as speculative decoding needs them. Drafts join the cache and all their
 * queries attend in one call; what the model would not have said is dropped again. A fork lets a
 * second continuation share the first tokens. The cache is compared, to the bit, with one that
 * never saw the drafts that were dropped. */
#include "example.h"

#include <string.h>

enum { N_PROMPT = 300, N_DRAFTS = 4, N_STEPS = 30, MAX_TOKENS = N_PROMPT + N_DRAFTS * N_STEPS };

static const shape layer_shape = {.n_kv_heads = 2, .n_heads = 4, .head_dim = 64};
enum { KV_ROW = 2 * 64, Q_ROW = 4 * 64 };

static tkv_cache *create_cache(tkv_context *context)
{
    tkv_error error;
    tkv_cache *cache = NULL;
    const tkv_type type = TKV_TYPE_TURBO4;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = layer_shape.n_kv_heads,
                                     .head_dim_k = layer_shape.head_dim,
                                     .head_dim_v = layer_shape.head_dim,
                                     .max_tokens = MAX_TOKENS,
                                     .types_k = &type,
                                     .types_v = &type,
                                     .n_sinks = 4};
    require(tkv_cache_create(context, &params, &cache, &error), &error);
    return cache;
}

/* The outputs of the last n_queries tokens: out [n_queries][Q_ROW]. */
static void attend(const tkv_cache *cache, int n_queries, const float *q, float *out)
{
    tkv_error error;
    const tkv_attend_params params = {.n_queries = n_queries,
                                      .n_heads = layer_shape.n_heads,
                                      .first_position = tkv_cache_length(cache, 0) - n_queries};
    require(tkv_attend(cache, 0, &params, q, out, &error), &error);
}

/* Verifies drafts on `cache` and keeps the first n_accepted; `plain` gets only these. */
static void step(tkv_cache *cache, tkv_cache *plain, uint64_t *seed, int n_accepted)
{
    tkv_error error;
    float k[N_DRAFTS * KV_ROW];
    float v[N_DRAFTS * KV_ROW];
    float q[N_DRAFTS * Q_ROW];
    float out[N_DRAFTS * Q_ROW]; /* what an engine would compute logits from */
    const int length = tkv_cache_length(cache, 0);
    fill_random(seed, N_DRAFTS * KV_ROW, k);
    fill_random(seed, N_DRAFTS * KV_ROW, v);
    fill_random(seed, N_DRAFTS * Q_ROW, q);
    require(tkv_cache_append(cache, 0, N_DRAFTS, k, v, &error), &error);
    attend(cache, N_DRAFTS, q, out);
    require(tkv_cache_truncate(cache, length + n_accepted, &error), &error);
    require(tkv_cache_append(plain, 0, n_accepted, k, v, &error), &error);
}

static bool are_equal(const tkv_cache *a, const tkv_cache *b)
{
    tkv_error error;
    const int length = tkv_cache_length(a, 0);
    const size_t n = (size_t)length * KV_ROW;
    float *rows = floats(4 * n);
    bool is_equal = length == tkv_cache_length(b, 0);
    if (is_equal) {
        require(tkv_cache_read(a, 0, 0, length, rows, rows + n, &error), &error);
        require(tkv_cache_read(b, 0, 0, length, rows + 2 * n, rows + 3 * n, &error), &error);
        is_equal = memcmp(rows, rows + 2 * n, 2 * n * sizeof *rows) == 0;
    }
    free(rows);
    return is_equal;
}

/* A second continuation from position `at`; it shares what lies before, and writes none of it. */
static bool try_other_branch(const tkv_cache *cache, int at, uint64_t *seed)
{
    tkv_error error;
    tkv_cache *branch = NULL;
    tkv_cache *again = NULL;
    float rows[2 * KV_ROW];
    float q[Q_ROW];
    float out[Q_ROW];
    require(tkv_cache_fork(cache, at, &branch, &error), &error);
    printf("a fork of %d tokens: %zu bytes, %zu of them shared\n", at, tkv_cache_bytes(branch),
           tkv_cache_shared_bytes(branch));
    require(tkv_cache_fork(cache, tkv_cache_length(cache, 0), &again, &error), &error);
    const bool is_shared = tkv_cache_shared_bytes(branch) > tkv_cache_bytes(branch) / 2;
    fill_random(seed, 2 * KV_ROW, rows);
    fill_random(seed, Q_ROW, q);
    require(tkv_cache_append(branch, 0, 1, rows, rows + KV_ROW, &error), &error);
    attend(branch, 1, q, out);
    float *held = floats(2 * (size_t)(at + 1) * KV_ROW);
    float *held_v = held + (size_t)(at + 1) * KV_ROW;
    require(tkv_cache_read(branch, 0, 0, at + 1, held, held_v, &error), &error);
    const double difference = compare_with_definition(&layer_shape, at + 1, q, held, held_v, out);
    const bool is_origin_kept = are_equal(cache, again);
    free(held);
    tkv_cache_free(again);
    tkv_cache_free(branch);
    return is_shared && is_origin_kept && difference < 0.01;
}

int main(void)
{
    tkv_error error;
    tkv_context *context = NULL;
    uint64_t seed = 3;
    require(tkv_context_create(NULL, &context, &error), &error);
    tkv_cache *cache = create_cache(context);
    tkv_cache *plain = create_cache(context);
    float *prompt = floats(2 * N_PROMPT * KV_ROW);
    fill_random(&seed, 2 * N_PROMPT * KV_ROW, prompt);
    tkv_cache *const both[] = {cache, plain};
    for (int i = 0; i < 2; i++) {
        require(tkv_cache_append(both[i], 0, N_PROMPT, prompt, prompt + N_PROMPT * KV_ROW, &error),
                &error);
    }

    int n_accepted = 0;
    for (int i = 0; i < N_STEPS; i++) {
        n_accepted += i % (N_DRAFTS + 1);
        step(cache, plain, &seed, i % (N_DRAFTS + 1));
    }
    const bool is_rolled_back = are_equal(cache, plain);
    printf("%d of %d drafts accepted: the cache is%s the one that never saw the others\n",
           n_accepted, N_STEPS * N_DRAFTS, is_rolled_back ? "" : " NOT");
    const bool is_branch_right = try_other_branch(cache, N_PROMPT + 10, &seed);

    free(prompt);
    tkv_cache_free(cache);
    tkv_cache_free(plain);
    tkv_context_free(context);
    return is_rolled_back && is_branch_right ? EXIT_SUCCESS : EXIT_FAILURE;
}
