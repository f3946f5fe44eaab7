/* How fast attention over a cache of a KV type is on a CUDA device: calls captured in a graph,
 * which go in turns over copies of the cache that together are larger than the device's cache. */
#ifndef TKV_EVAL_CUDA_ATTENTION_GRAPH_H
#define TKV_EVAL_CUDA_ATTENTION_GRAPH_H

#include "eval/attention_speed.h"

typedef struct tkv_attention_graph tkv_attention_graph;

/* Fills caches with Gaussian keys and values on the device of the context, of n_sequences sequences
 * that are attended to in one call. The caller frees it with tkv_attention_graph_free; the context
 * outlives it. */
tkv_status tkv_attention_graph_create(tkv_context *context, const tkv_attention_shape *shape,
                                      int n_sequences, tkv_attention_graph **graph,
                                      tkv_error *error);
void tkv_attention_graph_free(tkv_attention_graph *graph);

/* One replay; *seconds receives its time by call, from events on the device. */
tkv_status tkv_attention_graph_run(tkv_attention_graph *graph, double *seconds, tkv_error *error);

/* |o - o'| / |o| of the first and the last KV head's outputs of the last sequence, o in double over
 * the decoded rows. Ends the step: no run after it. */
tkv_status tkv_attention_graph_error(tkv_attention_graph *graph, double *output_error,
                                     tkv_error *error);

#endif
