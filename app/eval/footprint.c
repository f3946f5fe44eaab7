#include "eval/footprint.h"

/* Keys and values that a layer keeps of n_tokens: behind a window whole pages go. */
static double layer_values(const tkv_model_config *config, int window, int n_tokens)
{
    const bool drops = window > 0 && window < n_tokens - TKV_PAGE_TOKENS;
    const int n_kept = drops ? window + TKV_PAGE_TOKENS : n_tokens;
    return (double)n_kept * config->n_kv_heads * (config->head_dim_k + config->head_dim_v);
}

double tkv_kv_bits(const tkv_model *model, size_t bytes, int n_tokens)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    double n_values = 0.0;
    for (int i = 0; i < config->n_layers; i++) {
        n_values += layer_values(config, tkv_model_window(model, i), n_tokens);
    }
    return n_tokens > 0 ? 8.0 * (double)bytes / n_values : 0.0;
}

size_t tkv_kv_bytes_f16(const tkv_model *model, int n_tokens)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    const tkv_policy f16 = {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16};
    size_t bytes = tkv_policy_object_bytes();
    for (int i = 0; i < config->n_layers && n_tokens > 0; i++) {
        const tkv_layer_shape shape = {.n_kv_heads = config->n_kv_heads,
                                       .head_dim_k = config->head_dim_k,
                                       .head_dim_v = config->head_dim_v,
                                       .window = tkv_model_window(model, i)};
        /* The frequencies that every layer of a session's cache has. */
        bytes += (size_t)config->rope_dim / 2 * sizeof(float) +
                 tkv_policy_layer_bytes(&f16, TKV_TYPE_F16, TKV_TYPE_F16, &shape, n_tokens, 1);
    }
    return n_tokens > 0 ? bytes : 0;
}
