/* turbokv bench attention --device cuda. */
#include "cli/bench_attention.h"
#include "eval/cuda/attention_graph.h"

static tkv_status prepare(tkv_context *context, const tkv_attention_shape *shape, int n_sequences,
                          void **work, tkv_error *error)
{
    tkv_attention_graph *graph = NULL;
    const tkv_status status =
        tkv_attention_graph_create(context, shape, n_sequences, &graph, error);
    *work = graph;
    return status;
}

static tkv_status step(void *work, double *seconds, tkv_error *error)
{
    return tkv_attention_graph_run(work, seconds, error);
}

/* With attention by definition, whatever f16 gives. */
static tkv_status compare(void *work, void *exact, double *output_error, tkv_error *error)
{
    (void)exact;
    return tkv_attention_graph_error(work, output_error, error);
}

static void finish(void *work)
{
    tkv_attention_graph_free(work);
}

const attention_meter attention_meter_cuda = {.prepare = prepare,
                                              .step = step,
                                              .compare = compare,
                                              .finish = finish,
                                              .is_graph = true,
                                              .copied_bytes = (size_t)512 << 20};
