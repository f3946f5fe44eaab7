#include "model/geometry.h"

#include "common/error.h"
#include "model/config.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAYERS 4096
#define MAX_HEADS 4096
#define MAX_WIDTH (1 << 20)
#define MAX_NAME 128

/* Reads "<architecture>.<name>". It keeps its first failure and then reads nothing more. */
typedef struct reader {
    const tkv_gguf *gguf;
    tkv_geometry *geometry;
    tkv_status status;
    tkv_error *error;
} reader;

/* Layers with a sliding window among others without: `period` layers, of which the last (or the
 * first) sees everything. These architectures' files need not name the pattern, nor the window. */
typedef struct window_pattern {
    const char *architecture;
    int period;
    bool is_first_full;
    int window; /* if the file has none; 0: then there is none */
} window_pattern;

static const window_pattern known_patterns[] = {
    {"gemma2", 2, false, 4096}, {"gemma3", 6, false, 0},       {"gemma3n", 5, false, 0},
    {"cohere2", 4, false, 0},   {"olmo2", 4, false, 0},        {"gpt-oss", 2, false, 0},
    {"plamo3", 8, false, 0},    {"afmoe", 4, false, 0},        {"llama4", 4, false, 8192},
    {"exaone4", 4, false, 0},   {"exaone-moe", 4, false, 128}, {"smallthinker", 4, true, 0},
};

static const tkv_gguf_value *find(reader *r, const char *name)
{
    char key[MAX_NAME];
    snprintf(key, sizeof key, "%s.%s", r->geometry->architecture, name);
    return r->status == TKV_OK ? tkv_gguf_find(r->gguf, key) : NULL;
}

/* The count of a layer: a scalar is every layer's. Absent: fallback; -1 makes that an error. */
static int count_at(reader *r, const char *name, int layer, int fallback, int max)
{
    const tkv_gguf_value *value = find(r, name);
    if (!value) {
        if (fallback < 0 && r->status == TKV_OK) {
            r->status = tkv_fail(r->error, TKV_ERR_FORMAT, "metadata key %s.%s is missing",
                                 r->geometry->architecture, name);
        }
        return fallback < 0 ? 0 : fallback;
    }
    int64_t count = -1;
    if (!tkv_gguf_integer(value, value->is_array ? (uint64_t)layer : 0, &count) || count < 0 ||
        count > max) {
        r->status = tkv_fail(r->error, TKV_ERR_FORMAT,
                             "metadata key %s.%s, layer %d: expected an integer from 0 to %d, "
                             "found %s%s of %" PRIu64 " elements",
                             r->geometry->architecture, name, layer, max,
                             value->is_array ? "an array of " : "", tkv_gguf_type_name(value->type),
                             tkv_gguf_array_length(value));
        return 0;
    }
    return (int)count;
}

static const tkv_gguf_tensor *find_tensor(reader *r, int layer, const char *part)
{
    char name[MAX_NAME];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, part);
    return tkv_gguf_find_tensor(r->gguf, name);
}

/* False for layers whose tensors are in this file and have no attention among them. */
static bool may_attend(reader *r, int layer)
{
    const char *const parts[] = {"attn_k", "attn_qkv", "attn_kv_a_mqa"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (find_tensor(r, layer, parts[i])) {
            return true;
        }
    }
    return !find_tensor(r, layer, "attn_norm");
}

/* Layers of a hybrid model that keep a recurrent state instead, and the last layers of models where
 * these use the keys and values of earlier ones or only draft. */
static bool keeps_nothing(reader *r, int layer)
{
    const int interval = count_at(r, "full_attention_interval", layer, 0, MAX_LAYERS);
    const int n_shared = count_at(r, "attention.shared_kv_layers", layer, 0, MAX_LAYERS);
    const int n_drafting = count_at(r, "nextn_predict_layers", layer, 0, MAX_LAYERS);
    return (interval > 0 && (layer + 1) % interval != 0) ||
           layer >= r->geometry->n_layers - n_shared - n_drafting || !may_attend(r, layer);
}

