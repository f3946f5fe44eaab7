/* Memory of the Metal back end. It is unified, so uploads and downloads are copies by the
 * processor, and pages are read and written where they lie. A cache has a great many pages and
 * Metal wants to hear of every buffer that a kernel may reach, so allocations are cut from a few
 * large buffers. */
#include "base/error.h"
#include "device/metal/metal_device.h"

#include <stdlib.h>
#include <string.h>

#define UNIT 256
#define CHUNK_BYTES ((size_t)32 << 20)
#define LARGEST_SHARED (CHUNK_BYTES / 8) /* larger allocations have a buffer of their own */

@implementation TKVMetalChunk

- (void)dealloc
{
    free(units);
}

@end

static size_t units_of(size_t bytes)
{
    return bytes / UNIT + (bytes % UNIT != 0 || bytes == 0);
}

/* Kernels reach memory through addresses, so Metal has to be told which buffers they may touch. */
static void use_chunk(tkv_metal_device *device, TKVMetalChunk *chunk)
{
    [device->encoder useResource:chunk->buffer usage:MTLResourceUsageRead | MTLResourceUsageWrite];
}

void tkv_metal_use_memory(tkv_metal_device *device)
{
    for (TKVMetalChunk *chunk in device->chunks) {
        use_chunk(device, chunk);
    }
}

/* A buffer of so many bytes, whose allocations begin at up to n_units places. */
static TKVMetalChunk *create_chunk(tkv_metal_device *device, size_t bytes, size_t n_units)
{
    if (bytes > device->device.maxBufferLength) {
        return nil;
    }
    TKVMetalChunk *chunk = [TKVMetalChunk new];
    chunk->units = calloc(n_units, sizeof *chunk->units);
    chunk->n_units = n_units;
    chunk->buffer = [device->device newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    if (!chunk->units || !chunk->buffer || chunk->buffer.gpuAddress % UNIT != 0) {
        return nil;
    }
    [device->chunks addObject:chunk];
    if (device->encoder) {
        use_chunk(device, chunk);
    }
    return chunk;
}

/* The chunk that holds bytes [address, address + bytes), or nil. */
static TKVMetalChunk *find_chunk(const tkv_metal_device *device, uint64_t address, size_t bytes)
{
    for (TKVMetalChunk *chunk in device->chunks) {
        const uint64_t begin = chunk->buffer.gpuAddress;
        const size_t length = chunk->buffer.length;
        if (address >= begin && address - begin <= length && bytes <= length - (address - begin) &&
            address - begin < length) {
            return chunk;
        }
    }
    return nil;
}

/* Takes a range of exactly so many units that was released before. */
static bool take_free_range(tkv_metal_device *device, size_t n_units, uint64_t *address)
{
    for (size_t i = 0; i < device->free_ranges.n; i++) {
        tkv_metal_range *range = &device->free_ranges.items[i];
        if (range->n_units == n_units) {
            *address = range->address;
            *range = device->free_ranges.items[--device->free_ranges.n];
            return true;
        }
    }
    return false;
}

/* Takes new units from a chunk that has enough, or from a new one. */
static bool take_new_range(tkv_metal_device *device, size_t bytes, size_t n_units,
                           uint64_t *address)
{
    TKVMetalChunk *chunk = nil;
    if (device->has_own_buffers || n_units * UNIT > LARGEST_SHARED) {
        chunk = create_chunk(device, bytes ? bytes : 1, 1);
        if (!chunk) {
            return false;
        }
        chunk->n_used = 1;
        *address = chunk->buffer.gpuAddress;
        return true;
    }
    for (TKVMetalChunk *with_room in device->chunks) {
        chunk = with_room->n_units - with_room->n_used >= n_units ? with_room : chunk;
    }
    if (!chunk) {
        const size_t most = device->device.maxBufferLength;
        const size_t bytes_of_chunk = CHUNK_BYTES < most ? CHUNK_BYTES : most / UNIT * UNIT;
        chunk = create_chunk(device, bytes_of_chunk, bytes_of_chunk / UNIT);
    }
    if (!chunk || chunk->n_units < n_units) {
        return false;
    }
    *address = chunk->buffer.gpuAddress + chunk->n_used * UNIT;
    chunk->n_used += n_units;
    return true;
}

static bool append_range(tkv_metal_ranges *ranges, tkv_metal_range range)
{
    if (ranges->n == ranges->capacity) {
        const size_t capacity = ranges->capacity ? 2 * ranges->capacity : 64;
        tkv_metal_range *items = realloc(ranges->items, capacity * sizeof *items);
        if (!items) {
            return false;
        }
        ranges->items = items;
        ranges->capacity = capacity;
    }
    ranges->items[ranges->n++] = range;
    return true;
}

/* Drops the free ranges of a chunk that nobody uses, and the chunk. */
static void drop_chunk(tkv_metal_device *device, TKVMetalChunk *chunk)
{
    const uint64_t begin = chunk->buffer.gpuAddress;
    size_t n = 0;
    for (size_t i = 0; i < device->free_ranges.n; i++) {
        const tkv_metal_range range = device->free_ranges.items[i];
        if (range.address < begin || range.address - begin >= chunk->buffer.length) {
            device->free_ranges.items[n++] = range;
        }
    }
    device->free_ranges.n = n;
    [device->chunks removeObject:chunk];
}

/* Makes a range free that no command uses any more. Without memory to note it, it stays unused
 * until its chunk goes. */
static void free_range(tkv_metal_device *device, tkv_metal_range range)
{
    TKVMetalChunk *chunk = find_chunk(device, range.address, 0);
    if (--chunk->n_live == 0) {
        drop_chunk(device, chunk);
    } else {
        append_range(&device->free_ranges, range);
    }
}

tkv_status tkv_metal_allocate(tkv_device *base, size_t bytes, uint64_t *address, tkv_error *error)
{
    @autoreleasepool {
        tkv_metal_device *device = tkv_metal_of(base);
        const size_t n_units = units_of(bytes);
        uint64_t found = 0;
        if (!take_free_range(device, n_units, &found) &&
            !take_new_range(device, bytes, n_units, &found)) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                            "no memory on %s for %zu bytes: a buffer has at most %llu",
                            device->device.name.UTF8String, bytes,
                            (unsigned long long)device->device.maxBufferLength);
        }
        TKVMetalChunk *chunk = find_chunk(device, found, bytes);
        const size_t offset = found - chunk->buffer.gpuAddress;
        memset((uint8_t *)chunk->buffer.contents + offset, 0, bytes);
        chunk->units[offset / UNIT] = n_units;
        chunk->n_live++;
        *address = found;
        return TKV_OK;
    }
}

