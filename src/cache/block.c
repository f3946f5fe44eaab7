/* Blocks: memory, sharing, and moving rows in and out of their pages. */
#include "cache/cache.h"
#include "common/error.h"
#include "common/half.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_ROWS 16

/* Exact pages are cut off after a multiple of this many rows. */
#define EXACT_ROW_GRANULE 16

int tkv_block_slots(const tkv_cache *cache, int index)
{
    const int n_tokens = tkv_block_start(cache, index + 1) - tkv_block_start(cache, index);
    return (n_tokens + EXACT_ROW_GRANULE - 1) / EXACT_ROW_GRANULE * EXACT_ROW_GRANULE;
}

static size_t page_bytes(const tkv_cache *cache, const tkv_cache_layer *layer,
                         const tkv_block *block, tkv_page_order order)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    if (block->is_exact) {
        return (size_t)block->n_slots * tkv_row_bytes(TKV_TYPE_F16, head_dim);
    }
    return tkv_page_bytes(tkv_block_type(layer, block, order), head_dim);
}

uint8_t *tkv_block_page(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                        int kv_head, tkv_page_order order)
{
    const size_t key_bytes = page_bytes(cache, layer, block, TKV_ORDER_KEY);
    const size_t pair = key_bytes + page_bytes(cache, layer, block, TKV_ORDER_VALUE);
    return (uint8_t *)block + TKV_BLOCK_HEADER + (size_t)kv_head * pair +
           (order == TKV_ORDER_VALUE ? key_bytes : 0);
}

size_t tkv_block_bytes(const tkv_cache *cache, const tkv_cache_layer *layer, const tkv_block *block)
{
    return TKV_BLOCK_HEADER +
           (size_t)cache->n_kv_heads * (page_bytes(cache, layer, block, TKV_ORDER_KEY) +
                                        page_bytes(cache, layer, block, TKV_ORDER_VALUE));
}

static tkv_status allocate_on_device(tkv_device *device, size_t bytes, tkv_block **block,
                                     tkv_error *error)
{
    tkv_block *created = aligned_alloc(TKV_BLOCK_HEADER, TKV_BLOCK_HEADER);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a page's header");
    }
    uint64_t pages = 0;
    const tkv_status status = device->table->allocate(device, bytes, &pages, error);
    if (status != TKV_OK) {
        free(created);
        return status;
    }
    *created = (tkv_block){.device = device, .pages = pages};
    *block = created;
    return TKV_OK;
}

tkv_status tkv_block_create(const tkv_cache *cache, const tkv_cache_layer *layer, int index,
                            bool is_exact, tkv_block **block, tkv_error *error)
{
    const tkv_block header = {
        .n_owners = 1, .is_exact = is_exact, .n_slots = tkv_block_slots(cache, index)};
    const size_t bytes = tkv_block_bytes(cache, layer, &header);
    tkv_block *created = NULL;
    if (cache->context->device) {
        const tkv_status status =
            allocate_on_device(cache->context->device, bytes - TKV_BLOCK_HEADER, &created, error);
        if (status != TKV_OK) {
            return status;
        }
    } else {
        created = aligned_alloc(TKV_BLOCK_HEADER, bytes);
        if (!created) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                            "no memory for a page of %zu bytes at token %d", bytes,
                            tkv_block_start(cache, index));
        }
        /* Kernels read whole pages: slots that no token has filled must decode to zero. */
        memset(created, 0, bytes);
    }
    atomic_init(&created->n_owners, 1);
    created->is_exact = header.is_exact;
    created->n_slots = header.n_slots;
    *block = created;
    return TKV_OK;
}

void tkv_block_release(tkv_block *block)
{
    if (block && atomic_fetch_sub(&block->n_owners, 1) == 1) {
        if (block->device) {
            block->device->table->release(block->device, block->pages);
        }
        free(block);
    }
}

tkv_status tkv_layer_reserve(const tkv_cache *cache, tkv_cache_layer *layer, int n_blocks,
                             tkv_error *error)
{
    int capacity = layer->block_capacity ? layer->block_capacity : 8;
    while (capacity < n_blocks) {
        capacity *= 2;
    }
    if (capacity > layer->block_capacity) {
        tkv_block **blocks = realloc(layer->blocks, (size_t)capacity * sizeof *blocks);
        if (!blocks) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of %d pages",
                            capacity);
        }
        layer->blocks = blocks;
        layer->block_capacity = capacity;
    }
    return cache->context->device ? tkv_layer_reserve_on_device(cache, layer, error) : TKV_OK;
}

