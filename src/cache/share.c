/* Two sequences with a common prefix: blocks are shared and copied when one of them is written. */
#include "cache/cache.h"
#include "common/error.h"

#include <stdlib.h>
#include <string.h>

void tkv_layer_take_means(const tkv_cache *cache, const tkv_cache_layer *layer,
                          tkv_cache_layer *copy)
{
    const size_t heads = (size_t)cache->n_kv_heads;
    copy->is_centred = true;
    memcpy(copy->mean_k, layer->mean_k, heads * (size_t)cache->head_dim_k * sizeof(float));
    memcpy(copy->mean_v, layer->mean_v, heads * (size_t)cache->head_dim_v * sizeof(float));
}

tkv_status tkv_layer_share(const tkv_cache *cache, const tkv_cache_layer *layer, int n_tokens,
                           tkv_cache_layer *copy, tkv_error *error)
{
    const int n_blocks = n_tokens ? tkv_block_of(cache, n_tokens - 1) + 1 : 0;
    tkv_status status = tkv_layer_reserve(cache, copy, n_blocks, error);
    if (status != TKV_OK) {
        tkv_layer_clear(cache, copy);
        return status;
    }
    for (int b = 0; b < n_blocks; b++) {
        atomic_fetch_add(&layer->blocks[b]->n_owners, 1);
        copy->blocks[b] = layer->blocks[b];
    }
    copy->n_blocks = n_blocks;
    copy->n_tokens = n_tokens;
    if (layer->is_centred && n_tokens > 0) {
        tkv_layer_take_means(cache, layer, copy);
        status = tkv_layer_publish_means(cache, copy, error);
    }
    if (status == TKV_OK) {
        status = tkv_layer_publish(cache, copy, 0, n_tokens, error);
    }
    if (status != TKV_OK) {
        tkv_layer_clear(cache, copy);
    }
    return status;
}

tkv_status tkv_cache_fork(const tkv_cache *cache, int n_tokens, tkv_cache **fork, tkv_error *error)
{
    if (!cache || !fork || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "fork at %d tokens: expected a cache, a result and at least 0", n_tokens);
    }
    tkv_type *types = malloc(2 * (size_t)cache->n_layers * sizeof *types);
    if (!types) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the types of %d layers",
                        cache->n_layers);
    }
    for (int i = 0; i < cache->n_layers; i++) {
        types[i] = cache->layers[i].type_k;
        types[cache->n_layers + i] = cache->layers[i].type_v;
    }
    const tkv_cache_params params = {.n_layers = cache->n_layers,
                                     .n_kv_heads = cache->n_kv_heads,
                                     .head_dim_k = cache->head_dim_k,
                                     .head_dim_v = cache->head_dim_v,
                                     .max_tokens = cache->max_tokens,
                                     .types_k = types,
                                     .types_v = types + cache->n_layers,
                                     .n_sinks = cache->n_sinks,
                                     .n_recent = cache->n_recent,
                                     .centre_tokens = cache->centre_tokens};
    tkv_cache *created = NULL;
    tkv_status status = tkv_cache_create(cache->context, &params, &created, error);
    free(types);
    if (status == TKV_OK) {
        memcpy(created->has_lasting_mean, cache->has_lasting_mean,
               sizeof created->has_lasting_mean);
    }
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        const int length = cache->layers[i].n_tokens;
        status = tkv_layer_share(cache, &cache->layers[i], n_tokens < length ? n_tokens : length,
                                 &created->layers[i], error);
    }
    if (status != TKV_OK) {
        tkv_cache_free(created);
        return status;
    }
    *fork = created;
    return TKV_OK;
}
