#include "cache/cache.h"
#include "base/allocate.h"
#include "base/assert.h"
#include "base/error.h"
#include "cache/consistent.h"

static tkv_status create_layers(tkv_cache *cache, const tkv_cache_params *params, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int i = 0; status == TKV_OK && i < params->n_layers; i++) {
        status = tkv_layer_create(cache->context, params, i, &cache->layers[i], error);
        cache->n_layers = i + 1; /* what is to be freed */
        if (status == TKV_OK && cache->layers[i].head_dim_v == 0 &&
            !cache->context->device->table->has_keys_only) {
            status = tkv_fail(error, TKV_ERR_UNSUPPORTED,
                              "layer %d keeps keys only: expected a context on the CPU", i);
        }
    }
    return status;
}

tkv_status tkv_cache_create(tkv_context *context, const tkv_cache_params *params, tkv_cache **cache,
                            tkv_error *error)
{
    if (!context || !params || !cache) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context, params or result is NULL");
    }
    TKV_TRY(tkv_check_cache_params(params, error));
    tkv_cache *created = tkv_allocate_zeroed(&context->allocator, sizeof *created);
    tkv_cache_layer *layers =
        tkv_allocate_zeroed(&context->allocator, (size_t)params->n_layers * sizeof *layers);
    if (!created || !layers) {
        tkv_release(&context->allocator, created);
        tkv_release(&context->allocator, layers);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a cache of %d layers",
                        params->n_layers);
    }
    *created = (tkv_cache){.context = context, .max_tokens = params->max_tokens, .layers = layers};
    tkv_status status = create_layers(created, params, error);
    if (status == TKV_OK) {
        status = tkv_cache_create_descriptors(created, error);
    }
    if (status != TKV_OK) {
        tkv_cache_free(created);
        return status;
    }
    *cache = created;
    return TKV_OK;
}

void tkv_cache_clear(tkv_cache *cache)
{
    if (!cache) {
        return;
    }
    cache->n_reserved = 0;
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_layer_clear(&cache->layers[i]);
    }
}

void tkv_cache_free(tkv_cache *cache)
{
    if (!cache) {
        return;
    }
    const tkv_context *context = cache->context;
    tkv_cache_clear(cache);
    tkv_cache_free_descriptors(cache);
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_release(&context->allocator, (float *)cache->layers[i].rope.frequencies);
    }
    tkv_release(&context->allocator, cache->layers);
    tkv_release(&context->allocator, cache);
}

static tkv_status check_finite(const tkv_cache_layer *layer, int index, int n_tokens, int head_dim,
                               const float *x, const char *what, tkv_error *error)
{
    const size_t row = (size_t)layer->n_kv_heads * (size_t)head_dim;
    const size_t n = (size_t)n_tokens * row;
    tkv_device *device = layer->context->device;
    const size_t at = device->table->find_non_finite
                          ? device->table->find_non_finite(device, n, (uint64_t)(uintptr_t)x)
                          : n;
    if (at == n) {
        return TKV_OK;
    }
    return tkv_fail(error, TKV_ERR_NOT_FINITE,
                    "%s of layer %d, appended token %zu, KV head %zu, coordinate %zu is %g: "
                    "expected finite values",
                    what, index, at / row, at % row / (size_t)head_dim, at % (size_t)head_dim,
                    (double)x[at]);
}

static tkv_status check_append(const tkv_cache *cache, int index, int n_tokens, const float *k,
                               const float *v, tkv_error *error)
{
    if (!cache || index < 0 || index >= cache->n_layers || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "append of %d tokens to layer %d: expected a cache, layer 0 to %d and at "
                        "least 0",
                        n_tokens, index, cache ? cache->n_layers - 1 : 0);
    }
    const tkv_cache_layer *layer = &cache->layers[index];
    if (!k || (!v && layer->head_dim_v)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "k or v is NULL");
    }
    if (n_tokens > cache->max_tokens - layer->n_tokens) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "cache is full: layer %d holds %d tokens, %d more exceed the maximum of %d",
                        index, layer->n_tokens, n_tokens, cache->max_tokens);
    }
    TKV_TRY(check_finite(layer, index, n_tokens, layer->head_dim_k, k, "k", error));
    return layer->head_dim_v
               ? check_finite(layer, index, n_tokens, layer->head_dim_v, v, "v", error)
               : TKV_OK;
}

