#include "shift_rows.h"

void turn(const tkv_rope *rope, int position, const float *in, float *out)
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

tkv_cache *create(tkv_context *context, tkv_type type, int sinks, int recent, int centre)
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

void append(tkv_cache *cache, const tkv_rope *rope, const float *k, const float *v, int index,
            int position)
{
    float turned[N_KV_HEADS * DIM];
    for (int h = 0; h < N_KV_HEADS; h++) {
        turn(rope, position, k + (index * N_KV_HEADS + h) * DIM, turned + h * DIM);
    }
    assert_ok(tkv_cache_append(cache, 0, 1, turned, v + index * N_KV_HEADS * DIM, &error));
}

tkv_context *create_context(void)
{
    const tkv_context_params params = {.n_threads = 1, .effort = TKV_EFFORT_FAST};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&params, &context, &error));
    return context;
}

float *gauss_rows(uint64_t seed, int n_tokens)
{
    float *x = allocate((size_t)(n_tokens * N_KV_HEADS * DIM) * sizeof *x);
    fill_gauss(&seed, (size_t)(n_tokens * N_KV_HEADS * DIM), x);
    return x;
}

void fill_frequencies(float frequencies[DIM / 2])
{
    for (int i = 0; i < DIM / 2; i++) {
        frequencies[i] = (float)pow(10000.0, -2.0 * i / DIM);
    }
}
