#include "cache/consistent.h"

/* The block can be read where the segment has tokens in it. */
static bool is_block_consistent(const tkv_cache_layer *layer, const tkv_segment *segment, int index)
{
    const tkv_block *block = layer->blocks[segment->first_block + index];
    if (atomic_load(&block->n_owners) < 1 || block->device != layer->context->device) {
        return false;
    }
    if (block->is_exact) {
        return block->n_slots >= tkv_block_slots(segment, index).end;
    }
    return block->n_slots == TKV_PAGE_TOKENS &&
           !tkv_stays_exact(&layer->ageing, segment->head, index) &&
           (layer->is_centred || layer->ageing.centre_tokens == 0);
}

/* It begins in its first block, ends in its last one and has tokens in each. */
static bool is_segment_consistent(const tkv_cache_layer *layer, const tkv_segment *segment)
{
    const bool is_placed =
        segment->begin >= 0 && segment->begin < segment->end &&
        segment->head % TKV_EXACT_ROWS == 0 &&
        tkv_block_of_place(segment->head, segment->begin) == 0 &&
        tkv_block_of_place(segment->head, segment->end - 1) + 1 == segment->n_blocks &&
        segment->n_settled >= 0 && segment->n_settled <= segment->n_blocks &&
        (segment->turn != 0) == (segment->turns != NULL);
    for (int b = 0; is_placed && b < segment->n_blocks; b++) {
        if (!is_block_consistent(layer, segment, b)) {
            return false;
        }
    }
    return is_placed;
}

bool tkv_layer_is_consistent(const tkv_cache_layer *layer)
{
    if (layer->n_blocks > layer->block_capacity || layer->n_segments > layer->segment_capacity ||
        layer->n_tokens > layer->max_tokens || layer->is_centred != (layer->means != 0)) {
        return false;
    }
    int position = tkv_layer_first_position(layer);
    int n_blocks = 0;
    for (int s = 0; s < layer->n_segments; s++) {
        const tkv_segment *segment = &layer->segments[s];
        if (segment->position != position || segment->first_block != n_blocks ||
            !is_segment_consistent(layer, segment)) {
            return false;
        }
        position += tkv_segment_tokens(segment);
        n_blocks += segment->n_blocks;
    }
    return position == layer->n_tokens && n_blocks == layer->n_blocks;
}

bool tkv_cache_is_consistent(const tkv_cache *cache)
{
    for (int i = 0; cache->n_reserved == 0 && i < cache->n_layers; i++) {
        if (!tkv_layer_is_consistent(&cache->layers[i])) {
            return false;
        }
    }
    return true;
}
