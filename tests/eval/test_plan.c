/* Plans against real caches and sessions, and the geometry of models of many kinds. */
#include "eval/plan.h"

#include "cache/cache.h"
#include "model/session.h"
#include "model/toy_model.h"
#include "support/support.h"

#include <unistd.h>

#define TINY TKV_SOURCE_DIR "/models/tiny-q8_0.gguf"

static const toy_shape shape = {.architecture = "llama",
                                .n_layers = 4,
                                .embedding_length = 64,
                                .feed_forward_length = 96,
                                .n_heads = 4,
                                .n_kv_heads = 2,
                                .head_dim_k = 48,
                                .head_dim_v = 32,
                                .vocabulary_size = 40,
                                .rope_dim = 32,
                                .rope_freq_base = 10000.0f};

/* Bytes of a real cache of this geometry after n_tokens, appended `step` at a time. */
static size_t measure(tkv_context *context, const tkv_geometry *g, const tkv_policy *policy,
                      int n_tokens, int step)
{
    const tkv_geometry_layer *l = &g->layers[0];
    tkv_type types[2][8];
    tkv_cache *cache = NULL;
    assert_true(g->n_layers <= 8);
    assert_ok(tkv_policy_layer_types(policy, g->n_layers, types[0], types[1], &error));
    const tkv_cache_params params = {.n_layers = g->n_layers,
                                     .n_kv_heads = l->n_kv_heads,
                                     .head_dim_k = l->head_dim_k,
                                     .head_dim_v = l->head_dim_v,
                                     .max_tokens = n_tokens,
                                     .types_k = types[0],
                                     .types_v = types[1],
                                     .n_sinks = policy->n_sinks,
                                     .n_recent = policy->n_recent,
                                     .centre_tokens = policy->centre_tokens};
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    const size_t n = (size_t)step * (size_t)l->n_kv_heads * 576;
    float *x = allocate(n * sizeof *x);
    uint64_t seed = 5;
    fill_gauss(&seed, n, x);
    for (int done = 0; done < n_tokens; done += step) {
        const int n_now = n_tokens - done < step ? n_tokens - done : step;
        for (int i = 0; i < g->n_layers; i++) {
            assert_ok(tkv_cache_append(cache, i, n_now, x, x, &error));
        }
    }
    const size_t bytes = tkv_cache_bytes(cache);
    free(x);
    tkv_cache_free(cache);
    return bytes;
}

static void assert_near(const tkv_plan_params *params, const tkv_policy *policy,
                        tkv_context *context, int n_tokens, int step)
{
    uint64_t planned = 0;
    assert_ok(tkv_plan_series(params, policy, 1, &n_tokens, &planned, &error));
    const double measured = (double)measure(context, params->geometry, policy, n_tokens, step);
    if (fabs((double)planned - measured) > 0.05 * measured) {
        fail_msg("%d tokens, K %s: planned %llu bytes, measured %.0f", n_tokens,
                 tkv_type_get_info(policy->type_k)->name, (unsigned long long)planned, measured);
    }
}

static void figures_are_those_of_real_caches(void **state)
{
    (void)state;
    const tkv_geometry_layer layers[] = {{2, 128, 128, 0}, {1, 80, 80, 0}, {3, 192, 128, 0}};
    const int contexts[] = {700, 1024, 1500};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error));
    for (int s = 0; s < 3; s++) {
        tkv_geometry g;
        assert_ok(tkv_geometry_uniform(3, &layers[s], &g, &error));
        const tkv_plan_params params = {.geometry = &g, .keeps_all = true};
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            const tkv_policy plain = {.type_k = (tkv_type)type,
                                      .type_v = (tkv_type)((type + 1) % TKV_TYPE_COUNT)};
            assert_near(&params, &plain, context, contexts[type % 3], 500);
        }
        const char *name;
        for (int i = 0; (name = tkv_policy_preset_name(i)); i++) {
            tkv_policy preset;
            assert_ok(tkv_policy_preset(name, &preset, &error));
            assert_near(&params, &preset, context, contexts[i % 3], 1);
        }
        tkv_geometry_free(&g);
    }
    tkv_context_free(context);
}

