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

/* Takes some seconds. On a device calls are enqueued one after the other, as a model does. */
tkv_status tkv_probe_run(tkv_context *context, tkv_probe *probe, tkv_error *error);
tkv_status tkv_probe_run_on_device(tkv_context *context, int n_tokens, tkv_probe *probe,
                                   tkv_error *error);

/* So many are enough to be bound by memory. */
#define TKV_PROBE_DEVICE_TOKENS 16384

#endif
