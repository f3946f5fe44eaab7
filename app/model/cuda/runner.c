/* The forward pass on a CUDA device. Batches of prompts are enqueued kernel by kernel; the step of
 * one token is captured in a graph, which later steps replay. */
#include "model/runner.h"
#include "common/cuda.h"
#include "common/try.h"
#include "model/cuda/cublas.h"
#include "model/cuda/kernels.h"
#include "model/cuda/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CUBLAS_WORKSPACE ((size_t)32 << 20)

/* Rows of logits that are computed at a time. */
#define LOGIT_ROWS 64

/* Steps are planned for lengths up to a power of two, from this one on. */
#define MIN_PLANNED_LENGTH 1024

/* What the kernels read of a batch, so that a graph's replay finds the values of its time. */
typedef struct step_input {
    int32_t first_position;
    int32_t tokens[]; /* [n_batch] */
} step_input;

typedef struct cuda_runner {
    tkv_runner base;
    const tkv_model *model;
    tkv_context *context;
    cudaStream_t stream;
    tkv_cuda_weights *weights;
    tkv_cublas *cublas;
    void *cublas_workspace;
    int n_batch;
    size_t bytes;
    step_input *staged; /* on the host */

    /* On the device; a row belongs to a token of the batch. */
    step_input *input;
    float *residual;
    tkv_cuda_halves halves; /* input of a product */
    float *product;
    float *query;
    float *key;
    float *value;
    float *attended;
    float *logits; /* [LOGIT_ROWS][vocabulary_size] */
    tkv_attend_stats *stats;

    /* The step of one token. */
    cudaGraphExec_t graph;
    int planned_length; /* of the graph, or of the step that went before its capture */
    int64_t generation; /* of the cache then */
} cuda_runner;

/* A batch on its way. */
typedef struct pass {
    cuda_runner *runner;
    tkv_cache *cache;
    int n_rows;
    int first_position;
    int n_logits;
    float sparse_v;
    tkv_error *error;
} pass;

static tkv_status check(const pass *p, cudaError_t result, const char *what)
{
    return tkv_check_cuda(result, what, p->error);
}

static tkv_status multiply(const pass *p, const tkv_cuda_matrix *matrix, int n_rows, float *y)
{
    return tkv_cublas_multiply(p->runner->cublas, n_rows, matrix->n_in, matrix->n_out,
                               p->runner->halves.x, matrix->w, y, p->error);
}

static tkv_cuda_product product_of(const cuda_runner *r, const tkv_cuda_matrix *matrix)
{
    return (tkv_cuda_product){r->product, r->halves.scale, matrix->bias};
}

/* Adds what the last product is to the residual (matrix NULL: nothing) and normalises it. */
static tkv_status add_and_norm(const pass *p, const tkv_cuda_matrix *matrix, const float *norm)
{
    const cuda_runner *r = p->runner;
    const tkv_model_config *config = &r->model->config;
    const tkv_cuda_product none = {NULL, NULL, NULL};
    const tkv_cuda_product product = matrix ? product_of(r, matrix) : none;
    return check(p,
                 tkv_cuda_add_and_norm(p->n_rows, config->embedding_length, &product, r->residual,
                                       norm, config->rms_epsilon, &r->halves, r->stream),
                 "normalising");
}

static tkv_status place_heads(const pass *p, const tkv_cuda_layer *layer)
{
    const cuda_runner *r = p->runner;
    const tkv_model_config *config = &r->model->config;
    const tkv_cuda_product product = product_of(r, &layer->heads);
    const tkv_cuda_heads heads = {.n_heads = config->n_heads,
                                  .n_kv_heads = config->n_kv_heads,
                                  .head_dim_k = config->head_dim_k,
                                  .head_dim_v = config->head_dim_v,
                                  .rope_dim = config->rope_dim,
                                  .is_interleaved = config->rope_pairing == TKV_ROPE_INTERLEAVED,
                                  .rope_magnitude = config->rope_attention_factor,
                                  .rope_frequencies = r->weights->rope_frequencies,
                                  .query_norm = layer->query_norm,
                                  .key_norm = layer->key_norm,
                                  .epsilon = config->rms_epsilon};
    return check(p,
                 tkv_cuda_place_heads(p->n_rows, &heads, &product, &r->input->first_position,
                                      r->query, r->key, r->value, r->stream),
                 "placing heads");
}

