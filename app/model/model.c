#include "model/model.h"

#include "model/config.h"
#include "model/dequantise.h"
#include "model/geometry.h"
#include "model/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_VOCABULARY (1 << 24)
#define MAX_NAME 64

/* Finds tensors and counts what it found. Like a config reader, it keeps its first failure. */
typedef struct loader {
    const tkv_gguf *gguf;
    tkv_model *model;
    tkv_status status;
    tkv_error *error;
} loader;

typedef struct tensor_name {
    char text[MAX_NAME];
} tensor_name;

static tensor_name layer_name(int layer, const char *part, const char *kind)
{
    tensor_name name;
    snprintf(name.text, sizeof name.text, "blk.%d.%s.%s", layer, part, kind);
    return name;
}

/* The tensor, if its shape is [n_rows][n_columns] (a vector: n_rows 1) and its type is known.
 * NULL after a failure, and if it is absent, which is a failure only if it is required. */
static const tkv_gguf_tensor *find(loader *l, const char *name, bool required, int n_columns,
                                   int n_rows)
{
    const tkv_gguf_tensor *tensor =
        l->status == TKV_OK ? tkv_gguf_find_tensor(l->gguf, name) : NULL;
    if (!tensor) {
        if (required && l->status == TKV_OK) {
            l->status = tkv_fail(l->error, TKV_ERR_FORMAT, "tensor %s is missing", name);
        }
        return NULL;
    }
    if (tensor->dims[0] != (uint64_t)n_columns || tensor->dims[1] != (uint64_t)n_rows ||
        tensor->dims[2] != 1 || tensor->dims[3] != 1) {
        l->status = tkv_fail(l->error, TKV_ERR_FORMAT,
                             "tensor %s: expected the shape [%d][%d], found [%" PRIu64 "][%" PRIu64
                             "][%" PRIu64 "][%" PRIu64 "] (slowest index first)",
                             name, n_rows, n_columns, tensor->dims[3], tensor->dims[2],
                             tensor->dims[1], tensor->dims[0]);
        return NULL;
    }
    if (!tkv_weight_format_get(tensor->type)) {
        l->status = tkv_fail(l->error, TKV_ERR_UNSUPPORTED,
                             "tensor %s is %s (ggml type %" PRIu32
                             "): supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, "
                             "Q5_K and Q6_K",
                             name, tkv_weight_type_name(tensor->type), tensor->type);
        return NULL;
    }
    return tensor;
}

/* A float copy of a vector; NULL as for find. */
static float *load_vector(loader *l, const char *name, bool required, int length)
{
    const tkv_gguf_tensor *tensor = find(l, name, required, length, 1);
    if (!tensor) {
        return NULL;
    }
    float *vector = malloc((size_t)length * sizeof *vector);
    if (!vector) {
        l->status = tkv_fail(l->error, TKV_ERR_OUT_OF_MEMORY, "no memory for tensor %s", name);
        return NULL;
    }
    l->status = tkv_dequantise_tensor_row(tensor, 0, vector, l->error);
    if (l->status != TKV_OK) {
        free(vector);
        return NULL;
    }
    return vector;
}

static float *load_layer_norm(loader *l, int layer, const char *part, bool required, int length)
{
    return load_vector(l, layer_name(layer, part, "weight").text, required, length);
}

static tkv_linear load_linear(loader *l, int layer, const char *part, int n_in, int n_out)
{
    return (tkv_linear){
        .weight = find(l, layer_name(layer, part, "weight").text, true, n_in, n_out),
        .bias = load_vector(l, layer_name(layer, part, "bias").text, false, n_out),
    };
}

static void load_layer(loader *l, int i)
{
    const tkv_model_config *config = &l->model->config;
    tkv_layer_weights *layer = &l->model->layers[i];
    const int width = config->embedding_length;
    const int inner = config->feed_forward_length;
    layer->attention_norm = load_layer_norm(l, i, "attn_norm", true, width);
    layer->query = load_linear(l, i, "attn_q", width, config->n_heads * config->head_dim_k);
    layer->key = load_linear(l, i, "attn_k", width, config->n_kv_heads * config->head_dim_k);
    layer->value = load_linear(l, i, "attn_v", width, config->n_kv_heads * config->head_dim_v);
    layer->output = load_linear(l, i, "attn_output", config->n_heads * config->head_dim_v, width);
    layer->query_norm =
        load_layer_norm(l, i, "attn_q_norm", config->has_head_norms, config->head_dim_k);
    layer->key_norm =
        load_layer_norm(l, i, "attn_k_norm", config->has_head_norms, config->head_dim_k);
    layer->feed_forward_norm = load_layer_norm(l, i, "ffn_norm", true, width);
    layer->gate = load_linear(l, i, "ffn_gate", width, inner);
    layer->up = load_linear(l, i, "ffn_up", width, inner);
    layer->down = load_linear(l, i, "ffn_down", inner, width);
    if (config->has_post_norms) {
        layer->attention_post_norm = load_layer_norm(l, i, "post_attention_norm", true, width);
        layer->feed_forward_post_norm = load_layer_norm(l, i, "post_ffw_norm", true, width);
    }
}

