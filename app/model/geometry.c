#include "model/geometry.h"

#include "common/try.h"
#include "model/config.h"
#include "model/geometry_reader.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAYERS TKV_GEOMETRY_MAX_LAYERS
#define MAX_HEADS TKV_GEOMETRY_MAX_HEADS
#define MAX_WIDTH TKV_GEOMETRY_MAX_WIDTH
#define MAX_NAME 128

/* Layers of Gemma 3n that have keys and values of their own. */
#define GEMMA3N_OWN_LAYERS 20

typedef tkv_geometry_reader reader;

const tkv_gguf_value *tkv_geometry_find(reader *r, const char *name)
{
    char key[MAX_NAME];
    snprintf(key, sizeof key, "%s.%s", r->geometry->architecture, name);
    return r->status == TKV_OK ? tkv_gguf_find(r->gguf, key) : NULL;
}

int tkv_geometry_count(reader *r, const char *name, int layer, int fallback, int max)
{
    const tkv_gguf_value *value = tkv_geometry_find(r, name);
    if (!value) {
        if (fallback < 0 && r->status == TKV_OK) {
            r->status = tkv_fail(r->error, TKV_ERR_FORMAT, "metadata key %s.%s is missing",
                                 r->geometry->architecture, name);
        }
        return fallback < 0 ? 0 : fallback;
    }
    const int block = r->n_blocks > 0 ? layer % r->n_blocks : layer;
    int64_t count = -1;
    if (!tkv_gguf_integer(value, value->is_array ? (uint64_t)block : 0, &count) || count < 0 ||
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

const tkv_gguf_tensor *tkv_geometry_tensor(reader *r, int layer, const char *part)
{
    char name[MAX_NAME];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer % r->n_blocks, part);
    return tkv_gguf_find_tensor(r->gguf, name);
}

/* The last layers of models where these use the keys and values of earlier ones, or only draft. A
 * Gemma 4 assistant uses those of the model that it drafts for. */
static bool is_borrower(reader *r, int layer)
{
    const int n_others = r->n_blocks - GEMMA3N_OWN_LAYERS;
    const int usual = tkv_geometry_is(r, "gemma3n") && n_others > 0 ? n_others : 0;
    const int n_shared =
        tkv_geometry_count(r, "attention.shared_kv_layers", layer, usual, MAX_LAYERS);
    const int block = layer % r->n_blocks;
    return block >= r->n_trunk || block >= r->n_blocks - n_shared ||
           tkv_geometry_is(r, "gemma4-assistant");
}

/* Rows of a projection tensor for each head, if they are a whole number; else what metadata says:
 * some models' layers differ in a way that only the tensors show. */
static int head_dim_of(reader *r, int layer, const char *part, int n_heads, int head_dim)
{
    const tkv_gguf_tensor *tensor = tkv_geometry_tensor(r, layer, part);
    const uint64_t n_rows = tensor ? tensor->dims[1] : 0;
    if (n_rows == 0 || n_rows > MAX_WIDTH || n_rows % (uint64_t)n_heads != 0) {
        return head_dim;
    }
    return (int)(n_rows / (uint64_t)n_heads);
}

/* The size of a head by metadata: layers with a window may have one of their own. */
static int given_head_dim(reader *r, int layer, bool is_local, const char *key,
                          const char *key_local)
{
    const int even = r->n_heads > 0 ? r->embedding_length / r->n_heads : 0;
    const int head_dim = tkv_geometry_count(r, key, layer, even, MAX_WIDTH);
    return is_local ? tkv_geometry_count(r, key_local, layer, head_dim, MAX_WIDTH) : head_dim;
}

static void read_attention(reader *r, int layer, int n_kv_heads, tkv_geometry_layer *result)
{
    const tkv_geometry_window window = tkv_geometry_read_window(r, layer);
    const bool is_latent =
        tkv_geometry_count(r, "attention.key_length_mla", layer, 0, MAX_WIDTH) > 0;
    const int dim_k = given_head_dim(r, layer, window.is_local, "attention.key_length",
                                     "attention.key_length_swa");
    const int dim_v = given_head_dim(r, layer, window.is_local, "attention.value_length",
                                     "attention.value_length_swa");
    result->n_kv_heads = n_kv_heads;
    result->head_dim_k = is_latent ? dim_k : head_dim_of(r, layer, "attn_k", n_kv_heads, dim_k);
    result->head_dim_v = is_latent ? 0 : head_dim_of(r, layer, "attn_v", n_kv_heads, dim_v);
    result->window = window.n_tokens;
    tkv_geometry_read_rows(r, layer, result);
}

static void read_layer(reader *r, int layer, tkv_geometry_layer *result)
{
    const int n_heads = tkv_geometry_count(r, "attention.head_count", layer, r->n_heads, MAX_HEADS);
    const int n_kv_heads =
        tkv_geometry_count(r, "attention.head_count_kv", layer, n_heads, MAX_HEADS);
    if (n_kv_heads > 0 && !is_borrower(r, layer) && !tkv_geometry_is_recurrent(r, layer)) {
        read_attention(r, layer, n_kv_heads, result);
    }
    result->state_bytes += tkv_geometry_state_bytes(r, layer, result->n_kv_heads);
}

/* Granite Switch keeps, as one layer more, which adapter each token asks for. */
static int extra_layers(const reader *r)
{
    return tkv_geometry_is(r, "graniteswitch") ? 1 : 0;
}

/* Floats that a token of a batch needs, as in transformer.c. */
static void read_batch_width(reader *r, int embedding_length)
{
    tkv_geometry *g = r->geometry;
    uint64_t attention = 0;
    uint64_t feed_forward = 0;
    for (int i = 0; i < g->n_layers; i++) {
        const tkv_geometry_layer *layer = &g->layers[i];
        const int n_heads = tkv_geometry_count(r, "attention.head_count", i, 0, MAX_HEADS);
        const int dim_v = layer->head_dim_v ? layer->head_dim_v : layer->head_dim_k;
        const uint64_t width = (uint64_t)(n_heads + layer->n_kv_heads) *
                               (uint64_t)(layer->n_kv_heads ? layer->head_dim_k + dim_v : 0);
        const uint64_t inner =
            (uint64_t)tkv_geometry_count(r, "feed_forward_length", i, 0, MAX_WIDTH) +
            (uint64_t)tkv_geometry_count(r, "expert_feed_forward_length", i, 0, MAX_WIDTH) *
                (uint64_t)tkv_geometry_count(r, "expert_used_count", i, 0, MAX_HEADS);
        attention = width > attention ? width : attention;
        feed_forward = inner > feed_forward ? inner : feed_forward;
    }
    const int rope =
        tkv_geometry_count(r, "rope.dimension_count", 0, g->layers[0].head_dim_k, MAX_WIDTH);
    g->batch_width = 2 * (uint64_t)embedding_length + attention + 2 * feed_forward + (uint64_t)rope;
}

static tkv_status read_layers(reader *r)
{
    tkv_geometry *g = r->geometry;
    const int n_extra = extra_layers(r);
    for (int i = 0; i < g->n_layers - n_extra && r->status == TKV_OK; i++) {
        read_layer(r, i, &g->layers[i]);
    }
    for (int i = g->n_layers - n_extra; i < g->n_layers; i++) {
        g->layers[i].n_kv_heads = 1;
        g->layers[i].head_dim_k = given_head_dim(r, i, false, "attention.key_length", NULL);
        g->layers[i].head_dim_v = given_head_dim(r, i, false, "attention.value_length", NULL);
    }
    g->context_length = tkv_geometry_count(r, "context_length", 0, 0, INT_MAX);
    tkv_geometry_note_windows(r);
    read_batch_width(r, r->embedding_length);
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

/* Only the first of several files describes the model. */
static tkv_status read_split(reader *r)
{
    int64_t n_files = 1;
    int64_t index = 0;
    TKV_TRY(tkv_gguf_get_integer(r->gguf, "split.count", false, &n_files, r->error));
    TKV_TRY(tkv_gguf_get_integer(r->gguf, "split.no", false, &index, r->error));
    if (index != 0) {
        return tkv_fail(r->error, TKV_ERR_INVALID_ARGUMENT,
                        "this is file %" PRId64 " of %" PRId64
                        " of a model: expected the first, which describes it",
                        index < INT64_MAX ? index + 1 : index, n_files);
    }
    r->geometry->n_files = n_files > 1 && n_files <= INT_MAX ? (int)n_files : 1;
    return TKV_OK;
}

/* By the embedding, or, if that is in another file, the metadata. */
static int vocabulary_size(reader *r)
{
    const tkv_gguf_tensor *embedding = tkv_gguf_find_tensor(r->gguf, "token_embd.weight");
    const tkv_gguf_value *tokens = tkv_gguf_find(r->gguf, "tokenizer.ggml.tokens");
    const uint64_t n_tokens = tokens ? tkv_gguf_array_length(tokens) : 0;
    const int stated =
        tkv_geometry_count(r, "vocab_size", 0, n_tokens <= INT_MAX ? (int)n_tokens : 0, INT_MAX);
    return embedding && embedding->dims[1] <= INT_MAX ? (int)embedding->dims[1] : stated;
}

/* What tells how the file is to be read. */
static tkv_status read_header(reader *r)
{
    tkv_geometry *g = r->geometry;
    tkv_gguf_text name = {0};
    tkv_model_config config;
    tkv_status status = read_split(r);
    if (status == TKV_OK) {
        status = tkv_gguf_get_text(r->gguf, "general.architecture", true, &name, r->error);
    }
    if (status != TKV_OK) {
        return status;
    }
    snprintf(g->architecture, sizeof g->architecture, "%.*s",
             name.length < 63 ? (int)name.length : 63, name.data);
    g->is_hosted = tkv_model_config_read(r->gguf, &config, NULL) == TKV_OK;
    g->file_bytes = tkv_gguf_file_bytes(r->gguf);
    return TKV_OK;
}

/* Heads of the first block that has any: an even share of the embedding is a head. */
static int first_heads(reader *r)
{
    const int fallback = tkv_geometry_never_attends(r) ? 0 : -1;
    int n_heads = 0;
    for (int i = 0; i < r->n_blocks && n_heads == 0 && r->status == TKV_OK; i++) {
        n_heads = tkv_geometry_count(r, "attention.head_count", i, fallback, MAX_HEADS);
    }
    return n_heads;
}

/* Counts of layers: blocks that the file has, those that draft, and loops over the others. */
static int read_depth(reader *r)
{
    const int n_blocks = tkv_geometry_count(r, "block_count", 0, -1, MAX_LAYERS);
    const int n_loops = tkv_geometry_count(r, "num_loops", 0, 1, MAX_LAYERS);
    const int n_drafting = tkv_geometry_is(r, "deepseek4")
                               ? 0 /* they keep their window's keys beside the others */
                               : tkv_geometry_count(r, "nextn_predict_layers", 0, 0, MAX_LAYERS);
    r->n_trunk = n_drafting < n_blocks ? n_blocks - n_drafting : n_blocks;
    r->n_blocks = n_loops > 1 ? r->n_trunk : n_blocks;
    const int n_layers = (n_loops > 1 ? n_loops : 1) * r->n_blocks + extra_layers(r);
    if (r->status == TKV_OK && (n_blocks < 1 || n_layers > MAX_LAYERS)) {
        r->status = tkv_fail(r->error, TKV_ERR_FORMAT,
                             "metadata key %s.block_count is %d, in %d loops: expected 1 to %d "
                             "layers",
                             r->geometry->architecture, n_blocks, n_loops, MAX_LAYERS);
    }
    return n_layers;
}

tkv_status tkv_geometry_read(const tkv_gguf *gguf, tkv_geometry *geometry, tkv_error *error)
{
    *geometry = (tkv_geometry){.n_layers = 0};
    reader r = {.gguf = gguf, .geometry = geometry, .error = error};
    r.status = read_header(&r);
    const int n_layers = read_depth(&r);
    if (r.status == TKV_OK) {
        r.embedding_length = tkv_geometry_count(&r, "embedding_length", 0, -1, MAX_WIDTH);
        r.n_heads = first_heads(&r);
        geometry->vocabulary_size = vocabulary_size(&r);
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
    TKV_TRY(allocate_layers(geometry, n_layers, error));
    for (int i = 0; i < n_layers; i++) {
        geometry->layers[i] = *layer;
    }
    return TKV_OK;
}

void tkv_geometry_free(tkv_geometry *geometry)
{
    free(geometry->layers);
    *geometry = (tkv_geometry){.n_layers = 0};
}
