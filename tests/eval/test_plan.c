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
    const tkv_geometry_layer layers[] = {{.n_kv_heads = 2, .head_dim_k = 128, .head_dim_v = 128},
                                         {.n_kv_heads = 1, .head_dim_k = 80, .head_dim_v = 80},
                                         {.n_kv_heads = 3, .head_dim_k = 192, .head_dim_v = 128}};
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

    const tkv_geometry_layer odd = {.n_kv_heads = 1, .head_dim_k = 41, .head_dim_v = 40};
    assert_ok(tkv_geometry_uniform(2, &odd, &g, &error));
    const tkv_plan_params params = {.geometry = &g};
    const tkv_policy f16 = {.type_k = TKV_TYPE_F16};
    int n_tokens = 100;
    uint64_t bytes;
    assert_fails(tkv_plan_series(&params, &f16, 1, &n_tokens, &bytes, &error), TKV_ERR_UNSUPPORTED,
                 "layer 0: head_dim 41");
    assert_fails(tkv_plan_longest(&params, &f16, &n_tokens, &error), TKV_ERR_UNSUPPORTED,
                 "an even number from 2 to 1024");
    tkv_geometry_free(&g);
    assert_fails(tkv_geometry_uniform(0, &odd, &g, &error), TKV_ERR_INVALID_ARGUMENT, "0 layers");
}

