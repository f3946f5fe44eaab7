/* What a cache is asked to be: checked, and brought into layers. */
#include "base/error.h"
#include "base/rope.h"
#include "cache/cache.h"

#include <stdlib.h>
#include <string.h>

static tkv_status check_policy(const tkv_cache_params *params, tkv_error *error)
{
    if (params->n_sinks < 0 || params->n_sinks > params->max_tokens || params->n_recent < 0 ||
        params->n_recent > params->max_tokens || params->centre_tokens < 0 ||
        params->centre_tokens > params->max_tokens) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d sinks, %d recent tokens, %d tokens for the means: expected each from 0 "
                        "to the %d tokens of the cache",
                        params->n_sinks, params->n_recent, params->centre_tokens,
                        params->max_tokens);
    }
    return TKV_OK;
}

static tkv_layer_shape shape_of(const tkv_cache_params *params, int index)
{
    tkv_layer_shape shape = {.n_kv_heads = params->n_kv_heads,
                             .head_dim_k = params->head_dim_k,
                             .head_dim_v = params->head_dim_v};
    if (params->shapes) {
        shape = params->shapes[index];
    }
    if (!shape.rope) {
        shape.rope = params->rope;
    }
    return shape;
}

static tkv_status check_layer(const tkv_cache_params *params, int index, tkv_error *error)
{
    const tkv_layer_shape shape = shape_of(params, index);
    tkv_error reason;
    if (shape.n_kv_heads < 1 || shape.n_kv_heads > TKV_MAX_KV_HEADS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "layer %d, n_kv_heads %d: expected 1 to %d", index, shape.n_kv_heads,
                        TKV_MAX_KV_HEADS);
    }
    if (shape.window < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "layer %d, window %d: expected at least 0",
                        index, shape.window);
    }
    tkv_status status = tkv_check_reserved(sizeof shape.reserved / sizeof *shape.reserved,
                                           shape.reserved, "tkv_layer_shape", &reason);
    if (status == TKV_OK) {
        status = tkv_check_head_dim(params->types_k[index], shape.head_dim_k, &reason);
    }
    if (status == TKV_OK && shape.head_dim_v != 0) {
        status = tkv_check_head_dim(params->types_v[index], shape.head_dim_v, &reason);
    }
    if (status == TKV_OK) {
        status = tkv_check_rope(shape.rope, shape.head_dim_k, &reason);
    }
    return status == TKV_OK ? TKV_OK
                            : tkv_fail(error, status, "layer %d: %.300s", index, reason.message);
}

tkv_status tkv_check_cache_params(const tkv_cache_params *params, tkv_error *error)
{
    if (!params->types_k || !params->types_v) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "types_k or types_v is NULL");
    }
    if (params->n_layers < 1 || params->n_layers > TKV_MAX_LAYERS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_layers %d: expected 1 to %d",
                        params->n_layers, TKV_MAX_LAYERS);
    }
    if (params->max_tokens < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "max_tokens %d: expected at least 1",
                        params->max_tokens);
    }
    tkv_status status = tkv_check_reserved(sizeof params->reserved / sizeof *params->reserved,
                                           params->reserved, "tkv_cache_params", error);
    if (status == TKV_OK) {
        status = check_policy(params, error);
    }
    for (int i = 0; i < params->n_layers && status == TKV_OK; i++) {
        status = check_layer(params, i, error);
    }
    return status;
}

tkv_status tkv_layer_create(tkv_context *context, const tkv_cache_params *params, int index,
                            tkv_cache_layer *layer, tkv_error *error)
{
    const tkv_layer_shape shape = shape_of(params, index);
    *layer = (tkv_cache_layer){.context = context,
                               .max_tokens = params->max_tokens,
                               .n_kv_heads = shape.n_kv_heads,
                               .head_dim_k = shape.head_dim_k,
                               .head_dim_v = shape.head_dim_v,
                               .padded_k = tkv_padded_dim(shape.head_dim_k),
                               .padded_v = tkv_padded_dim(shape.head_dim_v),
                               .window = shape.window,
                               .has_own_rope = params->shapes && params->shapes[index].rope,
                               .type_k = params->types_k[index],
                               .type_v =
                                   tkv_stored_value_type(params->types_v[index], shape.head_dim_v)};
    layer->ageing = tkv_ageing_of(layer->type_k, layer->type_v, params->n_sinks, params->n_recent,
                                  params->centre_tokens);
    layer->head = tkv_head_tokens(&layer->ageing);
    return tkv_layer_take_rope(layer, shape.rope, error);
}
