#include "eval/footprint.h"

/* Keys and values of n_tokens tokens in all layers. */
static double count_values(const tkv_model_config *c, int n_tokens)
{
    return (double)n_tokens * c->n_layers * c->n_kv_heads * (c->head_dim_k + c->head_dim_v);
}

double tkv_kv_bits(const tkv_model_config *config, size_t bytes, int n_tokens)
{
    return n_tokens > 0 ? 8.0 * (double)bytes / count_values(config, n_tokens) : 0.0;
}

size_t tkv_kv_bytes_f16(const tkv_model_config *config, int n_tokens)
{
    const tkv_policy f16 = {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16};
    const double bits = tkv_policy_bits(&f16, config->n_layers, config->n_kv_heads,
                                        config->head_dim_k, config->head_dim_v, n_tokens);
    return n_tokens > 0 ? (size_t)(bits / 8.0 * count_values(config, n_tokens)) : 0;
}