static void the_longest_context_is_the_longest(void **state)
{
    (void)state;
    const tkv_geometry_layer layer = {.n_kv_heads = 8, .head_dim_k = 128, .head_dim_v = 128};
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

static uint64_t planned_bytes(const tkv_plan_params *params, const char *text, int n_tokens)
{
    tkv_policy policy = {0};
    uint64_t bytes = 0;
    assert_ok(tkv_policy_parse(text, &policy, &error));
    assert_ok(tkv_plan_series(params, &policy, 1, &n_tokens, &bytes, &error));
    return bytes;
}

/* Layers of which every fourth keeps keys and values; policies number those only. */
static void policies_number_layers_that_keep(void **state)
{
    (void)state;
    const tkv_geometry_layer layer = {.n_kv_heads = 4, .head_dim_k = 256, .head_dim_v = 256};
    tkv_geometry hybrid;
    tkv_geometry plain;
    assert_ok(tkv_geometry_uniform(64, &layer, &hybrid, &error));
    assert_ok(tkv_geometry_uniform(16, &layer, &plain, &error));
    for (int i = 0; i < 64; i++) {
        if (i % 4 != 3) {
            hybrid.layers[i] = (tkv_geometry_layer){.state_bytes = 1000};
        }
    }
    const tkv_plan_params params[] = {{.geometry = &hybrid}, {.geometry = &plain}};
    const char *const texts[] = {"k turbo3 v turbo3", "k turbo3 v turbo3 boundary 2:f16",
                                 "k turbo3 v turbo3 boundary 4:f16",
                                 "k turbo3 v turbo3 layers 0-3:f16 layers 15:turbo8"};
    uint64_t least = 0;
    for (int i = 0; i < 4; i++) {
        const uint64_t bytes = planned_bytes(&params[0], texts[i], 4096);
        assert_true(bytes == planned_bytes(&params[1], texts[i], 4096));
        assert_true(bytes > least);
        least = i == 0 ? bytes : least;
    }
    tkv_policy beyond = {0};
    int n_tokens = 4096;
    uint64_t bytes;
    assert_ok(tkv_policy_parse("layers 16:f16", &beyond, &error));
    assert_fails(tkv_plan_series(&params[0], &beyond, 1, &n_tokens, &bytes, &error),
                 TKV_ERR_INVALID_ARGUMENT, "layers 0 to 15 keep keys and values");
    tkv_geometry_free(&hybrid);
    tkv_geometry_free(&plain);
}

static void states_and_sequences_count(void **state)
{
    (void)state;
    const tkv_geometry_layer layer = {
        .n_kv_heads = 4, .head_dim_k = 256, .head_dim_v = 256, .state_bytes = 1 << 20};
    tkv_geometry g;
    assert_ok(tkv_geometry_uniform(3, &layer, &g, &error));
    tkv_plan_params params = {.geometry = &g, .memory_bytes = UINT64_C(100) << 20};
    const uint64_t one = planned_bytes(&params, "kv 3bit", 4096);
    const uint64_t values = tkv_plan_values(&params, 4096);
    const tkv_policy f16 = {.type_k = TKV_TYPE_F16};
    int longest[2];
    assert_true(tkv_plan_state_bytes(&params) == UINT64_C(3) << 20);
    assert_true(tkv_plan_kv_budget(&params) == UINT64_C(97) << 20);
    assert_ok(tkv_plan_longest(&params, &f16, &longest[0], &error));
    params.n_sequences = 5;
    assert_true(tkv_plan_state_bytes(&params) == UINT64_C(15) << 20);
    assert_true(tkv_plan_kv_budget(&params) == UINT64_C(85) << 20);
    assert_true(planned_bytes(&params, "kv 3bit", 4096) == 5 * one);
    assert_true(tkv_plan_values(&params, 4096) == 5 * values);
    assert_ok(tkv_plan_longest(&params, &f16, &longest[1], &error));
    assert_int_equal(longest[1] / 64, longest[0] * 85 / 97 / 5 / 64);
    params.memory_bytes = UINT64_C(15) << 20;
    assert_true(tkv_plan_kv_budget(&params) == 0);
    /* A model that keeps nothing has no cache. */
    for (int i = 0; i < 3; i++) {
        g.layers[i].n_kv_heads = 0;
    }
    assert_true(planned_bytes(&params, "kv 3bit boundary 2:f16", 4096) == 0);
    tkv_geometry_free(&g);
}

/* Rows beside keys and values cost what a layer of one head with as many coordinates does. */
static void rows_beside_are_of_the_keys_type(void **state)
{
    (void)state;
    const tkv_geometry_layer layer = {.n_kv_heads = 1, .head_dim_k = 512, .window = 128};
    const tkv_geometry_layer indexer = {.n_kv_heads = 1, .head_dim_k = 128};
    tkv_geometry g;
    tkv_geometry beside;
    assert_ok(tkv_geometry_uniform(1, &layer, &g, &error));
    assert_ok(tkv_geometry_uniform(1, &indexer, &beside, &error));
    const tkv_plan_params params = {.geometry = &g};
    const tkv_plan_params other = {.geometry = &beside};
    const char *const text = "k turbo4 v f16 sinks 4";
    const uint64_t bare = planned_bytes(&params, text, 10000);
    g.layers[0].indexer = (tkv_geometry_rows){128, 1};
    assert_true(planned_bytes(&params, text, 10000) - bare ==
                planned_bytes(&other, text, 10000) - sizeof(tkv_cache));
    g.layers[0].indexer.interval = 4;
    assert_true(planned_bytes(&params, text, 10001) - bare ==
                planned_bytes(&other, text, 2501) - sizeof(tkv_cache));
    assert_true(tkv_plan_values(&params, 10001) == 512 * (128 + 64) + 128 * 2501);
    tkv_geometry_free(&g);
    tkv_geometry_free(&beside);
}

/* Halves of all its tokens are held then, instead of codes. */
static void batches_are_exact_while_they_are_read(void **state)
{
    (void)state;
    const tkv_geometry_layer layer = {.n_kv_heads = 8, .head_dim_k = 128, .head_dim_v = 64};
    tkv_geometry g;
    assert_ok(tkv_geometry_uniform(4, &layer, &g, &error));
    const tkv_plan_params params = {.geometry = &g, .n_sequences = 3};
    const struct {
        const char *text;
        uint64_t rows; /* that are coded when they come one by one */
    } cases[] = {{"kv f16", 0},
                 {"k turbo4 v turbo3", 0},
                 {"k turbo4 v turbo3 recent 32", 4},
                 {"k f16 v turbo4 recent 32 boundary 1:f16", 2}};
    const double row = 8 * (128 + 64) * 2;
    for (int i = 0; i < 4; i++) {
        tkv_policy policy = {0};
        uint64_t bytes = 1;
        assert_ok(tkv_policy_parse(cases[i].text, &policy, &error));
        assert_ok(tkv_plan_batch_bytes(&params, &policy, 8192, 512, &bytes, &error));
        assert_true((double)bytes <= row * 512 * (double)cases[i].rows);
        assert_true((double)bytes >= 0.2 * row * 512 * (double)cases[i].rows);
        assert_ok(tkv_plan_batch_bytes(&params, &policy, 8192, 1, &bytes, &error));
        assert_true(bytes == 0);
    }
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
                                       cmocka_unit_test(the_longest_context_is_the_longest),
                                       cmocka_unit_test(policies_number_layers_that_keep),
                                       cmocka_unit_test(states_and_sequences_count),
                                       cmocka_unit_test(rows_beside_are_of_the_keys_type),
                                       cmocka_unit_test(batches_are_exact_while_they_are_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
