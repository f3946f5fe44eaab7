/* Device, memory and command buffers of the Metal back end. */
#include "backend/metal/metal_device.h"
#include "common/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 256
/* Family 10 has a name only in SDKs of its time. */
#define GPU_FAMILY_APPLE10 ((MTLGPUFamily)1010)
#define OLDEST_FAMILY 7
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

static tkv_status open_device(int index, void *stream, tkv_device **result, tkv_error *error)
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
        device->buffers = [NSMutableArray array];
        device->released = [NSMutableArray array];
        tkv_status status = choose_table(device, error);
        if (status == TKV_OK) {
            status = open_queue(device, stream, error);
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

static tkv_status wait_for_device(tkv_device *base, tkv_error *error)
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
        [device->released removeAllObjects];
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
        wait_for_device(base, NULL);
        device->buffers = nil;
        device->released = nil;
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

/* Opens a command buffer if there is none. Kernels reach memory through addresses, so Metal has to
 * be told which buffers they may touch. */
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
    for (id<MTLBuffer> buffer in device->buffers) {
        [device->encoder useResource:buffer usage:MTLResourceUsageRead | MTLResourceUsageWrite];
    }
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

tkv_status tkv_metal_allocate(tkv_device *base, size_t bytes, uint64_t *address, tkv_error *error)
{
    @autoreleasepool {
        tkv_metal_device *device = tkv_metal_of(base);
        id<MTLBuffer> buffer = nil;
        if (bytes <= device->device.maxBufferLength) {
            buffer = [device->device newBufferWithLength:bytes ? bytes : 1
                                                 options:MTLResourceStorageModeShared];
        }
        if (!buffer) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                            "no memory on %s for %zu bytes: a buffer has at most %llu",
                            device->device.name.UTF8String, bytes,
                            (unsigned long long)device->device.maxBufferLength);
        }
        if (buffer.gpuAddress % ALIGNMENT != 0) {
            return tkv_fail(error, TKV_ERR_DEVICE,
                            "a Metal buffer lies at %#llx: expected a multiple of %d",
                            (unsigned long long)buffer.gpuAddress, ALIGNMENT);
        }
        memset(buffer.contents, 0, buffer.length);
        [device->buffers addObject:buffer];
        if (device->encoder) {
            [device->encoder useResource:buffer
                                   usage:MTLResourceUsageRead | MTLResourceUsageWrite];
        }
        *address = buffer.gpuAddress;
        return TKV_OK;
    }
}

/* Index of the buffer that holds bytes [address, address + bytes), or the number of buffers. */
static NSUInteger find_buffer(const tkv_metal_device *device, uint64_t address, size_t bytes)
{
    NSUInteger i = 0;
    for (id<MTLBuffer> buffer in device->buffers) {
        if (address >= buffer.gpuAddress && address - buffer.gpuAddress <= buffer.length &&
            bytes <= buffer.length - (address - buffer.gpuAddress)) {
            break;
        }
        i++;
    }
    return i;
}

void tkv_metal_release(tkv_device *base, uint64_t address)
{
    @autoreleasepool {
        tkv_metal_device *device = tkv_metal_of(base);
        const NSUInteger i = find_buffer(device, address, 0);
        if (address == 0 || i == device->buffers.count) {
            return;
        }
        if (device->commands) {
            [device->released addObject:device->buffers[i]];
        }
        [device->buffers removeObjectAtIndex:i];
    }
}

/* Where the processor finds an address of the device. */
static tkv_status map(const tkv_metal_device *device, uint64_t address, size_t bytes,
                      uint8_t **memory, tkv_error *error)
{
    const NSUInteger i = find_buffer(device, address, bytes);
    if (i == device->buffers.count) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%zu bytes at %#llx are in no Metal buffer", bytes,
                        (unsigned long long)address);
    }
    id<MTLBuffer> buffer = device->buffers[i];
    *memory = (uint8_t *)buffer.contents + (address - buffer.gpuAddress);
    return TKV_OK;
}

/* While commands wait that may use the memory, the bytes wait in a buffer of their own. */
static tkv_status upload(tkv_device *base, uint64_t to, const void *from, size_t bytes,
                         tkv_error *error)
{
    @autoreleasepool {
        tkv_metal_device *device = tkv_metal_of(base);
        uint8_t *memory = NULL;
        tkv_status status = map(device, to, bytes, &memory, error);
        if (status != TKV_OK || bytes == 0) {
            return status;
        }
        if (!device->commands) {
            memcpy(memory, from, bytes);
            return TKV_OK;
        }
        uint64_t staging = 0;
        status = tkv_metal_allocate(base, bytes, &staging, error);
        if (status == TKV_OK) {
            uint8_t *staged = NULL;
            status = map(device, staging, bytes, &staged, error);
            if (status == TKV_OK) {
                memcpy(staged, from, bytes);
                status = tkv_metal_copy(base, to, staging, bytes, error);
            }
            tkv_metal_release(base, staging);
        }
        return status;
    }
}

static tkv_status download(tkv_device *base, void *to, uint64_t from, size_t bytes,
                           tkv_error *error)
{
    @autoreleasepool {
        uint8_t *memory = NULL;
        tkv_status status = map(tkv_metal_of(base), from, bytes, &memory, error);
        if (status == TKV_OK) {
            status = wait_for_device(base, error);
        }
        if (status == TKV_OK && bytes > 0) {
            memcpy(to, memory, bytes);
        }
        return status;
    }
}

const tkv_device_table tkv_device_table_metal = {
    .name = "metal",
    .count = count_devices,
    .open = open_device,
    .close = close_device,
    .description = describe_device,
    .allocate = tkv_metal_allocate,
    .release = tkv_metal_release,
    .upload = upload,
    .download = download,
    .copy = tkv_metal_copy,
    .wait = wait_for_device,
    .rotate = tkv_metal_rotate_rows,
    .store = tkv_metal_store,
    .load = tkv_metal_load,
    .attend_workspace_bytes = tkv_metal_attend_workspace_bytes,
    .attend = tkv_metal_attend_layer,
};
