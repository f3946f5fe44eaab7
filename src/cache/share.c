/* Two sequences with a common prefix: blocks are shared and copied when one of them is written. */
#include "base/allocate.h"
#include "base/assert.h"
#include "base/error.h"
#include "cache/consistent.h"

#include <string.h>

/* A copy of a layer's shape and rope that holds nothing. */
static tkv_status copy_shape(const tkv_cache_layer *layer, tkv_cache_layer *copy, tkv_error *error)
{
    *copy = (tkv_cache_layer){.context = layer->context,
                              .ageing = layer->ageing,
                              .max_tokens = layer->max_tokens,
                              .n_kv_heads = layer->n_kv_heads,
                              .head_dim_k = layer->head_dim_k,
                              .head_dim_v = layer->head_dim_v,
                              .padded_k = layer->padded_k,
                              .padded_v = layer->padded_v,
                              .window = layer->window,
                              .lost = layer->lost,
                              .lost_until = layer->lost_until,
                              .head = layer->head,
                              .has_own_rope = layer->has_own_rope,
                              .type_k = layer->type_k,
                              .type_v = layer->type_v};
    return layer->rope.frequencies ? tkv_layer_take_rope(copy, &layer->rope, error) : TKV_OK;
}

/* Makes `copy`, which holds nothing, hold the first n_tokens of `layer`, sharing its blocks. */
static tkv_status share_layer(const tkv_cache_layer *layer, int n_tokens, tkv_cache_layer *copy,
                              tkv_error *error)
{
    tkv_cache_layer view;
    tkv_status status =
        tkv_layer_without(layer, n_tokens, layer->n_tokens - n_tokens, false, &view, error);
    if (status != TKV_OK || n_tokens == 0) {
        if (status == TKV_OK) {
            tkv_layer_free_tables(&view);
        }
        return status;
    }
    copy->segments = view.segments;
    copy->n_segments = view.n_segments;
    copy->segment_capacity = view.segment_capacity;
    copy->blocks = view.blocks;
    copy->n_blocks = view.n_blocks;
    copy->block_capacity = view.block_capacity;
    copy->n_tokens = n_tokens;
    tkv_segment *last = tkv_last_segment(copy);
    const int open = last ? tkv_block_of_place(last->head, last->end) : 0;
    if (last && last->n_settled > open) {
        last->n_settled = open;
    }
    status = layer->is_centred ? tkv_layer_copy_means(layer, copy, error) : TKV_OK;
    if (status == TKV_OK) {
        tkv_layer_thaw(copy);
        status = tkv_layer_publish_segments(copy, error);
    }
    if (status == TKV_OK && n_tokens < layer->n_tokens) {
        tkv_layer_settle(copy, n_tokens - 1);
    }
    return status;
}

static tkv_status check_fork(const tkv_cache *cache, int n_tokens, const tkv_cache *const *fork,
                             tkv_error *error)
{
    if (!cache || !fork || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "fork at %d tokens: expected a cache, a result and at least 0", n_tokens);
    }
    for (int i = 0; n_tokens > 0 && i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        if (n_tokens < layer->n_tokens && !tkv_layer_can_end(layer, n_tokens)) {
            return tkv_fail(
                error, TKV_ERR_INVALID_ARGUMENT,
                "fork at %d tokens: layer %d, with a window of %d, has given back those "
                "before position %d",
                n_tokens, i, layer->window, tkv_layer_first_position(layer));
        }
    }
    return TKV_OK;
}

static tkv_status create_fork(const tkv_cache *cache, tkv_cache **fork, tkv_error *error)
{
    tkv_cache *created = tkv_allocate_zeroed(&cache->context->allocator, sizeof *created);
    tkv_cache_layer *layers =
        tkv_allocate_zeroed(&cache->context->allocator, (size_t)cache->n_layers * sizeof *layers);
    if (!created || !layers) {
        tkv_release(&cache->context->allocator, created);
        tkv_release(&cache->context->allocator, layers);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a fork of %d layers",
                        cache->n_layers);
    }
    *created =
        (tkv_cache){.context = cache->context, .max_tokens = cache->max_tokens, .layers = layers};
    tkv_status status = TKV_OK;
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        created->n_layers = i + 1; /* those that may be freed */
        status = copy_shape(&cache->layers[i], &layers[i], error);
    }
    if (status == TKV_OK) {
        status = tkv_cache_create_descriptors(created, error);
    }
    *fork = created;
    return status;
}

tkv_status tkv_cache_fork(const tkv_cache *cache, int n_tokens, tkv_cache **fork, tkv_error *error)
{
    TKV_TRY(check_fork(cache, n_tokens, (const tkv_cache *const *)fork, error));
    tkv_cache *created = NULL;
    tkv_status status = create_fork(cache, &created, error);
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        const int length = cache->layers[i].n_tokens;
        status = share_layer(&cache->layers[i], n_tokens < length ? n_tokens : length,
                             &created->layers[i], error);
    }
    if (status != TKV_OK) {
        tkv_cache_free(created);
        return status;
    }
    tkv_assert(tkv_cache_is_consistent(created));
    *fork = created;
    return TKV_OK;
}
