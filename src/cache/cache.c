#include "cache/cache.h"
#include "codec/codec.h"
#include "common/error.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_ALIGNMENT 64
#define MAX_LAYERS 4096
#define MAX_KV_HEADS 4096

static size_t block_bytes(const tkv_cache *cache, const tkv_cache_layer *layer)
{
    return (size_t)cache->n_kv_heads * (layer->page_bytes_k + layer->page_bytes_v);
}

static tkv_status check_params(const tkv_cache_params *params, tkv_error *error)
{
    if (!params->types_k || !params->types_v) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "types_k or types_v is NULL");
    }
    if (params->n_layers < 1 || params->n_layers > MAX_LAYERS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_layers %d: expected 1 to %d",
                        params->n_layers, MAX_LAYERS);
    }
    if (params->n_kv_heads < 1 || params->n_kv_heads > MAX_KV_HEADS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_kv_heads %d: expected 1 to %d",
                        params->n_kv_heads, MAX_KV_HEADS);
    }
    if (params->max_tokens < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "max_tokens %d: expected at least 1",
                        params->max_tokens);
    }
    tkv_status status = TKV_OK;
    for (int i = 0; i < params->n_layers && status == TKV_OK; i++) {
        status = tkv_check_head_dim(params->types_k[i], params->head_dim_k, error);
        if (status == TKV_OK) {
            status = tkv_check_head_dim(params->types_v[i], params->head_dim_v, error);
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
    const tkv_status status = check_params(params, error);
    if (status != TKV_OK) {
        return status;
    }
    tkv_cache *created = calloc(1, sizeof *created);
    tkv_cache_layer *layers = calloc((size_t)params->n_layers, sizeof *layers);
    if (!created || !layers) {
        free(created);
        free(layers);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a cache of %d layers",
                        params->n_layers);
    }
    *created = (tkv_cache){context,
                           params->n_layers,
                           params->n_kv_heads,
                           params->head_dim_k,
                           params->head_dim_v,
                           params->max_tokens,
                           layers};
    for (int i = 0; i < params->n_layers; i++) {
        layers[i].type_k = params->types_k[i];
        layers[i].type_v = params->types_v[i];
        layers[i].page_bytes_k = tkv_page_bytes(layers[i].type_k, params->head_dim_k);
        layers[i].page_bytes_v = tkv_page_bytes(layers[i].type_v, params->head_dim_v);
    }
    *cache = created;
    return TKV_OK;
}

/* Frees the blocks from `n_blocks` on. */
static void drop_blocks(tkv_cache_layer *layer, int n_blocks)
{
    while (layer->n_blocks > n_blocks) {
        free(layer->blocks[--layer->n_blocks]);
    }
}

void tkv_cache_clear(tkv_cache *cache)
{
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        drop_blocks(layer, 0);
        free(layer->blocks);
        layer->blocks = NULL;
        layer->block_capacity = 0;
        layer->n_tokens = 0;
    }
}

void tkv_cache_free(tkv_cache *cache)
{
    if (!cache) {
        return;
    }
    tkv_cache_clear(cache);
    free(cache->layers);
    free(cache);
}

static tkv_status grow_table(tkv_cache_layer *layer, int n_blocks, tkv_error *error)
{
    if (n_blocks <= layer->block_capacity) {
        return TKV_OK;
    }
    int capacity = layer->block_capacity ? layer->block_capacity : 8;
    while (capacity < n_blocks) {
        capacity *= 2;
    }
    uint8_t **blocks = realloc(layer->blocks, (size_t)capacity * sizeof *blocks);
    if (!blocks) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of %d pages",
                        capacity);
    }
    layer->blocks = blocks;
    layer->block_capacity = capacity;
    return TKV_OK;
}

