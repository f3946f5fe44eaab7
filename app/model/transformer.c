#include "model/transformer.h"

#include "common/try.h"
#include "model/dequantise.h"
#include "model/exchange.h"
#include "model/matmul.h"
#include "model/operations.h"
#include "model/weights.h"

#include <stdlib.h>
#include <string.h>

struct tkv_workspace {
    int n_batch;
    tkv_blas *blas; /* NULL: there is no room for one */
    tkv_matmul_means means;
    size_t bytes;
    float *memory; /* all buffers below; a row belongs to a token of the batch */
    float *residual;
    float *hidden; /* normalised input of a block, later its output */
    float *query;
    float *key;
    float *value;
    float *attended;
    float *gate;
    float *up;
    float *rope_table;      /* [n_ropes][n_batch][rope_dim] */
    tkv_exchange *exchange; /* to the device that has the cache; NULL: the host has it */
};

/* A range of a batch's rows on their way through a layer. */
typedef struct pass {
    const tkv_model *model;
    tkv_cache *cache;
    tkv_workspace *workspace;
    const tkv_batch *batch;
} pass;

typedef struct buffer_size {
    float **buffer;
    size_t width; /* floats a token */
} buffer_size;

#define N_BUFFERS 9

static void list_buffers(const tkv_model *model, tkv_workspace *workspace,
                         buffer_size sizes[N_BUFFERS])
{
    const tkv_model_config *config = &model->config;
    const size_t embedding = (size_t)config->embedding_length;
    const size_t heads = (size_t)config->n_heads;
    const size_t kv_heads = (size_t)config->n_kv_heads;
    const size_t feed_forward = (size_t)config->feed_forward_length;
    const buffer_size list[N_BUFFERS] = {
        {&workspace->residual, embedding},
        {&workspace->hidden, embedding},
        {&workspace->query, heads * (size_t)config->head_dim_k},
        {&workspace->key, kv_heads * (size_t)config->head_dim_k},
        {&workspace->value, kv_heads * (size_t)config->head_dim_v},
        {&workspace->attended, heads * (size_t)config->head_dim_v},
        {&workspace->gate, feed_forward},
        {&workspace->up, feed_forward},
        {&workspace->rope_table, (size_t)model->n_ropes * (size_t)config->rope_dim},
    };
    memcpy(sizes, list, sizeof list);
}

tkv_status tkv_workspace_create(const tkv_model *model, int n_batch, const tkv_context *context,
                                tkv_workspace **workspace, tkv_error *error)
{
    tkv_workspace *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the buffers of a batch");
    }
    created->n_batch = n_batch;
    created->means.context = context;
    buffer_size sizes[N_BUFFERS];
    list_buffers(model, created, sizes);
    size_t width = 0;
    for (int i = 0; i < N_BUFFERS; i++) {
        width += sizes[i].width;
    }
    if (width <= SIZE_MAX / sizeof(float) / (size_t)n_batch) {
        created->bytes = width * (size_t)n_batch * sizeof(float);
        created->memory = malloc(created->bytes);
    }
    if (!created->memory) {
        tkv_workspace_free(created);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "no memory for the buffers of a batch of %d tokens, %zu floats each",
                        n_batch, width);
    }
    float *next = created->memory;
    for (int i = 0; i < N_BUFFERS; i++) {
        *sizes[i].buffer = next;
        next += sizes[i].width * (size_t)n_batch;
    }
    /* After the buffers, which leave it what room there is. */
    const tkv_status status = tkv_blas_open(tkv_context_threads(context), &created->blas, error);
    created->means.blas = created->blas;
    if (status != TKV_OK) {
        tkv_workspace_free(created);
        return status;
    }
    *workspace = created;
    return TKV_OK;
}

void tkv_workspace_free(tkv_workspace *workspace)
{
    if (workspace) {
        tkv_exchange_free(workspace->exchange);
        tkv_blas_free(workspace->blas);
        free(workspace->memory);
        free(workspace);
    }
}

void tkv_workspace_set_exchange(tkv_workspace *workspace, tkv_exchange *exchange)
{
    workspace->exchange = exchange;
}

size_t tkv_workspace_bytes(const tkv_workspace *workspace)
{
    return workspace->bytes + sizeof *workspace +
           (workspace->exchange ? tkv_exchange_bytes(workspace->exchange) : 0);
}

