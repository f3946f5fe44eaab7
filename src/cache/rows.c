/* Rows on their way between the caller and the pages: there padded to whole steps, and keys turned
 * to the positions that their segment counts. */
#include "cache/rows.h"
#include "base/error.h"
#include "cache/block.h"
#include "cache/segment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error)
{
    if (rope && (!rope->frequencies || rope->n_rotated < 0 || rope->n_rotated % 2 != 0 ||
                 rope->n_rotated > head_dim)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "RoPE over %d coordinates: expected frequencies and an even number up to "
                        "%d",
                        rope->n_rotated, head_dim);
    }
    return TKV_OK;
}

float *tkv_make_turns(const tkv_rope *rope, int64_t turn)
{
    const int n_pairs = rope->n_rotated / 2;
    float *turns = malloc((size_t)(n_pairs ? 2 * n_pairs : 1) * sizeof *turns);
    for (int i = 0; turns && i < n_pairs; i++) {
        const double angle = (double)turn * (double)rope->frequencies[i];
        turns[i] = (float)cos(angle);
        turns[n_pairs + i] = (float)sin(angle);
    }
    return turns;
}

void tkv_turn_key(const tkv_rope *rope, const float *turns, bool back, float *key)
{
    const int n_pairs = rope->n_rotated / 2;
    for (int i = 0; i < n_pairs; i++) {
        float *a = rope->is_interleaved ? key + 2 * i : key + i;
        float *b = rope->is_interleaved ? key + 2 * i + 1 : key + i + n_pairs;
        const float x = *a;
        const float y = *b;
        const float sine = back ? -turns[n_pairs + i] : turns[n_pairs + i];
        *a = x * turns[i] - y * sine;
        *b = x * sine + y * turns[i];
    }
}

void tkv_rows_store(const tkv_cache_layer *layer, const tkv_segment *segment, tkv_block *block,
                    int kv_head, tkv_page_order order, int first_slot, int n_rows, const float *src,
                    size_t stride)
{
    const size_t head_dim = (size_t)tkv_layer_head_dim(layer, order);
    const size_t padded = (size_t)tkv_layer_padded(layer, order);
    const float *turns = order == TKV_ORDER_KEY ? segment->turns : NULL;
    if (head_dim == padded && !turns) {
        tkv_block_encode(layer, block, kv_head, order, first_slot, n_rows, src, stride);
        return;
    }
    float rows[TKV_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    memset(rows, 0, TKV_CHUNK_ROWS * padded * sizeof *rows);
    for (int done = 0; done < n_rows; done += TKV_CHUNK_ROWS) {
        const int n = n_rows - done < TKV_CHUNK_ROWS ? n_rows - done : TKV_CHUNK_ROWS;
        for (int i = 0; i < n; i++) {
            float *row = rows + (size_t)i * padded;
            memcpy(row, src + (size_t)(done + i) * stride, head_dim * sizeof *row);
            if (turns) {
                tkv_turn_key(&layer->rope, turns, false, row);
            }
        }
        tkv_block_encode(layer, block, kv_head, order, first_slot + done, n, rows, padded);
    }
}

/* The counterpart: slots of one page into rows that are head_dim wide. */
static void load_rows(const tkv_cache_layer *layer, const tkv_segment *segment, tkv_block *block,
                      int kv_head, tkv_page_order order, int first_slot, int n_rows, float *dst,
                      size_t stride)
{
    const size_t head_dim = (size_t)tkv_layer_head_dim(layer, order);
    const size_t padded = (size_t)tkv_layer_padded(layer, order);
    const float *turns = order == TKV_ORDER_KEY ? segment->turns : NULL;
    float rows[TKV_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < n_rows; done += TKV_CHUNK_ROWS) {
        const int n = n_rows - done < TKV_CHUNK_ROWS ? n_rows - done : TKV_CHUNK_ROWS;
        tkv_block_decode(layer, block, kv_head, order, first_slot + done, n, rows, padded);
        for (int i = 0; i < n; i++) {
            float *row = rows + (size_t)i * padded;
            if (turns) {
                tkv_turn_key(&layer->rope, turns, true, row);
            }
            memcpy(dst + (size_t)(done + i) * stride, row, head_dim * sizeof *row);
        }
    }
}

/* Tokens of one segment, all KV heads. */
static void read_segment(const tkv_cache_layer *layer, const tkv_segment *segment,
                         tkv_page_order order, int first_place, int n_tokens, float *x)
{
    const size_t head_dim = (size_t)tkv_layer_head_dim(layer, order);
    const size_t stride = (size_t)layer->n_kv_heads * head_dim;
    for (int done = 0; done < n_tokens;) {
        const int index = tkv_block_of_place(segment->head, first_place + done);
        const int slot = first_place + done - tkv_block_place(segment->head, index);
        const int in_block = tkv_block_place(segment->head, index + 1) - first_place - done;
        const int n = n_tokens - done < in_block ? n_tokens - done : in_block;
        for (int head = 0; head < layer->n_kv_heads; head++) {
            load_rows(layer, segment, layer->blocks[segment->first_block + index], head, order,
                      slot, n, x + (size_t)done * stride + (size_t)head * head_dim, stride);
        }
        done += n;
    }
}

void tkv_layer_read(const tkv_cache_layer *layer, int first, int n_tokens, float *k, float *v)
{
    const size_t heads = (size_t)layer->n_kv_heads;
    for (int done = 0; done < n_tokens;) {
        const tkv_segment *segment = tkv_segment_of(layer, first + done);
        const int skipped = first + done - segment->position;
        const int left = tkv_segment_tokens(segment) - skipped;
        const int n = n_tokens - done < left ? n_tokens - done : left;
        if (k) {
            read_segment(layer, segment, TKV_ORDER_KEY, segment->begin + skipped, n,
                         k + (size_t)done * heads * (size_t)layer->head_dim_k);
        }
        if (v && layer->head_dim_v) {
            read_segment(layer, segment, TKV_ORDER_VALUE, segment->begin + skipped, n,
                         v + (size_t)done * heads * (size_t)layer->head_dim_v);
        }
        done += n;
    }
}