/* The embedding is also the output matrix where the file has none. */
static void load_ends(loader *l)
{
    tkv_model *model = l->model;
    const int width = model->config.embedding_length;
    const tkv_gguf_tensor *embedding = tkv_gguf_find_tensor(l->gguf, "token_embd.weight");
    const uint64_t vocabulary_size = embedding ? embedding->dims[1] : 1;
    if (vocabulary_size < 1 || vocabulary_size > MAX_VOCABULARY) {
        l->status = tkv_fail(l->error, TKV_ERR_FORMAT,
                             "tensor token_embd.weight has %" PRIu64 " rows: expected 1 to %d",
                             vocabulary_size, MAX_VOCABULARY);
        return;
    }
    model->config.vocabulary_size = (int)vocabulary_size;
    model->token_embedding =
        find(l, "token_embd.weight", true, width, model->config.vocabulary_size);
    model->output_norm = load_vector(l, "output_norm.weight", true, width);
    model->output.weight = find(l, "output.weight", false, width, model->config.vocabulary_size);
    model->output.bias = load_vector(l, "output.bias", false, model->config.vocabulary_size);
    if (!model->output.weight) {
        model->output.weight = model->token_embedding;
    }
}

static void load_rope(loader *l)
{
    const tkv_model_config *config = &l->model->config;
    const int n_pairs = config->rope_dim / 2;
    float *factors = load_vector(l, "rope_freqs.weight", false, n_pairs);
    for (int i = 0; factors && i < n_pairs && l->status == TKV_OK; i++) {
        if (!(factors[i] > 0.0f && factors[i] < 1e30f)) {
            l->status = tkv_fail(l->error, TKV_ERR_FORMAT,
                                 "tensor rope_freqs.weight: factor %d is %g, expected above 0", i,
                                 (double)factors[i]);
        }
    }
    l->model->n_ropes = config->rope_local_freq_base > 0.0f ? 2 : 1;
    l->model->rope_frequencies =
        malloc((size_t)l->model->n_ropes * (size_t)n_pairs * sizeof(double));
    if (l->status == TKV_OK && !l->model->rope_frequencies) {
        l->status = tkv_fail(l->error, TKV_ERR_OUT_OF_MEMORY, "no memory for RoPE frequencies");
    }
    if (l->status == TKV_OK) {
        tkv_rope_frequencies(config->rope_dim, (double)config->rope_freq_base,
                             (double)config->rope_linear_factor, factors,
                             l->model->rope_frequencies);
    }
    if (l->status == TKV_OK && l->model->n_ropes > 1) {
        tkv_rope_frequencies(config->rope_dim, (double)config->rope_local_freq_base, 1.0, NULL,
                             l->model->rope_frequencies + n_pairs);
    }
    free(factors);
}

/* Which layers have a window is a part of what they keep. */
static void load_windows(loader *l)
{
    tkv_model *model = l->model;
    tkv_geometry geometry = {.n_layers = 0};
    if (l->status == TKV_OK) {
        l->status = tkv_geometry_read(l->gguf, &geometry, l->error);
    }
    for (int i = 0; l->status == TKV_OK && i < model->config.n_layers; i++) {
        model->layers[i].window = geometry.layers[i].window;
        model->layers[i].rope = model->layers[i].window > 0 ? model->n_ropes - 1 : 0;
    }
    tkv_geometry_free(&geometry);
}

static tkv_status load(tkv_model *model, const tkv_gguf *gguf, tkv_error *error)
{
    tkv_status status = tkv_model_config_read(gguf, &model->config, error);
    if (status != TKV_OK) {
        return status;
    }
    model->layers = calloc((size_t)model->config.n_layers, sizeof *model->layers);
    if (!model->layers) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d layers",
                        model->config.n_layers);
    }
    loader l = {gguf, model, TKV_OK, error};
    load_ends(&l);
    for (int i = 0; i < model->config.n_layers && l.status == TKV_OK; i++) {
        load_layer(&l, i);
    }
    load_rope(&l);
    load_windows(&l);
    return l.status;
}

tkv_status tkv_model_create(const tkv_gguf *gguf, tkv_model **model, tkv_error *error)
{
    tkv_model *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a model");
    }
    tkv_status status = load(created, gguf, error);
    if (status != TKV_OK) {
        tkv_model_free(created);
        return status;
    }
    *model = created;
    return TKV_OK;
}

static void free_layer(tkv_layer_weights *layer)
{
    float *owned[] = {layer->attention_norm,
                      layer->query_norm,
                      layer->key_norm,
                      layer->feed_forward_norm,
                      layer->query.bias,
                      layer->key.bias,
                      layer->value.bias,
                      layer->output.bias,
                      layer->gate.bias,
                      layer->up.bias,
                      layer->down.bias,
                      layer->attention_post_norm,
                      layer->feed_forward_post_norm};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
        free(owned[i]);
    }
}

void tkv_model_free(tkv_model *model)
{
    if (!model) {
        return;
    }
    for (int i = 0; model->layers && i < model->config.n_layers; i++) {
        free_layer(&model->layers[i]);
    }
    free(model->layers);
    free(model->output_norm);
    free(model->output.bias);
    free(model->rope_frequencies);
    free(model);
}

const tkv_model_config *tkv_model_get_config(const tkv_model *model)
{
    return &model->config;
}

int tkv_model_window(const tkv_model *model, int layer)
{
    return model->layers[layer].window;
}

const double *tkv_model_rope(const tkv_model *model, int rope)
{
    return model->rope_frequencies + (size_t)rope * (size_t)(model->config.rope_dim / 2);
}
