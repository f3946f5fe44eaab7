/* Recurrent layers, and what layers keep beside keys and values. The sizes are those that llama.cpp
 * allocates; recurrent states are 32-bit floats. */
#include "model/geometry_reader.h"

#include <limits.h>
#include <string.h>

#define MAX_STATE_DIM (1 << 16)
#define MAX_KERNEL 1024

/* Which layers are recurrent where the file does not name them. */
typedef enum recurrence { RECURRENT_ALL, RECURRENT_BESIDE, RECURRENT_BUT_EVERY } recurrence;

typedef struct recurrent_architecture {
    const char *name;
    recurrence which;
    int interval; /* RECURRENT_BUT_EVERY: of so many layers, the last attends */
} recurrent_architecture;

static const recurrent_architecture known[] = {
    {"mamba", RECURRENT_ALL, 0},          {"mamba2", RECURRENT_ALL, 0},
    {"rwkv6", RECURRENT_ALL, 0},          {"rwkv6qwen2", RECURRENT_ALL, 0},
    {"rwkv7", RECURRENT_ALL, 0},          {"arwkv7", RECURRENT_ALL, 0},
    {"falcon-h1", RECURRENT_BESIDE, 0},   {"qwen3next", RECURRENT_BUT_EVERY, 4},
    {"qwen35", RECURRENT_BUT_EVERY, 4},   {"qwen35moe", RECURRENT_BUT_EVERY, 4},
    {"qwen4exp", RECURRENT_BUT_EVERY, 4}, {"minimax-01", RECURRENT_BUT_EVERY, 8},
};

static const recurrent_architecture *find_known(const tkv_geometry_reader *r)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (tkv_geometry_is(r, known[i].name)) {
            return &known[i];
        }
    }
    return NULL;
}

/* False for layers whose tensors are in this file and have no attention among them. A recurrent
 * layer may have the projection of all three at once too. */
static bool may_attend(tkv_geometry_reader *r, int layer)
{
    const bool has_keys = tkv_geometry_tensor(r, layer, "attn_k") ||
                          tkv_geometry_tensor(r, layer, "attn_kv") ||
                          tkv_geometry_tensor(r, layer, "attn_kv_a_mqa");
    const bool has_all = tkv_geometry_tensor(r, layer, "attn_qkv") != NULL;
    const bool is_recurrent =
        tkv_geometry_tensor(r, layer, "ssm_conv1d") || tkv_geometry_tensor(r, layer, "ssm_out");
    return has_keys || (has_all && !is_recurrent) || !tkv_geometry_tensor(r, layer, "attn_norm");
}

bool tkv_geometry_never_attends(const tkv_geometry_reader *r)
{
    const recurrent_architecture *found = find_known(r);
    return found && found->which == RECURRENT_ALL;
}

static bool lists(const tkv_gguf_value *value, int layer)
{
    for (uint64_t i = 0; i < tkv_gguf_array_length(value); i++) {
        int64_t listed = 0;
        if (tkv_gguf_integer(value, i, &listed) && listed == layer) {
            return true;
        }
    }
    return false;
}

/* Whether KV heads are given layer by layer, some with none: then these say which attend. */
static bool heads_tell(tkv_geometry_reader *r)
{
    const tkv_gguf_value *heads = tkv_geometry_find(r, "attention.head_count_kv");
    return heads && heads->is_array && lists(heads, 0);
}

bool tkv_geometry_is_recurrent(tkv_geometry_reader *r, int layer)
{
    const recurrent_architecture *found = find_known(r);
    if (found && found->which != RECURRENT_BUT_EVERY) {
        return found->which == RECURRENT_ALL;
    }
    if (tkv_geometry_find(r, "attention.recurrent_layers")) {
        return tkv_geometry_count(r, "attention.recurrent_layers", layer, 0, INT_MAX) != 0;
    }
    const tkv_gguf_value *attending = tkv_geometry_find(r, "attention.layer_indices");
    if (attending) {
        return !lists(attending, layer);
    }
    const int usual = found && !heads_tell(r) ? found->interval : 0;
    const int given =
        tkv_geometry_count(r, "full_attention_interval", layer, 0, TKV_GEOMETRY_MAX_LAYERS);
    const int interval = given > 0 ? given : usual;
    return (interval > 0 && (layer + 1) % interval != 0) || !may_attend(r, layer);
}

static uint64_t count(tkv_geometry_reader *r, const char *name, int fallback, int max)
{
    return (uint64_t)tkv_geometry_count(r, name, 0, fallback, max);
}

