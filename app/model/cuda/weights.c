#include "model/cuda/weights.h"

#include "common/try.h"
#include "model/dequantise.h"

#include <stdlib.h>

/* Halves that are converted at a time. */
#define SLAB_VALUES ((size_t)4 << 20)
#define MAX_PARTS 3

/* Uploads one after the other; keeps its first failure. */
typedef struct uploader {
    tkv_context *context;
    tkv_status status;
    tkv_error *error;
} uploader;

static void *allocate(uploader *u, size_t bytes)
{
    void *memory = NULL;
    if (u->status == TKV_OK) {
        u->status = tkv_memory_allocate(u->context, bytes, &memory, u->error);
    }
    return memory;
}

static void *upload(uploader *u, const void *from, size_t bytes)
{
    void *memory = from ? allocate(u, bytes) : NULL;
    if (memory && u->status == TKV_OK) {
        u->status = tkv_memory_upload(u->context, memory, from, bytes, u->error);
    }
    return memory;
}

static float *upload_vector(uploader *u, const float *vector, int length)
{
    return upload(u, vector, (size_t)length * sizeof *vector);
}

/* Rows of a tensor to be converted to halves. */
typedef struct conversion {
    const tkv_gguf_tensor *tensor;
    size_t first;
    float *rows; /* [n_threads][width] */
    uint16_t *halves;
    tkv_status *statuses; /* [n_threads] */
} conversion;

static void convert_row(void *argument, int item, int thread)
{
    const conversion *c = argument;
    const size_t width = (size_t)c->tensor->dims[0];
    float *row = c->rows + (size_t)thread * width;
    if (c->statuses[thread] == TKV_OK) {
        c->statuses[thread] =
            tkv_dequantise_tensor_row(c->tensor, c->first + (size_t)item, row, NULL);
    }
    if (c->statuses[thread] == TKV_OK) {
        tkv_floats_to_halves(width, row, c->halves + (size_t)item * width);
    }
}

/* Rows [first, first + n) of a tensor as halves. */
static tkv_status convert_rows(tkv_context *context, const tkv_gguf_tensor *tensor, size_t first,
                               size_t n, uint16_t *halves, tkv_error *error)
{
    const size_t n_threads = (size_t)tkv_context_threads(context);
    conversion c = {tensor, first, malloc(n_threads * (size_t)tensor->dims[0] * sizeof(float)),
                    halves, calloc(n_threads, sizeof(tkv_status))};
    tkv_status status = TKV_OK;
    if (c.rows && c.statuses) {
        tkv_context_run(context, 0, (int)n, convert_row, &c);
    } else {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to convert tensor %.64s",
                          tensor->name);
    }
    for (size_t i = 0; status == TKV_OK && i < n_threads; i++) {
        if (c.statuses[i] != TKV_OK) {
            status =
                tkv_fail(error, c.statuses[i], "tensor %.64s cannot be dequantised", tensor->name);
        }
    }
    free(c.rows);
    free(c.statuses);
    return status;
}

static void upload_rows(uploader *u, const tkv_gguf_tensor *tensor, uint16_t *slab, uint16_t *w)
{
    const size_t width = (size_t)tensor->dims[0];
    const size_t n_rows = (size_t)tensor->dims[1];
    const size_t step = SLAB_VALUES / width > 0 ? SLAB_VALUES / width : 1;
    for (size_t done = 0; u->status == TKV_OK && done < n_rows; done += step) {
        const size_t n = n_rows - done < step ? n_rows - done : step;
        u->status = convert_rows(u->context, tensor, done, n, slab, u->error);
        if (u->status == TKV_OK) {
            u->status = tkv_memory_upload(u->context, w + done * width, slab,
                                          n * width * sizeof *slab, u->error);
        }
    }
}

/* Up to MAX_PARTS matrices of the same input as one. Biases that are missing are 0. */
static tkv_cuda_matrix upload_matrix(uploader *u, int n_parts, const tkv_linear *const *parts)
{
    tkv_cuda_matrix matrix = {.n_in = (int)parts[0]->weight->dims[0]};
    bool has_bias = false;
    for (int i = 0; i < n_parts; i++) {
        matrix.n_out += (int)parts[i]->weight->dims[1];
        has_bias = has_bias || parts[i]->bias;
    }
    const size_t width = (size_t)matrix.n_in;
    const size_t slab_values = width > SLAB_VALUES ? width : SLAB_VALUES;
    uint16_t *slab = malloc(slab_values * sizeof *slab);
    if (!slab && u->status == TKV_OK) {
        u->status = tkv_fail(u->error, TKV_ERR_OUT_OF_MEMORY, "no memory to convert weights");
    }
    matrix.w = allocate(u, (size_t)matrix.n_out * width * sizeof *matrix.w);
    matrix.bias = has_bias ? allocate(u, (size_t)matrix.n_out * sizeof(float)) : NULL;
    size_t row = 0;
    for (int i = 0; u->status == TKV_OK && i < n_parts; i++) {
        const size_t n_rows = (size_t)parts[i]->weight->dims[1];
        upload_rows(u, parts[i]->weight, slab, matrix.w + row * width);
        if (parts[i]->bias && u->status == TKV_OK) {
            u->status = tkv_memory_upload(u->context, matrix.bias + row, parts[i]->bias,
                                          n_rows * sizeof(float), u->error);
        }
        row += n_rows;
    }
    free(slab);
    return matrix;
}

