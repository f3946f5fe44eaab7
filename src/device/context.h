/* A context's inside: what computes, and where. */
#ifndef TKV_DEVICE_CONTEXT_H
#define TKV_DEVICE_CONTEXT_H

#include "device/device.h"
#include "kernels/kernels.h"

/* Sizes at least double, so that there are never more. */
#define TKV_MAX_WORKSPACES 48

/* Memory of the device for the time of a call. */
typedef struct tkv_device_workspace {
    uint64_t addresses[TKV_MAX_WORKSPACES]; /* the last one is in use */
    int n;
    size_t bytes; /* of the last one */
} tkv_device_workspace;

typedef enum tkv_workspace_use {
    TKV_WORKSPACE_ATTEND, /* of the table's attend, which may keep something there */
    TKV_WORKSPACE_ROWS,
    TKV_WORKSPACE_PADDED,    /* rows of the caller, as wide as pages are, keys turned */
    TKV_WORKSPACE_QUERIES,   /* likewise, of all segments */
    TKV_WORKSPACE_PARTS,     /* what attention makes of each segment */
    TKV_WORKSPACE_OUTPUTS,   /* outputs as wide as pages are */
    TKV_WORKSPACE_SEQUENCES, /* descriptors of a batch, side by side */
    TKV_WORKSPACE_USES
} tkv_workspace_use;

typedef struct tkv_attachment tkv_attachment;

struct tkv_context {
    const tkv_kernels *kernels;
    int n_threads;
    tkv_threads *threads; /* NULL: the caller's alone */
    tkv_effort effort;
    bool (*is_stopped)(void *user); /* NULL: never */
    void *stop_user;
    tkv_device *device;
    int device_index;
    tkv_device_workspace workspaces[TKV_WORKSPACE_USES];
    tkv_allocator allocator;
    void (*log)(void *user, const char *message); /* NULL: nobody listens */
    void *log_user;
    tkv_attachment *attachments; /* the latest first; NULL: none */
};

/* tkv_context_create on device `index` of a table; NULL: on the host. params may be NULL; their
 * `device` is not looked at. */
tkv_status tkv_context_create_on(const tkv_device_table *table, int index,
                                 const tkv_context_params *params, tkv_context **context,
                                 tkv_error *error);

/* Tells who listens what the context chose or got over. */
void tkv_context_log(const tkv_context *context, const char *format, ...) TKV_PRINTF(2, 3);

/* Releases all that callers have attached. */
void tkv_context_release_attachments(tkv_context *context);

/* At least `bytes` of the device's memory for one step of a call, until it is given back. Where
 * calls come one after the other in the device's stream, all of one use share it, and giving back
 * does nothing: it stays valid as long as the context, since captured graphs hold its address; a
 * larger one is taken beside it. */
tkv_status tkv_context_workspace(tkv_context *context, tkv_workspace_use use, size_t bytes,
                                 uint64_t *address, tkv_error *error);

/* address 0: nothing to give back. */
void tkv_context_give_back(tkv_context *context, uint64_t address);

#endif
