#include "eval/cuda/attention_graph.h"

#include "base/error.h"
#include "cache/cache.h"
#include "device/cuda/device_cuda.h"
#include "eval/clock.h"

#include <math.h>
#include <stdlib.h>

/* All copies together: several times what a device's cache holds. */
#define ROTATED_BYTES ((size_t)400 << 20)
#define MAX_COPIES 64
/* As many as a model has layers, so that a graph's start is a small part. */
#define MIN_CALLS 32

/* Tokens that are appended at a time, the same ones over and over. */
#define CHUNK_TOKENS 1024

#define COPY_BYTES ((size_t)512 << 20)
#define COPY_PASSES 15

struct tkv_attention_graph {
    tkv_attention_shape shape;
    tkv_context *context;
    int n_sequences;
    int n_copies;
    int n_calls;         /* of one replay */
    tkv_cache **caches;  /* [n_copies * n_sequences] */
    void *descriptors;   /* tkv_device_sequence [n_copies][n_sequences] */
    float *host_queries; /* [n_sequences][n_queries][n_heads][head_dim] */
    void *queries;
    void *output; /* likewise */
    void *rows;   /* keys, then values, of CHUNK_TOKENS tokens */
    cudaEvent_t begin;
    cudaEvent_t end;
    cudaGraphExec_t graph;
};

static size_t query_values(const tkv_attention_graph *g)
{
    const tkv_attention_shape *s = &g->shape;
    return (size_t)g->n_sequences * (size_t)s->n_queries * (size_t)(s->n_kv_heads * s->group) *
           (size_t)s->head_dim;
}

static size_t row_values(const tkv_attention_graph *g)
{
    return (size_t)g->shape.n_kv_heads * (size_t)g->shape.head_dim;
}

/* n Gaussian values in the device's memory; they are also given in *host if that is not NULL. */
static tkv_status upload_values(tkv_attention_graph *g, uint32_t seed, size_t n, void **memory,
                                float **host, tkv_error *error)
{
    float *x = malloc(n * sizeof *x);
    if (!x) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu values", n);
    }
    tkv_attention_fill(&seed, n, x);
    tkv_status status = tkv_memory_allocate(g->context, n * sizeof *x, memory, error);
    if (status == TKV_OK) {
        status = tkv_memory_upload(g->context, *memory, x, n * sizeof *x, error);
    }
    if (host && status == TKV_OK) {
        *host = x;
    } else {
        free(x);
    }
    return status;
}

/* Sequences begin at different rows of the same ones, so that no two are equal. */
static tkv_status fill_cache(tkv_attention_graph *g, int index, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const size_t row = row_values(g);
    const float *k = g->rows;
    const float *v = k + (size_t)CHUNK_TOKENS * row;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = s->n_kv_heads,
                                     .head_dim_k = s->head_dim,
                                     .head_dim_v = s->head_dim,
                                     .max_tokens = s->n_tokens,
                                     .types_k = &s->type_k,
                                     .types_v = &s->type_v};
    tkv_status status = tkv_cache_create(g->context, &params, &g->caches[index], error);
    int offset = index * 37 % CHUNK_TOKENS;
    for (int done = 0; done < s->n_tokens && status == TKV_OK;) {
        const int left = s->n_tokens - done;
        const int n = left < CHUNK_TOKENS - offset ? left : CHUNK_TOKENS - offset;
        status = tkv_cache_append(g->caches[index], 0, n, k + (size_t)offset * row,
                                  v + (size_t)offset * row, error);
        done += n;
        offset = 0;
    }
    return status;
}

/* The caches, and the descriptors of the sequences of one call side by side. */
static tkv_status create_caches(tkv_attention_graph *g, tkv_error *error)
{
    const int n = g->n_copies * g->n_sequences;
    tkv_device_sequence *sequences = calloc((size_t)n, sizeof *sequences);
    g->caches = calloc((size_t)n, sizeof *g->caches);
    tkv_status status = TKV_OK;
    if (!sequences || !g->caches) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d caches", n);
    }
    for (int i = 0; status == TKV_OK && i < n; i++) {
        status = fill_cache(g, i, error);
        if (status == TKV_OK) {
            const tkv_cache *cache = g->caches[i];
            const tkv_cache_layer *layer = &cache->layers[0];
            sequences[i] = tkv_describe_segment(layer, tkv_last_segment(layer), 0);
        }
    }
    const size_t bytes = (size_t)n * sizeof *sequences;
    if (status == TKV_OK) {
        status = tkv_memory_allocate(g->context, bytes, &g->descriptors, error);
    }
    if (status == TKV_OK) {
        status = tkv_memory_upload(g->context, g->descriptors, sequences, bytes, error);
    }
    free(sequences);
    return status;
}

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