static void upload_layer(uploader *u, const tkv_model *model, int index, tkv_cuda_layer *layer)
{
    const tkv_model_config *config = &model->config;
    const tkv_layer_weights *from = &model->layers[index];
    const tkv_linear *const heads[] = {&from->query, &from->key, &from->value};
    const tkv_linear *const output[] = {&from->output};
    const tkv_linear *const gate_up[] = {&from->gate, &from->up};
    const tkv_linear *const down[] = {&from->down};
    layer->attention_norm = upload_vector(u, from->attention_norm, config->embedding_length);
    layer->feed_forward_norm = upload_vector(u, from->feed_forward_norm, config->embedding_length);
    layer->query_norm = upload_vector(u, from->query_norm, config->head_dim_k);
    layer->key_norm = upload_vector(u, from->key_norm, config->head_dim_k);
    layer->heads = upload_matrix(u, 3, heads);
    layer->output = upload_matrix(u, 1, output);
    layer->gate_up = upload_matrix(u, 2, gate_up);
    layer->down = upload_matrix(u, 1, down);
}

static void upload_ends(uploader *u, const tkv_model *model, tkv_cuda_weights *weights)
{
    const tkv_model_config *config = &model->config;
    const tkv_linear embedding = {model->token_embedding, NULL};
    const tkv_linear *const parts[] = {&embedding};
    const tkv_linear *const output[] = {&model->output};
    weights->embedding = upload_matrix(u, 1, parts);
    if (model->output.weight == model->token_embedding) {
        weights->output = weights->embedding;
        weights->output.bias = upload_vector(u, model->output.bias, config->vocabulary_size);
    } else {
        weights->output = upload_matrix(u, 1, output);
    }
    weights->output_norm = upload_vector(u, model->output_norm, config->embedding_length);
    weights->rope_frequencies =
        upload(u, model->rope_frequencies, (size_t)config->rope_dim / 2 * sizeof(double));
}

static void free_matrix(tkv_context *context, const tkv_cuda_matrix *matrix)
{
    tkv_memory_free(context, matrix->w);
    tkv_memory_free(context, matrix->bias);
}

static void free_layer(tkv_context *context, const tkv_cuda_layer *layer)
{
    tkv_memory_free(context, layer->attention_norm);
    tkv_memory_free(context, layer->query_norm);
    tkv_memory_free(context, layer->key_norm);
    tkv_memory_free(context, layer->feed_forward_norm);
    free_matrix(context, &layer->heads);
    free_matrix(context, &layer->output);
    free_matrix(context, &layer->gate_up);
    free_matrix(context, &layer->down);
}

static void free_weights(tkv_cuda_weights *weights)
{
    tkv_context *context = weights->context;
    for (int i = 0; weights->layers && i < weights->model->config.n_layers; i++) {
        free_layer(context, &weights->layers[i]);
    }
    if (weights->output.w == weights->embedding.w) {
        weights->output.w = NULL;
    }
    free_matrix(context, &weights->embedding);
    free_matrix(context, &weights->output);
    tkv_memory_free(context, weights->output_norm);
    tkv_memory_free(context, weights->rope_frequencies);
    free(weights->layers);
    free(weights);
}

static tkv_status create_weights(const tkv_model *model, tkv_context *context,
                                 tkv_cuda_weights **weights, tkv_error *error)
{
    const int n_layers = model->config.n_layers;
    tkv_cuda_weights *created = calloc(1, sizeof *created);
    if (created) {
        *created = (tkv_cuda_weights){.model = model, .context = context, .n_users = 1};
        created->layers = calloc((size_t)n_layers, sizeof *created->layers);
    }
    if (!created || !created->layers) {
        free(created);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d layers", n_layers);
    }
    uploader u = {context, TKV_OK, error};
    upload_ends(&u, model, created);
    for (int i = 0; u.status == TKV_OK && i < n_layers; i++) {
        upload_layer(&u, model, i, &created->layers[i]);
    }
    if (u.status != TKV_OK) {
        free_weights(created);
        return u.status;
    }
    *weights = created;
    return TKV_OK;
}

tkv_status tkv_cuda_weights_take(const tkv_model *model, tkv_context *context,
                                 tkv_cuda_weights **weights, tkv_error *error)
{
    tkv_cuda_weights *shared = tkv_context_attached(context, model);
    if (shared) {
        shared->n_users++;
        *weights = shared;
        return TKV_OK;
    }
    TKV_TRY(create_weights(model, context, weights, error));
    return tkv_context_attach(context, model, *weights, NULL, error);
}

void tkv_cuda_weights_give_back(tkv_cuda_weights *weights)
{
    if (weights && --weights->n_users == 0) {
        (void)tkv_context_attach(weights->context, weights->model, NULL, NULL, NULL);
        free_weights(weights);
    }
}
