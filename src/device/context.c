#include "device/context.h"
#include "base/allocate.h"
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_THREADS 1024
#define MIN_WORKSPACE ((size_t)1 << 20)

static int machine_cores(void)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores;
}

static tkv_status check_params(const tkv_context_params *params, tkv_error *error)
{
    if (params->n_threads < 0 || params->n_threads > MAX_THREADS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_threads %d: expected 0 (all) to %d",
                        params->n_threads, MAX_THREADS);
    }
    if ((unsigned)params->effort >= (unsigned)TKV_EFFORT_COUNT) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "effort %d: expected 0 to %d",
                        (int)params->effort, TKV_EFFORT_COUNT - 1);
    }
    if (params->allocator && (!params->allocator->allocate || !params->allocator->release)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "a function of the allocator is NULL");
    }
    return tkv_check_reserved(sizeof params->reserved / sizeof *params->reserved, params->reserved,
                              "tkv_context_params", error);
}

static tkv_status open_device(const tkv_device_table *table, int index,
                              const tkv_device_setup *setup, tkv_device **device, tkv_error *error)
{
    char reason[256] = "none was found";
    const int n_devices = table->count(reason, sizeof reason);
    if (n_devices < 1) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "no %s device: %s", table->name, reason);
    }
    if (index >= n_devices) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "device %s:%d: the last of this machine is %d",
                        table->name, index, n_devices - 1);
    }
    return table->open(index, setup, device, error);
}

/* Kernels and threads. */
static tkv_status prepare_host(tkv_context *context, const tkv_context_params *params,
                               tkv_error *error)
{
    TKV_TRY(tkv_kernels_select(params->kernels ? params->kernels : getenv("TKV_CPU"),
                               &context->kernels, error));
    return context->n_threads > 1 ? tkv_threads_create(&context->allocator, context->n_threads,
                                                       &context->threads, error)
                                  : TKV_OK;
}

tkv_status tkv_context_create_on(const tkv_device_table *table, int index,
                                 const tkv_context_params *params, tkv_context **context,
                                 tkv_error *error)
{
    const tkv_context_params none = {0};
    params = params ? params : &none;
    if (!context) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "result pointer is NULL");
    }
    TKV_TRY(check_params(params, error));
    const tkv_allocator allocator = params->allocator ? *params->allocator : tkv_default_allocator;
    tkv_context *created = tkv_allocate_zeroed(&allocator, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a context (%zu bytes)",
                        sizeof *created);
    }
    created->allocator = allocator;
    created->log = params->log;
    created->log_user = params->log_user;
    created->effort = params->effort;
    created->device_index = index;
    created->is_stopped = params->is_stopped;
    created->stop_user = params->stop_user;
    created->n_threads = params->n_threads ? params->n_threads : machine_cores();
    tkv_status status = prepare_host(created, params, error);
    if (status == TKV_OK) {
        const tkv_device_setup setup = {.stream = params->stream,
                                        .kernels = created->kernels,
                                        .threads = created->threads,
                                        .allocator = &created->allocator,
                                        .is_stopped = params->is_stopped,
                                        .stop_user = params->stop_user};
        status = open_device(table ? table : &tkv_device_table_host, index, &setup,
                             &created->device, error);
    }
    if (status != TKV_OK) {
        tkv_context_free(created);
        return status;
    }
    tkv_context_log(created, "context on %s: %s kernels, %d threads", tkv_context_device(created),
                    tkv_context_kernels(created), created->n_threads);
    *context = created;
    return TKV_OK;
}

/* The table and number of a device's name "NAME" or "NAME:NUMBER". */
static tkv_status find_device(const char *name, const tkv_device_table **table, int *index,
                              tkv_error *error)
{
    const char *colon = strchr(name, ':');
    const size_t length = colon ? (size_t)(colon - name) : strlen(name);
    char available[64] = "cpu";
    char *end = NULL;
    const long number = colon ? strtol(colon + 1, &end, 10) : 0;
    if (colon && (end == colon + 1 || *end || number < 0 || number > MAX_THREADS)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "device '%.40s': expected a name or NAME:NUMBER, for example cuda:1", name);
    }
    *index = (int)number;
    *table = &tkv_device_table_host;
    if (length == 3 && strncmp(name, "cpu", length) == 0 && number == 0) {
        return TKV_OK;
    }
    for (int i = 0; (*table = tkv_device_tables(i)); i++) {
        if (strlen((*table)->name) == length && strncmp(name, (*table)->name, length) == 0) {
            return TKV_OK;
        }
        const size_t used = strlen(available);
        snprintf(available + used, sizeof available - used, ", %s", (*table)->name);
    }
    return tkv_fail(error, TKV_ERR_UNSUPPORTED, "device '%.40s': this build has %s", name,
                    available);
}

