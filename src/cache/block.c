/* Blocks: memory and copies. */
#include "cache/block.h"
#include "base/allocate.h"
#include "base/error.h"

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

size_t tkv_block_bytes_of(const tkv_cache_layer *layer, bool is_exact, int n_slots)
{
    return sizeof(tkv_block) + (size_t)layer->n_kv_heads * pair_bytes(layer, is_exact, n_slots);
}

size_t tkv_block_bytes(const tkv_cache_layer *layer, const tkv_block *block)
{
    return tkv_block_bytes_of(layer, block->is_exact, block->n_slots);
}

static size_t pages_bytes(const tkv_cache_layer *layer, bool is_exact, int n_slots)
{
    return (size_t)layer->n_kv_heads * pair_bytes(layer, is_exact, n_slots);
}

tkv_status tkv_block_create(const tkv_cache_layer *layer, bool is_exact, int n_slots,
                            tkv_block **block, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    tkv_block *created = tkv_allocate(&layer->context->allocator, sizeof *created);
    uint64_t pages = 0;
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a block after %d tokens",
                        layer->n_tokens);
    }
    /* Zeroed: kernels read whole pages, and slots that no token has filled must decode to zero. */
    const tkv_status status =
        device->table->allocate(device, pages_bytes(layer, is_exact, n_slots), &pages, error);
    if (status != TKV_OK) {
        tkv_release(&layer->context->allocator, created);
        return status;
    }
    *created =
        (tkv_block){.is_exact = is_exact, .n_slots = n_slots, .device = device, .pages = pages};
    atomic_init(&created->n_owners, 1);
    *block = created;
    return TKV_OK;
}

void tkv_block_release(const tkv_cache_layer *layer, tkv_block *block)
{
    if (block && atomic_fetch_sub(&block->n_owners, 1) == 1) {
        block->device->table->release(block->device, block->pages);
        tkv_release(&layer->context->allocator, block);
    }
}

/* The page of a KV head in a block. */
static uint64_t page_of(const tkv_cache_layer *layer, const tkv_block *block, int kv_head,
                        tkv_page_order order)
{
    return block->pages +
           tkv_page_offset(kv_head, order == TKV_ORDER_VALUE,
                           page_bytes(layer, block->is_exact, block->n_slots, TKV_ORDER_KEY),
                           page_bytes(layer, block->is_exact, block->n_slots, TKV_ORDER_VALUE));
}

tkv_status tkv_block_copy(const tkv_cache_layer *layer, tkv_block *to, tkv_block *from, int n_slots,
                          tkv_error *error)
{
    tkv_device *device = to->device;
    if (to->n_slots == from->n_slots) {
        return device->table->copy(device, to->pages, from->pages,
                                   pages_bytes(layer, from->is_exact, from->n_slots), error);
    }
    for (int item = 0; item < layer->n_kv_heads * tkv_layer_orders(layer); item++) {
        const int head = item / tkv_layer_orders(layer);
        const tkv_page_order order =
            item % tkv_layer_orders(layer) ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
        TKV_TRY(device->table->copy(device, page_of(layer, to, head, order),
                                    page_of(layer, from, head, order),
                                    page_bytes(layer, true, n_slots, order), error));
    }
    return TKV_OK;
}
