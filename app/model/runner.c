#include "model/runner.h"

#include "model/exchange.h"

#include <stdlib.h>

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
        tkv_workspace_create(model, n_batch, context, &created->workspace, error);
    if (status != TKV_OK) {
        free_runner(&created->base);
        return status;
    }
    *runner = &created->base;
    return TKV_OK;
}

/* A cache on a device that cannot run the other layers: those run here. */
static tkv_status create_beside_device(const tkv_model *model, tkv_context *context, int n_batch,
                                       tkv_runner **runner, tkv_error *error)
{
    tkv_runner *created = NULL;
    tkv_exchange *exchange = NULL;
    tkv_status status = create_on_cpu(model, context, n_batch, &created, error);
    if (status == TKV_OK) {
        status =
            tkv_exchange_create(tkv_model_get_config(model), context, n_batch, &exchange, error);
    }
    if (status != TKV_OK) {
        if (created) {
            free_runner(created);
        }
        return status;
    }
    tkv_workspace_set_exchange(((cpu_runner *)created)->workspace, exchange);
    *runner = created;
    return TKV_OK;
}

#ifdef TKV_HAVE_CUDA_MODEL
/* Whether the runner on CUDA has all that the model's layers do. */
static bool is_on_cuda(const tkv_model *model)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    return config->activation == TKV_ACTIVATION_SILU && !config->has_post_norms &&
           config->embedding_scale == 1.0f && config->attention_scale == 0.0f &&
           config->rope_local_freq_base == 0.0f;
}
#endif

tkv_status tkv_runner_create(const tkv_model *model, tkv_context *context, int n_batch,
                             tkv_runner **runner, tkv_error *error)
{
    if (tkv_context_device_kind(context) == TKV_DEVICE_CPU) {
        return create_on_cpu(model, context, n_batch, runner, error);
    }
#ifdef TKV_HAVE_CUDA_MODEL
    if (tkv_context_device_kind(context) == TKV_DEVICE_CUDA && is_on_cuda(model)) {
        return tkv_runner_create_cuda(model, context, n_batch, runner, error);
    }
#endif
    return create_beside_device(model, context, n_batch, runner, error);
}
