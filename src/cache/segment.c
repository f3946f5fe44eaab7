/* Segments of a layer and its table of blocks: where tokens are, room for more, and what is left
 * when some are dropped. */
#include "cache/segment.h"
#include "base/allocate.h"
#include "base/error.h"
#include "base/rope.h"
#include "cache/block.h"
#include "cache/publish.h"

#include <string.h>

int tkv_layer_first_position(const tkv_cache_layer *layer)
{
    return layer->n_segments ? layer->segments[0].position : layer->n_tokens;
}

bool tkv_layer_can_end(const tkv_cache_layer *layer, int n_tokens)
{
    const int held = tkv_layer_first_position(layer);
    const bool is_missed = held > layer->lost || n_tokens < layer->lost_until;
    return !is_missed || held == 0 || n_tokens - layer->window + 1 >= held;
}

const tkv_segment *tkv_segment_of(const tkv_cache_layer *layer, int position)
{
    const tkv_segment *segment = tkv_last_segment(layer);
    while (segment && segment->position > position) {
        segment--;
    }
    return segment;
}

tkv_status tkv_layer_reserve_segments(tkv_cache_layer *layer, int n_segments, tkv_error *error)
{
    if (n_segments <= layer->segment_capacity) {
        return TKV_OK;
    }
    const int capacity = n_segments < 2 ? 2 : n_segments;
    tkv_segment *segments = tkv_enlarge(&layer->context->allocator, layer->segments,
                                        (size_t)layer->n_segments * sizeof *segments,
                                        (size_t)capacity * sizeof *segments);
    if (!segments) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of %d segments",
                        capacity);
    }
    layer->segments = segments;
    layer->segment_capacity = capacity;
    return TKV_OK;
}

tkv_status tkv_layer_reserve(tkv_cache_layer *layer, int n_blocks, tkv_error *error)
{
    if (n_blocks > layer->block_capacity) {
        const int capacity = tkv_table_capacity(n_blocks);
        tkv_block **blocks = tkv_enlarge(&layer->context->allocator, layer->blocks,
                                         (size_t)layer->n_blocks * sizeof *blocks,
                                         (size_t)capacity * sizeof *blocks);
        if (!blocks) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of %d pages",
                            capacity);
        }
        layer->blocks = blocks;
        layer->block_capacity = capacity;
    }
    return tkv_layer_reserve_entries(layer, error);
}

/* Rows that an exact block is given for the places up to `end`. */
static int exact_slots(const tkv_cache_layer *layer, const tkv_segment *segment, int index, int end)
{
    const int start = tkv_block_place(segment->head, index);
    const int whole = tkv_block_place(segment->head, index + 1) - start;
    return tkv_exact_slots(end - start, whole, layer->context->device->table->exact_rows);
}

/* Replaces block `at` of the table by a copy of its own, with room for n_slots if it is exact. */
static tkv_status replace_block(tkv_cache_layer *layer, int at, int n_slots, tkv_error *error)
{
    tkv_block *old = layer->blocks[at];
    tkv_block *copy = NULL;
    tkv_status status = tkv_block_create(layer, old->is_exact, n_slots, &copy, error);
    if (status != TKV_OK) {
        return status;
    }
    status =
        tkv_block_copy(layer, copy, old, old->n_slots < n_slots ? old->n_slots : n_slots, error);
    layer->blocks[at] = copy;
    if (status == TKV_OK) {
        status = tkv_layer_publish_blocks(layer, at, at + 1, error);
    }
    if (status != TKV_OK) {
        layer->blocks[at] = old;
        tkv_block_release(layer, copy);
        return status;
    }
    tkv_block_release(layer, old);
    return TKV_OK;
}

tkv_status tkv_layer_own_block(tkv_cache_layer *layer, int at, tkv_error *error)
{
    const tkv_block *block = layer->blocks[at];
    return atomic_load(&block->n_owners) > 1 ? replace_block(layer, at, block->n_slots, error)
                                             : TKV_OK;
}

