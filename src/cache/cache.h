/* The cache's inside, for attention. device/geometry.h draws how a layer is made of segments,
 * blocks, pages and rows.
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
#ifndef TKV_CACHE_CACHE_H
#define TKV_CACHE_CACHE_H

#include "device/context.h"
#include "device/geometry.h"
#include "format/codec.h"
#include "policy/ageing.h"

#include <stdatomic.h>

#define TKV_BLOCK_HEADER 64

/* Rows that wait on the stack between a page and the caller, or another page. */
#define TKV_CHUNK_ROWS 16

typedef struct tkv_block {
    atomic_int n_owners;
    bool is_exact;
    int n_slots;        /* rows that an exact page has room for; coded pages have all 64 */
    tkv_device *device; /* NULL: the pages follow the header */
    uint64_t pages;     /* where they are on the device */
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
    float *mean_k;   /* [n_kv_heads][padded_k], then mean_v; NULL before they are frozen */
    float *mean_v;   /* [n_kv_heads][padded_v] */

    /* On a device: what the kernels read, as this struct and its blocks say it. */
    uint64_t descriptor; /* tkv_device_sequence of the last segment, within the cache's */
    bool is_stale;       /* it may have more tokens than there are */
    uint64_t entries;    /* tkv_device_block [entry_capacity] */
    int entry_capacity;
    uint64_t means;   /* those of the keys, then of the values; 0 before they are frozen */
    uint64_t earlier; /* tkv_device_sequence [earlier_capacity] of the segments but the last */
    int earlier_capacity;
    uint64_t turns; /* those of the segments: the last one's first, then the others' */
    int turn_capacity;
    int64_t n_renewals; /* of these, while there were earlier segments */
} tkv_cache_layer;

struct tkv_cache {
    tkv_context *context;
    int n_layers;
    int max_tokens;
    tkv_cache_layer *layers; /* [n_layers] */
    uint64_t descriptors;    /* on a device: tkv_device_sequence [n_layers] */
    int n_reserved;          /* tokens of tkv_cache_reserve; 0: nothing is reserved */
    int max_length;          /* that graphs captured now are to stand */
    int64_t generation;      /* of what captured graphs hold by value, but for renewals */
};

/* ---- Segments (segment.c) ---- */

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

/* The segment that holds a position that the layer holds. */
const tkv_segment *tkv_segment_of(const tkv_cache_layer *layer, int position);

/* First position that the layer still holds: behind a window pages are given back. */
int tkv_layer_first_position(const tkv_cache_layer *layer);

/* Whether a sequence that goes on from n_tokens, fewer than the layer has, finds all that its
 * window shows. */
bool tkv_layer_can_end(const tkv_cache_layer *layer, int n_tokens);

static inline bool tkv_has_coded_type(const tkv_cache_layer *layer)
{
    return layer->ageing.is_coded;
}

/* ---- Blocks (block.c) ---- */

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

/* The page of a KV head in a block. */
uint8_t *tkv_block_page(const tkv_cache_layer *layer, tkv_block *block, int kv_head,
                        tkv_page_order order);

/* Bytes of a block, header included: exact with n_slots rows, or coded. */
size_t tkv_block_bytes_of(const tkv_cache_layer *layer, bool is_exact, int n_slots);
size_t tkv_block_bytes(const tkv_cache_layer *layer, const tkv_block *block);

/* A zeroed block with one owner. */
tkv_status tkv_block_create(const tkv_cache_layer *layer, bool is_exact, int n_slots,
                            tkv_block **block, tkv_error *error);
void tkv_block_release(tkv_block *block);

/* Copies the first n_slots rows of an exact block, or a whole coded one. */
tkv_status tkv_block_copy(const tkv_cache_layer *layer, tkv_block *to, tkv_block *from, int n_slots,
                          tkv_error *error);

/* Writes rows [n_rows][padded] at src + i * stride into slots of a page of one KV head, less the
 * mean if the block is coded and the layer is centred. */
void tkv_block_encode(const tkv_cache_layer *layer, tkv_block *block, int kv_head,
                      tkv_page_order order, int first_slot, int n_rows, const float *src,
                      size_t stride);

/* Reads slots into dst + i * stride, the mean added back. */
void tkv_block_decode(const tkv_cache_layer *layer, tkv_block *block, int kv_head,
                      tkv_page_order order, int first_slot, int n_rows, float *dst, size_t stride);

/* ---- Rows between the caller and the pages (rows.c): padded, keys turned ---- */

/* Stores rows that are head_dim wide at src + i * stride. */
void tkv_rows_store(const tkv_cache_layer *layer, const tkv_segment *segment, tkv_block *block,
                    int kv_head, tkv_page_order order, int first_slot, int n_rows, const float *src,
                    size_t stride);

