/* What the kernels of a device read of a layer, written there. */
#ifndef TKV_CACHE_PUBLISH_H
#define TKV_CACHE_PUBLISH_H

#include "cache/structs.h"

/* What the kernels must know of a layer, of tokens in one segment. */
tkv_device_layer tkv_describe_layer(const tkv_cache_layer *layer, const tkv_segment *segment);
tkv_device_sequence tkv_describe_segment(const tkv_cache_layer *layer, const tkv_segment *segment,
                                         int n_more);

/* Where the descriptor of a segment is. */
uint64_t tkv_segment_descriptor(const tkv_cache_layer *layer, int segment);

/* Its turns there; 0 if it is not turned. */
uint64_t tkv_segment_turns(const tkv_cache_layer *layer, int segment);

void tkv_layer_free_published(tkv_cache_layer *layer);

/* Room for the layer's block_capacity entries in its page table in the device's memory. */
tkv_status tkv_layer_reserve_entries(tkv_cache_layer *layer, tkv_error *error);

/* Writes blocks of the layer into its page table in the device's memory. */
tkv_status tkv_layer_publish_blocks(const tkv_cache_layer *layer, int first_block, int end_block,
                                    tkv_error *error);

/* The same from first_block on, and the descriptor of its last segment with n_more tokens. */
tkv_status tkv_layer_publish(tkv_cache_layer *layer, int first_block, int n_more, tkv_error *error);

/* The descriptor no longer says what the layer is. It is written anew at once, or where that costs
 * a launch before the next call that reads it (tkv_layer_refresh): readers on the host, of which
 * there may be several at a time, find nothing to write. */
void tkv_layer_outdate(tkv_cache_layer *layer);

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
tkv_status tkv_layer_renew(tkv_cache_layer *layer, tkv_layer_tables *old, tkv_error *error);
void tkv_layer_restore(tkv_cache_layer *layer, const tkv_layer_tables *old);
void tkv_release_tables(tkv_device *device, tkv_layer_tables *old);

/* All of a layer whose segments are others than before. On failure the old tables are in force. */
tkv_status tkv_layer_publish_segments(tkv_cache_layer *layer, tkv_error *error);

/* Freezes the means of a layer: float [n_kv_heads][padded_k], then those of the values, in the
 * host's memory; or those of another layer. */
tkv_status tkv_layer_publish_means(tkv_cache_layer *layer, const float *means, tkv_error *error);
tkv_status tkv_layer_copy_means(const tkv_cache_layer *from, tkv_cache_layer *layer,
                                tkv_error *error);

/* Writes a layer's tables and descriptor anew if they may not be what the layer is. */
tkv_status tkv_layer_refresh(tkv_cache_layer *layer, tkv_error *error);

/* Bytes of the device's memory beside the pages. */
size_t tkv_layer_published_bytes(const tkv_cache_layer *layer);

#endif
