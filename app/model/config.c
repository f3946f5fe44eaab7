#include "model/config.h"

#include "common/try.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_LAYERS 4096
#define MAX_HEADS 4096
#define MAX_WIDTH (1 << 20)
#define MAX_NUMBER 1e30
#define MAX_KEY 96
#define REQUIRED (-1)

typedef struct architecture {
    const char *name;
    tkv_rope_pairing rope_pairing;
    bool has_head_norms;
    /* As Gemma 3: a norm behind each block too, GELU, scaled embeddings, and a window with a RoPE
     * of its own in some of the layers. */
    bool is_gemma;
} architecture;

static const architecture architectures[] = {
    {"llama", TKV_ROPE_INTERLEAVED, false, false},
    {"qwen2", TKV_ROPE_HALF_SPLIT, false, false},
    {"qwen3", TKV_ROPE_HALF_SPLIT, true, false},
    {"gemma3", TKV_ROPE_HALF_SPLIT, true, true},
};

/* Gemma 3 27B, alone in that, scales its attention by the width a head has of the embedding. */
#define GEMMA_27B_LAYERS 62

/* Reads keys of one architecture. It keeps its first failure and then reads nothing more, so that
 * the status need be looked at only once. */
typedef struct reader {
    const tkv_gguf *gguf;
    const char *architecture;
    tkv_status status;
    tkv_error *error;
    char key[MAX_KEY]; /* the last one asked for */
} reader;

/* The value of "<architecture>.<name>", or NULL. */
static const tkv_gguf_value *find(reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->architecture, name);
    return r->status == TKV_OK ? tkv_gguf_find(r->gguf, r->key) : NULL;
}

/* An integer from 0 to max, or an array that repeats one. Absent: fallback, or an error if that is
 * REQUIRED. */
static int read_count(reader *r, const char *name, int fallback, int max)
{
    const tkv_gguf_value *value = find(r, name);
    if (!value) {
        if (fallback == REQUIRED && r->status == TKV_OK) {
            r->status = tkv_fail(r->error, TKV_ERR_FORMAT, "metadata key %s is missing", r->key);
        }
        return fallback;
    }
    int64_t count = 0;
    if (!tkv_gguf_integer(value, 0, &count)) {
        r->status =
            tkv_fail(r->error, TKV_ERR_FORMAT,
                     "metadata key %s: expected an integer, found %s%s of %" PRIu64 " elements",
                     r->key, value->is_array ? "an array of " : "", tkv_gguf_type_name(value->type),
                     tkv_gguf_array_length(value));
        return fallback;
    }
    if (count < 0 || count > max) {
        r->status =
            tkv_fail(r->error, TKV_ERR_FORMAT, "metadata key %s is %" PRId64 ": expected 0 to %d",
                     r->key, count, max);
        return fallback;
    }
    for (uint64_t i = 1; i < tkv_gguf_array_length(value); i++) {
        int64_t other = 0;
        if (!tkv_gguf_integer(value, i, &other) || other != count) {
            r->status = tkv_fail(r->error, TKV_ERR_UNSUPPORTED,
                                 "metadata key %s varies between layers (%" PRId64 ", %" PRId64
                                 " at index %" PRIu64 "): only equal layers are supported",
                                 r->key, count, other, i);
            return fallback;
        }
    }
    return (int)count;
}

/* A number from min to MAX_NUMBER. */
static float read_number(reader *r, const char *name, bool required, double fallback, double min)
{
    double number = fallback;
    snprintf(r->key, sizeof r->key, "%s.%s", r->architecture, name);
    if (r->status == TKV_OK) {
        r->status = tkv_gguf_get_number(r->gguf, r->key, required, &number, r->error);
    }
    if (r->status == TKV_OK && !(number >= min && number <= MAX_NUMBER)) {
        r->status = tkv_fail(r->error, TKV_ERR_FORMAT,
                             "metadata key %s is %g: expected a number from %g to %g", r->key,
                             number, min, MAX_NUMBER);
    }
    return (float)number;
}