tkv_status tkv_context_create(const tkv_context_params *params, tkv_context **context,
                              tkv_error *error)
{
    const tkv_device_table *table = NULL;
    int index = 0;
    if (params && params->device) {
        TKV_TRY(find_device(params->device, &table, &index, error));
    }
    return tkv_context_create_on(table, index, params, context, error);
}

void tkv_context_free(tkv_context *context)
{
    if (!context) {
        return;
    }
    tkv_context_release_attachments(context);
    if (context->device) {
        for (int use = 0; use < TKV_WORKSPACE_USES; use++) {
            for (int i = 0; i < context->workspaces[use].n; i++) {
                context->device->table->release(context->device,
                                                context->workspaces[use].addresses[i]);
            }
        }
        context->device->table->close(context->device);
    }
    tkv_threads_free(context->threads);
    const tkv_allocator allocator = context->allocator;
    tkv_release(&allocator, context);
}

void tkv_context_log(const tkv_context *context, const char *format, ...)
{
    if (context->log) {
        char message[256];
        va_list args;
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
        context->log(context->log_user, message);
    }
}

tkv_device_kind tkv_context_device_kind(const tkv_context *context)
{
    return context ? context->device->table->kind : TKV_DEVICE_CPU;
}

int tkv_context_device_index(const tkv_context *context)
{
    return context ? context->device_index : 0;
}

void *tkv_context_stream(const tkv_context *context)
{
    const tkv_device *device = context ? context->device : NULL;
    return device && device->table->stream ? device->table->stream(device) : NULL;
}

const char *tkv_context_kernels(const tkv_context *context)
{
    if (!context) {
        return "none";
    }
    const tkv_device_table *table = context->device->table;
    return table->kernels ? table->kernels(context->device) : table->name;
}

const char *tkv_context_device(const tkv_context *context)
{
    if (!context) {
        return "none";
    }
    return context->device->table->description(context->device);
}

int tkv_context_threads(const tkv_context *context)
{
    return context ? context->n_threads : 0;
}

tkv_effort tkv_context_effort(const tkv_context *context)
{
    return context ? context->effort : TKV_EFFORT_DEFAULT;
}

void tkv_context_run(const tkv_context *context, int n_threads, int n_items, tkv_item_work work,
                     void *argument)
{
    tkv_threads *threads = context ? context->threads : NULL;
    if (work) {
        tkv_threads_run(threads, n_threads > 0 ? n_threads : tkv_threads_count(threads), n_items,
                        work, argument);
    }
}

bool tkv_context_is_stopped(const tkv_context *context)
{
    return context && context->is_stopped && context->is_stopped(context->stop_user);
}

tkv_status tkv_context_workspace(tkv_context *context, tkv_workspace_use use, size_t bytes,
                                 uint64_t *address, tkv_error *error)
{
    tkv_device *device = context->device;
    if (device->table->borrow) {
        return device->table->borrow(device, bytes, address, error);
    }
    tkv_device_workspace *workspace = &context->workspaces[use];
    if (workspace->n == 0 || bytes > workspace->bytes) {
        const size_t doubled = workspace->n ? 2 * workspace->bytes : MIN_WORKSPACE;
        const size_t wanted = bytes > doubled ? bytes : doubled;
        uint64_t memory = 0;
        TKV_TRY(device->table->allocate(device, wanted, &memory, error));
        workspace->addresses[workspace->n++] = memory;
        workspace->bytes = wanted;
    }
    *address = workspace->addresses[workspace->n - 1];
    return TKV_OK;
}

void tkv_context_give_back(tkv_context *context, uint64_t address)
{
    tkv_device *device = context->device;
    if (address && device->table->borrow) {
        device->table->release(device, address);
    }
}