/* Rows of a projection tensor for each head, if they are a whole number; else what metadata says:
 * some models' layers differ in a way that only the tensors show. */
static int head_dim_of(reader *r, int layer, const char *part, int n_heads, int head_dim)
{
    const tkv_gguf_tensor *tensor = find_tensor(r, layer, part);
    const uint64_t n_rows = tensor ? tensor->dims[1] : 0;
    if (n_rows == 0 || n_rows > MAX_WIDTH || n_rows % (uint64_t)n_heads != 0) {
        return head_dim;
    }
    return (int)(n_rows / (uint64_t)n_heads);
}

static void read_heads(reader *r, int layer, int embedding_length, tkv_geometry_layer *result)
{
    const int n_heads = count_at(r, "attention.head_count", layer, -1, MAX_HEADS);
    const int n_kv_heads = count_at(r, "attention.head_count_kv", layer, n_heads, MAX_HEADS);
    if (r->status != TKV_OK || n_kv_heads == 0 || keeps_nothing(r, layer)) {
        return;
    }
    const int even = n_heads > 0 ? embedding_length / n_heads : 0;
    const bool is_latent = find(r, "attention.key_length_mla") != NULL;
    const int dim_k = count_at(r, "attention.key_length", layer, even, MAX_WIDTH);
    const int dim_v = count_at(r, "attention.value_length", layer, even, MAX_WIDTH);
    result->n_kv_heads = n_kv_heads;
    result->head_dim_k = is_latent ? dim_k : head_dim_of(r, layer, "attn_k", n_kv_heads, dim_k);
    result->head_dim_v = is_latent ? 0 : head_dim_of(r, layer, "attn_v", n_kv_heads, dim_v);
}

static const window_pattern *find_pattern(const char *architecture)
{
    for (size_t i = 0; i < sizeof known_patterns / sizeof *known_patterns; i++) {
        if (strcmp(known_patterns[i].architecture, architecture) == 0) {
            return &known_patterns[i];
        }
    }
    return NULL;
}

/* Without a pattern a window is every layer's where the host runs the model, and nobody's
 * elsewhere: files carry windows that their models do not use. */
static int read_window(reader *r, int layer)
{
    const window_pattern *known = find_pattern(r->geometry->architecture);
    const int window =
        count_at(r, "attention.sliding_window", layer, known ? known->window : 0, INT_MAX);
    const tkv_gguf_value *given = find(r, "attention.sliding_window_pattern");
    const int period = count_at(r, "attention.sliding_window_pattern", layer,
                                known ? known->period : 0, MAX_LAYERS);
    if (given && given->is_array) {
        return period ? window : 0;
    }
    if (period == 0) {
        return r->geometry->is_hosted ? window : 0;
    }
    const int full = known && known->is_first_full ? 0 : period - 1;
    return layer % period == full ? 0 : window;
}

/* Floats that a token of a batch needs, as in transformer.c. */
static void read_batch_width(reader *r, int embedding_length)
{
    tkv_geometry *g = r->geometry;
    uint64_t attention = 0;
    uint64_t feed_forward = 0;
    for (int i = 0; i < g->n_layers; i++) {
        const tkv_geometry_layer *layer = &g->layers[i];
        const int n_heads = count_at(r, "attention.head_count", i, 0, MAX_HEADS);
        const int dim_v = layer->head_dim_v ? layer->head_dim_v : layer->head_dim_k;
        const uint64_t width = (uint64_t)(n_heads + layer->n_kv_heads) *
                               (uint64_t)(layer->n_kv_heads ? layer->head_dim_k + dim_v : 0);
        const uint64_t inner =
            (uint64_t)count_at(r, "feed_forward_length", i, 0, MAX_WIDTH) +
            (uint64_t)count_at(r, "expert_feed_forward_length", i, 0, MAX_WIDTH) *
                (uint64_t)count_at(r, "expert_used_count", i, 0, MAX_HEADS);
        attention = width > attention ? width : attention;
        feed_forward = inner > feed_forward ? inner : feed_forward;
    }
    const int rope = count_at(r, "rope.dimension_count", 0, g->layers[0].head_dim_k, MAX_WIDTH);
    g->batch_width = 2 * (uint64_t)embedding_length + attention + 2 * feed_forward + (uint64_t)rope;
}