static void check(reader *r, bool is_right, tkv_status status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Keeps a failure with this message unless is_right. */
static void check(reader *r, bool is_right, tkv_status status, const char *format, ...)
{
    if (is_right || r->status != TKV_OK) {
        return;
    }
    char message[sizeof r->error->message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    r->status = tkv_fail(r->error, status, "%s", message);
}

static tkv_status find_architecture(const tkv_gguf *gguf, const architecture **found,
                                    tkv_error *error)
{
    tkv_gguf_text text = {0};
    TKV_TRY(tkv_gguf_get_text(gguf, "general.architecture", true, &text, error));
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (strlen(architectures[i].name) == text.length &&
            memcmp(architectures[i].name, text.data, text.length) == 0) {
            *found = &architectures[i];
            return TKV_OK;
        }
    }
    const int shown = text.length < 64 ? (int)text.length : 64;
    return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                    "the model's architecture is %.*s: supported are llama, qwen2, qwen3 and "
                    "gemma3 (dense models)",
                    shown, text.data);
}

static void read_layers(reader *r, tkv_model_config *config)
{
    config->n_layers = read_count(r, "block_count", REQUIRED, MAX_LAYERS);
    config->embedding_length = read_count(r, "embedding_length", REQUIRED, MAX_WIDTH);
    config->feed_forward_length = read_count(r, "feed_forward_length", REQUIRED, MAX_WIDTH);
    config->context_length = read_count(r, "context_length", REQUIRED, INT_MAX);
    config->rms_epsilon = read_number(r, "attention.layer_norm_rms_epsilon", true, 0.0, 0.0);
    const int n_experts = read_count(r, "expert_count", 0, MAX_WIDTH);
    check(r,
          config->n_layers > 0 && config->embedding_length > 0 && config->feed_forward_length > 0 &&
              config->context_length > 0,
          TKV_ERR_FORMAT,
          "%d layers of width %d, feed-forward length %d, context length %d: expected at least 1 "
          "of each",
          config->n_layers, config->embedding_length, config->feed_forward_length,
          config->context_length);
    check(r, n_experts == 0, TKV_ERR_UNSUPPORTED,
          "the model is a mixture of %d experts: supported are dense models", n_experts);
}

static void read_heads(reader *r, const architecture *found, tkv_model_config *config)
{
    config->n_heads = read_count(r, "attention.head_count", REQUIRED, MAX_HEADS);
    config->n_kv_heads = read_count(r, "attention.head_count_kv", config->n_heads, MAX_HEADS);
    check(r,
          config->n_heads > 0 && config->n_kv_heads > 0 &&
              config->n_heads % config->n_kv_heads == 0,
          TKV_ERR_FORMAT, "%d heads and %d KV heads: expected a multiple of at least 1 KV head",
          config->n_heads, config->n_kv_heads);
    const int head_dim = r->status == TKV_OK ? config->embedding_length / config->n_heads : 0;
    config->head_dim_k = read_count(r, "attention.key_length", head_dim, TKV_MAX_HEAD_DIM);
    config->head_dim_v = read_count(r, "attention.value_length", head_dim, TKV_MAX_HEAD_DIM);
    check(r, config->head_dim_k > 0 && config->head_dim_v > 0, TKV_ERR_FORMAT,
          "heads of %d key and %d value coordinates: expected at least 1", config->head_dim_k,
          config->head_dim_v);
    config->sliding_window = read_count(r, "attention.sliding_window", 0, INT_MAX);
    check(r,
          config->sliding_window == 0 || found->is_gemma ||
              !find(r, "attention.sliding_window_pattern"),
          TKV_ERR_UNSUPPORTED, "%s: a sliding window in some of the layers is not supported",
          r->key);
    check(r, read_count(r, "attention.causal", 1, 1) == 1, TKV_ERR_UNSUPPORTED,
          "%s is false: only causal models are supported", r->key);
}

