#include "model/runner.h"

#include "backend/context.h"
#include "common/error.h"

#include <stdlib.h>
#include <string.h>

typedef struct cpu_runner {
    tkv_runner base;
    const tkv_model *model;
    tkv_workspace *workspace;
} cpu_runner;

static tkv_status forward(tkv_runner *base, tkv_cache *cache, const tkv_batch *batch,
                          tkv_error *error)
{
    const cpu_runner *runner = (const cpu_runner *)base;
    return tkv_forward(runner->model, cache, runner->workspace, batch, error);
}

static size_t bytes_of(const tkv_runner *base)
{
    const cpu_runner *runner = (const cpu_runner *)base;
    return sizeof *runner + tkv_workspace_bytes(runner->workspace);
}

static void free_runner(tkv_runner *base)
{
    cpu_runner *runner = (cpu_runner *)base;
    tkv_workspace_free(runner->workspace);
    free(runner);
}

static const tkv_runner_table cpu_table = {forward, bytes_of, free_runner};

static tkv_status create_on_cpu(const tkv_model *model, tkv_context *context, int n_batch,
                                tkv_runner **runner, tkv_error *error)
{
    cpu_runner *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a session");
    }
    created->base.table = &cpu_table;
    created->model = model;
    const tkv_status status =
        tkv_workspace_create(model, n_batch, context->threads, &created->workspace, error);
    if (status != TKV_OK) {
        free_runner(&created->base);
        return status;
    }
    *runner = &created->base;
    return TKV_OK;
}

tkv_status tkv_runner_create(const tkv_model *model, tkv_context *context, int n_batch,
                             tkv_runner **runner, tkv_error *error)
{
    const char *kernels = tkv_context_kernels(context);
    if (!context->device) {
        return create_on_cpu(model, context, n_batch, runner, error);
    }
#ifdef TKV_HAVE_CUDA_MODEL
    if (strcmp(kernels, "cuda") == 0) {
        return tkv_runner_create_cuda(model, context, n_batch, runner, error);
    }
    return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                    "models on a %s device: this build runs them on the CPU and on cuda", kernels);
#else
    return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                    "models on a %s device: this build runs them on the CPU", kernels);
#endif
}