/* Floats of one layer's recurrent state, by the keys that describe it. */
static uint64_t state_floats(tkv_geometry_reader *r)
{
    const uint64_t width = (uint64_t)r->embedding_length;
    const uint64_t n_heads = (uint64_t)r->n_heads;
    const uint64_t kernel = count(r, "ssm.conv_kernel", 0, MAX_KERNEL);
    const uint64_t inner = count(r, "ssm.inner_size", 0, TKV_GEOMETRY_MAX_WIDTH);
    const uint64_t state = count(r, "ssm.state_size", 0, MAX_STATE_DIM);
    const uint64_t n_groups = count(r, "ssm.group_count", 0, TKV_GEOMETRY_MAX_HEADS);
    const uint64_t wkv = count(r, "wkv.head_size", 0, MAX_STATE_DIM);
    const uint64_t short_kernel = count(r, "shortconv.l_cache", 0, MAX_KERNEL);
    const uint64_t kda = count(r, "kda.head_dim", 0, MAX_STATE_DIM);
    if (wkv > 0) {
        return (count(r, "token_shift_count", 2, MAX_KERNEL) + wkv) * width;
    }
    if (short_kernel > 0) {
        return (short_kernel - 1) * width;
    }
    if (kda > 0) {
        return (3 * (kernel > 0 ? kernel - 1 : 3) + kda) * n_heads * kda;
    }
    if (tkv_geometry_is(r, "minimax-01")) {
        const uint64_t dim = count(r, "attention.key_length",
                                   r->n_heads ? (int)(width / n_heads) : 0, MAX_STATE_DIM);
        return dim * dim * n_heads;
    }
    return (kernel > 0 ? kernel - 1 : 0) * (inner + 2 * n_groups * state) + state * inner;
}

/* Without a feed-forward part, layers of Nemotron-H without KV heads are recurrent; the others are
 * that part only. */
static bool is_feed_forward(tkv_geometry_reader *r, int layer)
{
    return strncmp(r->geometry->architecture, "nemotron_h", 10) == 0 &&
           tkv_geometry_count(r, "feed_forward_length", layer, 0, TKV_GEOMETRY_MAX_WIDTH) > 0;
}

uint64_t tkv_geometry_state_bytes(tkv_geometry_reader *r, int layer, int n_kv_heads)
{
    const recurrent_architecture *found = find_known(r);
    const bool is_beside = found && found->which == RECURRENT_BESIDE;
    if (layer % r->n_blocks >= r->n_trunk || (n_kv_heads > 0 && !is_beside) ||
        is_feed_forward(r, layer)) {
        return 0;
    }
    return state_floats(r) * sizeof(float);
}

/* GLM-5.2, which its context tells from its forerunners, has an indexer of its own in these layers
 * only; the others take the tokens that the one before has chosen. */
static bool is_usual_in_glm(int context_length, int layer)
{
    return context_length < 1 << 20 || layer < 2 || layer % 4 == 2;
}

static bool has_indexer(tkv_geometry_reader *r, int layer)
{
    const bool is_glm = tkv_geometry_is(r, "glm-dsa");
    const int context = tkv_geometry_count(r, "context_length", 0, 0, INT_MAX);
    const int usual = !is_glm || is_usual_in_glm(context, layer);
    if (tkv_geometry_is(r, "minimax-m3")) {
        return layer >= tkv_geometry_count(r, "leading_dense_block_count", 0, 0, INT_MAX);
    }
    return tkv_geometry_count(r, "attention.indexer.types", layer, usual, INT_MAX) != 0;
}

/* DeepSeek-V4: every layer keeps the keys of a window, and by its ratio one key for so many tokens
 * of all; with the lower ratio, these are chosen by an indexer. */
static void read_compressed(tkv_geometry_reader *r, int layer, int indexer_width,
                            tkv_geometry_layer *result)
{
    enum { INDEXED_RATIO = 4, PLAIN_RATIO = 128 };
    const int ratio =
        tkv_geometry_count(r, "attention.compress_ratios", layer, 0, TKV_GEOMETRY_MAX_WIDTH);
    const uint64_t width = (uint64_t)result->head_dim_k;
    result->head_dim_v = 0;
    if (ratio != INDEXED_RATIO && ratio != PLAIN_RATIO) {
        return;
    }
    result->compressed = (tkv_geometry_rows){result->head_dim_k, ratio};
    /* Sums and weights of the tokens that make the next row; twice as many where rows overlap. */
    uint64_t floats = 2 * width * PLAIN_RATIO;
    if (ratio == INDEXED_RATIO) {
        result->indexer = (tkv_geometry_rows){indexer_width, ratio};
        floats = 2 * 2 * (width + (uint64_t)indexer_width) * 2 * INDEXED_RATIO;
    }
    result->state_bytes = floats * sizeof(float);
}

void tkv_geometry_read_rows(tkv_geometry_reader *r, int layer, tkv_geometry_layer *result)
{
    const int width =
        tkv_geometry_count(r, "attention.indexer.key_length", layer, 0, TKV_GEOMETRY_MAX_WIDTH);
    if (tkv_geometry_is(r, "deepseek4")) {
        read_compressed(r, layer, width, result);
        return;
    }
    const bool is_used = tkv_geometry_count(r, "attention.indexer.top_k", layer, 1, INT_MAX) > 0;
    if (width > 0 && is_used && has_indexer(r, layer)) {
        /* With pooled keys, a key, its gate and the pooled one. */
        const bool is_pooled =
            tkv_geometry_count(r, "attention.indexer.kpool", layer, 0, INT_MAX) > 0;
        result->indexer = (tkv_geometry_rows){is_pooled ? 3 * width : width, 1};
    }
}
