/* What the kernels of a device read of a layer, written into its memory. On the host that is a
 * cheap copy, and no allocation but where tables grow. */
#include "cache/publish.h"
#include "base/error.h"

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

void tkv_layer_free_published(tkv_cache_layer *layer)
{
    tkv_device *device = layer->context->device;
    release(device, &layer->entries);
    release(device, &layer->earlier);
    release(device, &layer->turns);
    layer->entry_capacity = layer->earlier_capacity = layer->turn_capacity = 0;
}

size_t tkv_layer_published_bytes(const tkv_cache_layer *layer)
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
    TKV_TRY(tkv_layer_publish_blocks(layer, first_block, layer->n_blocks, error));
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

void tkv_layer_outdate(tkv_cache_layer *layer)
{
    layer->is_stale = true;
    if (layer->context->device->table->is_immediate) {
        (void)tkv_layer_publish(layer, layer->n_blocks, 0, NULL);
    }
}

static size_t turn_bytes(const tkv_cache_layer *layer)
{
    return (size_t)layer->rope.n_rotated * sizeof(float);
}

/* How many turns there must be room for. */
static int turns_needed(const tkv_cache_layer *layer)
{
    bool is_any = false;
    for (int s = 0; s < layer->n_segments; s++) {
        is_any |= layer->segments[s].turns && turn_bytes(layer) > 0;
    }
    return is_any ? layer->n_segments : 0;
}

/* All tables, into memory that there is. */
static tkv_status write_tables(const tkv_cache_layer *layer, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    TKV_TRY(tkv_layer_publish_blocks(layer, 0, layer->n_blocks, error));
    for (int s = 0; s + 1 < layer->n_segments; s++) {
        const tkv_device_sequence sequence = tkv_describe_segment(layer, &layer->segments[s], 0);
        TKV_TRY(device->table->upload(device, tkv_segment_descriptor(layer, s), &sequence,
                                      sizeof sequence, error));
    }
    for (int s = 0; s < layer->n_segments && turns_needed(layer); s++) {
        if (layer->segments[s].turns) {
            TKV_TRY(device->table->upload(device, tkv_segment_turns(layer, s),
                                          layer->segments[s].turns, turn_bytes(layer), error));
        }
    }
    return TKV_OK;
}

/* Memory for n items of a table that has none; *capacity is what there is. */
static tkv_status allocate_table(tkv_device *device, int n, size_t item_bytes, uint64_t *address,
                                 int *capacity, tkv_error *error)
{
    if (n > 0) {
        TKV_TRY(device->table->allocate(device, (size_t)n * item_bytes, address, error));
        *capacity = n;
    }
    return TKV_OK;
}

static tkv_status allocate_tables(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    TKV_TRY(allocate_table(device, layer->block_capacity, sizeof(tkv_device_block), &layer->entries,
                           &layer->entry_capacity, error));
    TKV_TRY(allocate_table(device, layer->n_segments - 1, sizeof(tkv_device_sequence),
                           &layer->earlier, &layer->earlier_capacity, error));
    return allocate_table(device, turns_needed(layer), turn_bytes(layer), &layer->turns,
                          &layer->turn_capacity, error);
}

tkv_status tkv_layer_renew(tkv_cache_layer *layer, tkv_layer_tables *old, tkv_error *error)
{
    *old = (tkv_layer_tables){layer->entries,          layer->entry_capacity, layer->earlier,
                              layer->earlier_capacity, layer->turns,          layer->turn_capacity};
    layer->entries = layer->earlier = layer->turns = 0;
    layer->entry_capacity = layer->earlier_capacity = layer->turn_capacity = 0;
    tkv_status status = allocate_tables(layer, error);
    if (status == TKV_OK) {
        status = write_tables(layer, error);
    }
    if (status != TKV_OK) {
        tkv_layer_restore(layer, old);
    }
    return status;
}

void tkv_layer_restore(tkv_cache_layer *layer, const tkv_layer_tables *old)
{
    tkv_layer_free_published(layer);
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

/* Whether the tables can be written where they are, without memory: nothing that was enqueued still
 * reads them, and nothing can fail half-way. */
static bool can_rewrite(const tkv_cache_layer *layer)
{
    return layer->context->device->table->is_immediate &&
           layer->entry_capacity >= layer->block_capacity &&
           layer->earlier_capacity >= layer->n_segments - 1 &&
           layer->turn_capacity >= turns_needed(layer);
}

static tkv_status rewrite(tkv_cache_layer *layer, tkv_error *error)
{
    TKV_TRY(write_tables(layer, error));
    return tkv_layer_publish(layer, layer->n_blocks, 0, error);
}

tkv_status tkv_layer_publish_segments(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_layer_tables old;
    tkv_status status = tkv_layer_renew(layer, &old, error);
    if (status != TKV_OK) {
        return can_rewrite(layer) ? rewrite(layer, error) : status;
    }
    status = tkv_layer_publish(layer, layer->n_blocks, 0, error);
    if (status != TKV_OK) {
        tkv_layer_restore(layer, &old);
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

static tkv_status allocate_means(tkv_cache_layer *layer, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    return layer->means ? TKV_OK
                        : device->table->allocate(device, means_bytes(layer), &layer->means, error);
}

tkv_status tkv_layer_publish_means(tkv_cache_layer *layer, const float *means, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    TKV_TRY(allocate_means(layer, error));
    TKV_TRY(device->table->upload(device, layer->means, means, means_bytes(layer), error));
    layer->is_centred = true;
    return tkv_layer_publish_segments(layer, error);
}

tkv_status tkv_layer_copy_means(const tkv_cache_layer *from, tkv_cache_layer *layer,
                                tkv_error *error)
{
    tkv_device *device = layer->context->device;
    TKV_TRY(allocate_means(layer, error));
    TKV_TRY(device->table->copy(device, layer->means, from->means, means_bytes(layer), error));
    layer->is_centred = true;
    return tkv_layer_publish_segments(layer, error);
}

tkv_status tkv_layer_reserve_entries(tkv_cache_layer *layer, tkv_error *error)
{
    return layer->entry_capacity >= layer->block_capacity
               ? TKV_OK
               : tkv_layer_publish_segments(layer, error);
}
