/* A layer as a whole: what it is made of, appended to it, and what it holds. */
#include "cache/layer.h"
#include "base/allocate.h"
#include "base/error.h"
#include "cache/block.h"
#include "cache/publish.h"
#include "cache/rows.h"
#include "cache/segment.h"
#include "cache/settle.h"

#include <string.h>

tkv_status tkv_layer_take_rope(tkv_cache_layer *layer, const tkv_rope *rope, tkv_error *error)
{
    const size_t n_pairs = rope ? (size_t)rope->n_rotated / 2 : 0;
    if (n_pairs == 0) {
        return TKV_OK;
    }
    float *frequencies = tkv_allocate(&layer->context->allocator, n_pairs * sizeof *frequencies);
    if (!frequencies) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu frequencies of RoPE",
                        n_pairs);
    }
    memcpy(frequencies, rope->frequencies, n_pairs * sizeof *frequencies);
    layer->rope = (tkv_rope){rope->is_interleaved, rope->n_rotated, frequencies};
    return TKV_OK;
}

void tkv_layer_clear(tkv_cache_layer *layer)
{
    tkv_layer_free_tables(layer);
    layer->n_tokens = 0;
    layer->lost = layer->lost_until = 0;
    tkv_layer_thaw(layer);
    tkv_layer_free_published(layer);
}

/* Tells the device of the blocks for n_tokens more, and stores their rows. */
static tkv_status store(tkv_cache_layer *layer, int n_tokens, int first_changed, bool is_longer,
                        const float *k, const float *v, tkv_error *error)
{
    if (is_longer) {
        TKV_TRY(tkv_layer_publish_segments(layer, error));
    }
    TKV_TRY(tkv_layer_publish(layer, first_changed, n_tokens, error));
    return tkv_layer_store(layer, n_tokens, k, v, error);
}

tkv_status tkv_layer_append(tkv_cache_layer *layer, int n_tokens, const float *k, const float *v,
                            tkv_error *error)
{
    const int first = layer->n_tokens;
    const int n_segments = layer->n_segments;
    int first_changed = 0;
    TKV_TRY(tkv_layer_add_blocks(layer, n_tokens, &first_changed, error));
    const bool is_longer = n_segments > 0 && layer->n_segments > n_segments;
    const tkv_status status = store(layer, n_tokens, first_changed, is_longer, k, v, error);
    if (status != TKV_OK) {
        tkv_layer_trim(layer);
        tkv_layer_outdate(layer);
        return status;
    }
    tkv_last_segment(layer)->end += n_tokens;
    layer->n_tokens += n_tokens;
    tkv_layer_settle(layer, first);
    return TKV_OK;
}

size_t tkv_layer_bytes(const tkv_cache_layer *layer)
{
    size_t bytes = sizeof *layer + (size_t)layer->block_capacity * sizeof *layer->blocks +
                   (size_t)layer->segment_capacity * sizeof *layer->segments +
                   (size_t)layer->rope.n_rotated / 2 * sizeof(float);
    for (int s = 0; s < layer->n_segments; s++) {
        bytes += layer->segments[s].turns ? (size_t)layer->rope.n_rotated * sizeof(float) : 0;
    }
    for (int b = 0; b < layer->n_blocks; b++) {
        /* A block that a gap runs through is in the table twice, one place after the other. */
        if (b == 0 || layer->blocks[b] != layer->blocks[b - 1]) {
            bytes += tkv_block_bytes(layer, layer->blocks[b]);
        }
    }
    return bytes + tkv_layer_published_bytes(layer);
}
