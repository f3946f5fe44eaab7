/* Blocks: memory and copies. */
#ifndef TKV_CACHE_BLOCK_H
#define TKV_CACHE_BLOCK_H

#include "cache/structs.h"

/* Bytes of a block, its struct included: exact with n_slots rows, or coded. */
size_t tkv_block_bytes_of(const tkv_cache_layer *layer, bool is_exact, int n_slots);
size_t tkv_block_bytes(const tkv_cache_layer *layer, const tkv_block *block);

/* A zeroed block with one owner. */
tkv_status tkv_block_create(const tkv_cache_layer *layer, bool is_exact, int n_slots,
                            tkv_block **block, tkv_error *error);
void tkv_block_release(const tkv_cache_layer *layer, tkv_block *block);

/* Copies the first n_slots rows of an exact block, or a whole coded one. */
tkv_status tkv_block_copy(const tkv_cache_layer *layer, tkv_block *to, tkv_block *from, int n_slots,
                          tkv_error *error);

#endif
