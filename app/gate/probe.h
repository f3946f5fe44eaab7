/* How fast decode attention is on each KV type, against f16, on one context. */
#ifndef TKV_GATE_PROBE_H
#define TKV_GATE_PROBE_H

#include "turbokv.h"

#define TKV_PROBE_HEAD_DIM 128
#define TKV_PROBE_KV_HEADS 4
#define TKV_PROBE_GROUP 4

typedef struct tkv_probe {
    int n_threads;
    int n_tokens;                        /* of context: fewer where encoding is slow */
    double microseconds[TKV_TYPE_COUNT]; /* of one call, one query; both keys and values coded */
} tkv_probe;

/* Takes some seconds. */
tkv_status tkv_probe_run(tkv_context *context, tkv_probe *probe, tkv_error *error);

#endif