static tkv_status attend(tkv_attention_graph *g, int copy, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const tkv_cache *cache = g->caches[0];
    tkv_device *device = g->context->device;
    const tkv_cache_layer *layer = &cache->layers[0];
    tkv_device_attend params = {.layer = tkv_describe_layer(cache, layer, tkv_last_segment(layer)),
                                .n_sequences = g->n_sequences,
                                .max_tokens = s->n_tokens,
                                .n_queries = s->n_queries,
                                .n_heads = s->n_kv_heads * s->group,
                                .first_position = -1,
                                .scale = 1.0f / sqrtf((float)s->head_dim),
                                .sequences =
                                    address_of(g->descriptors) +
                                    (uint64_t)(copy * g->n_sequences) * sizeof(tkv_device_sequence),
                                .q = address_of(g->queries),
                                .out = address_of(g->output)};
    tkv_attend_plan plan;
    uint64_t workspace = 0;
    tkv_status status = device->table->plan(device, &params, &plan, error);
    if (status == TKV_OK) {
        status = tkv_context_workspace(g->context, TKV_WORKSPACE_ATTEND, plan.workspace_bytes,
                                       &workspace, error);
    }
    return status == TKV_OK ? device->table->attend(device, &plan, workspace, error) : status;
}

static tkv_status capture(tkv_attention_graph *g, tkv_error *error)
{
    const cudaStream_t stream = tkv_cuda_stream(g->context->device);
    cudaGraph_t graph = NULL;
    tkv_status status =
        tkv_cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                       "beginning a graph", error);
    if (status != TKV_OK) {
        return status;
    }
    for (int i = 0; status == TKV_OK && i < g->n_calls; i++) {
        status = attend(g, i % g->n_copies, error);
    }
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (status == TKV_OK) {
        status = tkv_cuda_check(ended, "capturing a graph", error);
    }
    if (status == TKV_OK) {
        status = tkv_cuda_check(cudaGraphInstantiate(&g->graph, graph, 0), "instantiating a graph",
                                error);
    }
    if (graph) {
        cudaGraphDestroy(graph);
    }
    return status;
}

static tkv_status prepare(tkv_attention_graph *g, tkv_error *error)
{
    tkv_status status =
        upload_values(g, 1, 2 * CHUNK_TOKENS * row_values(g), &g->rows, NULL, error);
    if (status == TKV_OK) {
        status = upload_values(g, 2, query_values(g), &g->queries, &g->host_queries, error);
    }
    if (status == TKV_OK) {
        status =
            tkv_memory_allocate(g->context, query_values(g) * sizeof(float), &g->output, error);
    }
    if (status == TKV_OK) {
        status = create_caches(g, error);
    }
    if (status == TKV_OK) {
        status = tkv_cuda_check(cudaEventCreate(&g->begin), "creating an event", error);
    }
    if (status == TKV_OK) {
        status = tkv_cuda_check(cudaEventCreate(&g->end), "creating an event", error);
    }
    if (status == TKV_OK) {
        status = attend(g, 0, error); /* takes the workspace */
    }
    return status == TKV_OK ? capture(g, error) : status;
}

