#include "gate/device_layer.h"

#include "base/error.h"
#include "device/geometry.h"

#include <string.h>

int tkv_device_layer_start(const tkv_device_layer_fixture *f, int block)
{
    return tkv_block_place(f->layer.n_sinks, block);
}

int tkv_device_layer_rows(const tkv_device_layer_fixture *f, int block)
{
    const int next = tkv_device_layer_start(f, block + 1);
    return (next < f->n_tokens ? next : f->n_tokens) - tkv_device_layer_start(f, block);
}

size_t tkv_device_layer_page_bytes(const tkv_device_layer_fixture *f, int block,
                                   tkv_page_order order)
{
    const bool is_key = order == TKV_ORDER_KEY;
    const int head_dim = is_key ? f->layer.head_dim_k : f->layer.head_dim_v;
    if (f->blocks[block].is_exact) {
        return tkv_stored_page_bytes(TKV_TYPE_F16, head_dim, f->blocks[block].n_slots);
    }
    return tkv_page_bytes((tkv_type)(is_key ? f->layer.type_k : f->layer.type_v), head_dim);
}

tkv_status tkv_device_layer_buffer(tkv_device_layer_fixture *f, const void *from, size_t bytes,
                                   uint64_t *address, tkv_error *error)
{
    *address = 0;
    if (f->n_buffers == TKV_DEVICE_LAYER_MAX_BUFFERS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "more than %d buffers", f->n_buffers);
    }
    tkv_status status = f->device->table->allocate(f->device, bytes, address, error);
    if (status == TKV_OK) {
        f->buffers[f->n_buffers++] = *address;
        if (from) {
            status = f->device->table->upload(f->device, *address, from, bytes, error);
        }
    }
    return status;
}

static tkv_status add_block(tkv_device_layer_fixture *f, tkv_error *error)
{
    const int block = f->n_blocks;
    const int first = tkv_device_layer_start(f, block);
    const int n_room = tkv_device_layer_start(f, block + 1) - first;
    const bool is_f16 = f->layer.type_k == TKV_TYPE_F16 && f->layer.type_v == TKV_TYPE_F16;
    const bool is_exact = is_f16 || block < tkv_head_blocks(f->layer.n_sinks) ||
                          tkv_device_layer_rows(f, block) < n_room;
    f->blocks[block] = (tkv_device_block){
        .is_exact = is_exact, .n_slots = tkv_ceil_divide(n_room, TKV_EXACT_ROWS) * TKV_EXACT_ROWS};
    const size_t pair = tkv_device_layer_page_bytes(f, block, TKV_ORDER_KEY) +
                        tkv_device_layer_page_bytes(f, block, TKV_ORDER_VALUE);
    f->n_blocks++;
    return tkv_device_layer_buffer(f, NULL, (size_t)f->layer.n_kv_heads * pair,
                                   &f->blocks[block].pages, error);
}

tkv_status tkv_device_layer_create(tkv_device *device, const tkv_device_layer *layer, int n_tokens,
                                   const float *mean_k, const float *mean_v,
                                   tkv_device_layer_fixture *f, tkv_error *error)
{
    memset(f, 0, sizeof *f);
    f->device = device;
    f->layer = *layer;
    f->n_tokens = n_tokens;
    tkv_device_sequence sequence = {.n_tokens = n_tokens};
    tkv_status status = TKV_OK;
    while (status == TKV_OK && tkv_device_layer_start(f, f->n_blocks) < n_tokens) {
        status =
            f->n_blocks < TKV_DEVICE_LAYER_MAX_BLOCKS
                ? add_block(f, error)
                : tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "more than %d blocks", f->n_blocks);
    }
    const size_t n_heads = (size_t)layer->n_kv_heads;
    if (status == TKV_OK) {
        status = tkv_device_layer_buffer(f, f->blocks, (size_t)f->n_blocks * sizeof *f->blocks,
                                         &sequence.blocks, error);
    }
    if (status == TKV_OK && mean_k) {
        status =
            tkv_device_layer_buffer(f, mean_k, n_heads * (size_t)layer->head_dim_k * sizeof *mean_k,
                                    &sequence.mean_k, error);
    }
    if (status == TKV_OK && mean_v) {
        status =
            tkv_device_layer_buffer(f, mean_v, n_heads * (size_t)layer->head_dim_v * sizeof *mean_v,
                                    &sequence.mean_v, error);
    }
    sequence.n_blocks = f->n_blocks;
    return status == TKV_OK
               ? tkv_device_layer_buffer(f, &sequence, sizeof sequence, &f->sequence, error)
               : status;
}

void tkv_device_layer_free(tkv_device_layer_fixture *f)
{
    while (f->n_buffers > 0) {
        f->device->table->release(f->device, f->buffers[--f->n_buffers]);
    }
}
