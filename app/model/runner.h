/* What takes batches through a model: the CPU, or the device of a context. */
#ifndef TKV_MODEL_RUNNER_H
#define TKV_MODEL_RUNNER_H

#include "model/transformer.h"

typedef struct tkv_runner tkv_runner;

typedef struct tkv_runner_table {
    /* As tkv_forward. The batch's arrays are the host's. */
    tkv_status (*forward)(tkv_runner *runner, tkv_cache *cache, const tkv_batch *batch,
                          tkv_error *error);
    size_t (*bytes)(const tkv_runner *runner); /* of its buffers, which weights are not */
    void (*free)(tkv_runner *runner);
} tkv_runner_table;

/* A runner's own struct begins with this. */
struct tkv_runner {
    const tkv_runner_table *table;
};

/* A runner for batches of up to n_batch tokens where the context computes. A runner is used with
 * one cache of this context, from its first batch on. Model and context must outlive it. The caller
 * frees it with its table's function. */
tkv_status tkv_runner_create(const tkv_model *model, tkv_context *context, int n_batch,
                             tkv_runner **runner, tkv_error *error);

/* The same for a context on a CUDA device. Needs cuBLAS, which is loaded then. */
tkv_status tkv_runner_create_cuda(const tkv_model *model, tkv_context *context, int n_batch,
                                  tkv_runner **runner, tkv_error *error);

#endif
