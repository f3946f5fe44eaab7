/* What happens to tokens as they age: means are estimated from the first tokens and frozen, exact
 * blocks are coded when they have left the recent window, and what is behind a layer's window is
 * given back. */
#include "cache/settle.h"
#include "base/allocate.h"
#include "cache/block.h"
#include "cache/code.h"
#include "cache/publish.h"
#include "cache/rows.h"
#include "cache/segment.h"

#include <math.h>

/* A mean is used if it holds this share of the rows' energy; smaller ones are mostly chance. */
#define MIN_MEAN_SHARE 0.1

/* The tokens that means are made of, all of them exact: rows [centre_tokens][n_kv_heads][head_dim]
 * of keys and values. */
typedef struct mean_source {
    tkv_cache_layer *layer;
    float *rows[2]; /* by tkv_page_order */
    float *means;   /* [n_kv_heads][padded_k], then of values [n_kv_heads][padded_v] */
} mean_source;

/* Whether RoPE turns a coordinate of keys by less than a radian over the whole context, so that it
 * can have a mean that lasts. */
static bool has_lasting_mean(const tkv_cache_layer *layer, int coordinate)
{
    const tkv_rope *rope = &layer->rope;
    if (!rope->frequencies || coordinate >= rope->n_rotated) {
        return true;
    }
    const int pair = rope->is_interleaved ? coordinate / 2 : coordinate % (rope->n_rotated / 2);
    return fabsf(rope->frequencies[pair]) * (float)layer->max_tokens < 1.0f;
}

/* The mean over the rows of a head; zero if it is too small to be worth it. */
static void estimate_mean(const mean_source *source, int kv_head, tkv_page_order order, float *mean)
{
    const tkv_cache_layer *layer = source->layer;
    const int n_rows = layer->ageing.centre_tokens;
    const int head_dim = tkv_layer_head_dim(layer, order);
    const size_t stride = (size_t)layer->n_kv_heads * (size_t)head_dim;
    const float *rows = source->rows[order] + (size_t)kv_head * (size_t)head_dim;
    double energy = 0.0;
    double mean_energy = 0.0;
    for (int j = 0; j < head_dim; j++) {
        double sum = 0.0;
        for (int i = 0; i < n_rows; i++) {
            const double value = (double)rows[(size_t)i * stride + (size_t)j];
            sum += value;
            energy += value * value;
        }
        const bool lasts = order == TKV_ORDER_VALUE || has_lasting_mean(layer, j);
        mean[j] = lasts ? (float)(sum / n_rows) : 0.0f;
        mean_energy += lasts ? sum * sum / n_rows : 0.0;
    }
    const bool is_worth_it = mean_energy > MIN_MEAN_SHARE * energy;
    for (int j = 0; j < tkv_layer_padded(layer, order); j++) {
        mean[j] = is_worth_it && j < head_dim ? mean[j] : 0.0f;
    }
}

static void estimate_head(void *argument, int head, int thread)
{
    (void)thread;
    const mean_source *source = argument;
    const tkv_cache_layer *layer = source->layer;
    const size_t of_keys = (size_t)layer->n_kv_heads * (size_t)layer->padded_k;
    estimate_mean(source, head, TKV_ORDER_KEY,
                  source->means + (size_t)head * (size_t)layer->padded_k);
    if (layer->head_dim_v) {
        estimate_mean(source, head, TKV_ORDER_VALUE,
                      source->means + of_keys + (size_t)head * (size_t)layer->padded_v);
    }
}

/* The position of the first token that means are made of. */
static int first_of_means(const tkv_cache_layer *layer)
{
    return tkv_first_of_means(&layer->ageing, tkv_layer_first_position(layer));
}

