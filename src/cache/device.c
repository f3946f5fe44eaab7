/* A cache whose pages are in a device's memory: what its kernels read is written there, and rows
 * move through the device's table. */
#include "cache/cache.h"
#include "common/error.h"

#include <stdlib.h>

/* Entries of the page table that are written at a time. */
#define ENTRIES_A_CALL 128

/* Descriptors that are written at a time. */
#define DESCRIPTORS_A_CALL 128

/* Blocks that are coded at a time: bounds the memory for their rows. */
#define BLOCKS_A_CALL 16

/* A descriptor and what aligns the entries behind it. */
#define DESCRIPTOR_ROOM 64

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

static float *pointer_to(uint64_t address)
{
    return (float *)(uintptr_t)address;
}

static size_t means_bytes(const tkv_cache *cache)
{
    return (size_t)cache->n_kv_heads * (size_t)(cache->head_dim_k + cache->head_dim_v) *
           sizeof(float);
}

static uint64_t mean_v_address(const tkv_cache *cache, const tkv_cache_layer *layer)
{
    return layer->means + (uint64_t)cache->n_kv_heads * (uint64_t)cache->head_dim_k * sizeof(float);
}

tkv_device_layer tkv_describe_layer(const tkv_cache *cache, const tkv_cache_layer *layer)
{
    return (tkv_device_layer){.type_k = (int32_t)layer->type_k,
                              .type_v = (int32_t)layer->type_v,
                              .n_kv_heads = cache->n_kv_heads,
                              .head_dim_k = cache->head_dim_k,
                              .head_dim_v = cache->head_dim_v,
                              .n_sinks = cache->n_sinks,
                              .effort = (int32_t)cache->context->effort};
}

tkv_device_sequence tkv_describe_sequence(const tkv_cache *cache, const tkv_cache_layer *layer,
                                          int n_tokens)
{
    return (tkv_device_sequence){.blocks = layer->entries,
                                 .mean_k = layer->is_centred ? layer->means : 0,
                                 .mean_v = layer->is_centred ? mean_v_address(cache, layer) : 0,
                                 .n_tokens = n_tokens,
                                 .n_blocks = layer->n_blocks};
}

static tkv_status create_means(const tkv_cache *cache, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    tkv_status status = TKV_OK;
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        if (cache->layers[i].mean_k) {
            status =
                device->table->allocate(device, means_bytes(cache), &cache->layers[i].means, error);
        }
    }
    return status;
}

tkv_status tkv_cache_create_on_device(tkv_cache *cache, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const size_t bytes = (size_t)cache->n_layers * sizeof(tkv_device_sequence);
    const tkv_status status = device->table->allocate(device, bytes, &cache->descriptors, error);
    if (status != TKV_OK) {
        return status;
    }
    for (int i = 0; i < cache->n_layers; i++) {
        cache->layers[i].descriptor =
            cache->descriptors + (uint64_t)i * sizeof(tkv_device_sequence);
    }
    return create_means(cache, error);
}

static void release(tkv_device *device, uint64_t address)
{
    if (address) {
        device->table->release(device, address);
    }
}

void tkv_cache_free_on_device(tkv_cache *cache)
{
    tkv_device *device = cache->context->device;
    for (int i = 0; i < cache->n_layers; i++) {
        release(device, cache->layers[i].means);
    }
    release(device, cache->descriptors);
}

size_t tkv_layer_device_bytes(const tkv_cache *cache, const tkv_cache_layer *layer)
{
    return sizeof(tkv_device_sequence) + (size_t)layer->entry_capacity * sizeof(tkv_device_block) +
           (layer->means ? means_bytes(cache) : 0);
}

static tkv_device_block describe_block(const tkv_block *block)
{
    return (tkv_device_block){block->pages, block->is_exact,
                              block->is_exact ? block->n_slots : TKV_PAGE_TOKENS};
}

