/* A context that is told to stop: at whatever point that comes, a session keeps the batches that
 * were done and goes on as if nothing had been. */
#include "support/support.h"

#include <stdatomic.h>
#include <unistd.h>

#include "model/gguf.h"
#include "model/session.h"
#include "model/toy_model.h"

#define SEED 20261130u
#define VOCABULARY 50
#define N_TOKENS 60
#define N_BATCH 20

static const toy_shape shape = {
    .architecture = "llama",
    .n_layers = 3,
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

/* Says stop from the n-th question on. */
typedef struct countdown {
    atomic_int n_asked;
    int stop_at;
} countdown;

static bool is_over(void *user)
{
    countdown *c = user;
    return atomic_fetch_add(&c->n_asked, 1) >= c->stop_at;
}

typedef struct fixture {
    toy_model toy;
    char path[64];
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_context *context;
    countdown countdown;
    int32_t tokens[N_TOKENS];
} fixture;

static fixture *make_fixture(int n_threads)
{
    fixture *f = allocate(sizeof *f);
    snprintf(f->path, sizeof f->path, "/tmp/tkv_test_stop_XXXXXX");
    const int file = mkstemp(f->path);
    assert_true(file >= 0);
    close(file);
    toy_model_init(&f->toy, &shape, SEED);
    toy_model_write(&f->toy, f->path);
    assert_ok(tkv_gguf_open(f->path, &f->gguf, &error));
    assert_ok(tkv_model_create(f->gguf, &f->model, &error));
    const tkv_context_params params = {
        .n_threads = n_threads, .is_stopped = is_over, .stop_user = &f->countdown};
    assert_ok(tkv_context_create(&params, &f->context, &error));
    uint64_t seed = SEED;
    for (int i = 0; i < N_TOKENS; i++) {
        f->tokens[i] = random_below(&seed, VOCABULARY);
    }
    return f;
}

static void free_fixture(fixture *f)
{
    tkv_context_free(f->context);
    tkv_model_free(f->model);
    tkv_gguf_close(f->gguf);
    toy_model_clear(&f->toy);
    unlink(f->path);
    free(f);
}

static tkv_session *start(fixture *f)
{
    tkv_session *session = NULL;
    const tkv_session_params params = {.max_tokens = N_TOKENS,
                                       .n_batch = N_BATCH,
                                       .policy = {.type_k = TKV_TYPE_TURBO4,
                                                  .type_v = TKV_TYPE_TURBO4,
                                                  .n_sinks = 4,
                                                  .centre_tokens = 8}};
    f->countdown = (countdown){.stop_at = INT32_MAX};
    assert_ok(tkv_session_create(f->model, f->context, &params, &session, &error));
    return session;
}

/* Evaluates the tokens that the session has not; the logits are those of the last one. */
static tkv_status finish(fixture *f, tkv_session *session, float *logits, tkv_error *error)
{
    const int length = tkv_session_length(session);
    const tkv_eval_params params = {.logits_mode = TKV_LOGITS_LAST, .logits = logits};
    return tkv_session_eval(session, f->tokens + length, N_TOKENS - length, &params, error);
}

static void check_every_point(int n_threads)
{
    fixture *f = make_fixture(n_threads);
    float expected[VOCABULARY];
    tkv_session *session = start(f);
    assert_ok(finish(f, session, expected, &error));
    const int n_points = f->countdown.n_asked;
    /* Far more than one question a batch: between products, and within them. */
    assert_true(n_points > 3 * 3 * 10);
    tkv_session_free(session);
    for (int point = 0; point < n_points - 1; point += 7) {
        float logits[VOCABULARY];
        session = start(f);
        f->countdown.stop_at = point;
        assert_fails(finish(f, session, logits, &error), TKV_ERR_INTERRUPTED, "interrupted");
        assert_int_equal(tkv_session_length(session) % N_BATCH, 0);
        assert_true(tkv_session_length(session) < N_TOKENS);
        f->countdown = (countdown){.stop_at = INT32_MAX};
        assert_ok(finish(f, session, logits, &error));
        assert_memory_equal(logits, expected, sizeof logits);
        tkv_session_free(session);
    }
    free_fixture(f);
}

static void a_stop_is_heard_everywhere(void **state)
{
    (void)state;
    check_every_point(1);
    check_every_point(3);
}

static void attention_stops(void **state)
{
    (void)state;
    countdown c = {.stop_at = INT32_MAX};
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    assert_ok(tkv_context_create(
        &(tkv_context_params){.n_threads = 2, .is_stopped = is_over, .stop_user = &c}, &context,
        &error));
    const tkv_type type = TKV_TYPE_TURBO4;
    const tkv_cache_params shape_of_cache = {.n_layers = 1,
                                             .n_kv_heads = 2,
                                             .head_dim_k = 64,
                                             .head_dim_v = 64,
                                             .max_tokens = N_TOKENS,
                                             .types_k = &type,
                                             .types_v = &type};
    assert_ok(tkv_cache_create(context, &shape_of_cache, &cache, &error));
    uint64_t seed = SEED;
    float rows[N_TOKENS * 2 * 64];
    float out[N_TOKENS * 2 * 64];
    fill_gauss(&seed, sizeof rows / sizeof *rows, rows);
    assert_ok(tkv_cache_append(cache, 0, N_TOKENS, rows, rows, &error));
    const tkv_attend_params params = {.n_queries = N_TOKENS, .n_heads = 2};
    assert_ok(tkv_attend(cache, 0, &params, rows, out, &error));
    assert_true(c.n_asked > 1);
    c.stop_at = 0;
    assert_fails(tkv_attend(cache, 0, &params, rows, out, &error), TKV_ERR_INTERRUPTED,
                 "interrupted");
    tkv_cache_free(cache);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_stop_is_heard_everywhere),
                                       cmocka_unit_test(attention_stops)};
    return cmocka_run_group_tests_name("stop", tests, NULL, NULL);
}
