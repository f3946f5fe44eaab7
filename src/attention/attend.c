/* Attention of one sequence, and of several. */
#include "attention/attention.h"
#include "base/error.h"

tkv_status tkv_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                      const float *q, float *out, tkv_error *error)
{
    TKV_TRY(tkv_check_attend(cache, layer, params, q, out, error));
    TKV_TRY(tkv_check_queries(&cache->layers[layer], params, (size_t)params->n_queries, q, error));
    return tkv_attend_parts(cache, layer, params, q, out, error);
}

/* The parameters for one of the caches: its last tokens ask. n_queries is at least 1. */
static tkv_attend_params params_of(const tkv_cache *cache, int layer,
                                   const tkv_attend_params *params)
{
    tkv_attend_params own = *params;
    own.first_position = cache->layers[layer].n_tokens + cache->n_reserved - params->n_queries;
    return own;
}

static tkv_status check_batch(const tkv_cache *const *caches, int n_caches, int layer,
                              const tkv_attend_params *params, const float *q, const float *out,
                              tkv_error *error)
{
    TKV_TRY(tkv_check_batch(caches, n_caches, layer, error));
    if (!params || params->n_queries < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "attention of a batch: expected params with at least one query");
    }
    for (int i = 0; i < n_caches; i++) {
        const tkv_attend_params own = params_of(caches[i], layer, params);
        TKV_TRY(tkv_check_attend(caches[i], layer, &own, q, out, error));
    }
    return tkv_check_queries(&caches[0]->layers[layer], params,
                             (size_t)n_caches * (size_t)params->n_queries, q, error);
}

tkv_status tkv_attend_batch(const tkv_cache *const *caches, int n_caches, int layer,
                            const tkv_attend_params *params, const float *q, float *out,
                            tkv_error *error)
{
    TKV_TRY(check_batch(caches, n_caches, layer, params, q, out, error));
    if (tkv_is_plain_batch(caches, n_caches, layer)) {
        return tkv_attend_plain_batch(caches, n_caches, layer, params, q, out, error);
    }
    const tkv_cache_layer *held = &caches[0]->layers[layer];
    const size_t n_value_dims = (size_t)tkv_value_dims(held, params);
    const size_t rows = (size_t)params->n_queries * (size_t)params->n_heads;
    for (size_t i = 0; i < (size_t)n_caches; i++) {
        const tkv_attend_params own = params_of(caches[i], layer, params);
        TKV_TRY(tkv_attend_parts(caches[i], layer, &own, q + i * rows * (size_t)held->head_dim_k,
                                 out + i * rows * n_value_dims, error));
    }
    return TKV_OK;
}