tkv_status tkv_attention_graph_create(tkv_context *context, const tkv_attention_shape *shape,
                                      int n_sequences, tkv_attention_graph **graph,
                                      tkv_error *error)
{
    if (shape->n_queries > shape->n_tokens) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d queries of %d tokens: expected no more queries than tokens",
                        shape->n_queries, shape->n_tokens);
    }
    tkv_attention_graph *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the benchmark");
    }
    created->shape = *shape;
    created->context = context;
    created->n_sequences = n_sequences;
    const size_t wanted = ROTATED_BYTES / tkv_attention_graph_bytes(created) + 1;
    created->n_copies = wanted < MAX_COPIES ? (int)wanted : MAX_COPIES;
    created->n_calls = created->n_copies < MIN_CALLS ? MIN_CALLS : created->n_copies;
    const tkv_cuda_current current = tkv_cuda_enter(context->device);
    const tkv_status status = prepare(created, error);
    tkv_cuda_leave(current);
    if (status != TKV_OK) {
        tkv_attention_graph_free(created);
        return status;
    }
    *graph = created;
    return TKV_OK;
}

void tkv_attention_graph_free(tkv_attention_graph *g)
{
    if (!g) {
        return;
    }
    const tkv_cuda_current current = tkv_cuda_enter(g->context->device);
    tkv_context_wait(g->context, NULL);
    if (g->graph) {
        cudaGraphExecDestroy(g->graph);
    }
    if (g->begin) {
        cudaEventDestroy(g->begin);
    }
    if (g->end) {
        cudaEventDestroy(g->end);
    }
    for (int i = 0; g->caches && i < g->n_copies * g->n_sequences; i++) {
        tkv_cache_free(g->caches[i]);
    }
    tkv_memory_free(g->context, g->descriptors);
    tkv_memory_free(g->context, g->queries);
    tkv_memory_free(g->context, g->output);
    tkv_memory_free(g->context, g->rows);
    tkv_cuda_leave(current);
    free(g->host_queries);
    free(g->caches);
    free(g);
}

/* Seconds between two events that have been recorded. */
static tkv_status read_time(cudaEvent_t begin, cudaEvent_t end, double *seconds, tkv_error *error)
{
    float milliseconds = 0.0f;
    cudaError_t result = cudaEventSynchronize(end);
    if (result == cudaSuccess) {
        result = cudaEventElapsedTime(&milliseconds, begin, end);
    }
    *seconds = 1e-3 * (double)milliseconds;
    return tkv_cuda_check(result, "timing", error);
}

tkv_status tkv_attention_graph_run(tkv_attention_graph *g, double *seconds, tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(g->context->device);
    const cudaStream_t stream = tkv_cuda_stream(g->context->device);
    cudaError_t result = cudaEventRecord(g->begin, stream);
    if (result == cudaSuccess) {
        result = cudaGraphLaunch(g->graph, stream);
    }
    if (result == cudaSuccess) {
        result = cudaEventRecord(g->end, stream);
    }
    tkv_status status = tkv_cuda_check(result, "launching a graph", error);
    if (status == TKV_OK) {
        status = read_time(g->begin, g->end, seconds, error);
        *seconds /= g->n_calls;
    }
    tkv_cuda_leave(current);
    return status;
}

size_t tkv_attention_graph_bytes(const tkv_attention_graph *g)
{
    return (size_t)g->n_sequences * tkv_attention_shape_bytes(&g->shape);
}

/* ---- Error: attention by definition, in double ---- */

/* One query head over one sequence. */
typedef struct exact_row {
    const float *query;
    double maximum;
    double sum;
    double out[TKV_MAX_HEAD_DIM];
} exact_row;

static void add_token(exact_row *row, int head_dim, const float *key, const float *value)
{
    double logit = 0.0;
    for (int j = 0; j < head_dim; j++) {
        logit += (double)row->query[j] * (double)key[j];
    }
    logit /= sqrt((double)head_dim);
    if (logit > row->maximum) {
        const double factor = exp(row->maximum - logit);
        row->sum *= factor;
        for (int j = 0; j < head_dim; j++) {
            row->out[j] *= factor;
        }
        row->maximum = logit;
    }
    const double weight = exp(logit - row->maximum);
    row->sum += weight;
    for (int j = 0; j < head_dim; j++) {
        row->out[j] += weight * (double)value[j];
    }
}

