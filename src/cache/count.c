/* What a cache by a policy holds, counted without making one: the policy's pages and means, and the
 * objects around them. */
#include "cache/cache.h"
#include "policy/cost.h"
#include "policy/policy.h"

#include <stdlib.h>

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
    const tkv_type stored_v = tkv_stored_value_type(type_v, shape->head_dim_v);
    const tkv_costed_layer layer = {
        .ageing = tkv_ageing_of(type_k, stored_v, policy->n_sinks, policy->n_recent,
                                policy->centre_tokens),
        .types = {type_k, stored_v},
        .padded = {tkv_padded_dim(shape->head_dim_k), tkv_padded_dim(shape->head_dim_v)},
        .n_kv_heads = shape->n_kv_heads,
        .window = shape->window};
    const tkv_layer_cost cost = tkv_count_layer(&layer, n_tokens, n_batch);
    return sizeof(tkv_cache_layer) + 2 * sizeof(tkv_segment) + sizeof(tkv_device_sequence) +
           (size_t)tkv_table_capacity(cost.n_blocks) *
               (sizeof(tkv_block *) + sizeof(tkv_device_block)) +
           (size_t)cost.n_blocks * sizeof(tkv_block) + cost.pages + cost.means;
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
