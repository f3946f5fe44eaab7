/* Attention of several sequences. */
#include "attention/attend_device.h"
#include "base/error.h"

/* The parameters for one of the caches: its last tokens ask. n_queries is at least 1. */
static tkv_attend_params params_of(const tkv_cache *cache, int layer,
                                   const tkv_attend_params *params)
{
    tkv_attend_params own = *params;
    own.first_position = cache->layers[layer].n_tokens + cache->n_reserved - params->n_queries;
    return own;
}

tkv_status tkv_attend_batch(const tkv_cache *const *caches, int n_caches, int layer,
                            const tkv_attend_params *params, const float *q, float *out,
                            tkv_error *error)
{
    tkv_status status = tkv_check_batch(caches, n_caches, layer, error);
    if (status == TKV_OK && (!params || params->n_queries < 1)) {
        status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                          "attention of a batch: expected params with at least one query");
    }
    for (int i = 0; status == TKV_OK && i < n_caches; i++) {
        const tkv_attend_params own = params_of(caches[i], layer, params);
        status = tkv_check_attend(caches[i], layer, &own, q, out, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    if (caches[0]->context->device && tkv_is_plain_batch(caches, n_caches, layer)) {
        return tkv_attend_batch_on_device(caches, n_caches, layer, params, q, out, error);
    }
    const tkv_cache_layer *held = &caches[0]->layers[layer];
    const int n_value_dims = held->head_dim_v ? held->head_dim_v : params->n_value_dims;
    const size_t rows = (size_t)params->n_queries * (size_t)params->n_heads;
    for (int i = 0; status == TKV_OK && i < n_caches; i++) {
        const tkv_attend_params own = params_of(caches[i], layer, params);
        status = tkv_attend(caches[i], layer, &own, q + (size_t)i * rows * (size_t)held->head_dim_k,
                            out + (size_t)i * rows * (size_t)n_value_dims, error);
    }
    return status;
}