tkv_status tkv_layer_publish_blocks(const tkv_cache *cache, const tkv_cache_layer *layer,
                                    int first_block, int end_block, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    tkv_device_block entries[ENTRIES_A_CALL];
    tkv_status status = TKV_OK;
    for (int b = first_block; status == TKV_OK && b < end_block;) {
        const int first = b;
        for (; b < end_block && b - first < ENTRIES_A_CALL; b++) {
            entries[b - first] = describe_block(layer->blocks[b]);
        }
        status = device->table->upload(device, layer->entries + (uint64_t)first * sizeof *entries,
                                       entries, (size_t)(b - first) * sizeof *entries, error);
    }
    return status;
}

tkv_status tkv_layer_publish(const tkv_cache *cache, tkv_cache_layer *layer, int first_block,
                             int n_tokens, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    if (!device) {
        return TKV_OK;
    }
    const tkv_status status =
        tkv_layer_publish_blocks(cache, layer, first_block, layer->n_blocks, error);
    if (status != TKV_OK) {
        return status;
    }
    const tkv_device_sequence sequence = tkv_describe_sequence(cache, layer, n_tokens);
    layer->is_stale = true;
    const tkv_status uploaded =
        device->table->upload(device, layer->descriptor, &sequence, sizeof sequence, error);
    layer->is_stale = uploaded != TKV_OK;
    return uploaded;
}

tkv_status tkv_cache_publish_descriptors(const tkv_cache *cache, int n_more, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    tkv_device_sequence sequences[DESCRIPTORS_A_CALL];
    tkv_status status = TKV_OK;
    for (int i = 0; device && i < cache->n_layers;) {
        const int first = i;
        for (; i < cache->n_layers && i - first < DESCRIPTORS_A_CALL; i++) {
            const tkv_cache_layer *layer = &cache->layers[i];
            sequences[i - first] = tkv_describe_sequence(cache, layer, layer->n_tokens + n_more);
        }
        if (status == TKV_OK) {
            status = device->table->upload(
                device, cache->descriptors + (uint64_t)first * sizeof *sequences, sequences,
                (size_t)(i - first) * sizeof *sequences, error);
        }
        for (int l = first; l < i; l++) {
            cache->layers[l].is_stale = status != TKV_OK;
        }
    }
    return status;
}

tkv_status tkv_layer_publish_means(const tkv_cache *cache, const tkv_cache_layer *layer,
                                   tkv_error *error)
{
    tkv_device *device = cache->context->device;
    if (!device) {
        return TKV_OK;
    }
    const size_t heads = (size_t)cache->n_kv_heads;
    const tkv_status status =
        device->table->upload(device, layer->means, layer->mean_k,
                              heads * (size_t)cache->head_dim_k * sizeof(float), error);
    if (status != TKV_OK) {
        return status;
    }
    return device->table->upload(device, mean_v_address(cache, layer), layer->mean_v,
                                 heads * (size_t)cache->head_dim_v * sizeof(float), error);
}

tkv_status tkv_layer_reserve_on_device(const tkv_cache *cache, tkv_cache_layer *layer,
                                       tkv_error *error)
{
    tkv_device *device = cache->context->device;
    if (layer->entry_capacity >= layer->block_capacity) {
        return TKV_OK;
    }
    const uint64_t old = layer->entries;
    tkv_status status = device->table->allocate(
        device, (size_t)layer->block_capacity * sizeof(tkv_device_block), &layer->entries, error);
    if (status != TKV_OK) {
        layer->entries = old;
        return status;
    }
    status = tkv_layer_publish(cache, layer, 0, layer->n_tokens, error);
    if (status != TKV_OK) {
        release(device, layer->entries);
        layer->entries = old;
        return status;
    }
    layer->entry_capacity = layer->block_capacity;
    release(device, old);
    return TKV_OK;
}

tkv_status tkv_layer_store_on_device(const tkv_cache *cache, const tkv_cache_layer *layer,
                                     int n_tokens, const float *k, const float *v, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const tkv_device_layer described = tkv_describe_layer(cache, layer);
    /* Counted from the end, so that a captured store writes what is reserved when it is replayed.
     */
    return device->table->store(device, &described, layer->descriptor, 1, -1, n_tokens,
                                address_of(k), address_of(v), error);
}

