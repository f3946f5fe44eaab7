#include "cli/open_context.h"

#include "gate/record.h"

static tkv_status check_gate(const tkv_context_params *params, const tkv_context *context,
                             tkv_error *error)
{
    return tkv_context_device_kind(context) == TKV_DEVICE_CPU
               ? tkv_gate_check(tkv_context_kernels(context), error)
               : tkv_gate_check_device(params->device, tkv_context_device(context), error);
}

tkv_status command_open_context(const tkv_context_params *params, bool ignores_gate,
                                tkv_context **context, tkv_error *error)
{
    tkv_status status = tkv_context_create(params, context, error);
    if (status == TKV_OK && !ignores_gate) {
        status = check_gate(params, *context, error);
    }
    if (status != TKV_OK) {
        tkv_context_free(*context);
        *context = NULL;
    }
    return status;
}
