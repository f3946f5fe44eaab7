#include "eval/cuda/attention_graph.h"

#include "common/cuda.h"
#include "common/try.h"
#include "eval/clock.h"

#include <math.h>
#include <stdlib.h>

/* All copies together: several times what a device's cache holds. */
#define ROTATED_BYTES ((size_t)400 << 20)
#define MAX_COPIES 64
/* As many as a model has layers, so that a graph's start is a small part. */
#define MIN_CALLS 32

/* Tokens that are appended at a time, the same ones over and over; more where there are more
 * queries. */
#define CHUNK_TOKENS 1024

struct tkv_attention_graph {
    tkv_attention_shape shape;
    tkv_context *context;
    int n_sequences;
    int n_copies;
    int n_calls;         /* of one replay */
    tkv_cache **caches;  /* [n_copies * n_sequences] */
    float *host_queries; /* [n_sequences][n_queries][n_heads][head_dim] */
    void *queries;
    void *output; /* likewise */
    int chunk;    /* tokens */
    void *rows;   /* keys, then values, of these */
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

/* Sequences begin at different rows of the same ones, so that no two are equal. The tokens of the
 * queries are reserved: the step that a graph is captured from. */
static tkv_status fill_cache(const tkv_attention_graph *g, int index, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const size_t row = row_values(g);
    const float *k = g->rows;
    const float *v = k + (size_t)g->chunk * row;
    tkv_cache *cache = g->caches[index];
    int offset = index * 37 % g->chunk;
    for (int done = 0; done < s->n_tokens - s->n_queries;) {
        const int left = s->n_tokens - s->n_queries - done;
        const int n = left < g->chunk - offset ? left : g->chunk - offset;
        const size_t at = (size_t)offset * row;
        TKV_TRY(tkv_cache_append(cache, 0, n, k + at, v + at, error));
        done += n;
        offset = 0;
    }
    TKV_TRY(tkv_cache_reserve(cache, s->n_queries, s->n_tokens, error));
    return tkv_cache_append(cache, 0, s->n_queries, k, v, error);
}

static tkv_status create_caches(tkv_attention_graph *g, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = s->n_kv_heads,
                                     .head_dim_k = s->head_dim,
                                     .head_dim_v = s->head_dim,
                                     .max_tokens = s->n_tokens,
                                     .types_k = &s->type_k,
                                     .types_v = &s->type_v};
    const int n = g->n_copies * g->n_sequences;
    g->caches = calloc((size_t)n, sizeof(tkv_cache *));
    if (!g->caches) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d caches", n);
    }
    for (int i = 0; i < n; i++) {
        TKV_TRY(tkv_cache_create(g->context, &params, &g->caches[i], error));
        TKV_TRY(fill_cache(g, i, error));
    }
    return TKV_OK;
}

static tkv_status attend(const tkv_attention_graph *g, int copy, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const tkv_attend_params params = {.n_queries = s->n_queries,
                                      .n_heads = s->n_kv_heads * s->group};
    const tkv_cache *const *caches = (const tkv_cache *const *)g->caches + copy * g->n_sequences;
    return tkv_attend_batch(caches, g->n_sequences, 0, &params, g->queries, g->output, error);
}

static tkv_status attend_to_copies(const tkv_attention_graph *g, tkv_error *error)
{
    for (int i = 0; i < g->n_calls; i++) {
        TKV_TRY(attend(g, i % g->n_copies, error));
    }
    return TKV_OK;
}

static tkv_status capture(tkv_attention_graph *g, tkv_error *error)
{
    const cudaStream_t stream = tkv_stream_of(g->context);
    cudaGraph_t graph = NULL;
    TKV_TRY(tkv_check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                           "beginning a graph", error));
    tkv_status status = attend_to_copies(g, error);
    /* Ended in any case: the stream would be unusable. */
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (status == TKV_OK) {
        status = tkv_check_cuda(ended, "capturing a graph", error);
    }
    if (status == TKV_OK) {
        status = tkv_check_cuda(cudaGraphInstantiate(&g->graph, graph, 0), "instantiating a graph",
                                error);
    }
    if (graph) {
        cudaGraphDestroy(graph);
    }
    return status;
}

