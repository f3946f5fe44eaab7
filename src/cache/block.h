/* Blocks: memory, copies, and rows in and out of their pages. */
#ifndef TKV_CACHE_BLOCK_H
#define TKV_CACHE_BLOCK_H

#include "cache/structs.h"

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

#endif