/* Tokens of a layer on the CPU, as tkv_cache_read gives them; either of k and v may be NULL. */
void tkv_layer_read(const tkv_cache_layer *layer, int first, int n_tokens, float *k, float *v);

/* Turns one key by the angles of cosines and sines [n_rotated / 2]; back: by their opposite. */
void tkv_turn_key(const tkv_rope *rope, const float *turns, bool back, float *key);

/* Cosines, then sines, of `turn` positions; NULL without memory. The caller frees them. */
float *tkv_make_turns(const tkv_rope *rope, int64_t turn);

/* Checks a description of RoPE; NULL is right. */
tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error);

/* ---- Layers ---- */

/* What the parameters of a cache say about a layer (params.c): no memory but that of its rope. */
tkv_status tkv_check_cache_params(const tkv_cache_params *params, tkv_error *error);
tkv_status tkv_layer_create(tkv_context *context, const tkv_cache_params *params, int index,
                            tkv_cache_layer *layer, tkv_error *error);

/* Copies a rope for a layer that has none; NULL is none. */
tkv_status tkv_layer_take_rope(tkv_cache_layer *layer, const tkv_rope *rope, tkv_error *error);

/* Room in the tables for so many blocks and segments. */
tkv_status tkv_layer_reserve(tkv_cache_layer *layer, int n_blocks, tkv_error *error);
tkv_status tkv_layer_reserve_segments(tkv_cache_layer *layer, int n_segments, tkv_error *error);

/* Makes room for n_tokens more: new blocks, longer exact ones, and an own copy of the one that is
 * written first. *first_changed: the first block of the table that is not what it was. On failure
 * none of the new blocks stays. */
tkv_status tkv_layer_add_blocks(tkv_cache_layer *layer, int n_tokens, int *first_changed,
                                tkv_error *error);

/* Entries of a table that has grown to hold n blocks. */
static inline int tkv_table_capacity(int n_blocks)
{
    int capacity = 8;
    while (capacity < n_blocks) {
        capacity *= 2;
    }
    return capacity;
}

/* Gives the layer its own copy of a block of its table that others share. */
tkv_status tkv_layer_own_block(tkv_cache_layer *layer, int at, tkv_error *error);

/* Releases blocks of the last segment beyond what its tokens take, and with them the segment if it
 * has none. */
void tkv_layer_trim(tkv_cache_layer *layer);

/* Gives back rows of exact blocks that reach beyond their segment's last token; without memory to
 * do so they stay. */
void tkv_layer_shorten(tkv_cache_layer *layer);

/* Drops the tokens from position n_tokens on. */
void tkv_layer_cut(tkv_cache_layer *layer, int n_tokens);

/* Appends tokens that have been checked: k [n_tokens][n_kv_heads][head_dim_k], v likewise. On error
 * the layer is as it was. */
tkv_status tkv_layer_append(tkv_cache_layer *layer, int n_tokens, const float *k, const float *v,
                            tkv_error *error);

/* What a layer would be without tokens first .. first+n_drop-1, those behind them turned if it has
 * a rope: blocks are shared, nothing is coded. `view` is a copy of the layer with tables of its
 * own; on error there is nothing to free. */
tkv_status tkv_layer_without(const tkv_cache_layer *layer, int first, int n_drop, bool is_turned,
                             tkv_cache_layer *view, tkv_error *error);

/* Releases a layer's tables and what they hold, on the host. */
void tkv_layer_free_tables(tkv_cache_layer *layer);

/* Drops everything that a layer holds, the frozen means included. */
void tkv_layer_clear(tkv_cache_layer *layer);

/* Forgets the means if no token is coded with them any more and those are held that they are made
 * of. */
void tkv_layer_thaw(tkv_cache_layer *layer);

/* Freezes the means of a layer if it is time, codes the exact blocks that have left the recent
 * window of a query at `position`, and gives back what is behind the layer's window. A block for
 * which there is no memory stays exact until the next call. */
void tkv_layer_settle(tkv_cache_layer *layer, int position);

/* Bytes that a layer holds on the host, and on its device, pages included. */
size_t tkv_layer_bytes(const tkv_cache_layer *layer);

/* ---- On a device (device.c) ---- */

/* What the kernels must know of a layer, of tokens in one segment. */
tkv_device_layer tkv_describe_layer(const tkv_cache_layer *layer, const tkv_segment *segment);
tkv_device_sequence tkv_describe_segment(const tkv_cache_layer *layer, const tkv_segment *segment,
                                         int n_more);

/* Where the descriptor of a segment is. */
uint64_t tkv_segment_descriptor(const tkv_cache_layer *layer, int segment);

/* Its turns there; 0 if it is not turned. */
uint64_t tkv_segment_turns(const tkv_cache_layer *layer, int segment);

