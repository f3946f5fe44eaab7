/* Blocks: memory, copies, and moving rows in and out of their pages. */
#include "cache/block.h"
#include "base/assert.h"
#include "base/error.h"
#include "base/half.h"

#include <stdlib.h>
#include <string.h>

static size_t page_bytes(const tkv_cache_layer *layer, bool is_exact, int n_slots,
                         tkv_page_order order)
{
    const tkv_type coded = order == TKV_ORDER_KEY ? layer->type_k : layer->type_v;
    const int padded = tkv_layer_padded(layer, order);
    return is_exact ? tkv_stored_page_bytes(TKV_TYPE_F16, padded, n_slots)
                    : tkv_stored_page_bytes((int)coded, padded, TKV_PAGE_TOKENS);
}

/* Keys and values of one KV head. A layer of keys only has no bytes of values. */
static size_t pair_bytes(const tkv_cache_layer *layer, bool is_exact, int n_slots)
{
    return page_bytes(layer, is_exact, n_slots, TKV_ORDER_KEY) +
           page_bytes(layer, is_exact, n_slots, TKV_ORDER_VALUE);
}

uint8_t *tkv_block_page(const tkv_cache_layer *layer, tkv_block *block, int kv_head,
                        tkv_page_order order)
{
    return (uint8_t *)block + TKV_BLOCK_HEADER +
           tkv_page_offset(kv_head, order == TKV_ORDER_VALUE,
                           page_bytes(layer, block->is_exact, block->n_slots, TKV_ORDER_KEY),
                           page_bytes(layer, block->is_exact, block->n_slots, TKV_ORDER_VALUE));
}

size_t tkv_block_bytes_of(const tkv_cache_layer *layer, bool is_exact, int n_slots)
{
    return TKV_BLOCK_HEADER + (size_t)layer->n_kv_heads * pair_bytes(layer, is_exact, n_slots);
}

size_t tkv_block_bytes(const tkv_cache_layer *layer, const tkv_block *block)
{
    return tkv_block_bytes_of(layer, block->is_exact, block->n_slots);
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

tkv_status tkv_block_create(const tkv_cache_layer *layer, bool is_exact, int n_slots,
                            tkv_block **block, tkv_error *error)
{
    const size_t bytes = tkv_block_bytes_of(layer, is_exact, n_slots);
    tkv_block *created = NULL;
    if (layer->context->device) {
        const tkv_status status =
            allocate_on_device(layer->context->device, bytes - TKV_BLOCK_HEADER, &created, error);
        if (status != TKV_OK) {
            return status;
        }
    } else {
        created = aligned_alloc(TKV_BLOCK_HEADER, bytes);
        if (!created) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                            "no memory for a page of %zu bytes after %d tokens", bytes,
                            layer->n_tokens);
        }
        /* Kernels read whole pages: slots that no token has filled must decode to zero. */
        memset(created, 0, bytes);
    }
    atomic_init(&created->n_owners, 1);
    created->is_exact = is_exact;
    created->n_slots = n_slots;
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

/* Both blocks have the same length. */
static tkv_status copy_whole(const tkv_cache_layer *layer, tkv_block *to, tkv_block *from,
                             tkv_error *error)
{
    const size_t bytes = tkv_block_bytes(layer, from) - TKV_BLOCK_HEADER;
    if (to->device) {
        return to->device->table->copy(to->device, to->pages, from->pages, bytes, error);
    }
    memcpy((uint8_t *)to + TKV_BLOCK_HEADER, (uint8_t *)from + TKV_BLOCK_HEADER, bytes);
    return TKV_OK;
}

tkv_status tkv_block_copy(const tkv_cache_layer *layer, tkv_block *to, tkv_block *from, int n_slots,
                          tkv_error *error)
{
    /* On a device blocks do not grow. */
    if (to->n_slots == from->n_slots || to->device) {
        return copy_whole(layer, to, from, error);
    }
    for (int item = 0; item < layer->n_kv_heads * tkv_layer_orders(layer); item++) {
        const int head = item / tkv_layer_orders(layer);
        const tkv_page_order order =
            item % tkv_layer_orders(layer) ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
        memcpy(tkv_block_page(layer, to, head, order), tkv_block_page(layer, from, head, order),
               page_bytes(layer, true, n_slots, order));
    }
    return TKV_OK;
}

/* The mean that is taken off the rows of a page, or NULL. */
static const float *page_mean(const tkv_cache_layer *layer, const tkv_block *block, int kv_head,
                              tkv_page_order order)
{
    if (!layer->is_centred || tkv_block_type(layer, block, order) == TKV_TYPE_F16) {
        return NULL;
    }
    const float *means = order == TKV_ORDER_KEY ? layer->mean_k : layer->mean_v;
    return means + (size_t)kv_head * (size_t)tkv_layer_padded(layer, order);
}

void tkv_block_encode(const tkv_cache_layer *layer, tkv_block *block, int kv_head,
                      tkv_page_order order, int first_slot, int n_rows, const float *src,
                      size_t stride)
{
    tkv_assert(first_slot >= 0 && n_rows >= 0 && n_rows <= block->n_slots - first_slot);
    const tkv_kernels *kernels = layer->context->kernels;
    const int padded = tkv_layer_padded(layer, order);
    const float *mean = page_mean(layer, block, kv_head, order);
    uint8_t *page = tkv_block_page(layer, block, kv_head, order);
    tkv_page_span span = {tkv_block_type(layer, block, order),
                          order,
                          padded,
                          first_slot,
                          n_rows,
                          layer->context->effort};
    if (!mean) {
        kernels->encode(&span, src, stride, page);
        return;
    }
    float centred[TKV_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < n_rows; done += span.n_rows) {
        span.first_slot = first_slot + done;
        span.n_rows = n_rows - done < TKV_CHUNK_ROWS ? n_rows - done : TKV_CHUNK_ROWS;
        for (int i = 0; i < span.n_rows; i++) {
            const float *row = src + (size_t)(done + i) * stride;
            for (int j = 0; j < padded; j++) {
                /* As if the row had waited in an exact block, so that it does not matter whether it
                 * did. */
                const float exact = tkv_half_to_float(tkv_float_to_finite_half(row[j]));
                centred[i * padded + j] = exact - mean[j];
            }
        }
        kernels->encode(&span, centred, (size_t)padded, page);
    }
}

void tkv_block_decode(const tkv_cache_layer *layer, tkv_block *block, int kv_head,
                      tkv_page_order order, int first_slot, int n_rows, float *dst, size_t stride)
{
    tkv_assert(first_slot >= 0 && n_rows >= 0 && n_rows <= block->n_slots - first_slot);
    const int padded = tkv_layer_padded(layer, order);
    const float *mean = page_mean(layer, block, kv_head, order);
    const tkv_page_span span = {
        tkv_block_type(layer, block, order), order, padded, first_slot, n_rows, TKV_EFFORT_DEFAULT};
    layer->context->kernels->decode(&span, tkv_block_page(layer, block, kv_head, order), dst,
                                    stride);
    for (int i = 0; mean && i < n_rows; i++) {
        for (int j = 0; j < padded; j++) {
            dst[(size_t)i * stride + (size_t)j] += mean[j];
        }
    }
}
