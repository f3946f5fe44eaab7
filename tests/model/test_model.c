/* Loading models: what a file must have, and the error that each wrong file gives. */
#include "support/support.h"

#include <unistd.h>

#include "model/config.h"
#include "model/gguf.h"
#include "model/model.h"
#include "model/toy_model.h"

#define SEED 7u

static const toy_shape shape = {
    .architecture = "llama",
    .n_layers = 2,
    .embedding_length = 64,
    .feed_forward_length = 96,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim_k = 48,
    .head_dim_v = 32,
    .vocabulary_size = 50,
    .rope_dim = 32,
    .rope_freq_base = 10000.0f,
    .has_output = true,
};

/* Writes and loads the model, which it clears. *model is NULL on failure. */
static tkv_status load_toy(toy_model *toy, tkv_gguf **gguf, tkv_model **model, tkv_error *error)
{
    char path[] = "/tmp/tkv_test_model_XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    toy_model_write(toy, path);
    toy_model_clear(toy);
    *gguf = NULL;
    *model = NULL;
    tkv_status status = tkv_gguf_open(path, gguf, error);
    unlink(path);
    if (status == TKV_OK) {
        status = tkv_model_create(*gguf, model, error);
    }
    return status;
}

static void expect_failure(toy_model *toy, tkv_status status, const char *message)
{
    tkv_gguf *gguf = NULL;
    tkv_model *model = NULL;
    tkv_error error = {0};
    const tkv_status found = load_toy(toy, &gguf, &model, &error);
    if (found != status || !strstr(error.message, message)) {
        fail_msg("expected '%s' with '%s', found '%s': %s", tkv_status_name(status), message,
                 tkv_status_name(found), error.message);
    }
    assert_null(model);
    tkv_gguf_close(gguf);
}

static void expect_success(toy_model *toy, void (*check)(const tkv_model_config *config))
{
    tkv_gguf *gguf = NULL;
    tkv_model *model = NULL;
    tkv_error error = {0};
    if (load_toy(toy, &gguf, &model, &error) != TKV_OK) {
        fail_msg("%s", error.message);
    }
    if (check) {
        check(tkv_model_get_config(model));
    }
    tkv_model_free(model);
    tkv_gguf_close(gguf);
}

static toy_model new_toy(void)
{
    toy_model toy;
    toy_model_init(&toy, &shape, SEED);
    return toy;
}

/* ---- What is read -------------------------------------------------------------------------- */

static void check_shape(const tkv_model_config *config)
{
    assert_string_equal(config->architecture, "llama");
    assert_int_equal(config->n_layers, 2);
    assert_int_equal(config->embedding_length, 64);
    assert_int_equal(config->feed_forward_length, 96);
    assert_int_equal(config->n_heads, 4);
    assert_int_equal(config->n_kv_heads, 2);
    assert_int_equal(config->head_dim_k, 48);
    assert_int_equal(config->head_dim_v, 32);
    assert_int_equal(config->vocabulary_size, 50);
    assert_int_equal(config->context_length, 512);
    assert_int_equal(config->sliding_window, 0);
    assert_int_equal(config->rope_pairing, TKV_ROPE_INTERLEAVED);
    assert_int_equal(config->rope_dim, 32);
    assert_float_equal(config->rope_freq_base, 10000.0f, 0.0f);
    assert_float_equal(config->rope_linear_factor, 1.0f, 0.0f);
    assert_float_equal(config->rope_attention_factor, 1.0f, 0.0f);
    assert_float_equal(config->rms_epsilon, TOY_RMS_EPSILON, 0.0f);
}

static void test_config(void **state)
{
    (void)state;
    toy_model toy = new_toy();
    expect_success(&toy, check_shape);
}

static void check_defaults(const tkv_model_config *config)
{
    assert_int_equal(config->n_kv_heads, 4);
    assert_int_equal(config->head_dim_k, 16);
    assert_int_equal(config->head_dim_v, 16);
    assert_int_equal(config->rope_dim, 16);
    assert_float_equal(config->rope_freq_base, 10000.0f, 0.0f);
}

static void test_defaults(void **state)
{
    (void)state;
    toy_shape plain = shape;
    plain.n_kv_heads = plain.n_heads;
    plain.head_dim_k = plain.head_dim_v = plain.rope_dim = plain.embedding_length / plain.n_heads;
    toy_model toy;
    toy_model_init(&toy, &plain, SEED);
    toy_model_remove_key(&toy, "llama.attention.head_count_kv");
    toy_model_remove_key(&toy, "llama.attention.key_length");
    toy_model_remove_key(&toy, "llama.attention.value_length");
    toy_model_remove_key(&toy, "llama.rope.dimension_count");
    toy_model_remove_key(&toy, "llama.rope.freq_base");
    expect_success(&toy, check_defaults);
}