/* Makes the block that is written first the layer's own and long enough. */
static tkv_status prepare_block(tkv_cache_layer *layer, const tkv_segment *segment, int index,
                                int end, bool *is_changed, tkv_error *error)
{
    const int at = segment->first_block + index;
    const tkv_block *block = layer->blocks[at];
    const int wanted = block->is_exact ? exact_slots(layer, segment, index, end) : block->n_slots;
    const int n_slots = wanted > block->n_slots ? wanted : block->n_slots;
    *is_changed = n_slots > block->n_slots || atomic_load(&block->n_owners) > 1;
    return *is_changed ? replace_block(layer, at, n_slots, error) : TKV_OK;
}

/* Whether tokens that came now would be coded although they are recent: those before them in their
 * block were coded, and ones behind them taken back. */
static bool is_open_block_coded(const tkv_cache_layer *layer)
{
    const tkv_segment *last = tkv_last_segment(layer);
    const int index = tkv_block_of_place(last->head, last->end);
    return layer->ageing.n_recent > 0 && index < last->n_blocks &&
           !layer->blocks[last->first_block + index]->is_exact;
}

/* The angles of keys that are `turn` positions ahead; NULL without memory. */
static float *make_turns(const tkv_cache_layer *layer, int64_t turn)
{
    float *turns = tkv_allocate(&layer->context->allocator,
                                2 * (size_t)(layer->rope.n_rotated / 2) * sizeof *turns);
    if (turns) {
        tkv_rope_turns(&layer->rope, turn, turns);
    }
    return turns;
}

/* A segment that goes on in the middle of the last one's last block, in an exact block of its own
 * until its tokens are coded into that one (settle.c). */
static tkv_status go_on_exactly(tkv_cache_layer *layer, tkv_error *error)
{
    TKV_TRY(tkv_layer_reserve_segments(layer, layer->n_segments + 1, error));
    const tkv_segment *last = tkv_last_segment(layer);
    const int slot = last->end - tkv_block_place(last->head, last->n_blocks - 1);
    tkv_segment next = {.position = layer->n_tokens,
                        .begin = slot,
                        .end = slot,
                        .first_block = layer->n_blocks,
                        .turn = last->turn};
    if (last->turns && !(next.turns = make_turns(layer, last->turn))) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the angles of a segment");
    }
    layer->segments[layer->n_segments++] = next;
    return TKV_OK;
}

/* The segment that new tokens go to. */
static tkv_status open_segment(tkv_cache_layer *layer, tkv_segment **segment, tkv_error *error)
{
    tkv_status status = TKV_OK;
    if (layer->n_segments == 0) {
        status = tkv_layer_reserve_segments(layer, 1, error);
        if (status == TKV_OK) {
            layer->segments[layer->n_segments++] =
                (tkv_segment){.position = layer->n_tokens, .head = layer->head};
        }
    } else if (is_open_block_coded(layer)) {
        status = go_on_exactly(layer, error);
    }
    *segment = tkv_last_segment(layer);
    return status;
}

tkv_status tkv_layer_add_blocks(tkv_cache_layer *layer, int n_tokens, int *first_changed,
                                tkv_error *error)
{
    tkv_segment *segment = NULL;
    TKV_TRY(open_segment(layer, &segment, error));
    const int end = segment->end + n_tokens;
    const int before = segment->n_blocks;
    const int n_blocks = tkv_block_of_place(segment->head, end - 1) + 1;
    const int first_written = tkv_block_of_place(segment->head, segment->end);
    bool is_changed = false;
    tkv_status status = tkv_layer_reserve(layer, segment->first_block + n_blocks, error);
    if (status == TKV_OK && first_written < before) {
        status = prepare_block(layer, segment, first_written, end, &is_changed, error);
    }
    *first_changed = segment->first_block + (is_changed ? first_written : before);
    while (status == TKV_OK && segment->n_blocks < n_blocks) {
        const int index = segment->n_blocks;
        const bool is_exact =
            tkv_starts_exact(&layer->ageing, layer->is_centred, segment->head, index);
        const int n_slots = is_exact ? exact_slots(layer, segment, index, end) : TKV_PAGE_TOKENS;
        status = tkv_block_create(layer, is_exact, n_slots, &layer->blocks[layer->n_blocks], error);
        if (status == TKV_OK) {
            layer->n_blocks++;
            segment->n_blocks++;
        }
    }
    if (status != TKV_OK) {
        tkv_layer_trim(layer);
    }
    return status;
}