tkv_status tkv_layer_load_on_device(const tkv_cache *cache, const tkv_cache_layer *layer, int first,
                                    int n_tokens, float *k, float *v, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const tkv_device_layer described = tkv_describe_layer(cache, layer);
    return device->table->load(device, &described, layer->descriptor, first, n_tokens,
                               address_of(k), address_of(v), error);
}

/* Memory for the rows of n_tokens tokens, keys and values. */
static tkv_status row_buffers(const tkv_cache *cache, int n_tokens, uint64_t *k, uint64_t *v,
                              tkv_error *error)
{
    const size_t rows = (size_t)n_tokens * (size_t)cache->n_kv_heads;
    const size_t k_bytes = rows * (size_t)cache->head_dim_k * sizeof(float);
    const size_t v_bytes = rows * (size_t)cache->head_dim_v * sizeof(float);
    const tkv_status status =
        tkv_context_workspace(cache->context, TKV_WORKSPACE_ROWS, k_bytes + v_bytes, k, error);
    *v = *k + k_bytes;
    return status;
}

tkv_status tkv_layer_download(const tkv_cache *cache, const tkv_cache_layer *layer, int first,
                              int n_tokens, float *k, float *v, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const size_t width_k = (size_t)cache->n_kv_heads * (size_t)cache->head_dim_k;
    const size_t width_v = (size_t)cache->n_kv_heads * (size_t)cache->head_dim_v;
    const int chunk = BLOCKS_A_CALL * TKV_PAGE_TOKENS;
    for (int done = 0; done < n_tokens; done += chunk) {
        const int n = n_tokens - done < chunk ? n_tokens - done : chunk;
        uint64_t rows_k = 0;
        uint64_t rows_v = 0;
        tkv_status status = row_buffers(cache, n, &rows_k, &rows_v, error);
        if (status == TKV_OK) {
            status = tkv_layer_load_on_device(cache, layer, first + done, n,
                                              k ? pointer_to(rows_k) : NULL,
                                              v ? pointer_to(rows_v) : NULL, error);
        }
        if (status == TKV_OK && k) {
            status = device->table->download(device, k + (size_t)done * width_k, rows_k,
                                             (size_t)n * width_k * sizeof *k, error);
        }
        if (status == TKV_OK && v) {
            status = device->table->download(device, v + (size_t)done * width_v, rows_v,
                                             (size_t)n * width_v * sizeof *v, error);
        }
        if (status != TKV_OK) {
            return status;
        }
    }
    return TKV_OK;
}

