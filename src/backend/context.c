#include "backend/kernels.h"
#include "common/error.h"

#include <stdlib.h>
#include <unistd.h>

#define MAX_THREADS 1024

static int machine_cores(void)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores;
}

tkv_status tkv_context_create(const tkv_context_params *params, tkv_context **context,
                              tkv_error *error)
{
    const int n_threads = params ? params->n_threads : 0;
    if (!context) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "result pointer is NULL");
    }
    if (n_threads < 0 || n_threads > MAX_THREADS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "n_threads %d: expected 0 (all) to %d",
                        n_threads, MAX_THREADS);
    }
    const tkv_effort effort = params ? params->effort : TKV_EFFORT_DEFAULT;
    if ((unsigned)effort >= (unsigned)TKV_EFFORT_COUNT) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "effort %d: expected 0 to %d", (int)effort,
                        TKV_EFFORT_COUNT - 1);
    }
    tkv_context *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a context (%zu bytes)",
                        sizeof *created);
    }
    created->effort = effort;
    created->n_threads = n_threads ? n_threads : machine_cores();
    tkv_status status = tkv_kernels_select(getenv("TKV_CPU"), &created->kernels, error);
    if (status == TKV_OK && created->n_threads > 1) {
        status = tkv_threads_create(created->n_threads, &created->threads, error);
    }
    if (status != TKV_OK) {
        free(created);
        return status;
    }
    *context = created;
    return TKV_OK;
}

void tkv_context_free(tkv_context *context)
{
    if (context) {
        tkv_threads_free(context->threads);
        free(context);
    }
}

const char *tkv_context_kernels(const tkv_context *context)
{
    return context->kernels->name;
}

int tkv_context_threads(const tkv_context *context)
{
    return context->n_threads;
}
