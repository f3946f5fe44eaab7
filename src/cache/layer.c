/* A layer as a whole: what it is made of, appended to it, and what it holds. */
#include "cache/layer.h"
#include "base/error.h"
#include "cache/block.h"
#include "cache/device_rows.h"
#include "cache/publish.h"
#include "cache/rows.h"
#include "cache/segment.h"
#include "cache/settle.h"

#include <stdlib.h>
#include <string.h>

/* Rows times blocks that are worth threads. */
#define MIN_PARALLEL_ROWS 512

tkv_status tkv_layer_take_rope(tkv_cache_layer *layer, const tkv_rope *rope, tkv_error *error)
{
    const size_t n_pairs = rope ? (size_t)rope->n_rotated / 2 : 0;
    if (n_pairs == 0) {
        return TKV_OK;
    }
    float *frequencies = malloc(n_pairs * sizeof *frequencies);
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
    if (layer->context->device) {
        tkv_layer_free_on_device(layer);
    }
}

typedef struct append_job {
    const tkv_cache_layer *layer;
    const tkv_segment *segment;
    int first_block; /* of the segment */
    int n_tokens;
    const float *k; /* [n_tokens][n_kv_heads][head_dim_k] */
    const float *v;
} append_job;

/* The part of the rows that one page takes. */
static void store_page(void *argument, int item, int thread)
{
    (void)thread;
    const append_job *job = argument;
    const tkv_cache_layer *layer = job->layer;
    const tkv_segment *segment = job->segment;
    const int n_orders = tkv_layer_orders(layer);
    const tkv_page_order order = item % n_orders ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
    const int index = job->first_block + item / n_orders / layer->n_kv_heads;
    const int kv_head = item / n_orders % layer->n_kv_heads;
    const tkv_slots slots =
        tkv_slots_of_places(segment->head, index, segment->end, segment->end + job->n_tokens);
    const int begin = tkv_block_place(segment->head, index) + slots.first;
    const size_t head_dim = (size_t)tkv_layer_head_dim(layer, order);
    const size_t stride = (size_t)layer->n_kv_heads * head_dim;
    const float *x = (order == TKV_ORDER_KEY ? job->k : job->v) +
                     (size_t)(begin - segment->end) * stride + (size_t)kv_head * head_dim;
    tkv_rows_store(layer, segment, layer->blocks[segment->first_block + index], kv_head, order,
                   slots.first, slots.end - slots.first, x, stride);
}

static void store_on_cpu(const tkv_cache_layer *layer, int n_tokens, const float *k, const float *v)
{
    const tkv_segment *segment = tkv_last_segment(layer);
    const int first_block = tkv_block_of_place(segment->head, segment->end);
    const int n_items =
        tkv_layer_orders(layer) * layer->n_kv_heads * (segment->n_blocks - first_block);
    const int n_threads = n_items * n_tokens >= MIN_PARALLEL_ROWS ? layer->context->n_threads : 1;
    append_job job = {layer, segment, first_block, n_tokens, k, v};
    tkv_threads_run(layer->context->threads, n_threads, n_items, store_page, &job);
}

static tkv_status store(tkv_cache_layer *layer, int n_tokens, int first_changed, const float *k,
                        const float *v, tkv_error *error)
{
    if (!layer->context->device) {
        store_on_cpu(layer, n_tokens, k, v);
        return TKV_OK;
    }
    const tkv_status status = tkv_layer_publish(layer, first_changed, n_tokens, error);
    return status == TKV_OK ? tkv_layer_store_on_device(layer, n_tokens, k, v, error) : status;
}

tkv_status tkv_layer_append(tkv_cache_layer *layer, int n_tokens, const float *k, const float *v,
                            tkv_error *error)
{
    const int first = layer->n_tokens;
    const int n_segments = layer->n_segments;
    int first_changed = 0;
    tkv_status status = tkv_layer_add_blocks(layer, n_tokens, &first_changed, error);
    if (status != TKV_OK) {
        return status;
    }
    if (layer->context->device && n_segments > 0 && layer->n_segments > n_segments) {
        status = tkv_layer_publish_segments(layer, error);
        if (status != TKV_OK) {
            tkv_layer_trim(layer);
            return status;
        }
    }
    status = store(layer, n_tokens, first_changed, k, v, error);
    if (status != TKV_OK) {
        tkv_layer_trim(layer);
        layer->is_stale = true;
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
    if (layer->mean_k) {
        bytes +=
            (size_t)layer->n_kv_heads * (size_t)(layer->padded_k + layer->padded_v) * sizeof(float);
    }
    return bytes + (layer->context->device ? tkv_layer_device_bytes(layer) : 0);
}