/* Normalised input in `halves` -> the product of the layer's output matrix. */
static tkv_status attend(const pass *p, int index)
{
    cuda_runner *r = p->runner;
    const tkv_model_config *config = &r->model->config;
    const tkv_cuda_layer *layer = &r->weights->layers[index];
    const tkv_attend_params params = {.n_queries = p->n_rows,
                                      .n_heads = config->n_heads,
                                      .first_position = p->first_position,
                                      .window = config->sliding_window,
                                      .sparse_v = p->sparse_v,
                                      .stats = p->sparse_v > 0.0f ? r->stats : NULL};
    TKV_TRY(multiply(p, &layer->heads, p->n_rows, r->product));
    TKV_TRY(place_heads(p, layer));
    TKV_TRY(tkv_cache_append(p->cache, index, p->n_rows, r->key, r->value, p->error));
    TKV_TRY(tkv_attend(p->cache, index, &params, r->query, r->attended, p->error));
    TKV_TRY(check(p,
                  tkv_cuda_halve(p->n_rows, layer->output.n_in, r->attended, &r->halves, r->stream),
                  "rounding"));
    return multiply(p, &layer->output, p->n_rows, r->product);
}

/* Normalised input in `halves` -> the product of the layer's last matrix. */
static tkv_status feed_forward(const pass *p, const tkv_cuda_layer *layer)
{
    const cuda_runner *r = p->runner;
    const tkv_cuda_product product = product_of(r, &layer->gate_up);
    TKV_TRY(multiply(p, &layer->gate_up, p->n_rows, r->product));
    TKV_TRY(check(p, tkv_cuda_swiglu(p->n_rows, layer->down.n_in, &product, &r->halves, r->stream),
                  "swiglu"));
    return multiply(p, &layer->down, p->n_rows, r->product);
}

/* Tokens of the input -> normalised rows before the output matrix, in `halves`. */
static tkv_status run_layers(const pass *p)
{
    const cuda_runner *r = p->runner;
    const tkv_cuda_weights *weights = r->weights;
    const tkv_model_config *config = &r->model->config;
    const tkv_cuda_matrix *last = NULL;
    TKV_TRY(check(p,
                  tkv_cuda_embed(p->n_rows, config->embedding_length, r->input->tokens,
                                 weights->embedding.w, r->residual, r->stream),
                  "embedding"));
    for (int i = 0; i < config->n_layers; i++) {
        const tkv_cuda_layer *layer = &weights->layers[i];
        TKV_TRY(add_and_norm(p, last, layer->attention_norm));
        TKV_TRY(attend(p, i));
        TKV_TRY(add_and_norm(p, &layer->output, layer->feed_forward_norm));
        TKV_TRY(feed_forward(p, layer));
        last = &layer->down;
    }
    return add_and_norm(p, last, weights->output_norm);
}

/* Logits of rows [first, first + n) of the batch. */
static tkv_status compute_logits(const pass *p, int first, int n)
{
    cuda_runner *r = p->runner;
    const tkv_cuda_matrix *output = &r->weights->output;
    const tkv_cuda_product product = {r->logits, r->halves.scale + first, output->bias};
    TKV_TRY(tkv_cublas_multiply(r->cublas, n, output->n_in, output->n_out,
                                r->halves.x + (size_t)first * (size_t)output->n_in, output->w,
                                r->logits, p->error));
    return check(p, tkv_cuda_finish(n, output->n_out, &product, r->logits, r->stream), "logits");
}

static bool has_finite(size_t n, const float *x)
{
    size_t i = 0;
    while (i < n && !isfinite(x[i])) {
        i++;
    }
    return i < n;
}

/* NaN in the cache, which a device does not report, leaves no logit. */
static tkv_status download_logits(const pass *p, int n, float *logits)
{
    const cuda_runner *r = p->runner;
    const size_t width = (size_t)r->weights->output.n_out;
    TKV_TRY(tkv_memory_download(r->context, logits, r->logits, (size_t)n * width * sizeof *logits,
                                p->error));
    for (int i = 0; i < n; i++) {
        if (!has_finite(width, logits + (size_t)i * width)) {
            return tkv_fail(p->error, TKV_ERR_NOT_FINITE,
                            "no logit of the batch from position %d on is finite",
                            p->first_position);
        }
    }
    return TKV_OK;
}

