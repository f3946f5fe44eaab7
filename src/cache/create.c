#include "base/allocate.h"
#include "base/error.h"
#include "cache/cache.h"
#include "policy/policy.h"

static tkv_status check_empty(const tkv_cache_params *params, tkv_error *error)
{
    if (params->types_k || params->types_v || params->n_sinks || params->n_recent ||
        params->centre_tokens) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "cache parameters name types, sinks, recent tokens or tokens for the "
                        "means: expected none beside a policy");
    }
    if (params->n_layers < 1 || params->n_layers > TKV_MAX_LAYERS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_layers %d: expected 1 to %d",
                        params->n_layers, TKV_MAX_LAYERS);
    }
    return TKV_OK;
}

tkv_status tkv_policy_create_cache(tkv_context *context, const tkv_cache_params *params,
                                   const tkv_policy *policy, tkv_cache **cache, tkv_error *error)
{
    if (!context || !params || !policy) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context, params or policy is NULL");
    }
    TKV_TRY(check_empty(params, error));
    const size_t n_layers = (size_t)params->n_layers;
    tkv_type *types = tkv_allocate(&context->allocator, 2 * n_layers * sizeof *types);
    if (!types) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the types of %zu layers",
                        n_layers);
    }
    tkv_status status =
        tkv_policy_layer_types(policy, params->n_layers, types, types + n_layers, error);
    if (status == TKV_OK) {
        tkv_cache_params filled = *params;
        filled.types_k = types;
        filled.types_v = types + n_layers;
        filled.n_sinks = policy->n_sinks;
        filled.n_recent = policy->n_recent;
        filled.centre_tokens = policy->centre_tokens;
        status = tkv_cache_create(context, &filled, cache, error);
    }
    tkv_release(&context->allocator, types);
    return status;
}