static void workspace_is_that_of_a_session(void **state)
{
    (void)state;
    tkv_gguf *gguf = NULL;
    tkv_model *model = NULL;
    tkv_context *context = NULL;
    tkv_session *session = NULL;
    tkv_geometry g;
    assert_ok(tkv_gguf_open(TINY, &gguf, &error));
    assert_ok(tkv_geometry_read(gguf, &g, &error));
    assert_ok(tkv_model_create(gguf, &model, &error));
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error));
    const tkv_session_params params = {.max_tokens = 4096};
    assert_ok(tkv_session_create(model, context, &params, &session, &error));
    const tkv_model_config *config = tkv_model_get_config(model);
    assert_int_equal(g.n_layers, config->n_layers);
    assert_int_equal(g.context_length, config->context_length);
    assert_true(g.is_hosted);
    for (int i = 0; i < g.n_layers; i++) {
        assert_int_equal(g.layers[i].n_kv_heads, config->n_kv_heads);
        assert_int_equal(g.layers[i].head_dim_k, config->head_dim_k);
        assert_int_equal(g.layers[i].head_dim_v, config->head_dim_v);
    }
    const double measured = (double)tkv_session_workspace_bytes(session) +
                            sizeof(float) * (double)config->vocabulary_size;
    const double planned = (double)tkv_plan_workspace_bytes(&g, TKV_DEFAULT_BATCH);
    assert_true(fabs(planned - measured) < 0.01 * measured);
    tkv_geometry_free(&g);
    tkv_session_free(session);
    tkv_context_free(context);
    tkv_model_free(model);
    tkv_gguf_close(gguf);
}

static void write_and_read(toy_model *toy, tkv_geometry *geometry, tkv_status expected,
                           const char *part)
{
    char path[] = "/tmp/tkv-plan-XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    toy_model_write(toy, path);
    tkv_gguf *gguf = NULL;
    tkv_error error = {TKV_OK, ""};
    assert_int_equal(tkv_gguf_open(path, &gguf, NULL), TKV_OK);
    assert_int_equal(tkv_geometry_read(gguf, geometry, &error), expected);
    if (part && !strstr(error.message, part)) {
        fail_msg("message '%s' lacks '%s'", error.message, part);
    }
    tkv_gguf_close(gguf);
    unlink(path);
}

static void set(toy_model *toy, const char *key, int n, const int32_t *values)
{
    toy_metadata metadata = {.kind = n > 1 ? TOY_INTEGERS : TOY_INTEGER, .integer = values[0]};
    metadata.n_integers = n;
    memcpy(metadata.integers, values, (size_t)n * sizeof *values);
    snprintf(metadata.key, sizeof metadata.key, "%s.%s", toy->shape.architecture, key);
    toy_model_set(toy, &metadata);
}

#define set_values(toy, key, ...)                                                                  \
    set(toy, key, (int)(sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)), (int32_t[]){__VA_ARGS__})

/* A toy that calls itself another architecture. */
static toy_model foreign(const char *architecture)
{
    toy_model toy;
    toy_shape other = shape;
    other.architecture = architecture;
    toy_model_init(&toy, &other, 1);
    return toy;
}