static tkv_status upload_input(const pass *p, const int32_t *tokens)
{
    cuda_runner *r = p->runner;
    r->staged->first_position = p->first_position;
    for (int i = 0; i < p->n_rows; i++) {
        r->staged->tokens[i] = tokens[i];
    }
    const size_t bytes = sizeof(step_input) + (size_t)p->n_rows * sizeof *tokens;
    return tkv_memory_upload(r->context, r->input, r->staged, bytes, p->error);
}

static tkv_status run_batch(const pass *p, float *logits)
{
    TKV_TRY(run_layers(p));
    const size_t vocabulary_size = (size_t)p->runner->weights->output.n_out;
    for (int done = 0; done < p->n_logits; done += LOGIT_ROWS) {
        const int n = p->n_logits - done < LOGIT_ROWS ? p->n_logits - done : LOGIT_ROWS;
        TKV_TRY(compute_logits(p, p->n_rows - p->n_logits + done, n));
        TKV_TRY(download_logits(p, n, logits + (size_t)done * vocabulary_size));
    }
    return TKV_OK;
}

static void drop_graph(cuda_runner *r)
{
    if (r->graph) {
        cudaGraphExecDestroy(r->graph);
        r->graph = NULL;
    }
}

static tkv_status run_step(const pass *p)
{
    TKV_TRY(run_layers(p));
    return compute_logits(p, 0, 1);
}

static tkv_status capture_step(const pass *p)
{
    cuda_runner *r = p->runner;
    cudaGraph_t graph = NULL;
    tkv_status status =
        check(p, cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal),
              "beginning a graph");
    if (status != TKV_OK) {
        return status;
    }
    status = run_step(p);
    /* Ended in any case: the stream would be unusable. */
    const cudaError_t ended = cudaStreamEndCapture(r->stream, &graph);
    if (status == TKV_OK) {
        status = check(p, ended, "capturing a graph");
    }
    if (status == TKV_OK) {
        status = check(p, cudaGraphInstantiate(&r->graph, graph, 0), "instantiating a graph");
    }
    if (graph) {
        cudaGraphDestroy(graph);
    }
    return status;
}

/* The length that a step is planned for. */
static int plan_length(const tkv_cache *cache, int length)
{
    int planned = MIN_PLANNED_LENGTH;
    while (planned < length && planned <= INT32_MAX / 2) {
        planned *= 2;
    }
    return planned < tkv_cache_max_tokens(cache) ? planned : tkv_cache_max_tokens(cache);
}

/* The first step of a planned length runs as it is, and so allocates what it needs; the second is
 * captured. */
static tkv_status decode(const pass *p, float *logits)
{
    cuda_runner *r = p->runner;
    const int planned = plan_length(p->cache, p->first_position + 1);
    TKV_TRY(tkv_cache_reserve(p->cache, 1, planned, p->error));
    const int64_t generation = tkv_cache_generation(p->cache);
    if (planned != r->planned_length || generation != r->generation) {
        drop_graph(r);
        r->planned_length = planned;
        r->generation = generation;
        TKV_TRY(run_step(p));
    } else {
        TKV_TRY(r->graph ? TKV_OK : capture_step(p));
        TKV_TRY(check(p, cudaGraphLaunch(r->graph, r->stream), "launching a graph"));
    }
    TKV_TRY(tkv_cache_commit(p->cache, p->error));
    return download_logits(p, 1, logits);
}

static tkv_status add_stats(const pass *p, tkv_attend_stats *stats)
{
    const cuda_runner *r = p->runner;
    const tkv_attend_stats none = {0, 0};
    tkv_attend_stats found = {0, 0};
    TKV_TRY(tkv_memory_download(r->context, &found, r->stats, sizeof found, p->error));
    TKV_TRY(tkv_memory_upload(r->context, r->stats, &none, sizeof none, p->error));
    stats->n_weights += found.n_weights;
    stats->n_skipped += found.n_skipped;
    return TKV_OK;
}

static tkv_status run(const pass *p, const tkv_batch *batch)
{
    TKV_TRY(upload_input(p, batch->tokens));
    TKV_TRY(batch->n_tokens == 1 && batch->n_logits == 1 ? decode(p, batch->logits)
                                                         : run_batch(p, batch->logits));
    return batch->sparse_v > 0.0f ? add_stats(p, batch->stats) : TKV_OK;
}