static tkv_status embed(const pass *p, tkv_error *error)
{
    const tkv_gguf_tensor *table = p->model->token_embedding;
    const size_t width = (size_t)p->model->config.embedding_length;
    for (int t = 0; t < p->batch->n_tokens; t++) {
        TKV_TRY(tkv_dequantise_tensor_row(table, (size_t)p->batch->tokens[t],
                                          p->workspace->residual + (size_t)t * width, error));
    }
    if (p->model->config.embedding_scale != 1.0f) {
        tkv_scale((size_t)p->batch->n_tokens * width, p->workspace->residual,
                  p->model->config.embedding_scale);
    }
    return TKV_OK;
}

/* Where the table of one of the model's ropes begins. */
static float *rope_table(const pass *p, int rope)
{
    const size_t width = (size_t)p->model->config.rope_dim;
    return p->workspace->rope_table + (size_t)rope * (size_t)p->workspace->n_batch * width;
}

static void fill_rope_tables(const pass *p)
{
    const tkv_model_config *config = &p->model->config;
    for (int rope = 0; rope < p->model->n_ropes; rope++) {
        tkv_rope_table(config->rope_dim, tkv_model_rope(p->model, rope),
                       (double)config->rope_attention_factor, p->batch->first_position,
                       p->batch->n_tokens, rope_table(p, rope));
    }
}

/* y [n_rows][n_out] := W x + b for x [n_rows][n_in]. */
static tkv_status apply(const tkv_linear *linear, const tkv_workspace *workspace, int n_rows,
                        const float *x, float *y, tkv_error *error)
{
    TKV_TRY(tkv_matmul(linear->weight, n_rows, x, y, &workspace->means, error));
    if (linear->bias) {
        tkv_add_bias((size_t)n_rows, (size_t)linear->weight->dims[1], y, linear->bias);
    }
    return TKV_OK;
}

/* Normalises heads where the model does so, then turns them to their positions.
 * x: [n_rows][n_heads][head_dim_k], rows first_row and up of the batch. */
static void place_heads(const pass *p, const float *norm, int rope, int first_row, int n_heads,
                        float *x)
{
    const tkv_model_config *config = &p->model->config;
    const int n_rows = p->batch->n_tokens - first_row;
    if (norm) {
        tkv_rms_norm((size_t)n_rows * (size_t)n_heads, (size_t)config->head_dim_k, x, norm,
                     config->rms_epsilon, x);
    }
    const float *table = rope_table(p, rope) + (size_t)first_row * (size_t)config->rope_dim;
    tkv_rope_apply(config->rope_pairing, config->rope_dim, table, n_rows, n_heads,
                   config->head_dim_k, x);
}

