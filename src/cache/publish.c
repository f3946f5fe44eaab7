/* What the kernels of a device read of a layer, written there. */
#include "cache/publish.h"
#include "base/error.h"

#include <stdlib.h>

/* Entries of the page table that are written at a time. */
#define ENTRIES_A_CALL 128

static size_t means_bytes(const tkv_cache_layer *layer)
{
    return (size_t)layer->n_kv_heads * (size_t)(layer->padded_k + layer->padded_v) * sizeof(float);
}

static uint64_t mean_v_address(const tkv_cache_layer *layer)
{
    return layer->means + (uint64_t)layer->n_kv_heads * (uint64_t)layer->padded_k * sizeof(float);
}

tkv_device_layer tkv_describe_layer(const tkv_cache_layer *layer, const tkv_segment *segment)
{
    return (tkv_device_layer){.type_k = (int32_t)layer->type_k,
                              .type_v = (int32_t)layer->type_v,
                              .n_kv_heads = layer->n_kv_heads,
                              .head_dim_k = layer->padded_k,
                              .head_dim_v = layer->padded_v,
                              .n_sinks = segment ? segment->head : layer->head,
                              .effort = (int32_t)layer->context->effort};
}

tkv_device_sequence tkv_describe_segment(const tkv_cache_layer *layer, const tkv_segment *segment,
                                         int n_more)
{
    const uint64_t first = segment ? (uint64_t)segment->first_block : 0;
    return (tkv_device_sequence){.blocks = layer->entries + first * sizeof(tkv_device_block),
                                 .mean_k = layer->is_centred ? layer->means : 0,
                                 .mean_v = layer->is_centred ? mean_v_address(layer) : 0,
                                 .n_tokens = (segment ? segment->end : 0) + n_more,
                                 .n_blocks = segment ? segment->n_blocks : 0};
}

uint64_t tkv_segment_descriptor(const tkv_cache_layer *layer, int segment)
{
    return segment + 1 < layer->n_segments
               ? layer->earlier + (uint64_t)segment * sizeof(tkv_device_sequence)
               : layer->descriptor;
}

static void release(tkv_device *device, uint64_t *address)
{
    if (*address) {
        device->table->release(device, *address);
        *address = 0;
    }
}

void tkv_layer_free_on_device(tkv_cache_layer *layer)
{
    tkv_device *device = layer->context->device;
    release(device, &layer->entries);
    release(device, &layer->earlier);
    release(device, &layer->turns);
    layer->entry_capacity = layer->earlier_capacity = layer->turn_capacity = 0;
}

size_t tkv_layer_device_bytes(const tkv_cache_layer *layer)
{
    return (size_t)(1 + layer->earlier_capacity) * sizeof(tkv_device_sequence) +
           (size_t)layer->entry_capacity * sizeof(tkv_device_block) +
           (size_t)layer->turn_capacity * (size_t)layer->rope.n_rotated * sizeof(float) +
           (layer->means ? means_bytes(layer) : 0);
}

static tkv_device_block describe_block(const tkv_block *block)
{
    return (tkv_device_block){block->pages, block->is_exact, block->n_slots};
}