static tkv_status forward(tkv_runner *base, tkv_cache *cache, const tkv_batch *batch,
                          tkv_error *error)
{
    cuda_runner *r = (cuda_runner *)base;
    const pass p = {
        r, cache, batch->n_tokens, batch->first_position, batch->n_logits, batch->sparse_v, error};
    const tkv_current_device current = tkv_enter_device(r->context);
    const tkv_status status = run(&p, batch);
    tkv_leave_device(current);
    return status;
}

static size_t bytes_of(const tkv_runner *base)
{
    const cuda_runner *r = (const cuda_runner *)base;
    return sizeof *r + r->bytes;
}

static void free_runner(tkv_runner *base)
{
    cuda_runner *r = (cuda_runner *)base;
    void *const buffers[] = {r->input,    r->residual, r->halves.x, r->halves.scale,
                             r->product,  r->query,    r->key,      r->value,
                             r->attended, r->logits,   r->stats,    r->cublas_workspace};
    const tkv_current_device current = tkv_enter_device(r->context);
    tkv_context_wait(r->context, NULL);
    drop_graph(r);
    tkv_cublas_close(r->cublas);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        tkv_memory_free(r->context, buffers[i]);
    }
    tkv_cuda_weights_give_back(r->weights);
    tkv_leave_device(current);
    free(r->staged);
    free(r);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static tkv_status allocate_buffers(cuda_runner *r, tkv_error *error)
{
    const tkv_model_config *config = &r->model->config;
    const size_t rows = (size_t)r->n_batch;
    const size_t width = (size_t)config->embedding_length;
    const size_t inner = (size_t)config->feed_forward_length;
    const size_t query = (size_t)config->n_heads * (size_t)config->head_dim_k;
    const size_t key = (size_t)config->n_kv_heads * (size_t)config->head_dim_k;
    const size_t value = (size_t)config->n_kv_heads * (size_t)config->head_dim_v;
    const size_t attended = (size_t)config->n_heads * (size_t)config->head_dim_v;
    const struct {
        void *buffer; /* a pointer's address */
        size_t bytes;
    } list[] = {
        {&r->input, sizeof(step_input) + rows * sizeof(int32_t)},
        {&r->residual, rows * width * sizeof(float)},
        {&r->halves.x, rows * larger(larger(width, inner), attended) * sizeof(uint16_t)},
        {&r->halves.scale, rows * sizeof(float)},
        {&r->product, rows * larger(larger(query + key + value, 2 * inner), width) * sizeof(float)},
        {&r->query, rows * query * sizeof(float)},
        {&r->key, rows * key * sizeof(float)},
        {&r->value, rows * value * sizeof(float)},
        {&r->attended, rows * attended * sizeof(float)},
        {&r->logits, LOGIT_ROWS * (size_t)config->vocabulary_size * sizeof(float)},
        {&r->stats, sizeof(tkv_attend_stats)},
        {&r->cublas_workspace, CUBLAS_WORKSPACE},
    };
    tkv_status status = TKV_OK;
    for (size_t i = 0; status == TKV_OK && i < sizeof list / sizeof *list; i++) {
        void *memory = NULL;
        status = tkv_memory_allocate(r->context, list[i].bytes, &memory, error);
        memcpy(list[i].buffer, &memory, sizeof memory);
        r->bytes += list[i].bytes;
    }
    r->staged = malloc(list[0].bytes);
    if (status == TKV_OK && !r->staged) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a batch of %d tokens",
                          r->n_batch);
    }
    return status;
}

static const tkv_runner_table cuda_table = {forward, bytes_of, free_runner};

/* On its device, which is the current one. */
static tkv_status fill_runner(cuda_runner *r, tkv_error *error)
{
    TKV_TRY(allocate_buffers(r, error));
    TKV_TRY(tkv_cublas_open(r->stream, r->cublas_workspace, CUBLAS_WORKSPACE, &r->cublas, error));
    return tkv_cuda_weights_take(r->model, r->context, &r->weights, error);
}

tkv_status tkv_runner_create_cuda(const tkv_model *model, tkv_context *context, int n_batch,
                                  tkv_runner **runner, tkv_error *error)
{
    cuda_runner *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a session");
    }
    created->base.table = &cuda_table;
    created->model = model;
    created->context = context;
    created->stream = tkv_stream_of(context);
    created->n_batch = n_batch;
    const tkv_current_device current = tkv_enter_device(context);
    const tkv_status status = fill_runner(created, error);
    tkv_leave_device(current);
    if (status != TKV_OK) {
        free_runner(&created->base);
        return status;
    }
    *runner = &created->base;
    return TKV_OK;
}