static void hybrids_keep_attention_layers_only(void **state)
{
    (void)state;
    tkv_geometry g;
    toy_model toy = foreign("qwen3next");
    set_values(&toy, "full_attention_interval", 2);
    write_and_read(&toy, &g, TKV_OK, NULL);
    const int by_interval[] = {0, 2, 0, 2};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(g.layers[i].n_kv_heads, by_interval[i]);
    }
    assert_int_equal(g.layers[1].head_dim_k, 48);
    assert_int_equal(g.layers[1].head_dim_v, 32);
    assert_false(g.is_hosted);
    tkv_geometry_free(&g);
    toy_model_clear(&toy);

    toy = foreign("jamba");
    set_values(&toy, "attention.head_count_kv", 2, 0, 0, 2);
    toy_model_remove_tensor(&toy, "blk.3.attn_k.weight");
    write_and_read(&toy, &g, TKV_OK, NULL);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(g.layers[i].n_kv_heads, i == 0 ? 2 : 0);
    }
    tkv_geometry_free(&g);
    toy_model_clear(&toy);

    toy = foreign("gemma4");
    set_values(&toy, "attention.shared_kv_layers", 1);
    set_values(&toy, "attention.head_count_kv", 2, 1, 2, 1);
    write_and_read(&toy, &g, TKV_OK, NULL);
    assert_int_equal(g.layers[2].n_kv_heads, 2);
    assert_int_equal(g.layers[3].n_kv_heads, 0);
    /* One head with the two heads' rows: the tensor knows. */
    assert_int_equal(g.layers[1].head_dim_k, 96);
    tkv_geometry_free(&g);
    toy_model_clear(&toy);
}

static void windows_are_found(void **state)
{
    (void)state;
    tkv_geometry g;
    toy_model toy = foreign("gpt-oss");
    set_values(&toy, "attention.sliding_window", 128);
    write_and_read(&toy, &g, TKV_OK, NULL);
    const int known[] = {128, 0, 128, 0};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(g.layers[i].window, known[i]);
    }
    const tkv_policy f16 = {.type_k = TKV_TYPE_F16};
    tkv_plan_params params = {.geometry = &g};
    const int contexts[] = {128, 8192};
    uint64_t dropped[2];
    uint64_t kept[2];
    assert_ok(tkv_plan_series(&params, &f16, 2, contexts, dropped, &error));
    params.keeps_all = true;
    assert_ok(tkv_plan_series(&params, &f16, 2, contexts, kept, &error));
    assert_true(dropped[0] == kept[0]);
    assert_true((double)dropped[1] < 0.55 * (double)kept[1]);
    assert_true((double)dropped[1] > 0.5 * (double)kept[1]);
    tkv_geometry_free(&g);

    set_values(&toy, "attention.sliding_window_pattern", 0, 1, 1, 1);
    write_and_read(&toy, &g, TKV_OK, NULL);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(g.layers[i].window, i > 0 ? 128 : 0);
    }
    tkv_geometry_free(&g);
    toy_model_clear(&toy);

    toy = foreign("llama");
    set_values(&toy, "attention.sliding_window", 64);
    write_and_read(&toy, &g, TKV_OK, NULL);
    assert_true(g.is_hosted);
    assert_int_equal(g.layers[3].window, 64);
    tkv_geometry_free(&g);
    toy_model_clear(&toy);
}

static void latent_attention_keeps_keys_only(void **state)
{
    (void)state;
    tkv_geometry g;
    toy_model toy = foreign("deepseek2");
    set_values(&toy, "attention.head_count_kv", 1);
    set_values(&toy, "attention.key_length", 576);
    set_values(&toy, "attention.value_length", 512);
    set_values(&toy, "attention.key_length_mla", 192);
    write_and_read(&toy, &g, TKV_OK, NULL);
    assert_int_equal(g.layers[0].n_kv_heads, 1);
    assert_int_equal(g.layers[0].head_dim_k, 576);
    assert_int_equal(g.layers[0].head_dim_v, 0);
    const tkv_plan_params params = {.geometry = &g};
    const tkv_policy turbo4 = {.type_k = TKV_TYPE_TURBO4, .type_v = TKV_TYPE_TURBO4};
    const int n_tokens = 4096;
    uint64_t bytes = 0;
    assert_ok(tkv_plan_series(&params, &turbo4, 1, &n_tokens, &bytes, &error));
    const double rows = 4.0 * 4096 * (double)tkv_row_bytes(TKV_TYPE_TURBO4, 576);
    assert_true((double)bytes > rows && (double)bytes < 1.02 * rows);
    tkv_geometry_free(&g);
    toy_model_clear(&toy);
}

