#include "cache/cache.h"
#include "codec/codec.h"
#include "common/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAYERS 4096
#define MAX_KV_HEADS 4096
/* Rows times blocks that are worth threads. */
#define MIN_PARALLEL_ROWS 512

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
    tkv_status status = check_policy(params, error);
    if (status == TKV_OK) {
        status = tkv_check_rope(params->rope, params->head_dim_k, error);
    }
    for (int i = 0; i < params->n_layers && status == TKV_OK; i++) {
        status = tkv_check_head_dim(params->types_k[i], params->head_dim_k, error);
        if (status == TKV_OK) {
            status = tkv_check_head_dim(params->types_v[i], params->head_dim_v, error);
        }
    }
    return status;
}

static bool has_means(const tkv_cache_params *params, int layer)
{
    return params->centre_tokens > 0 &&
           (params->types_k[layer] != TKV_TYPE_F16 || params->types_v[layer] != TKV_TYPE_F16);
}

/* Marks the coordinates of keys that RoPE turns by less than a radian over the whole context. */
static void find_lasting_means(tkv_cache *cache, const tkv_rope *rope)
{
    for (int j = 0; j < cache->head_dim_k; j++) {
        cache->has_lasting_mean[j] = true;
    }
    for (int i = 0; rope && i < rope->n_rotated / 2; i++) {
        const bool lasts = fabsf(rope->frequencies[i]) * (float)cache->max_tokens < 1.0f;
        cache->has_lasting_mean[rope->is_interleaved ? 2 * i : i] = lasts;
        cache->has_lasting_mean[rope->is_interleaved ? 2 * i + 1 : i + rope->n_rotated / 2] = lasts;
    }
}

static tkv_status create_layers(tkv_cache *cache, const tkv_cache_params *params, tkv_error *error)
{
    for (int i = 0; i < params->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        layer->type_k = params->types_k[i];
        layer->type_v = params->types_v[i];
        if (!has_means(params, i)) {
            continue;
        }
        const size_t heads = (size_t)cache->n_kv_heads;
        layer->mean_k = calloc(heads * (size_t)cache->head_dim_k, sizeof(float));
        layer->mean_v = calloc(heads * (size_t)cache->head_dim_v, sizeof(float));
        if (!layer->mean_k || !layer->mean_v) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the means of layer %d", i);
        }
    }
    return TKV_OK;
}

tkv_status tkv_cache_create(tkv_context *context, const tkv_cache_params *params, tkv_cache **cache,
                            tkv_error *error)
{
    if (!context || !params || !cache) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context, params or result is NULL");
    }
    tkv_status status = check_params(params, error);
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
    *created = (tkv_cache){.context = context,
                           .n_layers = params->n_layers,
                           .n_kv_heads = params->n_kv_heads,
                           .head_dim_k = params->head_dim_k,
                           .head_dim_v = params->head_dim_v,
                           .max_tokens = params->max_tokens,
                           .n_sinks = params->n_sinks,
                           .n_recent = params->n_recent,
                           .centre_tokens = params->centre_tokens,
                           .layers = layers};
    find_lasting_means(created, params->rope);
    status = create_layers(created, params, error);
    if (status == TKV_OK && context->device) {
        status = tkv_cache_create_on_device(created, error);
    }
    if (status != TKV_OK) {
        tkv_cache_free(created);
        return status;
    }
    *cache = created;
    return TKV_OK;
}

void tkv_layer_drop_blocks(tkv_cache_layer *layer, int n_blocks)
{
    while (layer->n_blocks > n_blocks) {
        tkv_block_release(layer->blocks[--layer->n_blocks]);
    }
}

void tkv_layer_clear(const tkv_cache *cache, tkv_cache_layer *layer)
{
    tkv_layer_drop_blocks(layer, 0);
    free(layer->blocks);
    layer->blocks = NULL;
    layer->block_capacity = 0;
    layer->n_tokens = 0;
    layer->is_centred = false;
    if (layer->entries) {
        cache->context->device->table->release(cache->context->device, layer->entries);
        layer->entries = 0;
        layer->entry_capacity = 0;
    }
}

void tkv_cache_clear(tkv_cache *cache)
{
    if (!cache) {
        return;
    }
    cache->n_reserved = 0;
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_layer_clear(cache, &cache->layers[i]);
    }
}

void tkv_cache_free(tkv_cache *cache)
{
    if (!cache) {
        return;
    }
    tkv_cache_clear(cache);
    if (cache->context->device) {
        tkv_cache_free_on_device(cache);
    }
    for (int i = 0; i < cache->n_layers; i++) {
        free(cache->layers[i].mean_k);
        free(cache->layers[i].mean_v);
    }
    free(cache->layers);
    free(cache);
}

