/* What attention is asked for, checked before anything is done. */
#include "attention/attention.h"
#include "base/error.h"

#include <math.h>

/* Nothing may be asked for that a layer has given back behind its window. */
static tkv_status check_window(const tkv_cache_layer *layer, int index,
                               const tkv_attend_params *params, tkv_error *error)
{
    const int window = tkv_attend_window(layer, params);
    const int first_held = tkv_layer_first_position(layer);
    if (first_held > layer->lost &&
        (window == 0 || params->first_position - window + 1 < first_held)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "query at position %d with a window of %d: layer %d, with a window of %d, "
                        "has given back the tokens before position %d",
                        params->first_position, window, index, layer->window, first_held);
    }
    /* After a shift some of a window may be missing, but not all of it. */
    if (params->first_position < first_held) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "query at position %d: layer %d, with a window of %d, has given back the "
                        "tokens before position %d, its own too",
                        params->first_position, index, layer->window, first_held);
    }
    return TKV_OK;
}

tkv_status tkv_check_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                            const float *q, const float *out, tkv_error *error)
{
    if (!cache || !params || !q || !out) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "cache, params, q or out is NULL");
    }
    if (layer < 0 || layer >= cache->n_layers) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "layer %d: expected 0 to %d", layer,
                        cache->n_layers - 1);
    }
    const tkv_cache_layer *held = &cache->layers[layer];
    if (params->n_heads < 1 || params->n_heads % held->n_kv_heads != 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "n_heads %d: expected a multiple of the %d KV heads", params->n_heads,
                        held->n_kv_heads);
    }
    if (held->head_dim_v ? params->n_value_dims != 0 && params->n_value_dims != held->head_dim_v
                         : params->n_value_dims < 1 || params->n_value_dims > held->head_dim_k) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "n_value_dims %d of layer %d, %s: expected %s%d", params->n_value_dims,
                        layer, held->head_dim_v ? "which keeps values" : "which keeps keys only",
                        held->head_dim_v ? "0 or " : "1 to ",
                        held->head_dim_v ? held->head_dim_v : held->head_dim_k);
    }
    const int length = cache->layers[layer].n_tokens + cache->n_reserved;
    if (params->n_queries < 1 || params->first_position < 0 ||
        params->first_position > length - params->n_queries) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d queries from position %d: expected at least one, all within the %d "
                        "tokens of layer %d",
                        params->n_queries, params->first_position, length, layer);
    }
    if (params->window < 0 || !(params->logit_softcap >= 0.0f) ||
        !isfinite(params->logit_softcap) || !isfinite(params->scale)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "window %d, logit_softcap %g, scale %g: expected a window and a softcap of "
                        "at least 0 and finite numbers",
                        params->window, (double)params->logit_softcap, (double)params->scale);
    }
    if (!(params->sparse_v >= 0.0f && params->sparse_v <= 1.0f)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "sparse_v %g: expected 0 to 1",
                        (double)params->sparse_v);
    }
    TKV_TRY(tkv_check_reserved(sizeof params->reserved / sizeof *params->reserved, params->reserved,
                               "tkv_attend_params", error));
    return check_window(held, layer, params, error);
}

tkv_status tkv_check_queries(const tkv_cache_layer *layer, const tkv_attend_params *params,
                             size_t n_queries, const float *q, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    if (!device->table->find_non_finite) {
        return TKV_OK;
    }
    const size_t row = (size_t)params->n_heads * (size_t)layer->head_dim_k;
    const size_t n = n_queries * row;
    const size_t at = device->table->find_non_finite(device, n, (uint64_t)(uintptr_t)q);
    if (at < n) {
        return tkv_fail(error, TKV_ERR_NOT_FINITE,
                        "q of query %zu, head %zu, coordinate %zu is %g: expected finite values",
                        at / row, at % row / (size_t)layer->head_dim_k,
                        at % (size_t)layer->head_dim_k, (double)q[at]);
    }
    for (int h = 0; params->sinks && h < params->n_heads; h++) {
        if (isnan(params->sinks[h]) || params->sinks[h] == INFINITY) {
            return tkv_fail(error, TKV_ERR_NOT_FINITE,
                            "sink of head %d is %g: expected a number below infinity", h,
                            (double)params->sinks[h]);
        }
    }
    return TKV_OK;
}
