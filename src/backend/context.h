/* A context's inside: what computes, and where. */
#ifndef TKV_BACKEND_CONTEXT_H
#define TKV_BACKEND_CONTEXT_H

#include "backend/device.h"
#include "backend/kernels.h"

/* Sizes at least double, so that there are never more. */
#define TKV_MAX_WORKSPACES 48

struct tkv_context {
    const tkv_kernels *kernels;
    int n_threads;
    tkv_threads *threads; /* NULL: the caller's alone */
    tkv_effort effort;
    tkv_device *device; /* NULL: the CPU */
    uint64_t workspaces[TKV_MAX_WORKSPACES];
    int n_workspaces;
    size_t workspace_bytes; /* of the last one */
    void *shared_weights;   /* of src/model, for its sessions on this device */
};

/* tkv_context_create on device `index` of a table; NULL: on the CPU. params may be NULL; their
 * `device` is not looked at. */
tkv_status tkv_context_create_on(const tkv_device_table *table, int index,
                                 const tkv_context_params *params, tkv_context **context,
                                 tkv_error *error);

/* At least `bytes` of the device's memory for one step of a call: calls come one after the other in
 * the device's stream, so all share it. It stays valid as long as the context, since captured
 * graphs hold its address; a larger one is taken beside it. */
tkv_status tkv_context_workspace(tkv_context *context, size_t bytes, uint64_t *address,
                                 tkv_error *error);

#endif
