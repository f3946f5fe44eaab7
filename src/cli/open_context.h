/* Where commands get their context from, all of them: what `turbokv gate` found is asked here. */
#ifndef TKV_CLI_OPEN_CONTEXT_H
#define TKV_CLI_OPEN_CONTEXT_H

#include "turbokv.h"

/* For the option tables: that of every command with a context. */
#define IGNORE_GATE_OPTION(target)                                                                 \
    {                                                                                              \
        "ignore-gate", NULL, 0, OPTION_FLAG, target, 0, 0, NULL,                                   \
            "run on kernels that failed when 'turbokv gate' tested them"                           \
    }

/* tkv_context_create, but TKV_ERR_DEVICE for kernels, or a device, that failed when this machine's
 * gate last looked, unless ignores_gate. The caller frees it with tkv_context_free. */
tkv_status command_open_context(const tkv_context_params *params, bool ignores_gate,
                                tkv_context **context, tkv_error *error);

#endif