static void check_scaled(const tkv_model_config *config)
{
    assert_float_equal(config->rope_linear_factor, 8.0f, 0.0f);
}

static void check_not_scaled(const tkv_model_config *config)
{
    assert_float_equal(config->rope_linear_factor, 1.0f, 0.0f);
}

static void test_rope_scaling(void **state)
{
    (void)state;
    const toy_metadata factor = {
        .key = "llama.rope.scaling.factor", .kind = TOY_NUMBER, .number = 8.0};
    const toy_metadata old_factor = {
        .key = "llama.rope.scale_linear", .kind = TOY_NUMBER, .number = 8.0};
    toy_metadata type = {.key = "llama.rope.scaling.type", .kind = TOY_TEXT, .text = "linear"};
    toy_model toy = new_toy();
    toy_model_set(&toy, &factor);
    expect_success(&toy, check_scaled);
    toy = new_toy();
    toy_model_set(&toy, &old_factor);
    toy_model_set(&toy, &type);
    expect_success(&toy, check_scaled);
    toy = new_toy();
    type.text = "none";
    toy_model_set(&toy, &factor);
    toy_model_set(&toy, &type);
    expect_success(&toy, check_not_scaled);

    type.text = "llama3";
    toy = new_toy();
    toy_model_set(&toy, &type);
    expect_failure(&toy, TKV_ERR_UNSUPPORTED, "rope_freqs.weight");
    toy_shape with_factors = shape;
    with_factors.has_rope_factors = true;
    toy_model_init(&toy, &with_factors, SEED);
    toy_model_set(&toy, &factor);
    toy_model_set(&toy, &type);
    expect_success(&toy, check_not_scaled);
}

static void test_rope_factors_are_positive(void **state)
{
    (void)state;
    const float wrong[] = {0.0f, -1.0f, NAN, INFINITY};
    toy_shape with_factors = shape;
    with_factors.has_rope_factors = true;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        toy_model toy;
        toy_model_init(&toy, &with_factors, SEED);
        toy_model_find(&toy, "rope_freqs.weight")->values[3] = wrong[i];
        expect_failure(&toy, TKV_ERR_FORMAT, "rope_freqs.weight: factor 3");
    }
}

static void test_values_per_layer(void **state)
{
    (void)state;
    toy_metadata heads = {.key = "llama.attention.head_count_kv",
                          .kind = TOY_INTEGERS,
                          .integers = {2, 2},
                          .n_integers = 2};
    toy_model toy = new_toy();
    toy_model_set(&toy, &heads);
    expect_success(&toy, check_shape);
    toy = new_toy();
    heads.integers[1] = 4;
    toy_model_set(&toy, &heads);
    expect_failure(&toy, TKV_ERR_UNSUPPORTED, "llama.attention.head_count_kv varies");
    toy = new_toy();
    heads.n_integers = 0;
    toy_model_set(&toy, &heads);
    expect_failure(&toy, TKV_ERR_FORMAT, "llama.attention.head_count_kv");
}

/* ---- Wrong metadata ------------------------------------------------------------------------ */

typedef struct wrong_value {
    toy_metadata metadata;
    tkv_status status;
    const char *message;
} wrong_value;

#define INTEGER(name, value)                                                                       \
    {                                                                                              \
        .key = name, .kind = TOY_INTEGER, .integer = value                                         \
    }
#define NUMBER(name, value)                                                                        \
    {                                                                                              \
        .key = name, .kind = TOY_NUMBER, .number = value                                           \
    }
#define TEXT(name, value)                                                                          \
    {                                                                                              \
        .key = name, .kind = TOY_TEXT, .text = value                                               \
    }

