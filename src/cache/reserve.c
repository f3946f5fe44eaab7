/* Steps that a graph can be captured from: what changes the cache's memory comes before, what
 * changes its bookkeeping after. */
#include "base/assert.h"
#include "base/error.h"
#include "cache/consistent.h"

static tkv_status check_reserve(const tkv_cache *cache, int n_tokens, int max_length,
                                tkv_error *error)
{
    if (!cache || n_tokens < 1 || max_length < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "reservation of %d tokens up to a length of %d: expected a cache, at least "
                        "one token and a length of at least 0",
                        n_tokens, max_length);
    }
    if (cache->context->device->table->is_immediate) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "reservation in a cache on the CPU: expected one on a device");
    }
    if (cache->n_reserved > 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d tokens are reserved: expected a commit first", cache->n_reserved);
    }
    const int length = cache->layers[0].n_tokens;
    for (int i = 0; i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        if (layer->n_tokens != length) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "layer %d holds %d tokens, layer 0 %d: expected equal lengths", i,
                            layer->n_tokens, length);
        }
        if (layer->window && layer->n_segments > 1) {
            return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                            "layer %d, with a window of %d, still holds tokens from before a "
                            "context shift: expected steps that are not captured until they are "
                            "behind the window",
                            i, layer->window);
        }
    }
    const int limit = max_length ? max_length : cache->max_tokens;
    if (limit > cache->max_tokens || n_tokens > limit - length) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d tokens after %d up to a length of %d: expected room for them and no "
                        "more than the cache's maximum of %d",
                        n_tokens, length, limit, cache->max_tokens);
    }
    return TKV_OK;
}

static void give_back(tkv_cache *cache)
{
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        tkv_layer_trim(layer);
        tkv_layer_outdate(layer);
    }
}

tkv_status tkv_cache_reserve(tkv_cache *cache, int n_tokens, int max_length, tkv_error *error)
{
    tkv_status status = check_reserve(cache, n_tokens, max_length, error);
    if (status != TKV_OK) {
        return status;
    }
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        /* What the coming queries must find coded. */
        tkv_layer_settle(layer, layer->n_tokens);
        const int n_segments = layer->n_segments;
        int first_changed = 0;
        status = tkv_layer_add_blocks(layer, n_tokens, &first_changed, error);
        if (status == TKV_OK && n_segments > 0 && layer->n_segments > n_segments) {
            status = tkv_layer_publish_segments(layer, error);
        }
        if (status == TKV_OK) {
            status = tkv_layer_publish_blocks(layer, first_changed, layer->n_blocks, error);
        }
    }
    if (status == TKV_OK) {
        status = tkv_cache_publish_descriptors(cache, n_tokens, error);
    }
    if (status != TKV_OK) {
        give_back(cache);
        tkv_assert(tkv_cache_is_consistent(cache));
        return status;
    }
    cache->n_reserved = n_tokens;
    cache->max_length = max_length ? max_length : cache->max_tokens;
    return TKV_OK;
}

tkv_status tkv_cache_commit(tkv_cache *cache, tkv_error *error)
{
    if (!cache || cache->n_reserved == 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "commit: expected a cache with tokens reserved");
    }
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        const int first = layer->n_tokens;
        tkv_last_segment(layer)->end += cache->n_reserved;
        layer->n_tokens += cache->n_reserved;
        tkv_layer_settle(layer, first);
    }
    cache->n_reserved = 0;
    tkv_assert(tkv_cache_is_consistent(cache));
    return TKV_OK;
}
