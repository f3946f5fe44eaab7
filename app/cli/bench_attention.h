/* What the forms of `turbokv bench attention` share. */
#ifndef TKV_CLI_BENCH_ATTENTION_H
#define TKV_CLI_BENCH_ATTENTION_H

#include "eval/attention_speed.h"

typedef struct attention_options {
    const char *types;
    tkv_attention_shape shape;
    int n_sequences; /* attended to in one call, on a device */
    int n_repetitions;
    tkv_context_params context;
    bool ignores_gate;
    bool wants_json;
} attention_options;

/* f16 first, then the others that the options name. */
tkv_status bench_attention_types(const attention_options *options,
                                 tkv_type types[TKV_TYPE_COUNT + 1], int *n_types,
                                 tkv_error *error);

/* On a CUDA device: graph replays over copies larger than the device's cache. Returns an exit
 * code. */
int bench_attention_cuda(const attention_options *options, tkv_context *context);

#endif