static tkv_status copy_pages(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *to,
                             tkv_block *from, tkv_error *error)
{
    const size_t bytes = tkv_block_bytes(cache, layer, from) - TKV_BLOCK_HEADER;
    if (to->device) {
        return to->device->table->copy(to->device, to->pages, from->pages, bytes, error);
    }
    memcpy((uint8_t *)to + TKV_BLOCK_HEADER, (uint8_t *)from + TKV_BLOCK_HEADER, bytes);
    return TKV_OK;
}

tkv_status tkv_layer_own_block(const tkv_cache *cache, tkv_cache_layer *layer, int block,
                               tkv_error *error)
{
    tkv_block *shared = layer->blocks[block];
    if (atomic_load(&shared->n_owners) == 1) {
        return TKV_OK;
    }
    tkv_block *copy = NULL;
    tkv_status status = tkv_block_create(cache, layer, block, shared->is_exact, &copy, error);
    if (status != TKV_OK) {
        return status;
    }
    status = copy_pages(cache, layer, copy, shared, error);
    layer->blocks[block] = copy;
    if (status == TKV_OK && cache->context->device) {
        status = tkv_layer_publish_blocks(cache, layer, block, block + 1, error);
    }
    if (status != TKV_OK) {
        layer->blocks[block] = shared;
        tkv_block_release(copy);
        return status;
    }
    tkv_block_release(shared);
    return TKV_OK;
}

/* The mean that is taken off the rows of a page, or NULL. */
static const float *page_mean(const tkv_cache *cache, const tkv_cache_layer *layer,
                              const tkv_block *block, int kv_head, tkv_page_order order)
{
    if (!layer->is_centred || tkv_block_type(layer, block, order) == TKV_TYPE_F16) {
        return NULL;
    }
    const float *means = order == TKV_ORDER_KEY ? layer->mean_k : layer->mean_v;
    return means + (size_t)kv_head * (size_t)tkv_cache_head_dim(cache, order);
}

void tkv_block_store(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                     int kv_head, tkv_page_order order, int first_slot, int n_rows,
                     const float *src, size_t stride)
{
    const tkv_kernels *kernels = cache->context->kernels;
    const int head_dim = tkv_cache_head_dim(cache, order);
    const float *mean = page_mean(cache, layer, block, kv_head, order);
    uint8_t *page = tkv_block_page(cache, layer, block, kv_head, order);
    tkv_page_span span = {tkv_block_type(layer, block, order),
                          order,
                          head_dim,
                          first_slot,
                          n_rows,
                          cache->context->effort};
    if (!mean) {
        kernels->encode(&span, src, stride, page);
        return;
    }
    float centred[CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < n_rows; done += span.n_rows) {
        span.first_slot = first_slot + done;
        span.n_rows = n_rows - done < CHUNK_ROWS ? n_rows - done : CHUNK_ROWS;
        for (int i = 0; i < span.n_rows; i++) {
            const float *row = src + (size_t)(done + i) * stride;
            for (int j = 0; j < head_dim; j++) {
                /* As if the row had waited in an exact block, so that it does not matter whether it
                 * did. */
                const float exact = tkv_half_to_float(tkv_float_to_finite_half(row[j]));
                centred[i * head_dim + j] = exact - mean[j];
            }
        }
        kernels->encode(&span, centred, (size_t)head_dim, page);
    }
}

void tkv_block_load(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                    int kv_head, tkv_page_order order, int first_slot, int n_rows, float *dst,
                    size_t stride)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    const float *mean = page_mean(cache, layer, block, kv_head, order);
    const tkv_page_span span = {tkv_block_type(layer, block, order),
                                order,
                                head_dim,
                                first_slot,
                                n_rows,
                                TKV_EFFORT_DEFAULT};
    cache->context->kernels->decode(&span, tkv_block_page(cache, layer, block, kv_head, order), dst,
                                    stride);
    for (int i = 0; mean && i < n_rows; i++) {
        for (int j = 0; j < head_dim; j++) {
            dst[(size_t)i * stride + (size_t)j] += mean[j];
        }
    }
}
