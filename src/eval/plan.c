#include "eval/plan.h"

#include "cache/cache.h"
#include "common/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#define LOOK_BACK 64

uint64_t tkv_plan_workspace_bytes(const tkv_geometry *geometry, int n_batch)
{
    const uint64_t n_floats = geometry->batch_width * (uint64_t)n_batch;
    return n_floats ? (n_floats + (uint64_t)geometry->vocabulary_size) * sizeof(float) : 0;
}

uint64_t tkv_plan_kv_budget(const tkv_plan_params *params)
{
    const uint64_t used = params->weight_bytes + params->workspace_bytes;
    return used < params->memory_bytes ? params->memory_bytes - used : 0;
}

static tkv_status check_layers(const tkv_geometry *geometry, tkv_error *error)
{
    for (int i = 0; i < geometry->n_layers; i++) {
        const tkv_geometry_layer *layer = &geometry->layers[i];
        const int dims[] = {layer->head_dim_k, layer->head_dim_v};
        for (int j = 0; j < 2 && layer->n_kv_heads > 0; j++) {
            tkv_error reason;
            const bool is_absent = j == 1 && dims[j] == 0;
            if (!is_absent && tkv_check_head_dim(TKV_TYPE_F16, dims[j], &reason) != TKV_OK) {
                return tkv_fail(error, TKV_ERR_UNSUPPORTED, "layer %d: %s", i, reason.message);
            }
        }
    }
    return TKV_OK;
}

/* Tokens of a layer that are kept: behind a window whole pages go. */
static int kept_tokens(const tkv_plan_params *params, const tkv_geometry_layer *layer, int n_tokens)
{
    const bool drops = !params->keeps_all && layer->window > 0;
    return drops && layer->window < n_tokens - TKV_PAGE_TOKENS ? layer->window + TKV_PAGE_TOKENS
                                                               : n_tokens;
}

static bool are_equal(const tkv_geometry_layer *a, const tkv_geometry_layer *b)
{
    return a->n_kv_heads == b->n_kv_heads && a->head_dim_k == b->head_dim_k &&
           a->head_dim_v == b->head_dim_v && a->window == b->window;
}

/* Bytes of layers [n_layers] with these types; most are equal to one before. */
static uint64_t sum_layers(const tkv_plan_params *params, const tkv_policy *policy,
                           const tkv_type *types_k, const tkv_type *types_v, int n_tokens,
                           uint64_t *bytes)
{
    const tkv_geometry *g = params->geometry;
    uint64_t sum = sizeof(tkv_cache);
    for (int i = 0; i < g->n_layers; i++) {
        const tkv_geometry_layer *layer = &g->layers[i];
        int equal = i - 1;
        while (equal >= 0 && equal >= i - LOOK_BACK &&
               !(are_equal(layer, &g->layers[equal]) && types_k[i] == types_k[equal] &&
                 types_v[i] == types_v[equal])) {
            equal--;
        }
        if (layer->n_kv_heads == 0) {
            bytes[i] = 0;
        } else if (equal >= 0 && equal >= i - LOOK_BACK) {
            bytes[i] = bytes[equal];
        } else {
            const tkv_layer_shape shape = {layer->n_kv_heads, layer->head_dim_k, layer->head_dim_v,
                                           params->keeps_all ? 0 : layer->window, NULL};
            bytes[i] = tkv_policy_layer_bytes(policy, types_k[i], types_v[i], &shape, n_tokens, 1);
        }
        sum += bytes[i];
    }
    return sum;
}

