/* Rows between the caller and the pages: padded, keys turned. */
#ifndef TKV_CACHE_ROWS_H
#define TKV_CACHE_ROWS_H

#include "cache/structs.h"

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

#endif