void tkv_metal_release(tkv_device *base, uint64_t address)
{
    @autoreleasepool {
        tkv_metal_device *device = tkv_metal_of(base);
        TKVMetalChunk *chunk = address ? find_chunk(device, address, 0) : nil;
        if (!chunk) {
            return;
        }
        size_t *n_units = &chunk->units[(address - chunk->buffer.gpuAddress) / UNIT];
        const tkv_metal_range range = {address, *n_units};
        if (range.n_units == 0) {
            return;
        }
        *n_units = 0;
        if (device->commands) {
            append_range(&device->released, range);
        } else {
            free_range(device, range);
        }
    }
}

void tkv_metal_settle_memory(tkv_metal_device *device)
{
    for (size_t i = 0; i < device->released.n; i++) {
        free_range(device, device->released.items[i]);
    }
    device->released.n = 0;
}

void tkv_metal_free_memory(tkv_metal_device *device)
{
    device->chunks = nil;
    free(device->free_ranges.items);
    free(device->released.items);
}

/* Where the processor finds an address of the device. */
static tkv_status map(const tkv_metal_device *device, uint64_t address, size_t bytes,
                      uint8_t **memory, tkv_error *error)
{
    TKVMetalChunk *chunk = find_chunk(device, address, bytes);
    if (!chunk) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%zu bytes at %#llx are in no Metal buffer", bytes,
                        (unsigned long long)address);
    }
    *memory = (uint8_t *)chunk->buffer.contents + (address - chunk->buffer.gpuAddress);
    return TKV_OK;
}

/* While commands wait that may use the memory, the bytes wait in memory of their own. */
static tkv_status upload_in_order(tkv_device *base, uint64_t to, const void *from, size_t bytes,
                                  tkv_error *error)
{
    uint64_t staging = 0;
    uint8_t *staged = NULL;
    tkv_status status = tkv_metal_allocate(base, bytes, &staging, error);
    if (status == TKV_OK) {
        status = map(tkv_metal_of(base), staging, bytes, &staged, error);
    }
    if (status == TKV_OK) {
        memcpy(staged, from, bytes);
        status = tkv_metal_copy(base, to, staging, bytes, error);
    }
    tkv_metal_release(base, staging);
    return status;
}

tkv_status tkv_metal_upload(tkv_device *base, uint64_t to, const void *from, size_t bytes,
                            tkv_error *error)
{
    @autoreleasepool {
        uint8_t *memory = NULL;
        if (bytes == 0) {
            return TKV_OK;
        }
        const tkv_status status = map(tkv_metal_of(base), to, bytes, &memory, error);
        if (status != TKV_OK) {
            return status;
        }
        if (tkv_metal_of(base)->commands) {
            return upload_in_order(base, to, from, bytes, error);
        }
        memcpy(memory, from, bytes);
        return TKV_OK;
    }
}

tkv_status tkv_metal_download(tkv_device *base, void *to, uint64_t from, size_t bytes,
                              tkv_error *error)
{
    @autoreleasepool {
        uint8_t *memory = NULL;
        tkv_status status = bytes ? map(tkv_metal_of(base), from, bytes, &memory, error) : TKV_OK;
        if (status == TKV_OK) {
            status = tkv_metal_wait(base, error);
        }
        if (status == TKV_OK && bytes > 0) {
            memcpy(to, memory, bytes);
        }
        return status;
    }
}
