/* The forward pass on small random models, against one in double precision. */
#include "session_fixture.h"

static void check_forward(const fixture *f)
{
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    static double expected[N_TOKENS * VOCABULARY];
    static float found[N_TOKENS * VOCABULARY];
    toy_model_forward(&f->toy, tokens, N_TOKENS, expected);
    tkv_session *session = start(f, 16);
    assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, found, &error));
    check_near(found, expected, N_TOKENS * VOCABULARY, TOLERANCE);
    tkv_session_free(session);
}

static void check_shape(const toy_shape *shape)
{
    fixture f;
    make_fixture(&f, shape);
    check_forward(&f);
    close_fixture(&f);
}

static void test_llama(void **state)
{
    (void)state;
    check_shape(&llama_shape);
}

static void test_qwen2_with_biases(void **state)
{
    (void)state;
    toy_shape shape = llama_shape;
    shape.architecture = "qwen2";
    shape.has_biases = true;
    shape.has_output = true;
    shape.rope_freq_base = 1000000.0f;
    check_shape(&shape);
}

static void test_qwen3_with_head_norms(void **state)
{
    (void)state;
    toy_shape shape = llama_shape;
    shape.architecture = "qwen3";
    shape.has_query_key_norms = true;
    shape.head_dim_k = 48; /* n_heads * head_dim is not the embedding length */
    shape.head_dim_v = 48;
    shape.rope_dim = 48;
    check_shape(&shape);
}

static void test_unequal_head_dims_and_partial_rope(void **state)
{
    (void)state;
    toy_shape shape = llama_shape;
    shape.head_dim_k = 64;
    shape.head_dim_v = 32;
    shape.rope_dim = 24;
    check_shape(&shape);
}

static void test_rope_scaling(void **state)
{
    (void)state;
    toy_shape shape = llama_shape;
    shape.rope_linear_factor = 2.0f;
    shape.rope_attention_factor = 1.2f;
    shape.has_rope_factors = true;
    check_shape(&shape);
}

static void test_sliding_window(void **state)
{
    (void)state;
    toy_shape shape = llama_shape;
    shape.sliding_window = 9;
    check_shape(&shape);
}

static void test_gemma3(void **state)
{
    (void)state;
    check_shape(&gemma3_shape);
}

static void test_gemma3_with_another_pattern(void **state)
{
    (void)state;
    toy_shape shape = gemma3_shape;
    shape.n_layers = 4;
    shape.window_period = 2;
    shape.has_output = true;
    check_shape(&shape);
}

static void scale_tensor(fixture *f, const char *name, float factor)
{
    toy_tensor *tensor = toy_model_find(&f->toy, name);
    for (uint64_t i = 0; i < tensor->dims[0] * tensor->dims[1]; i++) {
        tensor->values[i] *= factor;
    }
}

/* Beyond the range of halves, in which devices multiply. */
static void test_large_activations(void **state)
{
    (void)state;
    fixture f = {0};
    toy_model_init(&f.toy, &llama_shape, SEED);
    scale_tensor(&f, "blk.0.ffn_gate.weight", 64.0f);
    scale_tensor(&f, "blk.0.ffn_up.weight", 2048.0f);
    scale_tensor(&f, "blk.0.ffn_down.weight", 1.0f / 2048.0f);
    open_fixture(&f);
    check_forward(&f);
    close_fixture(&f);
}

int main(void)
{
    if (test_device_is_missing()) {
        return EXIT_SKIPPED;
    }
    print_message("seed %u\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen2_with_biases),
        cmocka_unit_test(test_qwen3_with_head_norms),
        cmocka_unit_test(test_unequal_head_dims_and_partial_rope),
        cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_sliding_window),
        cmocka_unit_test(test_gemma3),
        cmocka_unit_test(test_gemma3_with_another_pattern),
        cmocka_unit_test(test_large_activations),
    };
    return cmocka_run_group_tests_name("forward", tests, NULL, NULL);
}