/* False if that fails for now. */
static bool freeze_means(tkv_cache_layer *layer)
{
    const size_t heads = (size_t)layer->n_kv_heads;
    const int n_tokens = layer->ageing.centre_tokens;
    const size_t rows = (size_t)n_tokens * heads;
    const tkv_allocator *allocator = &layer->context->allocator;
    mean_source source = {
        layer,
        {tkv_allocate(allocator, rows * (size_t)layer->head_dim_k * sizeof(float)),
         tkv_allocate(allocator, rows * (size_t)layer->head_dim_v * sizeof(float))},
        tkv_allocate_zeroed(allocator,
                            heads * (size_t)(layer->padded_k + layer->padded_v) * sizeof(float))};
    /* On the host, so that the means are the same to the bit on every device. */
    bool is_done = source.rows[0] && source.rows[1] && source.means &&
                   tkv_layer_download(layer, first_of_means(layer), n_tokens, source.rows[0],
                                      source.rows[1], NULL) == TKV_OK;
    if (is_done) {
        tkv_threads_run(layer->context->threads, layer->context->n_threads, layer->n_kv_heads,
                        estimate_head, &source);
        is_done = tkv_layer_publish_means(layer, source.means, NULL) == TKV_OK;
    }
    if (!is_done) {
        tkv_layer_thaw(layer);
    }
    tkv_release(allocator, source.rows[0]);
    tkv_release(allocator, source.rows[1]);
    tkv_release(allocator, source.means);
    return is_done;
}

/* Whether tokens can be coded: the means are known or not wanted. */
static bool can_code(tkv_cache_layer *layer)
{
    if (layer->ageing.centre_tokens == 0 || layer->is_centred) {
        return true;
    }
    return tkv_can_have_means(&layer->ageing, tkv_layer_first_position(layer), layer->n_tokens) &&
           freeze_means(layer);
}

/* Whether all tokens that a block has or will have are behind the recent window of a query at
 * `position`. */
static bool is_old(const tkv_cache_layer *layer, const tkv_segment *segment, bool is_last,
                   int index, int position)
{
    int end = tkv_block_place(segment->head, index + 1);
    if (!is_last && end > segment->end) {
        end = segment->end;
    }
    return tkv_is_aged(&layer->ageing, segment->head, index,
                       segment->position + (end - 1 - segment->begin), position);
}

/* A few tokens beside a gap may cost less in f16 than in a whole coded page. */
static bool is_worth_coding(const tkv_cache_layer *layer, const tkv_segment *segment, bool is_last,
                            int index)
{
    const int n_slots =
        tkv_exact_slots(tkv_block_slots(segment, index).end, TKV_PAGE_TOKENS, TKV_EXACT_ROWS);
    return is_last || tkv_block_bytes_of(layer, false, TKV_PAGE_TOKENS) <
                          tkv_block_bytes_of(layer, true, n_slots);
}

static void settle_segment(tkv_cache_layer *layer, int s, int position)
{
    tkv_segment *segment = &layer->segments[s];
    const bool is_last = s + 1 == layer->n_segments;
    const int n_head = tkv_head_blocks(segment->head);
    const int first = segment->n_settled > n_head ? segment->n_settled : n_head;
    int index = first;
    while (index < segment->n_blocks && is_old(layer, segment, is_last, index, position)) {
        int next = index;
        while (next < segment->n_blocks && layer->blocks[segment->first_block + next]->is_exact &&
               is_old(layer, segment, is_last, next, position) &&
               is_worth_coding(layer, segment, is_last, next)) {
            next++;
        }
        if (next > index && !can_code(layer)) {
            return;
        }
        tkv_layer_code(layer, segment, index, next);
        index = next > index ? next : index + 1;
    }
    /* A block that is not full, or could not be coded, is looked at again. */
    int settled = is_last ? tkv_block_of_place(segment->head, segment->end) : segment->n_blocks;
    for (int b = first; b < index && b < settled; b++) {
        if (layer->blocks[segment->first_block + b]->is_exact &&
            is_worth_coding(layer, segment, is_last, b)) {
            settled = b;
        }
    }
    segment->n_settled = index < settled ? index : settled;
}

/* Whether a segment goes on where the one before it ends, in the middle of a coded block, with
 * tokens that are exact: segment.c has made it so. */
static bool goes_on(const tkv_cache_layer *layer, int s)
{
    const tkv_segment *segment = &layer->segments[s];
    if (s == 0 || segment->begin == 0 || segment->head > 0 ||
        !layer->blocks[segment->first_block]->is_exact) {
        return false;
    }
    const tkv_segment *before = segment - 1;
    const int last = before->n_blocks - 1;
    return before->turn == segment->turn && !layer->blocks[before->first_block + last]->is_exact &&
           before->end - tkv_block_place(before->head, last) == segment->begin &&
           before->position + tkv_segment_tokens(before) == segment->position;
}