/* Allocates blocks until the layer has n_blocks; on failure none of the new ones stays. */
static tkv_status add_blocks(const tkv_cache *cache, tkv_cache_layer *layer, int n_blocks,
                             tkv_error *error)
{
    const int before = layer->n_blocks;
    const tkv_status status = grow_table(layer, n_blocks, error);
    if (status != TKV_OK) {
        return status;
    }
    const size_t bytes = block_bytes(cache, layer);
    while (layer->n_blocks < n_blocks) {
        uint8_t *block = aligned_alloc(PAGE_ALIGNMENT, bytes);
        if (!block) {
            drop_blocks(layer, before);
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                            "no memory for a page of %zu bytes at token %d", bytes,
                            before * TKV_PAGE_TOKENS);
        }
        /* Kernels read whole pages: slots that no token has filled must decode to zero. */
        memset(block, 0, bytes);
        layer->blocks[layer->n_blocks++] = block;
    }
    return TKV_OK;
}

static tkv_status check_finite(const tkv_cache *cache, int layer, int n_tokens, int head_dim,
                               const float *x, const char *what, tkv_error *error)
{
    const size_t row = (size_t)cache->n_kv_heads * (size_t)head_dim;
    const size_t n = (size_t)n_tokens * row;
    const size_t at = tkv_find_non_finite(n, x);
    if (at == n) {
        return TKV_OK;
    }
    return tkv_fail(error, TKV_ERR_NOT_FINITE,
                    "%s of layer %d, appended token %zu, KV head %zu, coordinate %zu is %g: "
                    "expected finite values",
                    what, layer, at / row, at % row / (size_t)head_dim, at % (size_t)head_dim,
                    (double)x[at]);
}

static tkv_status check_append(const tkv_cache *cache, int layer, int n_tokens, const float *k,
                               const float *v, tkv_error *error)
{
    if (!cache || !k || !v) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "cache, k or v is NULL");
    }
    if (layer < 0 || layer >= cache->n_layers || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "append of %d tokens to layer %d: expected layer 0 to %d and at least 0",
                        n_tokens, layer, cache->n_layers - 1);
    }
    const int length = cache->layers[layer].n_tokens;
    if (n_tokens > cache->max_tokens - length) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "cache is full: layer %d holds %d tokens, %d more exceed the maximum of %d",
                        layer, length, n_tokens, cache->max_tokens);
    }
    const tkv_status status =
        check_finite(cache, layer, n_tokens, cache->head_dim_k, k, "k", error);
    return status != TKV_OK
               ? status
               : check_finite(cache, layer, n_tokens, cache->head_dim_v, v, "v", error);
}

/* Encodes the appended tokens that fall into one block, for one KV head. */
static void encode_block(const tkv_cache *cache, const tkv_cache_layer *layer, int block,
                         int kv_head, int n_tokens, const float *k, const float *v)
{
    const tkv_kernels *kernels = cache->context->kernels;
    const int first = layer->n_tokens;
    const int block_start = block * TKV_PAGE_TOKENS;
    const int start = block_start > first ? block_start : first;
    const int end = block_start + TKV_PAGE_TOKENS < first + n_tokens ? block_start + TKV_PAGE_TOKENS
                                                                     : first + n_tokens;
    tkv_page_span span = {layer->type_k, TKV_ORDER_KEY, cache->head_dim_k, start - block_start,
                          end - start};
    const size_t stride_k = (size_t)cache->n_kv_heads * (size_t)cache->head_dim_k;
    kernels->encode(
        &span, k + (size_t)(start - first) * stride_k + (size_t)kv_head * (size_t)cache->head_dim_k,
        stride_k, tkv_cache_page(layer, block, kv_head, TKV_ORDER_KEY));
    span.type = layer->type_v;
    span.order = TKV_ORDER_VALUE;
    span.head_dim = cache->head_dim_v;
    const size_t stride_v = (size_t)cache->n_kv_heads * (size_t)cache->head_dim_v;
    kernels->encode(
        &span, v + (size_t)(start - first) * stride_v + (size_t)kv_head * (size_t)cache->head_dim_v,
        stride_v, tkv_cache_page(layer, block, kv_head, TKV_ORDER_VALUE));
}

