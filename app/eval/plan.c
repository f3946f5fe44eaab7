#include "eval/plan.h"

#include "common/try.h"

#include <stdlib.h>

#define LOOK_BACK 64

uint64_t tkv_plan_workspace_bytes(const tkv_geometry *geometry, int n_batch)
{
    const uint64_t n_floats = geometry->batch_width * (uint64_t)n_batch;
    return n_floats ? (n_floats + (uint64_t)geometry->vocabulary_size) * sizeof(float) : 0;
}

static uint64_t sequences(const tkv_plan_params *params)
{
    return params->n_sequences > 1 ? (uint64_t)params->n_sequences : 1;
}

uint64_t tkv_plan_state_bytes(const tkv_plan_params *params)
{
    uint64_t sum = 0;
    for (int i = 0; i < params->geometry->n_layers; i++) {
        sum += params->geometry->layers[i].state_bytes;
    }
    return sum * sequences(params);
}

uint64_t tkv_plan_kv_budget(const tkv_plan_params *params)
{
    const uint64_t used =
        params->weight_bytes + params->workspace_bytes + tkv_plan_state_bytes(params);
    return used < params->memory_bytes ? params->memory_bytes - used : 0;
}

static bool is_head_dim(int head_dim)
{
    return head_dim >= 2 && head_dim <= TKV_MAX_HEAD_DIM && head_dim % 2 == 0;
}

/* Whether a cache can keep the layers' rows. Values and rows beside the keys may be absent. */
static tkv_status check_layers(const tkv_geometry *geometry, tkv_error *error)
{
    for (int i = 0; i < geometry->n_layers; i++) {
        const tkv_geometry_layer *layer = &geometry->layers[i];
        const int dims[] = {layer->head_dim_k, layer->head_dim_v, layer->compressed.width,
                            layer->indexer.width};
        for (int j = 0; j < 4 && layer->n_kv_heads > 0; j++) {
            if (!is_head_dim(dims[j]) && (j == 0 || dims[j] != 0)) {
                return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                                "layer %d: head_dim %d: expected an even number from 2 to %d", i,
                                dims[j], TKV_MAX_HEAD_DIM);
            }
        }
    }
    return TKV_OK;
}

/* The tokens of a cache, and how many of them came at once last: these are exact. */
typedef struct filling {
    int n_tokens;
    int n_batch;
} filling;

static int divide_up(int n, int by)
{
    return n / by + (n % by > 0);
}

/* Bytes of rows of one head. */
static uint64_t rows_bytes(const tkv_policy *policy, tkv_type type, const tkv_geometry_rows *rows,
                           filling f)
{
    const tkv_layer_shape shape = {.n_kv_heads = 1, .head_dim_k = rows->width};
    return rows->width == 0 ? 0
                            : tkv_policy_layer_bytes(policy, type, type, &shape,
                                                     divide_up(f.n_tokens, rows->interval),
                                                     divide_up(f.n_batch, rows->interval));
}

static uint64_t all_bytes(const tkv_plan_params *params, const tkv_policy *policy, tkv_type type_k,
                          tkv_type type_v, const tkv_geometry_layer *layer, filling f)
{
    const tkv_layer_shape shape = {.n_kv_heads = layer->n_kv_heads,
                                   .head_dim_k = layer->head_dim_k,
                                   .head_dim_v = layer->head_dim_v,
                                   .window = params->keeps_all ? 0 : layer->window};
    return tkv_policy_layer_bytes(policy, type_k, type_v, &shape, f.n_tokens, f.n_batch) +
           rows_bytes(policy, type_k, &layer->compressed, f) +
           rows_bytes(policy, type_k, &layer->indexer, f);
}

static bool are_equal(const tkv_geometry_layer *a, const tkv_geometry_layer *b)
{
    return a->n_kv_heads == b->n_kv_heads && a->head_dim_k == b->head_dim_k &&
           a->head_dim_v == b->head_dim_v && a->window == b->window &&
           a->compressed.width == b->compressed.width &&
           a->compressed.interval == b->compressed.interval &&
           a->indexer.width == b->indexer.width && a->indexer.interval == b->indexer.interval;
}

/* The layers that keep keys, with their types. */
typedef struct kept_layers {
    int n;
    const tkv_geometry_layer **layers; /* [n] */
    tkv_type *types_k;                 /* [n] */
    tkv_type *types_v;                 /* [n] */
    uint64_t *bytes;                   /* [n] of a sum */
} kept_layers;

static void free_kept(kept_layers *kept)
{
    free(kept->layers);
    free(kept->types_k);
    free(kept->types_v);
    free(kept->bytes);
}

static tkv_status find_kept(const tkv_geometry *geometry, const tkv_policy *policy,
                            kept_layers *kept, tkv_error *error)
{
    const size_t n_layers = (size_t)geometry->n_layers;
    *kept = (kept_layers){.layers = malloc(n_layers * sizeof *kept->layers),
                          .types_k = malloc(n_layers * sizeof *kept->types_k),
                          .types_v = malloc(n_layers * sizeof *kept->types_v),
                          .bytes = malloc(n_layers * sizeof *kept->bytes)};
    if (!kept->layers || !kept->types_k || !kept->types_v || !kept->bytes) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu layers", n_layers);
    }
    for (size_t i = 0; i < n_layers; i++) {
        if (geometry->layers[i].n_kv_heads > 0) {
            kept->layers[kept->n++] = &geometry->layers[i];
        }
    }
    return kept->n == 0
               ? TKV_OK
               : tkv_policy_layer_types(policy, kept->n, kept->types_k, kept->types_v, error);
}

