/* Memory where a context computes, for its callers. */
#include "base/error.h"
#include "device/context.h"

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
    const size_t rounded =
        bytes <= SIZE_MAX - ALIGNMENT ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : bytes;
    uint64_t address = 0;
    TKV_TRY(context->device->table->allocate(context->device, rounded, &address, error));
    *memory = (void *)(uintptr_t)address;
    return TKV_OK;
}

void tkv_memory_free(tkv_context *context, void *memory)
{
    if (context && memory) {
        context->device->table->release(context->device, address_of(memory));
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
    TKV_TRY(check_copy(context, to, from, error));
    return context->device->table->upload(context->device, address_of(to), from, bytes, error);
}

tkv_status tkv_memory_download(tkv_context *context, void *to, const void *from, size_t bytes,
                               tkv_error *error)
{
    TKV_TRY(check_copy(context, to, from, error));
    return context->device->table->download(context->device, to, address_of(from), bytes, error);
}

tkv_status tkv_memory_copy(tkv_context *context, void *to, const void *from, size_t bytes,
                           tkv_error *error)
{
    TKV_TRY(check_copy(context, to, from, error));
    return context->device->table->copy(context->device, address_of(to), address_of(from), bytes,
                                        error);
}

tkv_status tkv_context_wait(tkv_context *context, tkv_error *error)
{
    if (!context) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context is NULL");
    }
    return context->device->table->wait(context->device, error);
}
