#include "cli/open_context.h"

#include "gate/record.h"

#include <string.h>

static tkv_status check_gate(const tkv_context_params *params, const tkv_context *context,
                             tkv_error *error)
{
    const char *device = tkv_context_device(context);
    return strcmp(device, "cpu") == 0 ? tkv_gate_check(tkv_context_kernels(context), error)
                                      : tkv_gate_check_device(params->device, device, error);
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