/* Whether a new block starts out exact: sinks stay so, others until they are coded. */
static bool starts_exact(const tkv_cache *cache, const tkv_cache_layer *layer, int block)
{
    if (layer->type_k == TKV_TYPE_F16 && layer->type_v == TKV_TYPE_F16) {
        return true;
    }
    return block < tkv_sink_blocks(cache) || cache->n_recent > 0 ||
           (cache->centre_tokens > 0 && !layer->is_centred);
}

tkv_status tkv_layer_add_blocks(const tkv_cache *cache, tkv_cache_layer *layer, int end,
                                tkv_error *error)
{
    const int before = layer->n_blocks;
    const int n_blocks = tkv_block_of(cache, end - 1) + 1;
    tkv_status status = tkv_layer_reserve(cache, layer, n_blocks, error);
    const int first_written = tkv_block_of(cache, layer->n_tokens);
    if (status == TKV_OK && first_written < before) {
        status = tkv_layer_own_block(cache, layer, first_written, error);
    }
    while (status == TKV_OK && layer->n_blocks < n_blocks) {
        const int index = layer->n_blocks;
        const bool is_exact = starts_exact(cache, layer, index);
        status = tkv_block_create(cache, layer, index, is_exact, &layer->blocks[index], error);
        if (status != TKV_OK) {
            tkv_layer_drop_blocks(layer, before);
            break;
        }
        layer->n_blocks++;
    }
    return status;
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
    if (cache->context->device) {
        return TKV_OK;
    }
    const tkv_status status =
        check_finite(cache, layer, n_tokens, cache->head_dim_k, k, "k", error);
    return status != TKV_OK
               ? status
               : check_finite(cache, layer, n_tokens, cache->head_dim_v, v, "v", error);
}

/* Positions of the appended tokens [begin, end) that fall into one block. */
typedef struct append_range {
    int begin;
    int end;
    int slot;
} append_range;

static append_range range_in_block(const tkv_cache *cache, int block, int begin, int end)
{
    const int start = tkv_block_start(cache, block);
    const int next = tkv_block_start(cache, block + 1);
    const int from = begin > start ? begin : start;
    return (append_range){from, end < next ? end : next, from - start};
}

typedef struct append_job {
    const tkv_cache *cache;
    const tkv_cache_layer *layer;
    int first_block;
    int n_tokens;
    const float *k; /* [n_tokens][n_kv_heads][head_dim_k] */
    const float *v;
} append_job;

/* The part of the rows that one page takes. */
static void store_page(void *argument, int item, int thread)
{
    (void)thread;
    const append_job *job = argument;
    const tkv_cache *cache = job->cache;
    const tkv_page_order order = item % 2 ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
    const int block = job->first_block + item / 2 / cache->n_kv_heads;
    const int kv_head = item / 2 % cache->n_kv_heads;
    const int first = job->layer->n_tokens;
    const append_range range = range_in_block(cache, block, first, first + job->n_tokens);
    const size_t head_dim = (size_t)tkv_cache_head_dim(cache, order);
    const size_t stride = (size_t)cache->n_kv_heads * head_dim;
    const float *x = (order == TKV_ORDER_KEY ? job->k : job->v) +
                     (size_t)(range.begin - first) * stride + (size_t)kv_head * head_dim;
    tkv_block_store(cache, job->layer, job->layer->blocks[block], kv_head, order, range.slot,
                    range.end - range.begin, x, stride);
}

static void store_on_cpu(const tkv_cache *cache, const tkv_cache_layer *layer, int n_tokens,
                         const float *k, const float *v)
{
    const int first_block = tkv_block_of(cache, layer->n_tokens);
    const int n_items = 2 * cache->n_kv_heads * (layer->n_blocks - first_block);
    const int n_threads = n_items * n_tokens >= MIN_PARALLEL_ROWS ? cache->context->n_threads : 1;
    append_job job = {cache, layer, first_block, n_tokens, k, v};
    tkv_threads_run(cache->context->threads, n_threads, n_items, store_page, &job);
}

static tkv_status store(const tkv_cache *cache, tkv_cache_layer *layer, int n_tokens,
                        const float *k, const float *v, tkv_error *error)
{
    if (!cache->context->device) {
        store_on_cpu(cache, layer, n_tokens, k, v);
        return TKV_OK;
    }
    const int first_block = tkv_block_of(cache, layer->n_tokens);
    const tkv_status status =
        tkv_layer_publish(cache, layer, first_block, layer->n_tokens + n_tokens, error);
    return status == TKV_OK ? tkv_layer_store_on_device(cache, layer, n_tokens, k, v, error)
                            : status;
}