static tkv_status read_layers(reader *r)
{
    tkv_geometry *g = r->geometry;
    const int embedding_length = count_at(r, "embedding_length", 0, -1, MAX_WIDTH);
    for (int i = 0; i < g->n_layers && r->status == TKV_OK; i++) {
        read_heads(r, i, embedding_length, &g->layers[i]);
        if (r->status == TKV_OK && g->layers[i].n_kv_heads > 0) {
            g->layers[i].window = read_window(r, i);
        }
    }
    g->context_length = count_at(r, "context_length", 0, 0, INT_MAX);
    read_batch_width(r, embedding_length);
    return r->status;
}

static tkv_status allocate_layers(tkv_geometry *geometry, int n_layers, tkv_error *error)
{
    geometry->n_layers = n_layers;
    geometry->layers = calloc((size_t)n_layers, sizeof *geometry->layers);
    return geometry->layers
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d layers", n_layers);
}

/* What tells how the file is to be read. */
static tkv_status read_header(reader *r)
{
    tkv_geometry *g = r->geometry;
    tkv_gguf_text name = {0};
    int64_t n_files = 1;
    tkv_model_config config;
    tkv_status status = tkv_gguf_get_text(r->gguf, "general.architecture", true, &name, r->error);
    if (status == TKV_OK) {
        status = tkv_gguf_get_integer(r->gguf, "split.count", false, &n_files, r->error);
    }
    if (status != TKV_OK) {
        return status;
    }
    snprintf(g->architecture, sizeof g->architecture, "%.*s",
             name.length < 63 ? (int)name.length : 63, name.data);
    const tkv_gguf_tensor *embedding = tkv_gguf_find_tensor(r->gguf, "token_embd.weight");
    g->vocabulary_size = embedding && embedding->dims[1] <= INT_MAX ? (int)embedding->dims[1] : 0;
    g->is_hosted = tkv_model_config_read(r->gguf, &config, NULL) == TKV_OK;
    g->file_bytes = tkv_gguf_file_bytes(r->gguf);
    g->n_files = n_files > 1 && n_files <= INT_MAX ? (int)n_files : 1;
    return TKV_OK;
}

tkv_status tkv_geometry_read(const tkv_gguf *gguf, tkv_geometry *geometry, tkv_error *error)
{
    *geometry = (tkv_geometry){.n_layers = 0};
    reader r = {gguf, geometry, TKV_OK, error};
    r.status = read_header(&r);
    const int n_layers = count_at(&r, "block_count", 0, -1, MAX_LAYERS);
    if (r.status == TKV_OK && n_layers < 1) {
        r.status = tkv_fail(error, TKV_ERR_FORMAT,
                            "metadata key %s.block_count is 0: expected at "
                            "least 1",
                            geometry->architecture);
    }
    if (r.status == TKV_OK) {
        r.status = allocate_layers(geometry, n_layers, error);
    }
    return r.status == TKV_OK ? read_layers(&r) : r.status;
}

tkv_status tkv_geometry_uniform(int n_layers, const tkv_geometry_layer *layer,
                                tkv_geometry *geometry, tkv_error *error)
{
    *geometry = (tkv_geometry){.n_files = 1};
    if (n_layers < 1 || n_layers > MAX_LAYERS) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "%d layers: expected 1 to %d", n_layers,
                        MAX_LAYERS);
    }
    const tkv_status status = allocate_layers(geometry, n_layers, error);
    for (int i = 0; status == TKV_OK && i < n_layers; i++) {
        geometry->layers[i] = *layer;
    }
    return status;
}

void tkv_geometry_free(tkv_geometry *geometry)
{
    free(geometry->layers);
    *geometry = (tkv_geometry){.n_layers = 0};
}
