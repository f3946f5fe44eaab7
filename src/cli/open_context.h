/* Where commands get their context from, all of them: what `turbokv gate` found is asked here. */
#ifndef TKV_CLI_OPEN_CONTEXT_H
#define TKV_CLI_OPEN_CONTEXT_H

#include "turbokv.h"

/* The row of option tables that every command with a context has; `options` has ignores_gate. */
#define IGNORE_GATE_ROW(options)                                                                   \
    {                                                                                              \
        "ignore-gate", NULL, 0, OPTION_FLAG, OPTION_AT(options, ignores_gate), 0, 0, NULL,         \
            "run on kernels that failed when 'turbokv gate' tested them"                           \
    }

/* tkv_context_create, but TKV_ERR_DEVICE for kernels, or a device, that failed when this machine's
 * gate last looked, unless ignores_gate. The caller frees it with tkv_context_free. */
tkv_status command_open_context(const tkv_context_params *params, bool ignores_gate,
                                tkv_context **context, tkv_error *error);

#endif
