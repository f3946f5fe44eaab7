/* What a policy costs, counted as a cache on the CPU would hold it, without making one. */
#include "cache/cache.h"
#include "policy/policy.h"

#include <stdlib.h>

/* A layer and how far its tokens have aged. */
typedef struct counted_layer {
    const tkv_policy *policy;
    tkv_cache_layer layer;
    int n_tokens;
    int position; /* of the first query of the newest append */
    bool can_code;
} counted_layer;

static size_t block_bytes(const counted_layer *c, int index, bool *is_coded)
{
    const int head = c->layer.head;
    const int start = tkv_block_place(head, index);
    const int next = tkv_block_place(head, index + 1);
    const int filled = (c->n_tokens < next ? c->n_tokens : next) - start;
    *is_coded = tkv_has_coded_type(&c->layer) && c->can_code && index >= tkv_head_blocks(head) &&
                tkv_is_old(c->policy->n_recent, next - 1, c->position);
    return tkv_block_bytes_of(&c->layer, !*is_coded, tkv_exact_slots(filled, next - start));
}

static int oldest_kept(const counted_layer *c)
{
    const int64_t n_mean_tokens = tkv_mean_tokens(tkv_has_coded_type(&c->layer), c->policy->n_sinks,
                                                  c->policy->centre_tokens);
    return tkv_oldest_kept(c->layer.window, n_mean_tokens, c->position);
}

/* Blocks behind the window are gone; those inside it are few or all. */
static size_t blocks_bytes(const counted_layer *c, int *n_blocks, bool *has_coded)
{
    const int head = c->layer.head;
    const int oldest = oldest_kept(c);
    const int first = oldest > 0 ? tkv_block_of_place(head, oldest) : 0;
    const int end = tkv_block_of_place(head, c->n_tokens - 1) + 1;
    size_t bytes = 0;
    for (int b = first; b < end;) {
        bool is_coded;
        size_t own = block_bytes(c, b, &is_coded);
        int n = 1;
        /* Coded blocks are alike: as many as are old. */
        if (is_coded) {
            *has_coded = true;
            bool is_next = true;
            while (b + n < end && is_next) {
                (void)block_bytes(c, b + n, &is_next);
                n += is_next;
            }
            own *= (size_t)n;
        }
        bytes += own;
        b += n;
    }
    *n_blocks = end - first;
    return bytes;
}

/* Without a recent window means are frozen when the head is full, for the next token to use; in any
 * case before what they are made of is given back. */
static bool is_frozen_early(const counted_layer *c)
{
    return tkv_has_coded_type(&c->layer) && c->can_code &&
           ((c->policy->n_recent == 0 && c->n_tokens >= c->layer.head) || oldest_kept(c) > 0);
}

static bool is_shape(const tkv_layer_shape *shape)
{
    return shape->n_kv_heads > 0 && shape->n_kv_heads <= TKV_MAX_KV_HEADS &&
           tkv_check_head_dim(TKV_TYPE_F16, shape->head_dim_k, NULL) == TKV_OK &&
           (shape->head_dim_v == 0 ||
            tkv_check_head_dim(TKV_TYPE_F16, shape->head_dim_v, NULL) == TKV_OK);
}

size_t tkv_policy_layer_bytes(const tkv_policy *policy, tkv_type type_k, tkv_type type_v,
                              const tkv_layer_shape *shape, int n_tokens, int n_batch)
{
    if (n_tokens < 1 || n_batch < 1 || !shape || !is_shape(shape) ||
        tkv_check_head_dim(type_k, shape->head_dim_k, NULL) != TKV_OK ||
        tkv_check_policy(policy, NULL) != TKV_OK) {
        return 0;
    }
    counted_layer c = {
        .policy = policy,
        .layer = {.n_kv_heads = shape->n_kv_heads,
                  .head_dim_k = shape->head_dim_k,
                  .head_dim_v = shape->head_dim_v,
                  .padded_k = tkv_padded_dim(shape->head_dim_k),
                  .padded_v = tkv_padded_dim(shape->head_dim_v),
                  .window = shape->window,
                  .type_k = type_k,
                  .type_v = shape->head_dim_v ? type_v : TKV_TYPE_F16},
        .n_tokens = n_tokens,
        .position = n_tokens > n_batch ? n_tokens - n_batch : 0,
        .can_code = n_tokens >= (int64_t)policy->n_sinks + policy->centre_tokens,
    };
    c.layer.head =
        tkv_head_tokens(tkv_has_coded_type(&c.layer), policy->n_sinks, policy->centre_tokens);
    int n_blocks = 0;
    bool has_coded = false;
    const size_t pages = blocks_bytes(&c, &n_blocks, &has_coded);
    const size_t means = policy->centre_tokens
                             ? (size_t)shape->n_kv_heads *
                                   (size_t)(c.layer.padded_k + c.layer.padded_v) * sizeof(float)
                             : 0;
    return sizeof c.layer + (size_t)tkv_table_capacity(n_blocks) * sizeof(tkv_block *) +
           2 * sizeof(tkv_segment) + pages + (has_coded || is_frozen_early(&c) ? means : 0);
}

/* The first layer behind `index` that may have other types. */
static int end_of_alike(const tkv_policy *policy, int n_layers, int index)
{
    int end = n_layers;
    const int borders[2] = {policy->boundary_layers, n_layers - policy->boundary_layers};
    for (int i = 0; i < 2; i++) {
        end = borders[i] > index && borders[i] < end ? borders[i] : end;
    }
    for (int r = 0; r < policy->n_ranges; r++) {
        const tkv_layer_range *range = &policy->ranges[r];
        end = range->first > index && range->first < end ? range->first : end;
        end = range->last >= index && range->last + 1 < end ? range->last + 1 : end;
    }
    return end;
}

size_t tkv_policy_object_bytes(void)
{
    return sizeof(tkv_cache);
}

double tkv_policy_bits(const tkv_policy *policy, int n_layers, int n_kv_heads, int head_dim_k,
                       int head_dim_v, int n_tokens)
{
    const tkv_layer_shape shape = {
        .n_kv_heads = n_kv_heads, .head_dim_k = head_dim_k, .head_dim_v = head_dim_v};
    if (n_layers < 1 || n_tokens < 1 || !is_shape(&shape) ||
        tkv_check_policy_layers(policy, n_layers, NULL) != TKV_OK) {
        return 0.0;
    }
    double bytes = (double)tkv_policy_object_bytes();
    for (int i = 0, end; i < n_layers; i = end) {
        tkv_type type_k;
        tkv_type type_v;
        tkv_policy_types_of_layer(policy, n_layers, i, &type_k, &type_v);
        end = end_of_alike(policy, n_layers, i);
        bytes += (double)(end - i) *
                 (double)tkv_policy_layer_bytes(policy, type_k, type_v, &shape, n_tokens, 1);
    }
    return 8.0 * bytes /
           ((double)n_layers * n_kv_heads * ((double)head_dim_k + head_dim_v) * n_tokens);
}
