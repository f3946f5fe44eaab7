/* The cache's inside, for attention. Layer -> blocks of 64 tokens -> per KV head a key page and a
 * value page. */
#ifndef TKV_CACHE_CACHE_H
#define TKV_CACHE_CACHE_H

#include "backend/kernels.h"

typedef struct tkv_cache_layer {
    tkv_type type_k;
    tkv_type type_v;
    size_t page_bytes_k;
    size_t page_bytes_v;
    int n_tokens;
    int n_blocks;       /* allocated */
    int block_capacity; /* of the table */
    uint8_t **blocks;   /* [n_blocks]: key and value page of each KV head in turn */
} tkv_cache_layer;

struct tkv_cache {
    tkv_context *context;
    int n_layers;
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v;
    int max_tokens;
    tkv_cache_layer *layers; /* [n_layers] */
};

/* The page of a KV head in a block. */
static inline uint8_t *tkv_cache_page(const tkv_cache_layer *layer, int block, int kv_head,
                                      tkv_page_order order)
{
    const size_t pair = layer->page_bytes_k + layer->page_bytes_v;
    return layer->blocks[block] + (size_t)kv_head * pair +
           (order == TKV_ORDER_VALUE ? layer->page_bytes_k : 0);
}

#endif