static const wrong_value wrong_values[] = {
    {TEXT("general.architecture", "mamba"), TKV_ERR_UNSUPPORTED, "mamba: supported are llama"},
    {TEXT("general.architecture", "qwen3moe"), TKV_ERR_UNSUPPORTED, "qwen3moe: supported are"},
    {TEXT("general.architecture", "llam"), TKV_ERR_UNSUPPORTED, "llam: supported are"},
    {INTEGER("general.architecture", 1), TKV_ERR_FORMAT, "general.architecture"},
    {INTEGER("llama.expert_count", 8), TKV_ERR_UNSUPPORTED, "mixture of 8 experts"},
    {INTEGER("llama.block_count", 0), TKV_ERR_FORMAT, "0 layers"},
    {INTEGER("llama.block_count", -2), TKV_ERR_FORMAT, "llama.block_count is -2"},
    {INTEGER("llama.block_count", 3), TKV_ERR_FORMAT, "blk.2.attn_norm.weight is missing"},
    {INTEGER("llama.block_count", INT64_MAX), TKV_ERR_FORMAT, "llama.block_count"},
    {TEXT("llama.block_count", "two"), TKV_ERR_FORMAT, "expected an integer, found string"},
    {INTEGER("llama.embedding_length", 0), TKV_ERR_FORMAT, "width 0"},
    {INTEGER("llama.embedding_length", 65), TKV_ERR_FORMAT, "token_embd.weight"},
    {INTEGER("llama.feed_forward_length", 0), TKV_ERR_FORMAT, "feed-forward length 0"},
    {INTEGER("llama.context_length", 0), TKV_ERR_FORMAT, "context length 0"},
    {INTEGER("llama.attention.head_count", 0), TKV_ERR_FORMAT, "0 heads"},
    {INTEGER("llama.attention.head_count", 3), TKV_ERR_FORMAT, "3 heads and 2 KV heads"},
    {INTEGER("llama.attention.head_count_kv", 0), TKV_ERR_FORMAT, "4 heads and 0 KV heads"},
    {INTEGER("llama.attention.key_length", 0), TKV_ERR_FORMAT, "heads of 0 key"},
    {INTEGER("llama.attention.value_length", 0), TKV_ERR_FORMAT, "0 value"},
    {INTEGER("llama.attention.key_length", 100000), TKV_ERR_FORMAT, "attention.key_length"},
    {NUMBER("llama.attention.layer_norm_rms_epsilon", -1.0), TKV_ERR_FORMAT, "rms_epsilon"},
    {NUMBER("llama.attention.layer_norm_rms_epsilon", NAN), TKV_ERR_FORMAT, "rms_epsilon"},
    {NUMBER("llama.attention.layer_norm_rms_epsilon", 1e31), TKV_ERR_FORMAT, "from 0 to 1e+30"},
    {{.key = "llama.attention.causal", .kind = TOY_BOOL}, TKV_ERR_UNSUPPORTED, "only causal"},
    {INTEGER("llama.attention.sliding_window", -1), TKV_ERR_FORMAT, "sliding_window"},
    {INTEGER("llama.rope.dimension_count", 31), TKV_ERR_FORMAT, "dimension_count is 31"},
    {INTEGER("llama.rope.dimension_count", 0), TKV_ERR_FORMAT, "dimension_count is 0"},
    {INTEGER("llama.rope.dimension_count", 50), TKV_ERR_FORMAT, "up to the head's 48"},
    {NUMBER("llama.rope.freq_base", 0.0), TKV_ERR_FORMAT, "rope.freq_base"},
    {NUMBER("llama.rope.freq_base", INFINITY), TKV_ERR_FORMAT, "rope.freq_base"},
    {TEXT("llama.rope.freq_base", "10000"), TKV_ERR_FORMAT, "rope.freq_base"},
    {NUMBER("llama.rope.scaling.factor", -4.0), TKV_ERR_FORMAT, "rope.scaling.factor"},
    {NUMBER("llama.rope.scaling.attn_factor", 0.0), TKV_ERR_FORMAT, "rope.scaling.attn_factor"},
    {TEXT("llama.rope.scaling.type", "yarn"), TKV_ERR_UNSUPPORTED, "rope.scaling.type is yarn"},
};

static void test_wrong_metadata(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrong_values / sizeof *wrong_values; i++) {
        toy_model toy = new_toy();
        toy_model_set(&toy, &wrong_values[i].metadata);
        expect_failure(&toy, wrong_values[i].status, wrong_values[i].message);
    }
}

static void test_missing_metadata(void **state)
{
    (void)state;
    const char *required[] = {"general.architecture",
                              "llama.block_count",
                              "llama.embedding_length",
                              "llama.feed_forward_length",
                              "llama.context_length",
                              "llama.attention.head_count",
                              "llama.attention.layer_norm_rms_epsilon"};
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        toy_model toy = new_toy();
        toy_model_remove_key(&toy, required[i]);
        expect_failure(&toy, TKV_ERR_FORMAT, required[i]);
    }
}

static void test_window_of_some_layers(void **state)
{
    (void)state;
    toy_model toy = new_toy();
    toy_model_set(&toy, &(toy_metadata)INTEGER("llama.attention.sliding_window", 16));
    toy_model_set(&toy, &(toy_metadata)INTEGER("llama.attention.sliding_window_pattern", 2));
    expect_failure(&toy, TKV_ERR_UNSUPPORTED, "sliding window in some of the layers");
}

static toy_model new_gemma3(void)
{
    toy_shape gemma3 = shape;
    gemma3.architecture = "gemma3";
    gemma3.n_layers = 7;
    gemma3.sliding_window = 16;
    gemma3.has_query_key_norms = true;
    gemma3.is_gemma = true;
    toy_model toy;
    toy_model_init(&toy, &gemma3, SEED);
    return toy;
}

