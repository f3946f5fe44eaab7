/* Memory where a context computes, for its callers: the device's, or the C library's. */
#include "base/allocate.h"
#include "device/context.h"

#include <string.h>

#define ALIGNMENT 256

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

tkv_status tkv_memory_allocate(tkv_context *context, size_t bytes, void **memory, tkv_error *error)
{
    if (!context || !memory || bytes < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "memory of %zu bytes: expected a context, a result and at least 1", bytes);
    }
    if (context->device) {
        uint64_t address = 0;
        const tkv_status status =
            context->device->table->allocate(context->device, bytes, &address, error);
        if (status == TKV_OK) {
            *memory = (void *)(uintptr_t)address;
        }
        return status;
    }
    void *allocated = tkv_allocate_aligned(&context->allocator, bytes, ALIGNMENT);
    if (!allocated) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu bytes", bytes);
    }
    memset(allocated, 0, bytes);
    *memory = allocated;
    return TKV_OK;
}

void tkv_memory_free(tkv_context *context, void *memory)
{
    if (!context || !memory) {
        return;
    }
    if (context->device) {
        context->device->table->release(context->device, address_of(memory));
    } else {
        tkv_release(&context->allocator, memory);
    }
}

static tkv_status check_copy(const tkv_context *context, const void *to, const void *from,
                             tkv_error *error)
{
    if (!context || !to || !from) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context, source or destination is NULL");
    }
    return TKV_OK;
}

tkv_status tkv_memory_upload(tkv_context *context, void *to, const void *from, size_t bytes,
                             tkv_error *error)
{
    const tkv_status status = check_copy(context, to, from, error);
    if (status != TKV_OK) {
        return status;
    }
    if (context->device) {
        return context->device->table->upload(context->device, address_of(to), from, bytes, error);
    }
    memcpy(to, from, bytes);
    return TKV_OK;
}

tkv_status tkv_memory_download(tkv_context *context, void *to, const void *from, size_t bytes,
                               tkv_error *error)
{
    const tkv_status status = check_copy(context, to, from, error);
    if (status != TKV_OK) {
        return status;
    }
    if (context->device) {
        return context->device->table->download(context->device, to, address_of(from), bytes,
                                                error);
    }
    memcpy(to, from, bytes);
    return TKV_OK;
}

tkv_status tkv_memory_copy(tkv_context *context, void *to, const void *from, size_t bytes,
                           tkv_error *error)
{
    const tkv_status status = check_copy(context, to, from, error);
    if (status != TKV_OK) {
        return status;
    }
    if (context->device) {
        return context->device->table->copy(context->device, address_of(to), address_of(from),
                                            bytes, error);
    }
    memmove(to, from, bytes);
    return TKV_OK;
}

tkv_status tkv_context_wait(tkv_context *context, tkv_error *error)
{
    if (!context) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context is NULL");
    }
    return context->device ? context->device->table->wait(context->device, error) : TKV_OK;
}
