/* The inside of the Metal back end, for its .m files. */
#ifndef TKV_DEVICE_METAL_METAL_DEVICE_H
#define TKV_DEVICE_METAL_METAL_DEVICE_H

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include "device/metal/launch.h"
#include "device/metal/metal.h"

#define TKV_METAL_N_CONSTANTS 8

/* A buffer of Metal from which memory is allocated, in units of 256 bytes. */
@interface TKVMetalChunk : NSObject {
  @public
    id<MTLBuffer> buffer;
    size_t *units; /* of the allocation that begins at a unit, or 0 */
    size_t n_units;
    size_t n_used; /* units from the begin that have been allocated once */
    size_t n_live; /* allocations */
}
@end

typedef struct tkv_metal_range {
    uint64_t address;
    size_t n_units;
} tkv_metal_range;

typedef struct tkv_metal_ranges {
    tkv_metal_range *items;
    size_t n;
    size_t capacity;
} tkv_metal_ranges;

typedef struct tkv_metal_device {
    tkv_device base;
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    id<MTLLibrary> library;
    NSMutableDictionary<NSString *, id<MTLComputePipelineState>> *pipelines;
    NSMutableArray<TKVMetalChunk *> *chunks;
    tkv_metal_ranges free_ranges;
    tkv_metal_ranges released;            /* free once the commands that may use them are done */
    id<MTLCommandBuffer> commands;        /* being encoded, or nil */
    id<MTLComputeCommandEncoder> encoder; /* of `commands` */
    uint64_t scratch;                     /* codes on their way into pages */
    size_t scratch_bytes;
    bool has_wide_table;
    bool has_own_buffers;
    char description[160];
} tkv_metal_device;

/* Values of the function constants of a pipeline, by index (launch.h). */
typedef struct tkv_metal_constants {
    int32_t values[TKV_METAL_N_CONSTANTS];
} tkv_metal_constants;

/* How a kernel is launched. */
typedef struct tkv_metal_launch {
    const char *kernel;
    tkv_metal_constants constants;
    MTLSize threadgroups;
    NSUInteger threads; /* of a threadgroup */
    NSUInteger threadgroup_bytes;
    const void *params; /* buffer 0 */
    size_t params_bytes;
} tkv_metal_launch;

static inline tkv_metal_device *tkv_metal_of(tkv_device *device)
{
    return (tkv_metal_device *)(void *)device;
}

/* Compiles the library. The error has the compiler's text. */
tkv_status tkv_metal_compile_library(tkv_metal_device *device, tkv_error *error);

/* The pipeline of a kernel for these constants, compiled at its first use and kept. */
tkv_status tkv_metal_pipeline(tkv_metal_device *device, const tkv_metal_launch *launch,
                              id<MTLComputePipelineState> __strong *pipeline, tkv_error *error);

/* Adds a kernel to the command buffer that is being encoded. */
tkv_status tkv_metal_dispatch(tkv_metal_device *device, const tkv_metal_launch *launch,
                              tkv_error *error);

/* Kernels of the table (kernels.m, attend.m, parts.m). */
tkv_status tkv_metal_rotate_rows(tkv_device *device, int head_dim, size_t n_rows, uint64_t x,
                                 bool is_inverse, tkv_error *error);
tkv_status tkv_metal_copy(tkv_device *device, uint64_t to, uint64_t from, size_t bytes,
                          tkv_error *error);
tkv_status tkv_metal_store(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                           int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                           tkv_error *error);
tkv_status tkv_metal_load(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                          int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error);
tkv_status tkv_metal_load_half(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                               int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error);
tkv_status tkv_metal_plan_attend(tkv_device *device, const tkv_device_attend *params,
                                 tkv_attend_plan *plan, tkv_error *error);
tkv_status tkv_metal_attend_layer(tkv_device *device, const tkv_attend_plan *plan,
                                  uint64_t workspace, tkv_error *error);

tkv_status tkv_metal_move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *error);
tkv_status tkv_metal_join(tkv_device *device, const tkv_device_join *join, tkv_error *error);

/* Runs what has been encoded and waits for it (metal.m). */
tkv_status tkv_metal_wait(tkv_device *device, tkv_error *error);

/* Memory (memory.m). */
tkv_status tkv_metal_allocate(tkv_device *device, size_t bytes, uint64_t *address,
                              tkv_error *error);
void tkv_metal_release(tkv_device *device, uint64_t address);
tkv_status tkv_metal_upload(tkv_device *device, uint64_t to, const void *from, size_t bytes,
                            tkv_error *error);
tkv_status tkv_metal_download(tkv_device *device, void *to, uint64_t from, size_t bytes,
                              tkv_error *error);
/* Lets the commands that are being encoded use all memory. */
void tkv_metal_use_memory(tkv_metal_device *device);
/* Frees what was released while commands waited. */
void tkv_metal_settle_memory(tkv_metal_device *device);
/* Frees all. */
void tkv_metal_free_memory(tkv_metal_device *device);

#endif