tkv_status tkv_cache_append(tkv_cache *cache, int layer_index, int n_tokens, const float *k,
                            const float *v, tkv_error *error)
{
    tkv_status status = check_append(cache, layer_index, n_tokens, k, v, error);
    if (status != TKV_OK || n_tokens == 0) {
        return status;
    }
    tkv_cache_layer *layer = &cache->layers[layer_index];
    const int first_block = layer->n_tokens / TKV_PAGE_TOKENS;
    const int end_block = (layer->n_tokens + n_tokens - 1) / TKV_PAGE_TOKENS + 1;
    status = add_blocks(cache, layer, end_block, error);
    if (status != TKV_OK) {
        return status;
    }
    const int n_items = (end_block - first_block) * cache->n_kv_heads;
#pragma omp parallel for num_threads(cache->context->n_threads) if (n_items >= 8)
    for (int item = 0; item < n_items; item++) {
        encode_block(cache, layer, first_block + item / cache->n_kv_heads, item % cache->n_kv_heads,
                     n_tokens, k, v);
    }
    layer->n_tokens += n_tokens;
    return TKV_OK;
}

tkv_status tkv_cache_truncate(tkv_cache *cache, int n_tokens, tkv_error *error)
{
    if (!cache || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "truncate to %d tokens: expected a cache and at least 0", n_tokens);
    }
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        if (layer->n_tokens > n_tokens) {
            layer->n_tokens = n_tokens;
            drop_blocks(layer, (n_tokens + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS);
        }
    }
    return TKV_OK;
}

int tkv_cache_length(const tkv_cache *cache, int layer)
{
    return cache && layer >= 0 && layer < cache->n_layers ? cache->layers[layer].n_tokens : 0;
}

size_t tkv_cache_bytes(const tkv_cache *cache)
{
    size_t bytes = sizeof *cache + (size_t)cache->n_layers * sizeof *cache->layers;
    for (int i = 0; i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        bytes += (size_t)layer->block_capacity * sizeof *layer->blocks;
        bytes += (size_t)layer->n_blocks * block_bytes(cache, layer);
    }
    return bytes;
}

/* Decodes one token of one order for all KV heads. */
static void read_token(const tkv_cache *cache, const tkv_cache_layer *layer, int token,
                       tkv_page_order order, float *x)
{
    const bool is_key = order == TKV_ORDER_KEY;
    const int head_dim = is_key ? cache->head_dim_k : cache->head_dim_v;
    const tkv_page_span span = {is_key ? layer->type_k : layer->type_v, order, head_dim,
                                token % TKV_PAGE_TOKENS, 1};
    for (int head = 0; head < cache->n_kv_heads; head++) {
        cache->context->kernels->decode(&span,
                                        tkv_cache_page(layer, token / TKV_PAGE_TOKENS, head, order),
                                        x + (size_t)head * (size_t)head_dim, (size_t)head_dim);
    }
}

tkv_status tkv_cache_read(const tkv_cache *cache, int layer_index, int first, int n_tokens,
                          float *k, float *v, tkv_error *error)
{
    if (!cache) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "cache is NULL");
    }
    const int length = tkv_cache_length(cache, layer_index);
    if (first < 0 || n_tokens < 0 || first > length || n_tokens > length - first) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "read of %d tokens from %d in layer %d: it holds %d tokens", n_tokens,
                        first, layer_index, length);
    }
    for (int i = 0; i < n_tokens; i++) {
        const tkv_cache_layer *layer = &cache->layers[layer_index];
        const size_t heads = (size_t)i * (size_t)cache->n_kv_heads;
        if (k) {
            read_token(cache, layer, first + i, TKV_ORDER_KEY,
                       k + heads * (size_t)cache->head_dim_k);
        }
        if (v) {
            read_token(cache, layer, first + i, TKV_ORDER_VALUE,
                       v + heads * (size_t)cache->head_dim_v);
        }
    }
    return TKV_OK;
}