/* Normalised input -> keys and values in the cache, for all rows. */
static tkv_status remember(const pass *p, int layer_index, tkv_error *error)
{
    const tkv_layer_weights *layer = &p->model->layers[layer_index];
    const tkv_workspace *workspace = p->workspace;
    const int n_rows = p->batch->n_tokens;
    tkv_status status =
        apply(&layer->key, workspace, n_rows, workspace->hidden, workspace->key, error);
    if (status == TKV_OK) {
        status =
            apply(&layer->value, workspace, n_rows, workspace->hidden, workspace->value, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    place_heads(p, layer->key_norm, layer->rope, 0, p->model->config.n_kv_heads, workspace->key);
    if (workspace->exchange) {
        return tkv_exchange_append(workspace->exchange, p->cache, layer_index, n_rows,
                                   workspace->key, workspace->value, error);
    }
    return tkv_cache_append(p->cache, layer_index, n_rows, workspace->key, workspace->value, error);
}

/* Normalised input of rows first_row and up -> what attention adds to them, in hidden. */
static tkv_status attend(const pass *p, int layer_index, int first_row, tkv_error *error)
{
    const tkv_model_config *config = &p->model->config;
    const tkv_layer_weights *layer = &p->model->layers[layer_index];
    const tkv_workspace *workspace = p->workspace;
    const int n_rows = p->batch->n_tokens - first_row;
    float *hidden = workspace->hidden + (size_t)first_row * (size_t)config->embedding_length;
    tkv_status status = apply(&layer->query, workspace, n_rows, hidden, workspace->query, error);
    if (status != TKV_OK) {
        return status;
    }
    place_heads(p, layer->query_norm, layer->rope, first_row, config->n_heads, workspace->query);
    const tkv_attend_params params = {
        .n_queries = n_rows,
        .n_heads = config->n_heads,
        .first_position = p->batch->first_position + first_row,
        .scale = config->attention_scale,
        .window = layer->window,
        .sparse_v = p->batch->sparse_v,
        .stats = p->batch->sparse_v > 0.0f ? p->batch->stats : NULL,
    };
    status = workspace->exchange
                 ? tkv_exchange_attend(workspace->exchange, p->cache, layer_index, &params,
                                       workspace->query, workspace->attended, error)
                 : tkv_attend(p->cache, layer_index, &params, workspace->query, workspace->attended,
                              error);
    if (status != TKV_OK) {
        return status;
    }
    return apply(&layer->output, workspace, n_rows, workspace->attended, hidden, error);
}

static void activate(const tkv_model_config *config, int n_rows, float *gate, const float *up)
{
    const size_t n = (size_t)n_rows * (size_t)config->feed_forward_length;
    switch (config->activation) {
    case TKV_ACTIVATION_SILU: tkv_swiglu(n, gate, up); break;
    case TKV_ACTIVATION_GELU: tkv_geglu(n, gate, up); break;
    }
}

/* Adds what a block gives (hidden [n_rows][embedding_length]) to the residual, normalised if
 * post_norm is not NULL. */
static void add_block(const pass *p, int n_rows, const float *post_norm, float *hidden,
                      float *residual)
{
    const size_t width = (size_t)p->model->config.embedding_length;
    if (post_norm) {
        tkv_rms_norm((size_t)n_rows, width, hidden, post_norm, p->model->config.rms_epsilon,
                     hidden);
    }
    tkv_add((size_t)n_rows * width, residual, hidden);
}

/* Normalised input -> what the feed-forward network adds, in place. */
static tkv_status feed_forward(const pass *p, const tkv_layer_weights *layer, int n_rows,
                               float *hidden, tkv_error *error)
{
    const tkv_workspace *workspace = p->workspace;
    tkv_status status = apply(&layer->gate, workspace, n_rows, hidden, workspace->gate, error);
    if (status == TKV_OK) {
        status = apply(&layer->up, workspace, n_rows, hidden, workspace->up, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    activate(&p->model->config, n_rows, workspace->gate, workspace->up);
    return apply(&layer->down, workspace, n_rows, workspace->gate, hidden, error);
}

/* All rows leave their keys and values; only rows from first_row on go further. */
static tkv_status run_layer(const pass *p, int layer_index, int first_row, tkv_error *error)
{
    const tkv_model_config *config = &p->model->config;
    const tkv_layer_weights *layer = &p->model->layers[layer_index];
    const size_t width = (size_t)config->embedding_length;
    const int n_rows = p->batch->n_tokens - first_row;
    float *residual = p->workspace->residual + (size_t)first_row * width;
    float *hidden = p->workspace->hidden + (size_t)first_row * width;

    tkv_rms_norm((size_t)p->batch->n_tokens, width, p->workspace->residual, layer->attention_norm,
                 config->rms_epsilon, p->workspace->hidden);
    tkv_status status = remember(p, layer_index, error);
    if (status != TKV_OK || n_rows == 0) {
        return status;
    }
    status = attend(p, layer_index, first_row, error);
    if (status != TKV_OK) {
        return status;
    }
    add_block(p, n_rows, layer->attention_post_norm, hidden, residual);
    tkv_rms_norm((size_t)n_rows, width, residual, layer->feed_forward_norm, config->rms_epsilon,
                 hidden);
    status = feed_forward(p, layer, n_rows, hidden, error);
    if (status == TKV_OK) {
        add_block(p, n_rows, layer->feed_forward_post_norm, hidden, residual);
    }
    return status;
}

tkv_status tkv_forward(const tkv_model *model, tkv_cache *cache, tkv_workspace *workspace,
                       const tkv_batch *batch, tkv_error *error)
{
    const tkv_model_config *config = &model->config;
    const pass p = {model, cache, workspace, batch};
    const int first_logit_row = batch->n_tokens - batch->n_logits;
    fill_rope_tables(&p);
    tkv_status status = embed(&p, error);
    for (int i = 0; i < config->n_layers && status == TKV_OK; i++) {
        const bool is_last = i == config->n_layers - 1;
        status = run_layer(&p, i, is_last ? first_logit_row : 0, error);
    }
    if (status != TKV_OK || batch->n_logits == 0) {
        return status;
    }
    const size_t width = (size_t)config->embedding_length;
    tkv_rms_norm((size_t)batch->n_logits, width,
                 workspace->residual + (size_t)first_logit_row * width, model->output_norm,
                 config->rms_epsilon, workspace->hidden);
    return apply(&model->output, workspace, batch->n_logits, workspace->hidden, batch->logits,
                 error);
}
