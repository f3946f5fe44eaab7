/* The cache's inside, for attention.
 *
 * A layer is a table of blocks of up to 64 consecutive tokens: first those that hold the sinks,
 * then the others. A block holds a key page and a value page of every KV head, either exact (f16)
 * or coded in the layer's types. Blocks are reference-counted, so that sequences can share a
 * prefix; a shared block is copied before it is written. */
#ifndef TKV_CACHE_CACHE_H
#define TKV_CACHE_CACHE_H

#include "backend/context.h"

#include <stdatomic.h>

#define TKV_BLOCK_HEADER 64

typedef struct tkv_block {
    atomic_int n_owners;
    bool is_exact;
    int n_slots;        /* rows that an exact page has room for; coded pages have all 64 */
    tkv_device *device; /* NULL: the pages follow the header */
    uint64_t pages;     /* where they are on the device */
} tkv_block;

typedef struct tkv_cache_layer {
    tkv_type type_k;
    tkv_type type_v;
    int n_tokens;
    int n_blocks;       /* in use */
    int block_capacity; /* of the table */
    tkv_block **blocks;
    bool is_centred; /* the means are frozen */
    float *mean_k;   /* [n_kv_heads][head_dim_k]; NULL without centring */
    float *mean_v;   /* [n_kv_heads][head_dim_v] */

    /* On a device: what the kernels read, as this struct and its blocks say it. */
    uint64_t descriptor; /* tkv_device_sequence, within the cache's */
    bool is_stale;       /* it may have more tokens than there are */
    uint64_t entries;    /* tkv_device_block [entry_capacity] */
    int entry_capacity;
    uint64_t means; /* those of the keys, then of the values */
} tkv_cache_layer;

struct tkv_cache {
    tkv_context *context;
    int n_layers;
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v;
    int max_tokens;
    int n_sinks;
    int n_recent;
    int centre_tokens;
    bool has_lasting_mean[TKV_MAX_HEAD_DIM]; /* [head_dim_k] coordinates of keys that are centred */
    tkv_cache_layer *layers;                 /* [n_layers] */
    uint64_t descriptors;                    /* on a device: tkv_device_sequence [n_layers] */
    int n_reserved; /* tokens of tkv_cache_reserve; 0: nothing is reserved */
    int max_length; /* that graphs captured now are to stand */
};

/* Types of the pages in a block. */
static inline tkv_type tkv_block_type(const tkv_cache_layer *layer, const tkv_block *block,
                                      tkv_page_order order)
{
    if (block->is_exact) {
        return TKV_TYPE_F16;
    }
    return order == TKV_ORDER_KEY ? layer->type_k : layer->type_v;
}

static inline int tkv_cache_head_dim(const tkv_cache *cache, tkv_page_order order)
{
    return order == TKV_ORDER_KEY ? cache->head_dim_k : cache->head_dim_v;
}

/* The page of a KV head in a block. */
uint8_t *tkv_block_page(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                        int kv_head, tkv_page_order order);

/* Number of blocks that hold the sinks. */
static inline int tkv_sink_blocks(const tkv_cache *cache)
{
    return (cache->n_sinks + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS;
}

/* Position of the first token of a block. */
static inline int tkv_block_start(const tkv_cache *cache, int block)
{
    const int n_sink_blocks = tkv_sink_blocks(cache);
    return block < n_sink_blocks ? block * TKV_PAGE_TOKENS
                                 : cache->n_sinks + (block - n_sink_blocks) * TKV_PAGE_TOKENS;
}

/* The block that holds a position. */
static inline int tkv_block_of(const tkv_cache *cache, int position)
{
    return position < cache->n_sinks
               ? position / TKV_PAGE_TOKENS
               : tkv_sink_blocks(cache) + (position - cache->n_sinks) / TKV_PAGE_TOKENS;
}

/* Rows that an exact page of entry `index` of the table has room for: the block that holds the last
 * sinks is no larger than it must be. */
int tkv_block_slots(const tkv_cache *cache, int index);

/* Bytes of a block, header included. */
size_t tkv_block_bytes(const tkv_cache *cache, const tkv_cache_layer *layer,
                       const tkv_block *block);

/* A zeroed block with one owner for entry `index` of the table. */
tkv_status tkv_block_create(const tkv_cache *cache, const tkv_cache_layer *layer, int index,
                            bool is_exact, tkv_block **block, tkv_error *error);
void tkv_block_release(tkv_block *block);

/* Makes the table hold n_blocks entries; new ones are unset. */
tkv_status tkv_layer_reserve(const tkv_cache *cache, tkv_cache_layer *layer, int n_blocks,
                             tkv_error *error);

/* Gives the layer its own copy of a block that others share. */
tkv_status tkv_layer_own_block(const tkv_cache *cache, tkv_cache_layer *layer, int block,
                               tkv_error *error);

/* Makes room for positions up to `end`: new blocks, and an own copy of the one that is written
 * first. On failure none of the new blocks stays. */
tkv_status tkv_layer_add_blocks(const tkv_cache *cache, tkv_cache_layer *layer, int end,
                                tkv_error *error);

/* Releases the blocks from `n_blocks` on. */
void tkv_layer_drop_blocks(tkv_cache_layer *layer, int n_blocks);

/* Writes rows src + i * stride into slots of a page of one KV head, centred if the block is coded
 * and the layer is centred. */
void tkv_block_store(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                     int kv_head, tkv_page_order order, int first_slot, int n_rows,
                     const float *src, size_t stride);

/* Reads slots into dst + i * stride, means added back. */
void tkv_block_load(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                    int kv_head, tkv_page_order order, int first_slot, int n_rows, float *dst,
                    size_t stride);

/* Appends tokens that have been checked: k [n_tokens][n_kv_heads][head_dim_k], v likewise. On error
 * the layer is as it was. */
tkv_status tkv_layer_append(const tkv_cache *cache, tkv_cache_layer *layer, int n_tokens,
                            const float *k, const float *v, tkv_error *error);

/* Makes `copy` hold the first n_tokens of `layer`, sharing its blocks. On error it is empty. */
tkv_status tkv_layer_share(const tkv_cache *cache, const tkv_cache_layer *layer, int n_tokens,
                           tkv_cache_layer *copy, tkv_error *error);

/* Gives `copy` the frozen means of `layer`; they are not yet on the device. */
void tkv_layer_take_means(const tkv_cache *cache, const tkv_cache_layer *layer,
                          tkv_cache_layer *copy);

/* Drops everything that a layer holds, the frozen means included; its mean arrays stay. */
void tkv_layer_clear(const tkv_cache *cache, tkv_cache_layer *layer);

/* Checks a description of RoPE; NULL is right. */
tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error);

