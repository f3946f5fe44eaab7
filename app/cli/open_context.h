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

/* Rows of commands whose `options` have the context's parameters as `context`. */
#define CONTEXT_THREADS_ROW(options)                                                               \
    {                                                                                              \
        "threads", NULL, 't', OPTION_INT, OPTION_AT(options, context.n_threads), 0, 1024, "N",     \
            "threads; 0: all cores"                                                                \
    }
#define CONTEXT_DEVICE_ROW(options)                                                                \
    {                                                                                              \
        "device", NULL, 0, OPTION_TEXT, OPTION_AT(options, context.device), 0, 0, "NAME",          \
            "where to compute: cpu, metal, cuda or cuda:N"                                         \
    }
#define CONTEXT_EFFORT_ROW(options)                                                                \
    {                                                                                              \
        "effort", NULL, 0, OPTION_EFFORT, OPTION_AT(options, context.effort), 0, 0, "EFFORT",      \
            "of encoding trellis types: fast, default or best"                                     \
    }

/* tkv_context_create, but TKV_ERR_DEVICE for kernels, or a device, that failed when this machine's
 * gate last looked, unless ignores_gate. The caller frees it with tkv_context_free. */
tkv_status command_open_context(const tkv_context_params *params, bool ignores_gate,
                                tkv_context **context, tkv_error *error);

#endif