tkv_status tkv_layer_publish_blocks(const tkv_cache_layer *layer, int first_block, int end_block,
                                    tkv_error *error)
{
    tkv_device *device = layer->context->device;
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

tkv_status tkv_layer_publish(tkv_cache_layer *layer, int first_block, int n_more, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    if (!device) {
        return TKV_OK;
    }
    const tkv_status status = tkv_layer_publish_blocks(layer, first_block, layer->n_blocks, error);
    if (status != TKV_OK) {
        return status;
    }
    const tkv_device_sequence sequence =
        tkv_describe_segment(layer, tkv_last_segment(layer), n_more);
    layer->is_stale = true;
    const tkv_status uploaded =
        device->table->upload(device, layer->descriptor, &sequence, sizeof sequence, error);
    layer->is_stale = uploaded != TKV_OK;
    return uploaded;
}

/* The turns of the segments side by side: that of the last one first. */
uint64_t tkv_segment_turns(const tkv_cache_layer *layer, int segment)
{
    if (!layer->segments[segment].turns) {
        return 0;
    }
    const int place = segment + 1 < layer->n_segments ? segment + 1 : 0;
    return layer->turns + (uint64_t)place * (uint64_t)layer->rope.n_rotated * sizeof(float);
}

static tkv_status upload_turns(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const size_t bytes = (size_t)layer->rope.n_rotated * sizeof(float);
    bool is_any = false;
    for (int s = 0; s < layer->n_segments; s++) {
        is_any |= layer->segments[s].turns && bytes > 0;
    }
    if (!is_any) {
        return TKV_OK;
    }
    tkv_status status =
        device->table->allocate(device, (size_t)layer->n_segments * bytes, &layer->turns, error);
    layer->turn_capacity = status == TKV_OK ? layer->n_segments : 0;
    for (int s = 0; s < layer->n_segments && status == TKV_OK; s++) {
        if (layer->segments[s].turns) {
            status = device->table->upload(device, tkv_segment_turns(layer, s),
                                           layer->segments[s].turns, bytes, error);
        }
    }
    return status;
}

static tkv_status upload_earlier(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const int n = layer->n_segments - 1;
    if (n < 1) {
        return TKV_OK;
    }
    tkv_status status = device->table->allocate(device, (size_t)n * sizeof(tkv_device_sequence),
                                                &layer->earlier, error);
    layer->earlier_capacity = status == TKV_OK ? n : 0;
    for (int s = 0; s < n && status == TKV_OK; s++) {
        const tkv_device_sequence sequence = tkv_describe_segment(layer, &layer->segments[s], 0);
        status = device->table->upload(device, tkv_segment_descriptor(layer, s), &sequence,
                                       sizeof sequence, error);
    }
    return status;
}

tkv_status tkv_layer_renew_on_device(tkv_cache_layer *layer, tkv_layer_tables *old,
                                     tkv_error *error)
{
    tkv_device *device = layer->context->device;
    *old = (tkv_layer_tables){layer->entries,          layer->entry_capacity, layer->earlier,
                              layer->earlier_capacity, layer->turns,          layer->turn_capacity};
    layer->entries = layer->earlier = layer->turns = 0;
    layer->entry_capacity = layer->earlier_capacity = layer->turn_capacity = 0;
    tkv_status status = TKV_OK;
    if (layer->block_capacity > 0) {
        status = device->table->allocate(device,
                                         (size_t)layer->block_capacity * sizeof(tkv_device_block),
                                         &layer->entries, error);
        layer->entry_capacity = status == TKV_OK ? layer->block_capacity : 0;
    }
    if (status == TKV_OK) {
        status = tkv_layer_publish_blocks(layer, 0, layer->n_blocks, error);
    }
    if (status == TKV_OK) {
        status = upload_earlier(layer, error);
    }
    if (status == TKV_OK) {
        status = upload_turns(layer, error);
    }
    if (status != TKV_OK) {
        tkv_layer_restore_on_device(layer, old);
    }
    return status;
}

void tkv_layer_restore_on_device(tkv_cache_layer *layer, const tkv_layer_tables *old)
{
    tkv_layer_free_on_device(layer);
    layer->entries = old->entries;
    layer->entry_capacity = old->entry_capacity;
    layer->earlier = old->earlier;
    layer->earlier_capacity = old->earlier_capacity;
    layer->turns = old->turns;
    layer->turn_capacity = old->turn_capacity;
}

void tkv_release_tables(tkv_device *device, tkv_layer_tables *old)
{
    release(device, &old->entries);
    release(device, &old->earlier);
    release(device, &old->turns);
}

tkv_status tkv_layer_publish_segments(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_layer_tables old;
    tkv_status status = tkv_layer_renew_on_device(layer, &old, error);
    if (status != TKV_OK) {
        return status;
    }
    status = tkv_layer_publish(layer, layer->n_blocks, 0, error);
    if (status != TKV_OK) {
        tkv_layer_restore_on_device(layer, &old);
        return status;
    }
    layer->n_renewals += layer->n_segments > 1;
    tkv_release_tables(layer->context->device, &old);
    return TKV_OK;
}

tkv_status tkv_layer_refresh(tkv_cache_layer *layer, tkv_error *error)
{
    return layer->is_stale ? tkv_layer_publish_segments(layer, error) : TKV_OK;
}

tkv_status tkv_layer_publish_means(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    if (!device) {
        return TKV_OK;
    }
    tkv_status status =
        layer->means ? TKV_OK
                     : device->table->allocate(device, means_bytes(layer), &layer->means, error);
    if (status == TKV_OK) {
        status =
            device->table->upload(device, layer->means, layer->mean_k, means_bytes(layer), error);
    }
    return status == TKV_OK ? tkv_layer_publish_segments(layer, error) : status;
}

tkv_status tkv_layer_reserve_on_device(tkv_cache_layer *layer, tkv_error *error)
{
    return layer->entry_capacity >= layer->block_capacity
               ? TKV_OK
               : tkv_layer_publish_segments(layer, error);
}
