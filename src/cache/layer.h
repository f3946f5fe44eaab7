/* A layer as a whole. */
#ifndef TKV_CACHE_LAYER_H
#define TKV_CACHE_LAYER_H

#include "cache/structs.h"

/* What the parameters of a cache say about a layer: no memory but that of its rope. */
tkv_status tkv_layer_create(tkv_context *context, const tkv_cache_params *params, int index,
                            tkv_cache_layer *layer, tkv_error *error);

/* Copies a rope for a layer that has none; NULL is none. */
tkv_status tkv_layer_take_rope(tkv_cache_layer *layer, const tkv_rope *rope, tkv_error *error);

/* Appends tokens that have been checked: k [n_tokens][n_kv_heads][head_dim_k], v likewise. On error
 * the layer is as it was. */
tkv_status tkv_layer_append(tkv_cache_layer *layer, int n_tokens, const float *k, const float *v,
                            tkv_error *error);

/* Drops everything that a layer holds, the frozen means included. */
void tkv_layer_clear(tkv_cache_layer *layer);

/* Bytes that a layer holds, pages included. */
size_t tkv_layer_bytes(const tkv_cache_layer *layer);

#endif
