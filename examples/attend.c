/* Append and attend: a prompt and then token by token, as an engine decodes, for one layer. The
 * outputs are compared with attention by its definition, over the keys and values that were
 * appended and over those that the cache holds. */
#include "example.h"

enum { N_PROMPT = 700, N_DECODED = 20, N_TOKENS = N_PROMPT + N_DECODED };

static const shape layer_shape = {.n_kv_heads = 2, .n_heads = 8, .head_dim = 128};

/* One decode step: the new token's key and value join the cache, then its queries see all of it. */
static void decode(tkv_cache *cache, const float *k, const float *v, const float *q, float *out)
{
    tkv_error error;
    const int position = tkv_cache_length(cache, 0);
    require(tkv_cache_append(cache, 0, 1, k, v, &error), &error);
    const tkv_attend_params params = {
        .n_queries = 1, .n_heads = layer_shape.n_heads, .first_position = position};
    require(tkv_attend(cache, 0, &params, q, out, &error), &error);
}

int main(void)
{
    const size_t kv_row = (size_t)(layer_shape.n_kv_heads * layer_shape.head_dim);
    const size_t q_row = (size_t)(layer_shape.n_heads * layer_shape.head_dim);
    float *k = floats(N_TOKENS * kv_row); /* of a real model, after RoPE */
    float *v = floats(N_TOKENS * kv_row);
    float *q = floats(N_TOKENS * q_row);
    float *out = floats(q_row);
    float *held_k = floats(N_TOKENS * kv_row);
    float *held_v = floats(N_TOKENS * kv_row);
    uint64_t seed = 1;
    fill_random(&seed, N_TOKENS * kv_row, k);
    fill_random(&seed, N_TOKENS * kv_row, v);
    fill_random(&seed, N_TOKENS * q_row, q);

    tkv_error error;
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    const tkv_type type = TKV_TYPE_TURBO4;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = layer_shape.n_kv_heads,
                                     .head_dim_k = layer_shape.head_dim,
                                     .head_dim_v = layer_shape.head_dim,
                                     .max_tokens = N_TOKENS,
                                     .types_k = &type,
                                     .types_v = &type};
    require(tkv_context_create(NULL, &context, &error), &error);
    require(tkv_cache_create(context, &params, &cache, &error), &error);

    require(tkv_cache_append(cache, 0, N_PROMPT, k, v, &error), &error);
    for (size_t t = N_PROMPT; t < N_TOKENS; t++) {
        decode(cache, k + t * kv_row, v + t * kv_row, q + t * q_row, out);
    }

    require(tkv_cache_read(cache, 0, 0, N_TOKENS, held_k, held_v, &error), &error);
    const float *last_q = q + (N_TOKENS - 1) * q_row;
    const double of_codes = compare_with_definition(&layer_shape, N_TOKENS, last_q, k, v, out);
    const double of_kernels =
        compare_with_definition(&layer_shape, N_TOKENS, last_q, held_k, held_v, out);
    printf("kernels %s, %d threads: %d tokens in %zu bytes, %.3f bits a value\n",
           tkv_context_kernels(context), tkv_context_threads(context), tkv_cache_length(cache, 0),
           tkv_cache_bytes(cache),
           8.0 * (double)tkv_cache_bytes(cache) / (2.0 * N_TOKENS * kv_row));
    printf("relative error of the output: %.5f, of which the arithmetic makes %.5f\n", of_codes,
           of_kernels);

    tkv_cache_free(cache);
    tkv_context_free(context);
    free(k);
    free(v);
    free(q);
    free(out);
    free(held_k);
    free(held_v);
    return of_codes < 0.05 && of_kernels < 0.01 ? EXIT_SUCCESS : EXIT_FAILURE;
}