tkv_status tkv_cache_append(tkv_cache *cache, int layer, int n_tokens, const float *k,
                            const float *v, tkv_error *error)
{
    const tkv_status status = check_append(cache, layer, n_tokens, k, v, error);
    if (status != TKV_OK || n_tokens == 0) {
        return status;
    }
    if (cache->n_reserved == 0) {
        const tkv_status appended = tkv_layer_append(&cache->layers[layer], n_tokens, k, v, error);
        tkv_assert(tkv_layer_is_consistent(&cache->layers[layer]));
        return appended;
    }
    if (n_tokens != cache->n_reserved) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "append of %d tokens where %d are reserved", n_tokens, cache->n_reserved);
    }
    return tkv_layer_store(&cache->layers[layer], n_tokens, k, v, error);
}

static tkv_status check_truncate(const tkv_cache *cache, int n_tokens, tkv_error *error)
{
    if (!cache || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "truncate to %d tokens: expected a cache and at least 0", n_tokens);
    }
    for (int i = 0; n_tokens > 0 && i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        if (n_tokens < layer->n_tokens && !tkv_layer_can_end(layer, n_tokens)) {
            const int held = tkv_layer_first_position(layer);
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "truncate to %d tokens: layer %d, with a window of %d, has given back "
                            "those before position %d: expected 0 or at least %d tokens",
                            n_tokens, i, layer->window, held, held + layer->window - 1);
        }
    }
    return TKV_OK;
}

tkv_status tkv_cache_truncate(tkv_cache *cache, int n_tokens, tkv_error *error)
{
    TKV_TRY(check_truncate(cache, n_tokens, error));
    const bool was_reserved = cache->n_reserved > 0;
    bool is_other = false;
    cache->n_reserved = 0;
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        const int left = n_tokens < layer->n_tokens ? n_tokens : layer->n_tokens;
        const int n_segments = layer->n_segments;
        if (left == 0) {
            tkv_layer_clear(layer);
        } else if (left < layer->n_tokens) {
            tkv_layer_cut(layer, left);
            /* As if the tokens that stay had come one by one. */
            tkv_layer_settle(layer, left - 1);
        } else if (was_reserved) {
            tkv_layer_trim(layer);
            tkv_layer_outdate(layer);
        }
        is_other |= n_segments > 1 && layer->n_segments != n_segments;
    }
    cache->generation += is_other;
    tkv_assert(tkv_cache_is_consistent(cache));
    return TKV_OK;
}

int tkv_cache_length(const tkv_cache *cache, int layer)
{
    return cache && layer >= 0 && layer < cache->n_layers ? cache->layers[layer].n_tokens : 0;
}

int tkv_cache_max_tokens(const tkv_cache *cache)
{
    return cache ? cache->max_tokens : 0;
}

int64_t tkv_cache_generation(const tkv_cache *cache)
{
    int64_t generation = cache ? cache->generation : 0;
    for (int i = 0; cache && i < cache->n_layers; i++) {
        generation += cache->layers[i].n_renewals;
    }
    return generation;
}

size_t tkv_cache_bytes(const tkv_cache *cache)
{
    size_t bytes = cache ? sizeof *cache : 0;
    for (int i = 0; cache && i < cache->n_layers; i++) {
        bytes += tkv_layer_bytes(&cache->layers[i]);
    }
    return bytes;
}

/* Places in the layer's table that name the block at `b`: a gap gives it two. */
static int own_places(const tkv_cache_layer *layer, int b)
{
    int n = 1;
    while (b + n < layer->n_blocks && layer->blocks[b + n] == layer->blocks[b]) {
        n++;
    }
    return n;
}

size_t tkv_cache_shared_bytes(const tkv_cache *cache)
{
    size_t bytes = 0;
    for (int i = 0; cache && i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        for (int b = 0, n; b < layer->n_blocks; b += n) {
            n = own_places(layer, b);
            if (atomic_load(&layer->blocks[b]->n_owners) > n) {
                bytes += tkv_block_bytes(layer, layer->blocks[b]);
            }
        }
    }
    return bytes;
}

tkv_status tkv_cache_read(const tkv_cache *cache, int index, int first, int n_tokens, float *k,
                          float *v, tkv_error *error)
{
    if (!cache) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "cache is NULL");
    }
    const int length = tkv_cache_length(cache, index);
    if (first < 0 || n_tokens < 0 || first > length || n_tokens > length - first) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "read of %d tokens from %d in layer %d: it holds %d tokens", n_tokens,
                        first, index, length);
    }
    if (n_tokens == 0) {
        return TKV_OK;
    }
    const tkv_cache_layer *layer = &cache->layers[index];
    const int held = tkv_layer_first_position(layer);
    if (first < held) {
        return tkv_fail(
            error, TKV_ERR_INVALID_ARGUMENT,
            "read from %d in layer %d: with a window of %d it has given back the tokens "
            "before position %d",
            first, index, layer->window, held);
    }
    TKV_TRY(tkv_layer_refresh(&cache->layers[index], error));
    return tkv_layer_load(layer, first, n_tokens, k, v, error);
}