static bool text_is(tkv_gguf_text text, const char *expected)
{
    return text.length == strlen(expected) && memcmp(text.data, expected, text.length) == 0;
}

/* "llama3" scaling comes as factors in the tensor rope_freqs.weight, so its other keys are not
 * needed. Without a type, a factor means "linear". */
static void read_rope_scaling(reader *r, tkv_model_config *config)
{
    const double old_factor = read_number(r, "rope.scale_linear", false, 0.0, 0.0);
    const float factor = read_number(r, "rope.scaling.factor", false, old_factor, 0.0);
    config->rope_attention_factor = read_number(r, "rope.scaling.attn_factor", false, 1.0, 1e-6);
    tkv_gguf_text type = {"linear", strlen("linear")};
    snprintf(r->key, sizeof r->key, "%s.rope.scaling.type", r->architecture);
    if (r->status == TKV_OK) {
        r->status = tkv_gguf_get_text(r->gguf, r->key, false, &type, r->error);
    }
    const bool has_factors = tkv_gguf_find_tensor(r->gguf, "rope_freqs.weight") != NULL;
    check(r,
          text_is(type, "none") || text_is(type, "linear") ||
              (text_is(type, "llama3") && has_factors),
          TKV_ERR_UNSUPPORTED,
          "%s is %.*s: supported are none, linear and llama3 with its tensor rope_freqs.weight",
          r->key, type.length < 64 ? (int)type.length : 64, type.data);
    const bool is_linear = text_is(type, "linear") && factor > 0.0f;
    config->rope_linear_factor = is_linear ? factor : 1.0f;
}

static void read_rope(reader *r, tkv_model_config *config)
{
    config->rope_dim = read_count(r, "rope.dimension_count", config->head_dim_k, MAX_WIDTH);
    check(r,
          config->rope_dim > 0 && config->rope_dim % 2 == 0 &&
              config->rope_dim <= config->head_dim_k,
          TKV_ERR_FORMAT, "%s is %d: expected an even number up to the head's %d", r->key,
          config->rope_dim, config->head_dim_k);
    config->rope_freq_base = read_number(r, "rope.freq_base", false, 10000.0, 1e-3);
    read_rope_scaling(r, config);
}

static void read_gemma(reader *r, tkv_model_config *config)
{
    const float softcap = read_number(r, "final_logit_softcapping", false, 0.0, 0.0);
    check(r, softcap == 0.0f, TKV_ERR_UNSUPPORTED, "%s is %g: a cap of the logits is not supported",
          r->key, (double)softcap);
    config->embedding_scale = sqrtf((float)config->embedding_length);
    if (config->n_layers == GEMMA_27B_LAYERS && r->status == TKV_OK) {
        config->attention_scale = 1.0f / sqrtf((float)(config->embedding_length / config->n_heads));
    }
    if (config->sliding_window > 0) {
        config->rope_local_freq_base = read_number(r, "rope.freq_base_swa", false, 10000.0, 1e-3);
    }
}

tkv_status tkv_model_config_read(const tkv_gguf *gguf, tkv_model_config *config, tkv_error *error)
{
    const architecture *found = NULL;
    tkv_status status = find_architecture(gguf, &found, error);
    if (status != TKV_OK) {
        return status;
    }
    *config = (tkv_model_config){.architecture = found->name,
                                 .rope_pairing = found->rope_pairing,
                                 .has_head_norms = found->has_head_norms,
                                 .has_post_norms = found->is_gemma,
                                 .activation =
                                     found->is_gemma ? TKV_ACTIVATION_GELU : TKV_ACTIVATION_SILU,
                                 .embedding_scale = 1.0f};
    reader r = {.gguf = gguf, .architecture = found->name, .status = TKV_OK, .error = error};
    read_layers(&r, config);
    read_heads(&r, found, config);
    read_rope(&r, config);
    if (found->is_gemma) {
        read_gemma(&r, config);
    }
    return r.status;
}