tkv_status tkv_layer_append(const tkv_cache *cache, tkv_cache_layer *layer, int n_tokens,
                            const float *k, const float *v, tkv_error *error)
{
    const int first = layer->n_tokens;
    const int n_blocks = layer->n_blocks;
    tkv_status status = tkv_layer_add_blocks(cache, layer, first + n_tokens, error);
    if (status != TKV_OK) {
        return status;
    }
    status = store(cache, layer, n_tokens, k, v, error);
    if (status != TKV_OK) {
        tkv_layer_drop_blocks(layer, n_blocks);
        layer->is_stale = true;
        return status;
    }
    layer->n_tokens += n_tokens;
    tkv_layer_settle(cache, layer, first);
    return TKV_OK;
}

tkv_status tkv_cache_append(tkv_cache *cache, int layer, int n_tokens, const float *k,
                            const float *v, tkv_error *error)
{
    const tkv_status status = check_append(cache, layer, n_tokens, k, v, error);
    if (status != TKV_OK || n_tokens == 0) {
        return status;
    }
    if (cache->n_reserved == 0) {
        return tkv_layer_append(cache, &cache->layers[layer], n_tokens, k, v, error);
    }
    if (n_tokens != cache->n_reserved) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "append of %d tokens where %d are reserved", n_tokens, cache->n_reserved);
    }
    return tkv_layer_store_on_device(cache, &cache->layers[layer], n_tokens, k, v, error);
}

tkv_status tkv_cache_truncate(tkv_cache *cache, int n_tokens, tkv_error *error)
{
    if (!cache || n_tokens < 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "truncate to %d tokens: expected a cache and at least 0", n_tokens);
    }
    for (int i = 0; i < cache->n_layers; i++) {
        tkv_cache_layer *layer = &cache->layers[i];
        const int left = n_tokens < layer->n_tokens ? n_tokens : layer->n_tokens;
        if (left == 0) {
            tkv_layer_clear(cache, layer);
        } else if (left < layer->n_tokens || cache->n_reserved > 0) {
            layer->n_tokens = left;
            layer->is_stale = true;
            tkv_layer_drop_blocks(layer, tkv_block_of(cache, left - 1) + 1);
        }
    }
    cache->n_reserved = 0;
    return TKV_OK;
}

int tkv_cache_length(const tkv_cache *cache, int layer)
{
    return cache && layer >= 0 && layer < cache->n_layers ? cache->layers[layer].n_tokens : 0;
}

size_t tkv_cache_bytes(const tkv_cache *cache)
{
    if (!cache) {
        return 0;
    }
    size_t bytes = sizeof *cache + (size_t)cache->n_layers * sizeof *cache->layers;
    for (int i = 0; i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        bytes += (size_t)layer->block_capacity * sizeof *layer->blocks;
        for (int b = 0; b < layer->n_blocks; b++) {
            bytes += tkv_block_bytes(cache, layer, layer->blocks[b]);
        }
        if (layer->mean_k) {
            bytes += (size_t)cache->n_kv_heads * (size_t)(cache->head_dim_k + cache->head_dim_v) *
                     sizeof(float);
        }
        if (cache->context->device) {
            bytes += tkv_layer_device_bytes(cache, layer);
        }
    }
    return bytes;
}

size_t tkv_cache_shared_bytes(const tkv_cache *cache)
{
    size_t bytes = 0;
    for (int i = 0; cache && i < cache->n_layers; i++) {
        const tkv_cache_layer *layer = &cache->layers[i];
        for (int b = 0; b < layer->n_blocks; b++) {
            if (atomic_load(&layer->blocks[b]->n_owners) > 1) {
                bytes += tkv_block_bytes(cache, layer, layer->blocks[b]);
            }
        }
    }
    return bytes;
}

/* Decodes one token of one order for all KV heads. */
static void read_token(const tkv_cache *cache, const tkv_cache_layer *layer, int token,
                       tkv_page_order order, float *x)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    const int block = tkv_block_of(cache, token);
    for (int head = 0; head < cache->n_kv_heads; head++) {
        tkv_block_load(cache, layer, layer->blocks[block], head, order,
                       token - tkv_block_start(cache, block), 1,
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
    if (cache->context->device && n_tokens > 0) {
        return tkv_layer_load_on_device(cache, &cache->layers[layer_index], first, n_tokens, k, v,
                                        error);
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