static tkv_status prepare(tkv_attention_graph *g, tkv_error *error)
{
    const size_t n = query_values(g);
    TKV_TRY(upload_values(g, 1, 2 * (size_t)g->chunk * row_values(g), &g->rows, NULL, error));
    TKV_TRY(upload_values(g, 2, n, &g->queries, &g->host_queries, error));
    TKV_TRY(tkv_memory_allocate(g->context, n * sizeof(float), &g->output, error));
    TKV_TRY(create_caches(g, error));
    TKV_TRY(tkv_check_cuda(cudaEventCreate(&g->begin), "creating an event", error));
    TKV_TRY(tkv_check_cuda(cudaEventCreate(&g->end), "creating an event", error));
    TKV_TRY(attend(g, 0, error)); /* takes the workspace */
    return capture(g, error);
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
    created->chunk = shape->n_queries > CHUNK_TOKENS ? shape->n_queries : CHUNK_TOKENS;
    const size_t bytes = (size_t)n_sequences * tkv_attention_shape_bytes(shape);
    const size_t wanted = ROTATED_BYTES / bytes + 1;
    created->n_copies = wanted < MAX_COPIES ? (int)wanted : MAX_COPIES;
    created->n_calls = created->n_copies < MIN_CALLS ? MIN_CALLS : created->n_copies;
    const tkv_current_device current = tkv_enter_device(context);
    const tkv_status status = prepare(created, error);
    tkv_leave_device(current);
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
    const tkv_current_device current = tkv_enter_device(g->context);
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
    tkv_memory_free(g->context, g->queries);
    tkv_memory_free(g->context, g->output);
    tkv_memory_free(g->context, g->rows);
    tkv_leave_device(current);
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
    return tkv_check_cuda(result, "timing", error);
}

tkv_status tkv_attention_graph_run(tkv_attention_graph *g, double *seconds, tkv_error *error)
{
    const tkv_current_device current = tkv_enter_device(g->context);
    const cudaStream_t stream = tkv_stream_of(g->context);
    cudaError_t result = cudaEventRecord(g->begin, stream);
    if (result == cudaSuccess) {
        result = cudaGraphLaunch(g->graph, stream);
    }
    if (result == cudaSuccess) {
        result = cudaEventRecord(g->end, stream);
    }
    tkv_status status = tkv_check_cuda(result, "launching a graph", error);
    if (status == TKV_OK) {
        status = read_time(g->begin, g->end, seconds, error);
        *seconds /= g->n_calls;
    }
    tkv_leave_device(current);
    return status;
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

/* Where the decoded rows of a chunk go: keys, then values. */
typedef struct row_buffers {
    void *device;
    float *host;
} row_buffers;

/* The last query's row of head `head`, over all tokens of a cache. */
static tkv_status attend_exactly(const tkv_attention_graph *g, const tkv_cache *cache, int head,
                                 const row_buffers *buffers, exact_row *row, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const size_t width = row_values(g);
    const size_t all = (size_t)CHUNK_TOKENS * width;
    const size_t at = (size_t)(head / s->group) * (size_t)s->head_dim;
    float *const k = buffers->device;
    for (int done = 0; done < s->n_tokens; done += CHUNK_TOKENS) {
        const int left = s->n_tokens - done;
        const int n = left < CHUNK_TOKENS ? left : CHUNK_TOKENS;
        TKV_TRY(tkv_cache_read(cache, 0, done, n, k, k + all, error));
        TKV_TRY(tkv_memory_download(g->context, buffers->host, k, 2 * all * sizeof *k, error));
        for (int t = 0; t < n; t++) {
            const float *key = buffers->host + (size_t)t * width + at;
            add_token(row, s->head_dim, key, key + all);
        }
    }
    return TKV_OK;
}

/* Over the first and the last head of the last query of the sequence that was attended to last. */
static tkv_status compare(tkv_attention_graph *g, const row_buffers *buffers, float *output,
                          double *output_error, tkv_error *error)
{
    const tkv_attention_shape *s = &g->shape;
    const int n_heads = s->n_kv_heads * s->group;
    const int heads[] = {0, n_heads - 1};
    const size_t dim = (size_t)s->head_dim;
    const size_t n = query_values(g);
    const int copy = (g->n_calls - 1) % g->n_copies;
    tkv_cache *cache = g->caches[(copy + 1) * g->n_sequences - 1];
    double difference = 0.0;
    double size = 0.0;
    TKV_TRY(tkv_memory_download(g->context, output, g->output, n * sizeof *output, error));
    TKV_TRY(tkv_cache_commit(cache, error));
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const size_t at = n - (size_t)(n_heads - heads[i]) * dim;
        exact_row row = {.query = g->host_queries + at, .maximum = -INFINITY};
        TKV_TRY(attend_exactly(g, cache, heads[i], buffers, &row, error));
        for (size_t j = 0; j < dim; j++) {
            const double exact = row.out[j] / row.sum;
            difference += pow((double)output[at + j] - exact, 2.0);
            size += exact * exact;
        }
    }
    *output_error = sqrt(difference / size);
    return TKV_OK;
}

tkv_status tkv_attention_graph_error(tkv_attention_graph *g, double *output_error, tkv_error *error)
{
    const size_t bytes = 2 * (size_t)CHUNK_TOKENS * row_values(g) * sizeof(float);
    row_buffers buffers = {.host = malloc(bytes)};
    float *output = malloc(query_values(g) * sizeof *output);
    tkv_status status =
        output && buffers.host
            ? tkv_memory_allocate(g->context, bytes, &buffers.device, error)
            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for exact attention");
    if (status == TKV_OK) {
        status = compare(g, &buffers, output, output_error, error);
    }
    tkv_memory_free(g->context, buffers.device);
    free(buffers.host);
    free(output);
    return status;
}
