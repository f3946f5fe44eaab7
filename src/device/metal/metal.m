/* Device and command buffers of the Metal back end, and its table. */
#include "base/error.h"
#include "device/metal/metal_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Family 10 has a name only in SDKs of its time. */
#define GPU_FAMILY_APPLE10 ((MTLGPUFamily)1010)
#define OLDEST_FAMILY 1
#define NEWEST_FAMILY 10

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value && strcmp(value, "") != 0 && strcmp(value, "0") != 0;
}

/* The device, or nil and why there is none. */
static id<MTLDevice> find_device(char *reason, size_t size)
{
    id<MTLDevice> device = MTLCreateSystemDefaultDevice();
    if (!device) {
        snprintf(reason, size, "this machine has no Metal device");
        return nil;
    }
    if (![device supportsFamily:MTLGPUFamilyApple7] && !is_set("TKV_METAL_ANY_GPU")) {
        snprintf(reason, size,
                 "%s is not of the GPU family Apple7 (M1, A14) or later, which the kernels need",
                 device.name.UTF8String);
        return nil;
    }
    return device;
}

static int count_devices(char *reason, size_t size)
{
    @autoreleasepool {
        return find_device(reason, size) ? 1 : 0;
    }
}

/* Chooses between table lookups and magnitudes in registers (metal.h). */
static tkv_status choose_table(tkv_metal_device *device, tkv_error *error)
{
    const char *name = getenv("TKV_METAL_TABLE");
    device->has_wide_table = [device->device supportsFamily:GPU_FAMILY_APPLE10];
    if (name && *name) {
        if (strcmp(name, "full") != 0 && strcmp(name, "4mag") != 0) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "TKV_METAL_TABLE is '%.40s': expected full or 4mag", name);
        }
        device->has_wide_table = strcmp(name, "full") == 0;
    }
    return TKV_OK;
}

static void describe(tkv_metal_device *device)
{
    int family = NEWEST_FAMILY;
    while (family > OLDEST_FAMILY &&
           ![device->device supportsFamily:(MTLGPUFamily)(1000 + family)]) {
        family--;
    }
    snprintf(device->description, sizeof device->description, "%s, Apple%d, %s",
             device->device.name.UTF8String, family,
             device->has_wide_table ? "full tables" : "4-magnitude tables");
}

static void close_device(tkv_device *base);

static tkv_status open_queue(tkv_metal_device *device, void *stream, tkv_error *error)
{
    device->queue =
        stream ? (__bridge id<MTLCommandQueue>)stream : [device->device newCommandQueue];
    if (!device->queue) {
        return tkv_fail(error, TKV_ERR_DEVICE, "%s has no command queue left",
                        device->device.name.UTF8String);
    }
    return TKV_OK;
}

static tkv_status open_device(int index, const tkv_device_setup *setup, tkv_device **result,
                              tkv_error *error)
{
    @autoreleasepool {
        char reason[200] = "there is one";
        id<MTLDevice> found = index == 0 ? find_device(reason, sizeof reason) : nil;
        if (!found) {
            return tkv_fail(error, TKV_ERR_UNSUPPORTED, "Metal device %d: %s", index, reason);
        }
        tkv_metal_device *device = calloc(1, sizeof *device);
        if (!device) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a device");
        }
        device->base.table = &tkv_device_table_metal;
        device->device = found;
        device->pipelines = [NSMutableDictionary dictionary];
        device->chunks = [NSMutableArray array];
        device->has_own_buffers = is_set("TKV_METAL_OWN_BUFFERS");
        tkv_status status = choose_table(device, error);
        if (status == TKV_OK) {
            status = open_queue(device, setup ? setup->stream : NULL, error);
        }
        if (status == TKV_OK) {
            status = tkv_metal_compile_library(device, error);
        }
        if (status != TKV_OK) {
            close_device(&device->base);
            return status;
        }
        describe(device);
        *result = &device->base;
        return TKV_OK;
    }
}

