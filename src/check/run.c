/* Checks of a context, as the public header has them. */
#include "base/error.h"
#include "check/check.h"
#include "device/context.h"
#include "format/codec.h"

#include <stdio.h>
#include <string.h>

const char *tkv_kernels_name(int index, bool *can_run)
{
    bool is_supported = false;
    const tkv_kernels *kernels = tkv_kernels_built(index, &is_supported);
    if (can_run) {
        *can_run = is_supported;
    }
    return kernels ? kernels->name : NULL;
}

const char *tkv_device_name(int index)
{
    const tkv_device_table *table = index >= 0 ? tkv_device_tables(index) : NULL;
    return table ? table->name : NULL;
}

int tkv_device_count(const char *name, char *reason, size_t size)
{
    const tkv_device_table *table;
    for (int i = 0; name && (table = tkv_device_tables(i)); i++) {
        if (strcmp(table->name, name) == 0) {
            return table->count(reason, size);
        }
    }
    if (reason && size > 0) {
        snprintf(reason, size, "not in this build");
    }
    return 0;
}

static tkv_status check_timed(const tkv_check_params *params, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int i = 0; params->head_dims && i < params->n_head_dims && status == TKV_OK; i++) {
        status = tkv_check_padded_dim(TKV_TYPE_TURBO4, params->head_dims[i], error);
    }
    for (int i = 0; params->types && i < params->n_types && status == TKV_OK; i++) {
        if ((unsigned)params->types[i] >= TKV_TYPE_COUNT) {
            status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "type %d: expected 0 to %d",
                              (int)params->types[i], TKV_TYPE_COUNT - 1);
        }
    }
    if (status == TKV_OK && (unsigned)params->effort >= TKV_EFFORT_COUNT) {
        status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "effort %d: expected 0 to %d",
                          (int)params->effort, TKV_EFFORT_COUNT - 1);
    }
    return status;
}

static tkv_status check_params(const tkv_context *context, const tkv_check_params *params,
                               tkv_check_report report, tkv_error *error)
{
    if (!context || !params || !report) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "context, params or report is NULL");
    }
    if ((unsigned)params->mode > TKV_CHECK_SPEED) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "mode %d: expected 0 to %d",
                        (int)params->mode, TKV_CHECK_SPEED);
    }
    const tkv_status status = tkv_check_reserved(sizeof params->reserved / sizeof *params->reserved,
                                                 params->reserved, "tkv_check_params", error);
    return status == TKV_OK ? check_timed(params, error) : status;
}

tkv_status tkv_check_run(tkv_context *context, const tkv_check_params *params,
                         tkv_check_report report, void *user, tkv_error *error)
{
    const tkv_kernels *tables[TKV_CHECK_MAX_TABLES];
    int n_tables = 0;
    const tkv_status status = check_params(context, params, report, error);
    if (status != TKV_OK) {
        return status;
    }
    if (tkv_context_device_kind(context) != TKV_DEVICE_CPU) {
        return tkv_check_device(context->device, params, report, user, error);
    }
    if (!params->every_set) {
        tables[n_tables++] = context->kernels;
    }
    while (params->every_set && n_tables < TKV_CHECK_MAX_TABLES &&
           (tables[n_tables] = tkv_kernels_available(n_tables))) {
        n_tables++;
    }
    return tkv_check_kernels(tables, n_tables, params, report, user, error);
}