/* Bytes of one sequence's cache; most layers are equal to one before. */
static uint64_t sum_layers(const tkv_plan_params *params, const tkv_policy *policy,
                           const kept_layers *kept, filling f)
{
    uint64_t sum = kept->n > 0 ? tkv_policy_object_bytes() : 0;
    for (int i = 0; i < kept->n; i++) {
        const int lowest = i > LOOK_BACK ? i - LOOK_BACK : 0;
        int equal = i - 1;
        while (equal >= lowest && !(are_equal(kept->layers[i], kept->layers[equal]) &&
                                    kept->types_k[i] == kept->types_k[equal] &&
                                    kept->types_v[i] == kept->types_v[equal])) {
            equal--;
        }
        kept->bytes[i] = equal >= lowest ? kept->bytes[equal]
                                         : all_bytes(params, policy, kept->types_k[i],
                                                     kept->types_v[i], kept->layers[i], f);
        sum += kept->bytes[i];
    }
    return sum;
}

tkv_status tkv_plan_series(const tkv_plan_params *params, const tkv_policy *policy, int n_contexts,
                           const int *contexts, uint64_t *bytes, tkv_error *error)
{
    kept_layers kept = {.n = 0};
    tkv_status status = check_layers(params->geometry, error);
    if (status == TKV_OK) {
        status = find_kept(params->geometry, policy, &kept, error);
    }
    for (int i = 0; i < n_contexts && status == TKV_OK; i++) {
        if (contexts[i] < 1 || contexts[i] > TKV_PLAN_MAX_TOKENS) {
            status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                              "a context of %d tokens: expected 1 to %d", contexts[i],
                              TKV_PLAN_MAX_TOKENS);
            break;
        }
        bytes[i] = sequences(params) * sum_layers(params, policy, &kept, (filling){contexts[i], 1});
    }
    free_kept(&kept);
    return status;
}

tkv_status tkv_plan_batch_bytes(const tkv_plan_params *params, const tkv_policy *policy,
                                int n_tokens, int n_batch, uint64_t *bytes, tkv_error *error)
{
    kept_layers kept = {.n = 0};
    tkv_status status = check_layers(params->geometry, error);
    if (status == TKV_OK) {
        status = find_kept(params->geometry, policy, &kept, error);
    }
    *bytes = 0;
    if (status == TKV_OK) {
        const filling at_once = {n_tokens, n_batch < n_tokens ? n_batch : n_tokens};
        const filling one_by_one = {n_tokens, 1};
        *bytes = sum_layers(params, policy, &kept, at_once) -
                 sum_layers(params, policy, &kept, one_by_one);
    }
    free_kept(&kept);
    return status;
}

static uint64_t row_values(const tkv_geometry_rows *rows, int n_tokens)
{
    return rows->width ? (uint64_t)rows->width * (uint64_t)divide_up(n_tokens, rows->interval) : 0;
}

/* Tokens of a layer that are kept: behind a window whole pages go. window 0: none. */
static int kept_tokens(int window, int n_tokens)
{
    return window > 0 && window < n_tokens - TKV_PAGE_TOKENS ? window + TKV_PAGE_TOKENS : n_tokens;
}

uint64_t tkv_plan_values(const tkv_plan_params *params, int n_tokens)
{
    uint64_t n_values = 0;
    for (int i = 0; i < params->geometry->n_layers; i++) {
        const tkv_geometry_layer *layer = &params->geometry->layers[i];
        n_values +=
            (uint64_t)layer->n_kv_heads * (uint64_t)(layer->head_dim_k + layer->head_dim_v) *
                (uint64_t)kept_tokens(params->keeps_all ? 0 : layer->window, n_tokens) +
            row_values(&layer->compressed, n_tokens) + row_values(&layer->indexer, n_tokens);
    }
    return n_values * sequences(params);
}

/* First doubles, so that long contexts are looked at only if shorter ones fit. */
tkv_status tkv_plan_longest(const tkv_plan_params *params, const tkv_policy *policy, int *n_tokens,
                            tkv_error *error)
{
    const uint64_t budget = tkv_plan_kv_budget(params);
    int fitting = 0;
    int next = 1;
    int too_long = TKV_PLAN_MAX_TOKENS + 1;
    while (too_long - fitting > 1) {
        uint64_t bytes = 0;
        TKV_TRY(tkv_plan_series(params, policy, 1, &next, &bytes, error));
        if (bytes <= budget) {
            fitting = next;
        } else {
            too_long = next;
        }
        const int doubled = 2 * fitting;
        next = doubled > 0 && doubled < too_long ? doubled : fitting + (too_long - fitting) / 2;
    }
    *n_tokens = fitting;
    return TKV_OK;
}

tkv_status tkv_plan_choose(const tkv_plan_params *params, int wanted_tokens,
                           tkv_plan_choice *choice, tkv_error *error)
{
    *choice = (tkv_plan_choice){.preset = NULL};
    const char *name;
    for (int i = 0; choice->n_tokens < wanted_tokens && (name = tkv_policy_preset_name(i)); i++) {
        tkv_policy policy;
        int longest = 0;
        uint64_t bytes = 0;
        TKV_TRY(tkv_policy_preset(name, &policy, error));
        TKV_TRY(tkv_plan_longest(params, &policy, &longest, error));
        const int n_tokens = longest < wanted_tokens ? longest : wanted_tokens;
        if (n_tokens > choice->n_tokens) {
            TKV_TRY(tkv_plan_series(params, &policy, 1, &n_tokens, &bytes, error));
            *choice = (tkv_plan_choice){name, n_tokens, bytes};
        }
    }
    return TKV_OK;
}