tkv_status tkv_plan_series(const tkv_plan_params *params, const tkv_policy *policy, int n_contexts,
                           const int *contexts, uint64_t *bytes, tkv_error *error)
{
    const size_t n_layers = (size_t)params->geometry->n_layers;
    tkv_status status = check_layers(params->geometry, error);
    tkv_type *types = malloc(2 * n_layers * sizeof *types);
    uint64_t *layer_bytes = malloc(n_layers * sizeof *layer_bytes);
    if (status == TKV_OK && (!types || !layer_bytes)) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu layers", n_layers);
    }
    if (status == TKV_OK) {
        status = tkv_policy_layer_types(policy, (int)n_layers, types, types + n_layers, error);
    }
    for (int i = 0; i < n_contexts && status == TKV_OK; i++) {
        if (contexts[i] < 1 || contexts[i] > TKV_PLAN_MAX_TOKENS) {
            status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                              "a context of %d tokens: expected 1 to %d", contexts[i],
                              TKV_PLAN_MAX_TOKENS);
            break;
        }
        bytes[i] = sum_layers(params, policy, types, types + n_layers, contexts[i], layer_bytes);
    }
    free(types);
    free(layer_bytes);
    return status;
}

uint64_t tkv_plan_values(const tkv_plan_params *params, int n_tokens)
{
    uint64_t n_values = 0;
    for (int i = 0; i < params->geometry->n_layers; i++) {
        const tkv_geometry_layer *layer = &params->geometry->layers[i];
        n_values += (uint64_t)layer->n_kv_heads *
                    (uint64_t)(layer->head_dim_k + layer->head_dim_v) *
                    (uint64_t)kept_tokens(params, layer, n_tokens);
    }
    return n_values;
}

/* First doubles, so that long contexts are looked at only if shorter ones fit. */
tkv_status tkv_plan_longest(const tkv_plan_params *params, const tkv_policy *policy, int *n_tokens,
                            tkv_error *error)
{
    const uint64_t budget = tkv_plan_kv_budget(params);
    int fitting = 0;
    int next = 1;
    int too_long = TKV_PLAN_MAX_TOKENS + 1;
    tkv_status status = TKV_OK;
    while (too_long - fitting > 1 && status == TKV_OK) {
        uint64_t bytes = 0;
        status = tkv_plan_series(params, policy, 1, &next, &bytes, error);
        if (bytes <= budget) {
            fitting = next;
        } else {
            too_long = next;
        }
        const int doubled = 2 * fitting;
        next = doubled > 0 && doubled < too_long ? doubled : fitting + (too_long - fitting) / 2;
    }
    *n_tokens = fitting;
    return status;
}

tkv_status tkv_plan_choose(const tkv_plan_params *params, int wanted_tokens,
                           tkv_plan_choice *choice, tkv_error *error)
{
    *choice = (tkv_plan_choice){.preset = NULL};
    const char *name;
    tkv_status status = TKV_OK;
    for (int i = 0;
         status == TKV_OK && choice->n_tokens < wanted_tokens && (name = tkv_policy_preset_name(i));
         i++) {
        tkv_policy policy;
        int longest = 0;
        uint64_t bytes = 0;
        status = tkv_policy_preset(name, &policy, error);
        if (status == TKV_OK) {
            status = tkv_plan_longest(params, &policy, &longest, error);
        }
        const int n_tokens = longest < wanted_tokens ? longest : wanted_tokens;
        if (status == TKV_OK && n_tokens > choice->n_tokens) {
            status = tkv_plan_series(params, &policy, 1, &n_tokens, &bytes, error);
            *choice = (tkv_plan_choice){name, n_tokens, bytes};
        }
    }
    return status;
}

#ifndef __APPLE__
/* A limit of the control group, 0 if there is none. */
static uint64_t group_limit(void)
{
    uint64_t limit = 0;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "r");
    if (file) {
        unsigned long long value;
        limit = fscanf(file, "%llu", &value) == 1 ? value : 0;
        fclose(file);
    }
    return limit;
}
#endif

uint64_t tkv_machine_memory(void)
{
#ifdef __APPLE__
    uint64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname("hw.memsize", &bytes, &size, NULL, 0) == 0 ? bytes : 0;
#else
    const long pages = sysconf(_SC_PHYS_PAGES);
    const long page_bytes = sysconf(_SC_PAGE_SIZE);
    const uint64_t bytes = pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes : 0;
    const uint64_t limit = group_limit();
    return limit && limit < bytes ? limit : bytes;
#endif
}
