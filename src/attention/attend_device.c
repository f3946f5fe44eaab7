#include "attention/attend_device.h"
#include "common/error.h"

#include <math.h>

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

/* The same for every length that a graph captured now may be replayed at. */
static void plan_for_replay(const tkv_cache *cache, tkv_device_attend *attend)
{
    attend->first_position = -1;
    attend->max_tokens = cache->max_length;
}

tkv_status tkv_attend_on_device(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                const float *q, float *out, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const tkv_cache_layer *described = &cache->layers[layer];
    tkv_device_attend attend = {
        .layer = tkv_describe_layer(cache, described),
        .n_sequences = 1,
        .max_tokens = params->first_position + params->n_queries,
        .n_queries = params->n_queries,
        .n_heads = params->n_heads,
        .first_position = params->first_position,
        .window = params->window,
        .scale = params->scale != 0.0f ? params->scale : 1.0f / sqrtf((float)cache->head_dim_k),
        .logit_softcap = params->logit_softcap,
        .sparse_v = params->sparse_v,
        .sequences = described->descriptor,
        .q = address_of(q),
        .out = address_of(out),
        .sinks = address_of(params->sinks),
        .stats = address_of(params->stats),
    };
    if (cache->n_reserved > 0) {
        if (params->first_position != described->n_tokens ||
            params->n_queries != cache->n_reserved) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "%d queries from position %d: expected those of the %d tokens that are "
                            "reserved from position %d on",
                            params->n_queries, params->first_position, cache->n_reserved,
                            described->n_tokens);
        }
        plan_for_replay(cache, &attend);
    }
    const size_t bytes = device->table->attend_workspace_bytes(device, &attend);
    const tkv_status status = tkv_context_workspace(cache->context, TKV_WORKSPACE_ATTEND, bytes,
                                                    &attend.workspace, error);
    return status == TKV_OK ? device->table->attend(device, &attend, error) : status;
}