/* The last query's row of head `head`, over all tokens of the last sequence of copy 0. */
static tkv_status attend_exactly(const tkv_attention_graph *g, int head, float *chunk,
                                 exact_row *row, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const tkv_cache *cache =
        g->caches[(g->n_calls - 1) % g->n_copies * g->n_sequences + g->n_sequences - 1];
    const size_t width = row_values(g);
    float *const v = chunk + (size_t)CHUNK_TOKENS * width;
    const size_t at = (size_t)(head / s->group) * (size_t)s->head_dim;
    tkv_status status = TKV_OK;
    for (int done = 0; status == TKV_OK && done < s->n_tokens; done += CHUNK_TOKENS) {
        const int left = s->n_tokens - done;
        const int n = left < CHUNK_TOKENS ? left : CHUNK_TOKENS;
        status = tkv_layer_download(cache, &cache->layers[0], done, n, chunk, v, error);
        for (int t = 0; status == TKV_OK && t < n; t++) {
            add_token(row, s->head_dim, chunk + (size_t)t * width + at, v + (size_t)t * width + at);
        }
    }
    return status;
}

tkv_status tkv_attention_graph_error(tkv_attention_graph *g, double *output_error, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const int heads[] = {0, s->n_kv_heads * s->group - 1};
    const size_t dim = (size_t)s->head_dim;
    const size_t last_query =
        query_values(g) - (size_t)(s->n_kv_heads * s->group) * dim; /* of the last sequence */
    float *output = malloc(query_values(g) * sizeof *output);
    float *chunk = malloc(2 * CHUNK_TOKENS * row_values(g) * sizeof *chunk);
    double difference = 0.0;
    double size = 0.0;
    tkv_status status =
        output && chunk ? TKV_OK
                        : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for exact attention");
    if (status == TKV_OK) {
        status = tkv_memory_download(g->context, output, g->output,
                                     query_values(g) * sizeof *output, error);
    }
    for (size_t i = 0; status == TKV_OK && i < sizeof heads / sizeof *heads; i++) {
        const size_t at = last_query + (size_t)heads[i] * dim;
        exact_row row = {.query = g->host_queries + at, .maximum = -INFINITY};
        status = attend_exactly(g, heads[i], chunk, &row, error);
        for (size_t j = 0; status == TKV_OK && j < dim; j++) {
            const double exact = row.out[j] / row.sum;
            difference += pow((double)output[at + j] - exact, 2.0);
            size += exact * exact;
        }
    }
    *output_error = sqrt(difference / size);
    free(output);
    free(chunk);
    return status;
}

static tkv_status time_copies(tkv_context *context, char *memory, double *seconds, tkv_error *error)
{
    const cudaStream_t stream = tkv_cuda_stream(context->device);
    cudaEvent_t begin = NULL;
    cudaEvent_t end = NULL;
    cudaError_t result = cudaEventCreate(&begin);
    result = result == cudaSuccess ? cudaEventCreate(&end) : result;
    tkv_status status = tkv_cuda_check(result, "creating an event", error);
    for (int i = 0; status == TKV_OK && i < COPY_PASSES; i++) {
        result = cudaEventRecord(begin, stream);
        if (result == cudaSuccess) {
            result = cudaMemcpyAsync(memory + COPY_BYTES, memory, COPY_BYTES,
                                     cudaMemcpyDeviceToDevice, stream);
        }
        if (result == cudaSuccess) {
            result = cudaEventRecord(end, stream);
        }
        status = tkv_cuda_check(result, "copying", error);
        if (status == TKV_OK) {
            status = read_time(begin, end, &seconds[i], error);
        }
    }
    if (begin) {
        cudaEventDestroy(begin);
    }
    if (end) {
        cudaEventDestroy(end);
    }
    return status;
}

tkv_status tkv_cuda_copy_bandwidth(tkv_context *context, double *bandwidth, tkv_error *error)
{
    double seconds[COPY_PASSES];
    void *memory = NULL;
    const tkv_cuda_current current = tkv_cuda_enter(context->device);
    tkv_status status = tkv_memory_allocate(context, 2 * COPY_BYTES, &memory, error);
    if (status == TKV_OK) {
        status = time_copies(context, memory, seconds, error);
    }
    if (status == TKV_OK) {
        tkv_sort_seconds(COPY_PASSES, seconds);
        *bandwidth = 2.0 * (double)COPY_BYTES / seconds[COPY_PASSES / 2];
    }
    tkv_memory_free(context, memory);
    tkv_cuda_leave(current);
    return status;
}