static void drop_turns(tkv_cache_layer *layer, int index)
{
    tkv_release(&layer->context->allocator, layer->segments[index].turns);
    layer->segments[index].turns = NULL;
}

void tkv_layer_trim(tkv_cache_layer *layer)
{
    tkv_segment *segment = tkv_last_segment(layer);
    if (!segment) {
        return;
    }
    const int n_blocks =
        tkv_segment_tokens(segment) ? tkv_block_of_place(segment->head, segment->end - 1) + 1 : 0;
    while (segment->n_blocks > n_blocks) {
        segment->n_blocks--;
        tkv_block_release(layer, layer->blocks[--layer->n_blocks]);
    }
    if (segment->n_settled > segment->n_blocks) {
        segment->n_settled = segment->n_blocks;
    }
    if (n_blocks == 0) {
        drop_turns(layer, layer->n_segments - 1);
        layer->n_segments--;
    }
}

void tkv_layer_shorten(tkv_cache_layer *layer)
{
    for (int s = 0; s < layer->n_segments; s++) {
        const tkv_segment *segment = &layer->segments[s];
        const int at = segment->first_block + segment->n_blocks - 1;
        const tkv_block *block = layer->blocks[at];
        const int n_slots = exact_slots(layer, segment, segment->n_blocks - 1, segment->end);
        if (block->is_exact && n_slots < block->n_slots && atomic_load(&block->n_owners) == 1) {
            (void)replace_block(layer, at, n_slots, NULL);
        }
    }
}

void tkv_layer_cut(tkv_cache_layer *layer, int n_tokens)
{
    const int n_segments = layer->n_segments;
    for (tkv_segment *segment; (segment = tkv_last_segment(layer));) {
        const int kept = n_tokens - segment->position;
        const bool is_last = kept > 0;
        segment->end = segment->begin + (is_last ? kept : 0);
        tkv_layer_trim(layer);
        if (is_last) {
            /* The block that has lost tokens may be filled again. */
            const int open = tkv_block_of_place(segment->head, segment->end);
            segment->n_settled = segment->n_settled < open ? segment->n_settled : open;
            break;
        }
    }
    layer->n_tokens = n_tokens;
    tkv_layer_outdate(layer);
    tkv_layer_shorten(layer);
    if (layer->n_segments != n_segments) {
        layer->is_stale = tkv_layer_publish_segments(layer, NULL) != TKV_OK;
    }
    tkv_layer_thaw(layer);
}

void tkv_layer_thaw(tkv_cache_layer *layer)
{
    if (tkv_layer_first_position(layer) > layer->ageing.n_sinks) {
        return;
    }
    for (int b = 0; b < layer->n_blocks; b++) {
        if (!layer->blocks[b]->is_exact) {
            return;
        }
    }
    layer->is_centred = false;
    if (layer->means) {
        const uint64_t means = layer->means;
        layer->means = 0;
        layer->is_stale = tkv_layer_publish_segments(layer, NULL) != TKV_OK;
        layer->context->device->table->release(layer->context->device, means);
    }
}

