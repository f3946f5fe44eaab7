/* The host's device: its memory is the process's, its kernels those of the CPU. */
#include "base/allocate.h"
#include "base/error.h"
#include "device/host/host.h"
#include "format/codec.h"

#include <string.h>

#define MIN_ALIGNMENT 16
#define MAX_ALIGNMENT 256
#define WORKSPACE_ALIGNMENT 64

static int count(char *reason, size_t size)
{
    (void)reason;
    (void)size;
    return 1;
}

static tkv_status open_device(int index, const tkv_device_setup *setup, tkv_device **device,
                              tkv_error *error)
{
    (void)index;
    tkv_device_setup own = setup ? *setup : (tkv_device_setup){0};
    own.allocator = own.allocator ? own.allocator : &tkv_default_allocator;
    if (!own.kernels) {
        TKV_TRY(tkv_kernels_select(NULL, &own.kernels, error));
    }
    tkv_host_device *created = tkv_allocate_zeroed(own.allocator, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a device (%zu bytes)",
                        sizeof *created);
    }
    *created = (tkv_host_device){{&tkv_device_table_host}, own};
    *device = &created->base;
    return TKV_OK;
}

static void close_device(tkv_device *device)
{
    tkv_release(tkv_host_of(device)->setup.allocator, device);
}

static const char *description(const tkv_device *device)
{
    (void)device;
    return "cpu";
}

static const char *kernels(const tkv_device *device)
{
    return tkv_host_of(device)->setup.kernels->name;
}

static tkv_status take_memory(const tkv_device *device, size_t alignment, size_t bytes,
                              uint64_t *address, tkv_error *error)
{
    void *memory = tkv_allocate_aligned(tkv_host_of(device)->setup.allocator, bytes, alignment);
    if (!memory) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu bytes", bytes);
    }
    *address = (uint64_t)(uintptr_t)memory;
    return TKV_OK;
}

/* Such that nothing is rounded up to it: a cache holds what it counts. */
static size_t alignment_of(size_t bytes)
{
    const size_t largest = bytes & (~bytes + 1);
    return largest < MIN_ALIGNMENT   ? MIN_ALIGNMENT
           : largest > MAX_ALIGNMENT ? MAX_ALIGNMENT
                                     : largest;
}

static tkv_status allocate(tkv_device *device, size_t bytes, uint64_t *address, tkv_error *error)
{
    const tkv_status status = take_memory(device, alignment_of(bytes), bytes, address, error);
    if (status == TKV_OK) {
        memset(tkv_host_pointer(*address), 0, bytes);
    }
    return status;
}

static tkv_status borrow(tkv_device *device, size_t bytes, uint64_t *address, tkv_error *error)
{
    return take_memory(device, WORKSPACE_ALIGNMENT, bytes, address, error);
}

static void release(tkv_device *device, uint64_t address)
{
    tkv_release(tkv_host_of(device)->setup.allocator, tkv_host_pointer(address));
}

static tkv_status upload(tkv_device *device, uint64_t to, const void *from, size_t bytes,
                         tkv_error *error)
{
    (void)device;
    (void)error;
    memcpy(tkv_host_pointer(to), from, bytes);
    return TKV_OK;
}

static tkv_status download(tkv_device *device, void *to, uint64_t from, size_t bytes,
                           tkv_error *error)
{
    (void)device;
    (void)error;
    memcpy(to, tkv_host_pointer(from), bytes);
    return TKV_OK;
}

static tkv_status copy(tkv_device *device, uint64_t to, uint64_t from, size_t bytes,
                       tkv_error *error)
{
    (void)device;
    (void)error;
    memmove(tkv_host_pointer(to), tkv_host_pointer(from), bytes);
    return TKV_OK;
}

static tkv_status wait_for_device(tkv_device *device, tkv_error *error)
{
    (void)device;
    (void)error;
    return TKV_OK;
}

static tkv_status rotate(tkv_device *device, int head_dim, size_t n_rows, uint64_t x,
                         bool is_inverse, tkv_error *error)
{
    (void)error;
    const tkv_kernels *own = tkv_host_of(device)->setup.kernels;
    for (size_t i = 0; i < n_rows; i++) {
        float *row = (float *)tkv_host_pointer(x) + i * (size_t)head_dim;
        (is_inverse ? own->unrotate : own->rotate)(head_dim, 1, row);
    }
    return TKV_OK;
}

static size_t find_non_finite(tkv_device *device, size_t n, uint64_t x)
{
    (void)device;
    return tkv_find_non_finite(n, tkv_host_pointer(x));
}

const tkv_device_table tkv_device_table_host = {
    .name = "cpu",
    .kind = TKV_DEVICE_CPU,
    .is_immediate = true,
    .has_keys_only = true,
    .exact_rows = TKV_EXACT_ROWS,
    .count = count,
    .open = open_device,
    .close = close_device,
    .description = description,
    .kernels = kernels,
    .allocate = allocate,
    .borrow = borrow,
    .release = release,
    .upload = upload,
    .download = download,
    .copy = copy,
    .wait = wait_for_device,
    .find_non_finite = find_non_finite,
    .rotate = rotate,
    .move_rows = tkv_host_move_rows,
    .join = tkv_host_join,
    .store = tkv_host_store,
    .load = tkv_host_load,
    .age = tkv_host_age,
    .plan = tkv_host_plan_attend,
    .attend = tkv_host_attend,
};