/* Freezes the means of a layer that has enough tokens, and codes the exact blocks that have left
 * the recent window of a query at `position`. A block for which there is no memory stays exact
 * until the next call. */
void tkv_layer_settle(const tkv_cache *cache, tkv_cache_layer *layer, int position);

/* ---- On a device (device.c) ---- */

/* What the kernels must know of a layer. */
tkv_device_layer tkv_describe_layer(const tkv_cache *cache, const tkv_cache_layer *layer);
tkv_device_sequence tkv_describe_sequence(const tkv_cache *cache, const tkv_cache_layer *layer,
                                          int n_tokens);

/* Descriptors and means of a new cache. */
tkv_status tkv_cache_create_on_device(tkv_cache *cache, tkv_error *error);
void tkv_cache_free_on_device(tkv_cache *cache);

/* Room for the layer's block_capacity entries in its page table in the device's memory. */
tkv_status tkv_layer_reserve_on_device(const tkv_cache *cache, tkv_cache_layer *layer,
                                       tkv_error *error);

/* Writes blocks of the layer into its page table in the device's memory. */
tkv_status tkv_layer_publish_blocks(const tkv_cache *cache, const tkv_cache_layer *layer,
                                    int first_block, int end_block, tkv_error *error);

/* The same from first_block on, and the layer's descriptor, with n_tokens tokens. Nothing to do on
 * the CPU. */
tkv_status tkv_layer_publish(const tkv_cache *cache, tkv_cache_layer *layer, int first_block,
                             int n_tokens, tkv_error *error);

/* The descriptors of all layers, each with n_more tokens than it holds. Nothing to do on the CPU.
 */
tkv_status tkv_cache_publish_descriptors(const tkv_cache *cache, int n_more, tkv_error *error);

/* Brings the descriptors of one layer of several caches side by side; *sequences is where. */
tkv_status tkv_gather_sequences(const tkv_cache *const *caches, int n_caches, int layer,
                                uint64_t *sequences, tkv_error *error);

/* Copies the means of a layer to the device. Nothing to do on the CPU. */
tkv_status tkv_layer_publish_means(const tkv_cache *cache, const tkv_cache_layer *layer,
                                   tkv_error *error);

/* Stores n_tokens tokens for which there are blocks: k [n_tokens][n_kv_heads][head_dim_k] and v in
 * the device's memory. */
tkv_status tkv_layer_store_on_device(const tkv_cache *cache, const tkv_cache_layer *layer,
                                     int n_tokens, const float *k, const float *v,
                                     tkv_error *error);

/* Decodes tokens into the device's memory. Either of k and v may be NULL. */
tkv_status tkv_layer_load_on_device(const tkv_cache *cache, const tkv_cache_layer *layer, int first,
                                    int n_tokens, float *k, float *v, tkv_error *error);

/* Decodes tokens into the host's memory; waits. Either of k and v may be NULL. */
tkv_status tkv_layer_download(const tkv_cache *cache, const tkv_cache_layer *layer, int first,
                              int n_tokens, float *k, float *v, tkv_error *error);

/* Appends tokens from the host's memory. */
tkv_status tkv_layer_append_from_host(const tkv_cache *cache, tkv_cache_layer *layer, int n_tokens,
                                      const float *k, const float *v, tkv_error *error);

/* Codes the exact blocks [first, end). Those for which there is no memory, and all if the device
 * fails, stay exact. */
void tkv_layer_code_on_device(const tkv_cache *cache, tkv_cache_layer *layer, int first, int end);

/* Bytes of the device's memory beside the pages. */
size_t tkv_layer_device_bytes(const tkv_cache *cache, const tkv_cache_layer *layer);

/* Whether caches can be one batch: checked for both functions of turbokv.h. */
tkv_status tkv_check_batch(const tkv_cache *const *caches, int n_caches, int layer,
                           tkv_error *error);

/* Bytes that one layer of a cache with this policy holds at n_tokens (>= 1) of these types.
 * head_dim_v may be 0: there are no values. */
size_t tkv_policy_layer_bytes(const tkv_policy *policy, tkv_type type_k, tkv_type type_v,
                              int n_kv_heads, int head_dim_k, int head_dim_v, int n_tokens);

#endif
