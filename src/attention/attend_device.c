#include "attention/attend_device.h"
#include "common/error.h"

#include <math.h>

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

/* What attention over one or several sequences has in common. */
static tkv_device_attend describe(const tkv_cache *cache, int layer,
                                  const tkv_attend_params *params, const float *q, float *out)
{
    return (tkv_device_attend){
        .layer = tkv_describe_layer(cache, &cache->layers[layer]),
        .n_queries = params->n_queries,
        .n_heads = params->n_heads,
        .window = params->window,
        .scale = params->scale != 0.0f ? params->scale : 1.0f / sqrtf((float)cache->head_dim_k),
        .logit_softcap = params->logit_softcap,
        .sparse_v = params->sparse_v,
        .q = address_of(q),
        .out = address_of(out),
        .sinks = address_of(params->sinks),
        .stats = address_of(params->stats),
    };
}

static tkv_status check_reserved(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                 int first_position, tkv_error *error)
{
    const int length = cache->layers[layer].n_tokens;
    if (cache->n_reserved > 0 &&
        (first_position != length || params->n_queries != cache->n_reserved)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d queries from position %d: expected those of the %d tokens that are "
                        "reserved from position %d on",
                        params->n_queries, first_position, cache->n_reserved, length);
    }
    return TKV_OK;
}

static tkv_status run(tkv_context *context, tkv_device_attend *attend, tkv_error *error)
{
    tkv_device *device = context->device;
    const size_t bytes = device->table->attend_workspace_bytes(device, attend);
    const tkv_status status =
        tkv_context_workspace(context, TKV_WORKSPACE_ATTEND, bytes, &attend->workspace, error);
    return status == TKV_OK ? device->table->attend(device, attend, error) : status;
}

tkv_status tkv_attend_on_device(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                const float *q, float *out, tkv_error *error)
{
    const tkv_status status = check_reserved(cache, layer, params, params->first_position, error);
    if (status != TKV_OK) {
        return status;
    }
    tkv_device_attend attend = describe(cache, layer, params, q, out);
    attend.n_sequences = 1;
    attend.sequences = cache->layers[layer].descriptor;
    /* What is captured must be right, and its plan the same, at every length of a replay. */
    attend.first_position = cache->n_reserved > 0 ? -1 : params->first_position;
    attend.max_tokens =
        cache->n_reserved > 0 ? cache->max_length : params->first_position + params->n_queries;
    return run(cache->context, &attend, error);
}

tkv_status tkv_attend_batch_on_device(const tkv_cache *const *caches, int n_caches, int layer,
                                      const tkv_attend_params *params, const float *q, float *out,
                                      tkv_error *error)
{
    tkv_device_attend attend = describe(caches[0], layer, params, q, out);
    attend.n_sequences = n_caches;
    attend.first_position = -1;
    for (int i = 0; i < n_caches; i++) {
        const int length = caches[i]->layers[layer].n_tokens + caches[i]->n_reserved;
        const tkv_status status =
            check_reserved(caches[i], layer, params, length - params->n_queries, error);
        if (status != TKV_OK) {
            return status;
        }
        const int planned = caches[i]->n_reserved > 0 ? caches[i]->max_length : length;
        attend.max_tokens = planned > attend.max_tokens ? planned : attend.max_tokens;
    }
    const tkv_status status =
        tkv_gather_sequences(caches, n_caches, layer, &attend.sequences, error);
    return status == TKV_OK ? run(caches[0]->context, &attend, error) : status;
}
