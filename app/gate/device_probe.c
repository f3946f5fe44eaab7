/* How fast attention of a device is: calls enqueued one after the other, then one wait. */
#include "base/error.h"
#include "eval/clock.h"
#include "gate/device_layer.h"
#include "gate/device_test.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_CALLS = 100 };

static const double BATCH_SECONDS = 0.02;
static const double TIME_SECONDS = 0.3;

static void fill(uint32_t *seed, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        x[i] = (float)(*seed >> 8) * 0x1p-22f - 2.0f;
    }
}

/* Seconds of n calls and the wait for them. */
static tkv_status time_batch(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                             int n, double *seconds, tkv_error *error)
{
    const double start = tkv_clock();
    tkv_status status = TKV_OK;
    for (int i = 0; i < n && status == TKV_OK; i++) {
        status = device->table->attend(device, plan, workspace, error);
    }
    if (status == TKV_OK) {
        status = device->table->wait(device, error);
    }
    *seconds = tkv_clock() - start;
    return status;
}

/* The fastest of as many batches as there is time for, after one call to warm up; a batch is long
 * beside the wait at its end. */
static tkv_status time_calls(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                             double *microseconds, tkv_error *error)
{
    const double begin = tkv_clock();
    double best = INFINITY;
    double seconds = 0.0;
    tkv_status status = time_batch(device, plan, workspace, 1, &seconds, error);
    if (status == TKV_OK) {
        status = time_batch(device, plan, workspace, 1, &seconds, error);
    }
    const double n_calls = seconds > 0.0 ? BATCH_SECONDS / seconds : MAX_CALLS;
    const int n = n_calls < 1.0 ? 1 : n_calls > MAX_CALLS ? MAX_CALLS : (int)n_calls;
    while (status == TKV_OK && (isinf(best) || tkv_clock() - begin < TIME_SECONDS)) {
        status = time_batch(device, plan, workspace, n, &seconds, error);
        best = fmin(best, seconds / n);
    }
    *microseconds = 1e6 * best;
    return status;
}

static tkv_status probe_type(tkv_device *device, tkv_type type, int n_tokens, const float *rows,
                             tkv_device_layer_fixture *f, double *microseconds, tkv_error *error)
{
    const int head_dim = TKV_PROBE_HEAD_DIM;
    const int n_heads = TKV_PROBE_KV_HEADS * TKV_PROBE_GROUP;
    const size_t bytes = (size_t)n_tokens * TKV_PROBE_KV_HEADS * (size_t)head_dim * sizeof *rows;
    const tkv_device_layer layer = {.type_k = (int32_t)type,
                                    .type_v = (int32_t)type,
                                    .n_kv_heads = TKV_PROBE_KV_HEADS,
                                    .head_dim_k = head_dim,
                                    .head_dim_v = head_dim,
                                    .effort = TKV_EFFORT_FAST};
    tkv_device_attend params = {.layer = layer,
                                .n_sequences = 1,
                                .max_tokens = n_tokens,
                                .n_queries = 1,
                                .n_heads = n_heads,
                                .first_position = -1,
                                .scale = 1.0f / sqrtf((float)head_dim)};
    uint64_t x = 0;
    const size_t query_bytes = (size_t)(n_heads * head_dim) * sizeof *rows;
    tkv_status status = tkv_device_layer_create(device, &layer, n_tokens, NULL, NULL, f, error);
    params.sequences = f->sequence;
    if (status == TKV_OK) {
        status = tkv_device_layer_buffer(f, rows, bytes, &x, error);
    }
    if (status == TKV_OK) {
        status = device->table->store(device, &layer, f->sequence, 1, 0, n_tokens, x, x, error);
    }
    if (status == TKV_OK) {
        status = tkv_device_layer_buffer(f, rows, query_bytes, &params.q, error);
    }
    if (status == TKV_OK) {
        status = tkv_device_layer_buffer(f, NULL, query_bytes, &params.out, error);
    }
    tkv_attend_plan plan;
    uint64_t workspace = 0;
    if (status == TKV_OK) {
        status = device->table->plan(device, &params, &plan, error);
    }
    if (status == TKV_OK && plan.workspace_bytes > 0) {
        status = tkv_device_layer_buffer(f, NULL, plan.workspace_bytes, &workspace, error);
    }
    return status == TKV_OK ? time_calls(device, &plan, workspace, microseconds, error) : status;
}

tkv_status tkv_device_probe_run(const tkv_device_table *table, int index, int n_tokens,
                                tkv_probe *probe, tkv_error *error)
{
    const size_t n = (size_t)n_tokens * TKV_PROBE_KV_HEADS * TKV_PROBE_HEAD_DIM;
    uint32_t seed = 1;
    tkv_device *device = NULL;
    float *rows = malloc(n * sizeof *rows);
    tkv_device_layer_fixture *f = calloc(1, sizeof *f);
    *probe = (tkv_probe){.n_threads = 0, .n_tokens = n_tokens};
    tkv_status status = rows && f ? table->open(index, NULL, &device, error)
                                  : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a probe");
    if (status == TKV_OK) {
        fill(&seed, n, rows);
        for (int type = 0; type < TKV_TYPE_COUNT && status == TKV_OK; type++) {
            status = probe_type(device, (tkv_type)type, n_tokens, rows, f,
                                &probe->microseconds[type], error);
            tkv_device_layer_free(f);
        }
        table->close(device);
    }
    free(rows);
    free(f);
    return status;
}