/* Takes n blocks, of one segment, out of a layer's table from index `at` on. */
static void remove_blocks(tkv_cache_layer *layer, int at, int n)
{
    for (int b = at; b < at + n; b++) {
        tkv_block_release(layer, layer->blocks[b]);
    }
    layer->n_blocks -= n;
    for (int b = at; b < layer->n_blocks; b++) {
        layer->blocks[b] = layer->blocks[b + n];
    }
    for (int s = 0; s < layer->n_segments; s++) {
        layer->segments[s].first_block -= layer->segments[s].first_block > at ? n : 0;
    }
}

/* Takes a segment out whose blocks are gone or another's. */
static void remove_segment(tkv_cache_layer *layer, int s)
{
    tkv_release(&layer->context->allocator, layer->segments[s].turns);
    layer->n_segments--;
    for (int t = s; t < layer->n_segments; t++) {
        layer->segments[t] = layer->segments[t + 1];
    }
}

/* The two as one, without the block that the second began with. */
static void join_segments(tkv_cache_layer *layer, int s)
{
    const tkv_segment *segment = &layer->segments[s];
    tkv_segment *before = &layer->segments[s - 1];
    remove_blocks(layer, segment->first_block, 1);
    before->end += tkv_segment_tokens(segment);
    before->n_blocks += segment->n_blocks - 1;
    remove_segment(layer, s);
}

/* Codes the tokens of a segment's first block into the block in which the one before it ends, and
 * joins the two. Without memory, or if a device fails, they stay as they are. */
static bool fill_block_before(tkv_cache_layer *layer, int s)
{
    const tkv_segment *segment = &layer->segments[s];
    const int at = segment->first_block - 1;
    if (tkv_layer_own_block(layer, at, NULL) != TKV_OK ||
        tkv_layer_fill(layer, segment, layer->blocks[at]) != TKV_OK) {
        return false;
    }
    join_segments(layer, s);
    layer->is_stale = tkv_layer_publish_segments(layer, NULL) != TKV_OK;
    return true;
}

/* Gives back the first n blocks of a segment, of which others stay. */
static void give_back_blocks(tkv_cache_layer *layer, tkv_segment *segment, int n)
{
    const int start = tkv_block_place(segment->head, n);
    remove_blocks(layer, segment->first_block, n);
    segment->n_blocks -= n;
    segment->n_settled = segment->n_settled > n ? segment->n_settled - n : 0;
    segment->position += start - segment->begin;
    segment->begin = 0;
    segment->end -= start;
    segment->head = segment->head > start ? segment->head - start : 0;
}

/* Gives back the blocks whose tokens are all before position `oldest`. */
static void give_back(tkv_cache_layer *layer, int oldest)
{
    bool is_changed = false;
    while (layer->n_segments && layer->segments[0].position < oldest) {
        tkv_segment *segment = &layer->segments[0];
        const int place = segment->begin + oldest - segment->position;
        if (place < segment->end) {
            const int n = tkv_block_of_place(segment->head, place);
            if (n == 0) {
                break;
            }
            give_back_blocks(layer, segment, n);
            is_changed = true;
            break;
        }
        if (layer->n_segments == 1) {
            break;
        }
        /* No token of this segment is seen. */
        remove_blocks(layer, segment->first_block, segment->n_blocks);
        remove_segment(layer, 0);
        is_changed = true;
    }
    if (is_changed) {
        layer->is_stale = tkv_layer_publish_segments(layer, NULL) != TKV_OK;
    }
}

void tkv_layer_settle(tkv_cache_layer *layer, int position)
{
    const tkv_segment *last = tkv_last_segment(layer);
    if (last && tkv_freezes_with_head(&layer->ageing, last->head, last->end)) {
        /* The next token can then be coded as it comes. */
        can_code(layer);
    }
    for (int s = 0; layer->ageing.is_coded && s < layer->n_segments; s++) {
        const bool is_last = s + 1 == layer->n_segments;
        if (!goes_on(layer, s)) {
            settle_segment(layer, s, position);
        } else if (is_old(layer, &layer->segments[s], is_last, 0, position) && can_code(layer) &&
                   fill_block_before(layer, s)) {
            s -= 2; /* the one before it has more blocks to settle now */
        }
    }
    const int oldest = tkv_oldest_kept(&layer->ageing, layer->window, position);
    if (oldest > 0 && (tkv_mean_tokens(&layer->ageing) == 0 || can_code(layer))) {
        give_back(layer, oldest);
    }
}