static void wrong_models_are_refused(void **state)
{
    (void)state;
    tkv_geometry g;
    toy_model toy = foreign("strange");
    set_values(&toy, "attention.head_count_kv", 2, 2);
    write_and_read(&toy, &g, TKV_ERR_FORMAT, "strange.attention.head_count_kv, layer 2");
    tkv_geometry_free(&g);
    set_values(&toy, "block_count", 0);
    write_and_read(&toy, &g, TKV_ERR_FORMAT, "block_count is 0");
    tkv_geometry_free(&g);
    toy_model_remove_key(&toy, "strange.block_count");
    write_and_read(&toy, &g, TKV_ERR_FORMAT, "strange.block_count is missing");
    tkv_geometry_free(&g);
    toy_model_clear(&toy);

    const tkv_geometry_layer odd = {1, 41, 41, 0};
    assert_ok(tkv_geometry_uniform(2, &odd, &g, &error));
    const tkv_plan_params params = {.geometry = &g};
    const tkv_policy f16 = {.type_k = TKV_TYPE_F16};
    int n_tokens = 100;
    uint64_t bytes;
    assert_fails(tkv_plan_series(&params, &f16, 1, &n_tokens, &bytes, &error), TKV_ERR_UNSUPPORTED,
                 "layer 0: head_dim 41");
    assert_fails(tkv_plan_longest(&params, &f16, &n_tokens, &error), TKV_ERR_UNSUPPORTED,
                 "even number");
    tkv_geometry_free(&g);
    assert_fails(tkv_geometry_uniform(0, &odd, &g, &error), TKV_ERR_INVALID_ARGUMENT, "0 layers");
}

static void the_longest_context_is_the_longest(void **state)
{
    (void)state;
    const tkv_geometry_layer layer = {8, 128, 128, 0};
    tkv_geometry g;
    assert_ok(tkv_geometry_uniform(32, &layer, &g, &error));
    tkv_plan_params params = {.geometry = &g,
                              .keeps_all = true,
                              .memory_bytes = UINT64_C(12) << 30,
                              .weight_bytes = UINT64_C(5) << 30,
                              .workspace_bytes = UINT64_C(1) << 30};
    assert_true(tkv_plan_kv_budget(&params) == UINT64_C(6) << 30);
    const char *name;
    for (int i = 0; (name = tkv_policy_preset_name(i)); i++) {
        tkv_policy policy;
        int longest = 0;
        uint64_t bytes[2];
        assert_ok(tkv_policy_preset(name, &policy, &error));
        assert_ok(tkv_plan_longest(&params, &policy, &longest, &error));
        const int contexts[] = {longest, longest + 1};
        assert_ok(tkv_plan_series(&params, &policy, 2, contexts, bytes, &error));
        assert_true(bytes[0] <= UINT64_C(6) << 30 && bytes[1] > UINT64_C(6) << 30);
    }
    tkv_plan_choice choice;
    assert_ok(tkv_plan_choose(&params, 16384, &choice, &error));
    assert_string_equal(choice.preset, "f16");
    assert_int_equal(choice.n_tokens, 16384);
    assert_ok(tkv_plan_choose(&params, 131072, &choice, &error));
    assert_string_equal(choice.preset, "4bit");
    assert_ok(tkv_plan_choose(&params, 1 << 22, &choice, &error));
    assert_string_equal(choice.preset, "2bit");
    assert_true(choice.n_tokens > 300000 && choice.n_tokens < 1 << 22);
    params.memory_bytes = UINT64_C(6) << 30;
    assert_ok(tkv_plan_choose(&params, 16384, &choice, &error));
    assert_null(choice.preset);
    tkv_geometry_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(figures_are_those_of_real_caches),
                                       cmocka_unit_test(workspace_is_that_of_a_session),
                                       cmocka_unit_test(hybrids_keep_attention_layers_only),
                                       cmocka_unit_test(windows_are_found),
                                       cmocka_unit_test(latent_attention_keeps_keys_only),
                                       cmocka_unit_test(wrong_models_are_refused),
                                       cmocka_unit_test(the_longest_context_is_the_longest)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
