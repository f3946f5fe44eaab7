/* Segments of a layer and its table of blocks: where tokens are, room for more, and what is left
 * when some are dropped. */
#ifndef TKV_CACHE_SEGMENT_H
#define TKV_CACHE_SEGMENT_H

#include "cache/structs.h"

/* The segment that holds a position that the layer holds. */
const tkv_segment *tkv_segment_of(const tkv_cache_layer *layer, int position);

/* First position that the layer still holds: behind a window pages are given back. */
int tkv_layer_first_position(const tkv_cache_layer *layer);

/* Whether a sequence that goes on from n_tokens, fewer than the layer has, finds all that its
 * window shows. */
bool tkv_layer_can_end(const tkv_cache_layer *layer, int n_tokens);

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

/* What a layer would be without tokens first .. first+n_drop-1, those behind them turned if it has
 * a rope: blocks are shared, nothing is coded. `view` is a copy of the layer with tables of its
 * own; on error there is nothing to free. */
tkv_status tkv_layer_without(const tkv_cache_layer *layer, int first, int n_drop, bool is_turned,
                             tkv_cache_layer *view, tkv_error *error);

/* Releases a layer's tables and what they hold, on the host. */
void tkv_layer_free_tables(tkv_cache_layer *layer);

/* Forgets the means if no token is coded with them any more and those are held that they are made
 * of. */
void tkv_layer_thaw(tkv_cache_layer *layer);

#endif