/* The command buffer's error as ours. */
static tkv_status check_commands(id<MTLCommandBuffer> commands, tkv_error *error)
{
    if (commands.status == MTLCommandBufferStatusCompleted) {
        return TKV_OK;
    }
    const char *text = commands.error ? commands.error.localizedDescription.UTF8String : NULL;
    return tkv_fail(error, TKV_ERR_DEVICE, "a Metal command buffer ended with status %d: %.180s",
                    (int)commands.status, text ? text : "no reason given");
}

tkv_status tkv_metal_wait(tkv_device *base, tkv_error *error)
{
    @autoreleasepool {
        tkv_metal_device *device = tkv_metal_of(base);
        if (!device->commands) {
            return TKV_OK;
        }
        id<MTLCommandBuffer> commands = device->commands;
        [device->encoder endEncoding];
        device->encoder = nil;
        device->commands = nil;
        [commands commit];
        [commands waitUntilCompleted];
        tkv_metal_settle_memory(device);
        return check_commands(commands, error);
    }
}

static void close_device(tkv_device *base)
{
    @autoreleasepool {
        if (!base) {
            return;
        }
        tkv_metal_device *device = tkv_metal_of(base);
        tkv_metal_wait(base, NULL);
        tkv_metal_free_memory(device);
        device->pipelines = nil;
        device->library = nil;
        device->queue = nil;
        device->device = nil;
        free(device);
    }
}

static const char *describe_device(const tkv_device *device)
{
    return ((const tkv_metal_device *)(const void *)device)->description;
}

/* Opens a command buffer if there is none. */
static tkv_status begin_commands(tkv_metal_device *device, tkv_error *error)
{
    if (device->commands) {
        return TKV_OK;
    }
    device->commands = [device->queue commandBuffer];
    device->encoder = [device->commands computeCommandEncoder];
    if (!device->encoder) {
        device->commands = nil;
        return tkv_fail(error, TKV_ERR_DEVICE, "Metal has no command buffer left");
    }
    tkv_metal_use_memory(device);
    return TKV_OK;
}

tkv_status tkv_metal_dispatch(tkv_metal_device *device, const tkv_metal_launch *launch,
                              tkv_error *error)
{
    @autoreleasepool {
        id<MTLComputePipelineState> pipeline = nil;
        tkv_status status = tkv_metal_pipeline(device, launch, &pipeline, error);
        if (status == TKV_OK) {
            status = begin_commands(device, error);
        }
        if (status != TKV_OK) {
            return status;
        }
        [device->encoder setComputePipelineState:pipeline];
        [device->encoder setBytes:launch->params length:launch->params_bytes atIndex:0];
        if (launch->threadgroup_bytes > 0) {
            [device->encoder setThreadgroupMemoryLength:launch->threadgroup_bytes atIndex:0];
        }
        [device->encoder dispatchThreadgroups:launch->threadgroups
                        threadsPerThreadgroup:MTLSizeMake(launch->threads, 1, 1)];
        return TKV_OK;
    }
}

const tkv_device_table tkv_device_table_metal = {
    .name = "metal",
    .exact_rows = TKV_PAGE_TOKENS,
    .kind = TKV_DEVICE_METAL,
    .count = count_devices,
    .open = open_device,
    .close = close_device,
    .description = describe_device,
    .allocate = tkv_metal_allocate,
    .release = tkv_metal_release,
    .upload = tkv_metal_upload,
    .download = tkv_metal_download,
    .copy = tkv_metal_copy,
    .wait = tkv_metal_wait,
    .rotate = tkv_metal_rotate_rows,
    .move_rows = tkv_metal_move_rows,
    .join = tkv_metal_join,
    .store = tkv_metal_store,
    .load = tkv_metal_load,
    .load_half = tkv_metal_load_half,
    .plan = tkv_metal_plan_attend,
    .attend = tkv_metal_attend_layer,
};