/* The pattern and the local base need not be in the file. */
static void test_gemma3(void **state)
{
    (void)state;
    toy_model toy = new_gemma3();
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_error error = {0};
    assert_int_equal(load_toy(&toy, &gguf, &model, &error), TKV_OK);
    const tkv_model_config *config = tkv_model_get_config(model);
    assert_true(config->has_head_norms && config->has_post_norms);
    assert_int_equal(config->activation, TKV_ACTIVATION_GELU);
    assert_float_equal(config->embedding_scale, 8.0f, 0.0f);
    assert_float_equal(config->attention_scale, 0.0f, 0.0f);
    assert_float_equal(config->rope_local_freq_base, 10000.0f, 0.0f);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(tkv_model_window(model, i), i == 5 ? 0 : 16);
    }
    tkv_model_free(model);
    tkv_gguf_close(gguf);
}

/* The model of 62 layers scales by its embedding's 64 / 4 heads, not by head_dim 48. */
static void test_gemma3_27b_scales_by_its_width(void **state)
{
    (void)state;
    toy_model toy = new_gemma3();
    toy_model_set(&toy, &(toy_metadata)INTEGER("gemma3.block_count", 62));
    char path[] = "/tmp/tkv_test_model_XXXXXX";
    close(mkstemp(path));
    toy_model_write(&toy, path);
    toy_model_clear(&toy);
    tkv_gguf *gguf = NULL;
    tkv_model_config config;
    tkv_error error = {0};
    assert_int_equal(tkv_gguf_open(path, &gguf, &error), TKV_OK);
    unlink(path);
    assert_int_equal(tkv_model_config_read(gguf, &config, &error), TKV_OK);
    assert_float_equal(config.attention_scale, 0.25f, 0.0f);
    tkv_gguf_close(gguf);
}

static void test_gemma3_wants_all_of_it(void **state)
{
    (void)state;
    const char *const required[] = {"attn_q_norm", "attn_k_norm", "post_attention_norm",
                                    "post_ffw_norm"};
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.3.%s.weight", required[i]);
        toy_model toy = new_gemma3();
        toy_model_remove_tensor(&toy, name);
        expect_failure(&toy, TKV_ERR_FORMAT, name);
    }
    toy_model toy = new_gemma3();
    toy_model_set(&toy, &(toy_metadata)INTEGER("gemma3.final_logit_softcapping", 30));
    expect_failure(&toy, TKV_ERR_UNSUPPORTED, "final_logit_softcapping");
}

/* ---- Wrong tensors ------------------------------------------------------------------------- */

/* Every tensor in turn is one row or column too long, too short, or missing. */
static void test_wrong_tensors(void **state)
{
    (void)state;
    toy_model toy = new_toy();
    const size_t n_tensors = toy.n_tensors;
    toy_model_clear(&toy);
    for (size_t i = 0; i < n_tensors; i++) {
        for (int kind = 0; kind < 3; kind++) {
            toy = new_toy();
            toy_tensor *tensor = &toy.tensors[i];
            char name[64];
            memcpy(name, tensor->name, sizeof name);
            const bool is_embedding = strcmp(name, "token_embd.weight") == 0;
            if (kind == 2) {
                toy_model_remove_tensor(&toy, name);
                if (strcmp(name, "output.weight") == 0) {
                    expect_success(&toy, NULL);
                    continue;
                }
            } else if (kind == 1 && tensor->n_dims == 2) {
                tensor->dims[1]--;
            } else {
                tensor->dims[0]--;
            }
            /* One row less of the embedding is a smaller vocabulary, which then does not fit the
             * output. */
            expect_failure(&toy, TKV_ERR_FORMAT,
                           is_embedding && kind == 1 ? "output.weight" : name);
        }
    }
}

static void test_missing_head_norms(void **state)
{
    (void)state;
    toy_shape qwen3 = shape;
    qwen3.architecture = "qwen3";
    toy_model toy;
    toy_model_init(&toy, &qwen3, SEED);
    expect_failure(&toy, TKV_ERR_FORMAT, "blk.0.attn_q_norm.weight is missing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_rope_factors_are_positive),
        cmocka_unit_test(test_values_per_layer),
        cmocka_unit_test(test_wrong_metadata),
        cmocka_unit_test(test_missing_metadata),
        cmocka_unit_test(test_window_of_some_layers),
        cmocka_unit_test(test_gemma3),
        cmocka_unit_test(test_gemma3_27b_scales_by_its_width),
        cmocka_unit_test(test_gemma3_wants_all_of_it),
        cmocka_unit_test(test_wrong_tensors),
        cmocka_unit_test(test_missing_head_norms),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