/* Adds places [begin, end) of a segment to the view, as a segment from `position` on. */
static tkv_status add_part(const tkv_cache_layer *layer, const tkv_segment *segment, int begin,
                           int end, int position, int64_t turn, tkv_cache_layer *view,
                           tkv_error *error)
{
    if (begin == end) {
        return TKV_OK;
    }
    const int first = tkv_block_of_place(segment->head, begin);
    const int start = tkv_block_place(segment->head, first);
    const int n_blocks = tkv_block_of_place(segment->head, end - 1) + 1 - first;
    tkv_segment part = {.position = position,
                        .begin = begin - start,
                        .end = end - start,
                        .head = start < segment->head ? segment->head - start : 0,
                        .first_block = view->n_blocks,
                        .n_blocks = n_blocks,
                        .turn = turn};
    part.n_settled = segment->n_settled > first ? segment->n_settled - first : 0;
    part.n_settled = part.n_settled < n_blocks ? part.n_settled : n_blocks;
    if (turn != 0 && !(part.turns = make_turns(layer, turn))) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the angles of a shift");
    }
    for (int b = 0; b < n_blocks; b++) {
        tkv_block *block = layer->blocks[segment->first_block + first + b];
        atomic_fetch_add(&block->n_owners, 1);
        view->blocks[view->n_blocks++] = block;
    }
    view->segments[view->n_segments++] = part;
    return TKV_OK;
}

/* The parts of one segment before and behind the tokens that are dropped. */
static tkv_status add_parts(const tkv_cache_layer *layer, const tkv_segment *segment, int first,
                            int n_drop, bool is_turned, tkv_cache_layer *view, tkv_error *error)
{
    const int n = tkv_segment_tokens(segment);
    const int before = first - segment->position;
    const int behind = before + n_drop;
    const int n_before = before < 0 ? 0 : before < n ? before : n;
    const int n_until_behind = behind < 0 ? 0 : behind < n ? behind : n;
    const tkv_status status = add_part(layer, segment, segment->begin, segment->begin + n_before,
                                       segment->position, segment->turn, view, error);
    return status == TKV_OK ? add_part(layer, segment, segment->begin + n_until_behind,
                                       segment->end, segment->position + n_until_behind - n_drop,
                                       segment->turn + (is_turned ? n_drop : 0), view, error)
                            : status;
}

tkv_status tkv_layer_without(const tkv_cache_layer *layer, int first, int n_drop, bool is_turned,
                             tkv_cache_layer *view, tkv_error *error)
{
    *view = *layer;
    view->n_blocks = view->n_segments = 0;
    view->block_capacity =
        layer->n_blocks + 1 > layer->block_capacity ? layer->n_blocks + 1 : layer->block_capacity;
    view->segment_capacity = layer->n_segments + 1;
    view->blocks = tkv_allocate(&layer->context->allocator,
                                (size_t)view->block_capacity * sizeof(tkv_block *));
    view->segments = tkv_allocate(&layer->context->allocator,
                                  (size_t)view->segment_capacity * sizeof(tkv_segment));
    tkv_status status = TKV_OK;
    if (!view->blocks || !view->segments) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of %d pages",
                          view->block_capacity);
    }
    const bool has_rope = is_turned && layer->rope.frequencies;
    for (int s = 0; s < layer->n_segments && status == TKV_OK; s++) {
        status = add_parts(layer, &layer->segments[s], first, n_drop, has_rope, view, error);
    }
    if (status != TKV_OK) {
        tkv_layer_free_tables(view);
        return status;
    }
    view->n_tokens = layer->n_tokens - n_drop;
    view->lost = layer->window ? tkv_layer_first_position(view) : 0;
    view->lost_until = layer->window ? view->n_tokens : 0;
    return TKV_OK;
}

void tkv_layer_free_tables(tkv_cache_layer *layer)
{
    while (layer->n_segments) {
        drop_turns(layer, --layer->n_segments);
    }
    while (layer->n_blocks) {
        tkv_block_release(layer, layer->blocks[--layer->n_blocks]);
    }
    tkv_release(&layer->context->allocator, layer->blocks);
    tkv_release(&layer->context->allocator, layer->segments);
    layer->blocks = NULL;
    layer->segments = NULL;
    layer->block_capacity = layer->segment_capacity = 0;
}
