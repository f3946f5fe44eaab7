#include "session_fixture.h"

#include <unistd.h>

const toy_shape llama_shape = {
    .architecture = "llama",
    .n_layers = 2,
    .embedding_length = 64,
    .feed_forward_length = 96,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim_k = 32,
    .head_dim_v = 32,
    .vocabulary_size = VOCABULARY,
    .rope_dim = 32,
    .rope_freq_base = 10000.0f,
};

const toy_shape gemma3_shape = {
    .architecture = "gemma3",
    .n_layers = 7,
    .embedding_length = 64,
    .feed_forward_length = 96,
    .n_heads = 4,
    .n_kv_heads = 1,
    .head_dim_k = 32,
    .head_dim_v = 32,
    .vocabulary_size = VOCABULARY,
    .rope_dim = 32,
    .rope_freq_base = 1000000.0f,
    .rope_linear_factor = 8.0f,
    .rope_local_freq_base = 5000.0f,
    .sliding_window = 9,
    .window_period = 6,
    .has_query_key_norms = true,
    .is_gemma = true,
};

void open_fixture(fixture *f)
{
    snprintf(f->path, sizeof f->path, "/tmp/tkv_test_session_XXXXXX");
    const int file = mkstemp(f->path);
    assert_true(file >= 0);
    close(file);
    toy_model_write(&f->toy, f->path);
    assert_ok(tkv_gguf_open(f->path, &f->gguf, &error));
    assert_ok(tkv_model_create(f->gguf, &f->model, &error));
    const tkv_context_params params = {.n_threads = 2, .device = test_device()};
    assert_ok(tkv_context_create(&params, &f->context, &error));
}

void make_fixture(fixture *f, const toy_shape *shape)
{
    *f = (fixture){0};
    toy_model_init(&f->toy, shape, SEED);
    open_fixture(f);
}

void close_fixture(fixture *f)
{
    tkv_context_free(f->context);
    tkv_model_free(f->model);
    tkv_gguf_close(f->gguf);
    unlink(f->path);
    toy_model_clear(&f->toy);
}

tkv_session *start(const fixture *f, int n_batch)
{
    tkv_session *session = NULL;
    const tkv_session_params params = {.max_tokens = MAX_TOKENS, .n_batch = n_batch};
    assert_ok(tkv_session_create(f->model, f->context, &params, &session, &error));
    return session;
}

void fill_tokens(int32_t tokens[N_TOKENS])
{
    for (int i = 0; i < N_TOKENS; i++) {
        tokens[i] = (i * i + 3 * i + 1) % VOCABULARY;
    }
}

tkv_status eval(tkv_session *session, const int32_t *tokens, int n_tokens, tkv_logits_mode mode,
                float *logits, tkv_error *error)
{
    return tkv_session_eval(session, tokens, n_tokens,
                            &(tkv_eval_params){.logits_mode = mode, .logits = logits}, error);
}

void check_near(const float *found, const double *expected, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++) {
        if (!(fabs(found[i] - expected[i]) <= tolerance)) {
            fail_msg("logit %zu of token %zu: expected %.5f, found %.5f", i % VOCABULARY,
                     i / VOCABULARY, expected[i], (double)found[i]);
        }
    }
}
