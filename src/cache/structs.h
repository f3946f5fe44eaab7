/* What a cache is made of: blocks in segments in layers, as device/geometry.h draws them.
 *
 * A segment is a run of tokens whose keys carry the rotation of positions that are equally far
 * ahead of those that the caller counts now. There is one, until a context shift drops tokens:
 * those behind the gap then form a segment of their own, which is never coded again; queries are
 * turned by its distance instead, and so are keys that are appended to it (Su et al., arXiv
 * 2104.09864: a score depends on the difference of positions alone).
 *
 * A block is exact (f16) or coded in the layer's types. Blocks are reference-counted: sequences
 * share a prefix, and two segments the block that a gap runs through. A shared block is copied
 * before it is written. */
#ifndef TKV_CACHE_STRUCTS_H
#define TKV_CACHE_STRUCTS_H

#include "device/context.h"
#include "device/geometry.h"
#include "format/codec.h"
#include "policy/ageing.h"

#include <stdatomic.h>

typedef struct tkv_block {
    atomic_int n_owners;
    bool is_exact;
    int n_slots; /* rows that an exact page has room for; coded pages have all 64 */
    tkv_device *device;
    uint64_t pages; /* where they are on the device */
} tkv_block;

typedef struct tkv_segment {
    int position;    /* of its first token, as the caller counts */
    int begin;       /* place of its first token */
    int end;         /* one past the place of its last token */
    int head;        /* places in head blocks, which stay exact: a multiple of TKV_EXACT_ROWS */
    int first_block; /* in the layer's table */
    int n_blocks;
    int n_settled; /* blocks from the first on that will stay as they are */
    int64_t turn;  /* positions that keys are ahead of the caller's */
    float *turns;  /* cosines, then sines of that angle [n_rotated / 2]; NULL: not turned */
} tkv_segment;

typedef struct tkv_cache_layer {
    tkv_context *context;
    tkv_ageing ageing;
    int max_tokens; /* as the cache's */
    int n_kv_heads;
    int head_dim_k; /* as the caller has it */
    int head_dim_v; /* 0: keys only */
    int padded_k;   /* as pages have it */
    int padded_v;   /* 0: keys only */
    int window;     /* 0: none */
    int lost;       /* what was given back before this position is missed by nobody: a context shift
                       has moved it into windows again */
    int lost_until; /* but only by queries from this position on, the length after that shift */
    int head;       /* tokens that stay exact, rounded up to TKV_EXACT_ROWS */
    bool has_own_rope;
    tkv_rope rope; /* of its keys, the frequencies its own; NULL: not known yet */
    tkv_type type_k;
    tkv_type type_v;
    int n_tokens; /* the caller's length: those that were given back behind a window included */
    int n_segments;
    int segment_capacity;
    tkv_segment *segments;
    int n_blocks;       /* in use, of all segments */
    int block_capacity; /* of the table */
    tkv_block **blocks;
    bool is_centred; /* the means are frozen */

    /* In the device's memory: what the kernels read, as this struct and its blocks say it. */
    uint64_t descriptor; /* tkv_device_sequence of the last segment, within the cache's */
    bool is_stale;       /* it may have more tokens than there are */
    uint64_t entries;    /* tkv_device_block [entry_capacity] */
    int entry_capacity;
    uint64_t means;   /* float [n_kv_heads][padded_k] of the keys, then of the values; 0 before they
                         are frozen */
    uint64_t earlier; /* tkv_device_sequence [earlier_capacity] of the segments but the last */
    int earlier_capacity;
    uint64_t turns; /* those of the segments: the last one's first, then the others' */
    int turn_capacity;
    int64_t n_renewals; /* of these, while there were earlier segments */
} tkv_cache_layer;

static inline int tkv_segment_tokens(const tkv_segment *segment)
{
    return segment->end - segment->begin;
}

/* The slots of its block `index` that are a segment's. */
static inline tkv_slots tkv_block_slots(const tkv_segment *segment, int index)
{
    return tkv_slots_of_places(segment->head, index, segment->begin, segment->end);
}

/* The last segment; NULL if the layer is empty. */
static inline tkv_segment *tkv_last_segment(const tkv_cache_layer *layer)
{
    return layer->n_segments ? &layer->segments[layer->n_segments - 1] : NULL;
}

static inline bool tkv_has_coded_type(const tkv_cache_layer *layer)
{
    return layer->ageing.is_coded;
}

/* Types of the pages in a block. */
static inline tkv_type tkv_block_type(const tkv_cache_layer *layer, const tkv_block *block,
                                      tkv_page_order order)
{
    if (block->is_exact) {
        return TKV_TYPE_F16;
    }
    return order == TKV_ORDER_KEY ? layer->type_k : layer->type_v;
}

static inline int tkv_layer_head_dim(const tkv_cache_layer *layer, tkv_page_order order)
{
    return order == TKV_ORDER_KEY ? layer->head_dim_k : layer->head_dim_v;
}

static inline int tkv_layer_padded(const tkv_cache_layer *layer, tkv_page_order order)
{
    return order == TKV_ORDER_KEY ? layer->padded_k : layer->padded_v;
}

/* Pages of a KV head: keys and values, or keys only. */
static inline int tkv_layer_orders(const tkv_cache_layer *layer)
{
    return layer->head_dim_v ? 2 : 1;
}

#endif
