/* What a cache is asked to be: checked, and brought into layers. */
#include "base/error.h"
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

tkv_status tkv_layer_take_rope(tkv_cache_layer *layer, const tkv_rope *rope, tkv_error *error)
{
    const size_t n_pairs = rope ? (size_t)rope->n_rotated / 2 : 0;
    if (n_pairs == 0) {
        return TKV_OK;
    }
    float *frequencies = malloc(n_pairs * sizeof *frequencies);
    if (!frequencies) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu frequencies of RoPE",
                        n_pairs);
    }
    memcpy(frequencies, rope->frequencies, n_pairs * sizeof *frequencies);
    layer->rope = (tkv_rope){rope->is_interleaved, rope->n_rotated, frequencies};
    return TKV_OK;
}

tkv_status tkv_layer_create(const tkv_cache_params *params, int index, tkv_cache_layer *layer,
                            tkv_error *error)
{
    const tkv_layer_shape shape = shape_of(params, index);
    const bool has_values = shape.head_dim_v > 0;
    *layer = (tkv_cache_layer){.n_kv_heads = shape.n_kv_heads,
                               .head_dim_k = shape.head_dim_k,
                               .head_dim_v = shape.head_dim_v,
                               .padded_k = tkv_padded_dim(shape.head_dim_k),
                               .padded_v = tkv_padded_dim(shape.head_dim_v),
                               .window = shape.window,
                               .has_own_rope = params->shapes && params->shapes[index].rope,
                               .type_k = params->types_k[index],
                               /* Sums of keys are not in the domain of codes. */
                               .type_v = has_values ? params->types_v[index] : TKV_TYPE_F16};
    layer->head =
        tkv_head_tokens(tkv_has_coded_type(layer), params->n_sinks, params->centre_tokens);
    return tkv_layer_take_rope(layer, shape.rope, error);
}
