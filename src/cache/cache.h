/* A cache: layers that grow together. Calls go one way: the functions of caches call those of
 * layers (layer.h), these those of ageing (settle.h), of segments (segment.h) and of blocks
 * (block.h); rows.h, code.h, rope.h and publish.h stand beside the last two. */
#ifndef TKV_CACHE_CACHE_H
#define TKV_CACHE_CACHE_H

#include "cache/block.h"
#include "cache/code.h"
#include "cache/layer.h"
#include "cache/publish.h"
#include "cache/rows.h"
#include "cache/segment.h"
#include "cache/settle.h"

struct tkv_cache {
    tkv_context *context;
    int n_layers;
    int max_tokens;
    tkv_cache_layer *layers; /* [n_layers] */
    uint64_t descriptors;    /* tkv_device_sequence [n_layers] */
    int n_reserved;          /* tokens of tkv_cache_reserve; 0: nothing is reserved */
    int max_length;          /* that graphs captured now are to stand */
    int64_t generation;      /* of what captured graphs hold by value, but for renewals */
};

/* What the parameters of a cache say (params.c). */
tkv_status tkv_check_cache_params(const tkv_cache_params *params, tkv_error *error);
/* Descriptors of a new cache. */
tkv_status tkv_cache_create_descriptors(tkv_cache *cache, tkv_error *error);
void tkv_cache_free_descriptors(tkv_cache *cache);
/* The descriptors of all layers, each with n_more tokens than it holds. */
tkv_status tkv_cache_publish_descriptors(const tkv_cache *cache, int n_more, tkv_error *error);

/* Brings the descriptors of one layer of several caches side by side; *sequences is where, to
 * be given back to the context. */
tkv_status tkv_gather_sequences(const tkv_cache *const *caches, int n_caches, int layer,
                                uint64_t *sequences, tkv_error *error);
void tkv_give_back_sequences(tkv_context *context, int n_caches, uint64_t sequences);

/* Whether caches can be one batch: checked for both functions of turbokv.h. */
tkv_status tkv_check_batch(const tkv_cache *const *caches, int n_caches, int layer,
                           tkv_error *error);

/* Whether no cache of a batch has been shifted or has given tokens back, so that one call serves
 * all.
 */
bool tkv_is_plain_batch(const tkv_cache *const *caches, int n_caches, int layer);

#endif