/* The way of n_rows rows of a segment to the pages or back, but for where they are; and whether it
 * changes them. */
tkv_device_rows tkv_describe_rows(const tkv_cache_layer *layer, int segment, tkv_page_order order,
                                  size_t n_rows, bool is_back);
bool tkv_rows_differ(const tkv_device_rows *rows);

/* Descriptors of a new cache. */
tkv_status tkv_cache_create_on_device(tkv_cache *cache, tkv_error *error);
void tkv_cache_free_on_device(tkv_cache *cache);
void tkv_layer_free_on_device(tkv_cache_layer *layer);

/* Room for the layer's block_capacity entries in its page table in the device's memory. */
tkv_status tkv_layer_reserve_on_device(tkv_cache_layer *layer, tkv_error *error);

/* Writes blocks of the layer into its page table in the device's memory. */
tkv_status tkv_layer_publish_blocks(const tkv_cache_layer *layer, int first_block, int end_block,
                                    tkv_error *error);

/* The same from first_block on, and the descriptor of its last segment with n_more tokens. Nothing
 * to do on the CPU. */
tkv_status tkv_layer_publish(tkv_cache_layer *layer, int first_block, int n_more, tkv_error *error);

/* What a layer has there beside its pages, means and descriptor. */
typedef struct tkv_layer_tables {
    uint64_t entries;
    int entry_capacity;
    uint64_t earlier;
    int earlier_capacity;
    uint64_t turns;
    int turn_capacity;
} tkv_layer_tables;

/* Writes all of these anew, in memory that no kernel reads before the layer's descriptor is
 * published; *old is what was there, to be released then, or restored. On failure it is in force.
 */
tkv_status tkv_layer_renew_on_device(tkv_cache_layer *layer, tkv_layer_tables *old,
                                     tkv_error *error);
void tkv_layer_restore_on_device(tkv_cache_layer *layer, const tkv_layer_tables *old);
void tkv_release_tables(tkv_device *device, tkv_layer_tables *old);

/* All of a layer whose segments are others than before. On failure the old tables are in force. */
tkv_status tkv_layer_publish_segments(tkv_cache_layer *layer, tkv_error *error);

/* The descriptors of all layers, each with n_more tokens than it holds. Nothing to do on the CPU.
 */
tkv_status tkv_cache_publish_descriptors(const tkv_cache *cache, int n_more, tkv_error *error);

/* Brings the descriptors of one layer of several caches side by side; *sequences is where. */
tkv_status tkv_gather_sequences(const tkv_cache *const *caches, int n_caches, int layer,
                                uint64_t *sequences, tkv_error *error);

/* Copies the means of a layer to the device. Nothing to do on the CPU. */
tkv_status tkv_layer_publish_means(tkv_cache_layer *layer, tkv_error *error);

/* Stores n_tokens tokens at the end, for which there are blocks: k
 * [n_tokens][n_kv_heads][head_dim_k] and v in the device's memory. */
tkv_status tkv_layer_store_on_device(const tkv_cache_layer *layer, int n_tokens, const float *k,
                                     const float *v, tkv_error *error);

/* Decodes tokens into the device's memory. Either of k and v may be NULL. */
tkv_status tkv_layer_load_on_device(const tkv_cache_layer *layer, int first, int n_tokens, float *k,
                                    float *v, tkv_error *error);

/* Decodes tokens into the host's memory; waits. Either of k and v may be NULL. */
tkv_status tkv_layer_download(const tkv_cache_layer *layer, int first, int n_tokens, float *k,
                              float *v, tkv_error *error);

/* Codes the exact blocks [first, end) of a segment. Those for which there is no memory, and all if
 * the device fails, stay exact. */
void tkv_layer_code_on_device(tkv_cache_layer *layer, const tkv_segment *segment, int first,
                              int end);

/* Codes the tokens of a segment's first block into another block, in the same slots. */
tkv_status tkv_layer_fill_on_device(tkv_cache_layer *layer, const tkv_segment *segment,
                                    tkv_block *coded);

/* Writes a layer's tables and descriptor anew if they may not be what the layer is. */
tkv_status tkv_layer_refresh(tkv_cache_layer *layer, tkv_error *error);

/* Bytes of the device's memory beside the pages. */
size_t tkv_layer_device_bytes(const tkv_cache_layer *layer);

/* Whether caches can be one batch: checked for both functions of turbokv.h. */
tkv_status tkv_check_batch(const tkv_cache *const *caches, int n_caches, int layer,
                           tkv_error *error);

/* Whether no cache of a batch has been shifted or has given tokens back, so that one call serves
 * all.
 */
bool tkv_is_plain_batch(const tkv_cache *const *caches, int n_caches, int layer);

#endif