tkv_status tkv_layer_append_from_host(const tkv_cache *cache, tkv_cache_layer *layer, int n_tokens,
                                      const float *k, const float *v, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const size_t rows = (size_t)n_tokens * (size_t)cache->n_kv_heads;
    uint64_t rows_k = 0;
    uint64_t rows_v = 0;
    tkv_status status = row_buffers(cache, n_tokens, &rows_k, &rows_v, error);
    if (status == TKV_OK) {
        status = device->table->upload(device, rows_k, k,
                                       rows * (size_t)cache->head_dim_k * sizeof *k, error);
    }
    if (status == TKV_OK) {
        status = device->table->upload(device, rows_v, v,
                                       rows * (size_t)cache->head_dim_v * sizeof *v, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    return tkv_layer_append(cache, layer, n_tokens, pointer_to(rows_k), pointer_to(rows_v), error);
}

/* Memory of one step of coding: rows, and a page table of its own. */
typedef struct code_buffers {
    uint64_t k;
    uint64_t v;
    uint64_t sequence; /* tkv_device_sequence */
    uint64_t entries;  /* tkv_device_block [BLOCKS_A_CALL] */
} code_buffers;

static tkv_status place_code_buffers(const tkv_cache *cache, code_buffers *buffers)
{
    const size_t rows = (size_t)BLOCKS_A_CALL * TKV_PAGE_TOKENS * (size_t)cache->n_kv_heads;
    const size_t k_bytes = rows * (size_t)cache->head_dim_k * sizeof(float);
    const size_t v_bytes = rows * (size_t)cache->head_dim_v * sizeof(float);
    const size_t bytes =
        k_bytes + v_bytes + DESCRIPTOR_ROOM + BLOCKS_A_CALL * sizeof(tkv_device_block);
    const tkv_status status =
        tkv_context_workspace(cache->context, TKV_WORKSPACE_ROWS, bytes, &buffers->k, NULL);
    buffers->v = buffers->k + k_bytes;
    buffers->sequence = buffers->v + v_bytes;
    buffers->entries = buffers->sequence + DESCRIPTOR_ROOM;
    return status;
}

/* Writes what the coded blocks make of the layer beside its own page table, which thus changes when
 * they are filled. Entry `first` of that table is its first. */
static tkv_status describe_coded(const tkv_cache *cache, const tkv_cache_layer *layer, int first,
                                 int n_blocks, tkv_block *const *coded, const code_buffers *buffers)
{
    tkv_device *device = cache->context->device;
    tkv_device_block entries[BLOCKS_A_CALL];
    for (int i = 0; i < n_blocks; i++) {
        entries[i] = describe_block(coded[i]);
    }
    tkv_device_sequence sequence = tkv_describe_sequence(cache, layer, layer->n_tokens);
    sequence.blocks = buffers->entries - (uint64_t)first * sizeof *entries;
    const tkv_status status = device->table->upload(device, buffers->entries, entries,
                                                    (size_t)n_blocks * sizeof *entries, NULL);
    return status == TKV_OK
               ? device->table->upload(device, buffers->sequence, &sequence, sizeof sequence, NULL)
               : status;
}

/* Fills the coded blocks with the rows of the n_tokens tokens of the exact ones in the layer. */
static tkv_status fill_coded(const tkv_cache *cache, const tkv_cache_layer *layer, int first,
                             int n_blocks, tkv_block *const *coded, int n_tokens)
{
    tkv_device *device = cache->context->device;
    const tkv_device_layer described = tkv_describe_layer(cache, layer);
    const int start = tkv_block_start(cache, first);
    code_buffers buffers;
    tkv_status status = place_code_buffers(cache, &buffers);
    if (status == TKV_OK) {
        status = describe_coded(cache, layer, first, n_blocks, coded, &buffers);
    }
    if (status == TKV_OK) {
        status = device->table->load(device, &described, layer->descriptor, start, n_tokens,
                                     buffers.k, buffers.v, NULL);
    }
    if (status == TKV_OK) {
        status = device->table->store(device, &described, buffers.sequence, 1, start, n_tokens,
                                      buffers.k, buffers.v, NULL);
    }
    return status;
}

/* Codes n_blocks exact blocks from `first` on, all of them or, on failure, none. */
static void code_blocks(const tkv_cache *cache, tkv_cache_layer *layer, int first, int n_blocks,
                        tkv_block **coded)
{
    const int start = tkv_block_start(cache, first);
    const int end = tkv_block_start(cache, first + n_blocks);
    const int n_tokens = (end < layer->n_tokens ? end : layer->n_tokens) - start;
    tkv_block *exact[BLOCKS_A_CALL];
    tkv_status status = fill_coded(cache, layer, first, n_blocks, coded, n_tokens);
    for (int i = 0; i < n_blocks; i++) {
        exact[i] = layer->blocks[first + i];
        layer->blocks[first + i] = coded[i];
    }
    if (status == TKV_OK) {
        status = tkv_layer_publish_blocks(cache, layer, first, first + n_blocks, NULL);
    }
    for (int i = 0; i < n_blocks; i++) {
        layer->blocks[first + i] = status == TKV_OK ? coded[i] : exact[i];
        tkv_block_release(status == TKV_OK ? exact[i] : coded[i]);
    }
}

void tkv_layer_code_on_device(const tkv_cache *cache, tkv_cache_layer *layer, int first, int end)
{
    while (first < end) {
        tkv_block *coded[BLOCKS_A_CALL];
        int n = 0;
        while (n < BLOCKS_A_CALL && first + n < end &&
               tkv_block_create(cache, layer, first + n, false, &coded[n], NULL) == TKV_OK) {
            n++;
        }
        if (n == 0) {
            return;
        }
        code_blocks(cache, layer, first, n, coded);
        first += n;
    }
}
