/* What a policy costs: the pages of a layer, counted from the rules by which tokens age. */
#ifndef TKV_POLICY_COST_H
#define TKV_POLICY_COST_H

#include "policy/ageing.h"

/* A layer as it would be kept. */
typedef struct tkv_costed_layer {
    tkv_ageing ageing;
    tkv_type types[2]; /* of coded pages, by tkv_page_order */
    int padded[2];     /* head dimensions as pages have them; of values 0: keys only */
    int n_kv_heads;
    int window; /* 0: none */
} tkv_costed_layer;

typedef struct tkv_layer_cost {
    size_t pages; /* bytes */
    size_t means; /* bytes; 0 as long as they are not frozen */
    int n_blocks;
} tkv_layer_cost;

/* On the CPU, where exact pages grow by TKV_EXACT_ROWS, with n_tokens (>= 1) of which the newest
 * n_batch (>= 1) came at once. */
tkv_layer_cost tkv_count_layer(const tkv_costed_layer *layer, int n_tokens, int n_batch);

#endif
