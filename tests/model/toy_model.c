#include "model/toy_model.h"

#include "support/support.h"

#include <stdarg.h>

#define MAX_TENSORS 256
#define MAX_METADATA 64

typedef struct builder {
    toy_model *model;
    uint64_t random;
} builder;

/* Appends a tensor of `mean` plus uniform noise up to `noise`. n_rows 0: a vector. */
static void add(builder *b, float mean, float noise, int n_columns, int n_rows, const char *format,
                ...) __attribute__((format(printf, 6, 7)));

static void add(builder *b, float mean, float noise, int n_columns, int n_rows, const char *format,
                ...)
{
    if (b->model->n_tensors == MAX_TENSORS) {
        abort();
    }
    toy_tensor *tensor = &b->model->tensors[b->model->n_tensors++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(tensor->name, sizeof tensor->name, format, arguments);
    va_end(arguments);
    tensor->n_dims = n_rows > 0 ? 2 : 1;
    tensor->dims[0] = (uint64_t)n_columns;
    tensor->dims[1] = n_rows > 0 ? (uint64_t)n_rows : 1;
    const size_t n = (size_t)(tensor->dims[0] * tensor->dims[1]);
    tensor->values = malloc(n * sizeof(float));
    if (!tensor->values) {
        abort();
    }
    for (size_t i = 0; i < n; i++) {
        tensor->values[i] = mean + noise * (2.0f * (float)random_uniform(&b->random) - 1.0f);
    }
}

static void add_linear(builder *b, int layer, const char *name, int n_in, int n_out)
{
    add(b, 0.0f, 1.7f / sqrtf((float)n_in), n_in, n_out, "blk.%d.%s.weight", layer, name);
    if (b->model->shape.has_biases) {
        add(b, 0.0f, 0.5f, n_out, 0, "blk.%d.%s.bias", layer, name);
    }
}

static void add_layer(builder *b, int layer)
{
    const toy_shape *s = &b->model->shape;
    const int width = s->embedding_length;
    add(b, 1.0f, 0.3f, width, 0, "blk.%d.attn_norm.weight", layer);
    add_linear(b, layer, "attn_q", width, s->n_heads * s->head_dim_k);
    add_linear(b, layer, "attn_k", width, s->n_kv_heads * s->head_dim_k);
    add_linear(b, layer, "attn_v", width, s->n_kv_heads * s->head_dim_v);
    if (s->has_query_key_norms) {
        add(b, 1.0f, 0.3f, s->head_dim_k, 0, "blk.%d.attn_q_norm.weight", layer);
        add(b, 1.0f, 0.3f, s->head_dim_k, 0, "blk.%d.attn_k_norm.weight", layer);
    }
    add_linear(b, layer, "attn_output", s->n_heads * s->head_dim_v, width);
    add(b, 1.0f, 0.3f, width, 0, "blk.%d.ffn_norm.weight", layer);
    add_linear(b, layer, "ffn_gate", width, s->feed_forward_length);
    add_linear(b, layer, "ffn_up", width, s->feed_forward_length);
    add_linear(b, layer, "ffn_down", s->feed_forward_length, width);
    if (s->is_gemma) {
        add(b, 1.0f, 0.3f, width, 0, "blk.%d.post_attention_norm.weight", layer);
        add(b, 1.0f, 0.3f, width, 0, "blk.%d.post_ffw_norm.weight", layer);
    }
}

static void set_integer(toy_model *model, const char *name, int64_t value)
{
    toy_metadata metadata = {.kind = TOY_INTEGER, .integer = value};
    snprintf(metadata.key, sizeof metadata.key, "%s.%s", model->shape.architecture, name);
    toy_model_set(model, &metadata);
}

static void set_number(toy_model *model, const char *name, double value)
{
    toy_metadata metadata = {.kind = TOY_NUMBER, .number = value};
    snprintf(metadata.key, sizeof metadata.key, "%s.%s", model->shape.architecture, name);
    toy_model_set(model, &metadata);
}

static void set_metadata(toy_model *model)
{
    const toy_shape *s = &model->shape;
    toy_model_set(
        model,
        &(toy_metadata){.key = "general.architecture", .kind = TOY_TEXT, .text = s->architecture});
    set_integer(model, "block_count", s->n_layers);
    set_integer(model, "context_length", 512);
    set_integer(model, "embedding_length", s->embedding_length);
    set_integer(model, "feed_forward_length", s->feed_forward_length);
    set_integer(model, "attention.head_count", s->n_heads);
    set_integer(model, "attention.head_count_kv", s->n_kv_heads);
    set_integer(model, "attention.key_length", s->head_dim_k);
    set_integer(model, "attention.value_length", s->head_dim_v);
    set_number(model, "attention.layer_norm_rms_epsilon", TOY_RMS_EPSILON);
    set_integer(model, "rope.dimension_count", s->rope_dim);
    set_number(model, "rope.freq_base", s->rope_freq_base);
    if (s->rope_linear_factor > 0.0f) {
        set_number(model, "rope.scaling.factor", s->rope_linear_factor);
    }
    if (s->rope_attention_factor > 0.0f) {
        set_number(model, "rope.scaling.attn_factor", s->rope_attention_factor);
    }
    if (s->sliding_window > 0) {
        set_integer(model, "attention.sliding_window", s->sliding_window);
    }
    if (s->window_period > 0) {
        set_integer(model, "attention.sliding_window_pattern", s->window_period);
    }
    if (s->rope_local_freq_base > 0.0f) {
        set_number(model, "rope.freq_base_swa", s->rope_local_freq_base);
    }
}

void toy_model_init(toy_model *model, const toy_shape *shape, uint64_t seed)
{
    *model = (toy_model){.shape = *shape,
                         .tensors = calloc(MAX_TENSORS, sizeof(toy_tensor)),
                         .metadata = calloc(MAX_METADATA, sizeof(toy_metadata))};
    if (!model->tensors || !model->metadata) {
        abort();
    }
    set_metadata(model);
    builder b = {model, seed};
    const int width = shape->embedding_length;
    add(&b, 0.0f, 1.0f, width, shape->vocabulary_size, "token_embd.weight");
    for (int layer = 0; layer < shape->n_layers; layer++) {
        add_layer(&b, layer);
    }
    add(&b, 1.0f, 0.3f, width, 0, "output_norm.weight");
    if (shape->has_output) {
        add(&b, 0.0f, 1.0f, width, shape->vocabulary_size, "output.weight");
    }
    if (shape->has_rope_factors) {
        add(&b, 4.0f, 3.0f, shape->rope_dim / 2, 0, "rope_freqs.weight");
    }
}

void toy_model_clear(toy_model *model)
{
    for (size_t i = 0; i < model->n_tensors; i++) {
        free(model->tensors[i].values);
    }
    free(model->tensors);
    free(model->metadata);
    *model = (toy_model){0};
}

toy_tensor *toy_model_find(const toy_model *model, const char *name)
{
    for (size_t i = 0; i < model->n_tensors; i++) {
        if (strcmp(model->tensors[i].name, name) == 0) {
            return &model->tensors[i];
        }
    }
    return NULL;
}

void toy_model_remove_tensor(toy_model *model, const char *name)
{
    toy_tensor *tensor = toy_model_find(model, name);
    if (tensor) {
        free(tensor->values);
        *tensor = model->tensors[--model->n_tensors];
    }
}

static toy_metadata *find_key(const toy_model *model, const char *key)
{
    for (size_t i = 0; i < model->n_metadata; i++) {
        if (strcmp(model->metadata[i].key, key) == 0) {
            return &model->metadata[i];
        }
    }
    return NULL;
}

void toy_model_set(toy_model *model, const toy_metadata *metadata)
{
    toy_metadata *slot = find_key(model, metadata->key);
    if (!slot) {
        if (model->n_metadata == MAX_METADATA) {
            abort();
        }
        slot = &model->metadata[model->n_metadata++];
    }
    *slot = *metadata;
}

void toy_model_remove_key(toy_model *model, const char *key)
{
    toy_metadata *slot = find_key(model, key);
    if (slot) {
        *slot = model->metadata[--model->n_metadata];
    }
}
