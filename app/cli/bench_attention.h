/* What the parts of `turbokv bench attention` share. */
#ifndef TKV_CLI_BENCH_ATTENTION_H
#define TKV_CLI_BENCH_ATTENTION_H

#include "cli/command.h"
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

/* One way to time attention: calls as the host sees them, or graphs on the device's clock. */
typedef struct attention_meter {
    tkv_status (*prepare)(tkv_context *context, const tkv_attention_shape *shape, int n_sequences,
                          void **work, tkv_error *error);
    tkv_status (*step)(void *work, double *seconds, tkv_error *error);
    /* The error of the last step's output; `exact` is the work on f16. */
    tkv_status (*compare)(void *work, void *exact, double *output_error, tkv_error *error);
    void (*finish)(void *work);
    bool is_graph;
    size_t copied_bytes; /* at most, to time a device's memory by */
} attention_meter;

#ifdef TKV_HAVE_CUDA
/* Graph replays over copies larger than the device's cache. */
extern const attention_meter attention_meter_cuda;
#endif

typedef struct attention_result {
    tkv_type type;
    void *work;
    double bytes;  /* of keys and values that one call reads */
    double median; /* seconds */
    double best;
    double error; /* of the output, relative to its norm */
} attention_result;

typedef struct attention_run {
    const attention_options *options;
    const attention_meter *meter;
    tkv_context *context;
    double bandwidth; /* of memory: read by a CPU, copied by a device */
    int n_results;
    attention_result results[TKV_TYPE_COUNT + 1]; /* the first one is f16 */
} attention_run;

/* What was measured, as a table and as JSON (bench_attention_print.c). */
void print_attention_table(const attention_run *run);
cJSON *attention_to_json(const attention_run *run);

#endif
