/* Sessions: batches, going back, shifts and forks, on small random models. */
#include "session_fixture.h"
#include "support/reference_device.h"

static void test_batch_size_does_not_matter(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    static double expected[N_TOKENS * VOCABULARY];
    static float found[N_TOKENS * VOCABULARY];
    toy_model_forward(&f.toy, tokens, N_TOKENS, expected);
    const int sizes[] = {1, 5, 36, 37, 64, 0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        tkv_session *session = start(&f, sizes[i]);
        assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, found, &error));
        if (i == 0) {
            check_near(found, expected, N_TOKENS * VOCABULARY, TOLERANCE);
            for (size_t j = 0; j < N_TOKENS * VOCABULARY; j++) {
                expected[j] = found[j];
            }
        }
        check_near(found, expected, N_TOKENS * VOCABULARY, BATCH_TOLERANCE);
        assert_ok(tkv_session_truncate(session, 0, &error));
        assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_LAST, found, &error));
        check_near(found, expected + (N_TOKENS - 1) * VOCABULARY, VOCABULARY, BATCH_TOLERANCE);
        tkv_session_free(session);
    }
    close_fixture(&f);
}

static void test_truncate_goes_back(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    float first[VOCABULARY], again[VOCABULARY];
    tkv_session *session = start(&f, 0);
    assert_ok(eval(session, tokens, 20, TKV_LOGITS_LAST, first, &error));
    assert_ok(eval(session, tokens + 20, 10, TKV_LOGITS_NONE, NULL, &error));
    assert_int_equal(tkv_session_length(session), 30);
    assert_ok(tkv_session_truncate(session, 19, &error));
    assert_int_equal(tkv_session_length(session), 19);
    assert_ok(eval(session, tokens + 19, 1, TKV_LOGITS_LAST, again, &error));
    for (int i = 0; i < VOCABULARY; i++) {
        assert_float_equal(again[i], first[i], BATCH_TOLERANCE);
    }
    assert_fails(tkv_session_truncate(session, 21, &error), TKV_ERR_INVALID_ARGUMENT,
                 "truncation to 21 tokens");
    assert_fails(tkv_session_truncate(session, -1, &error), TKV_ERR_INVALID_ARGUMENT,
                 "truncation to -1 tokens");
    assert_int_equal(tkv_session_length(session), 20);
    tkv_session_free(session);
    close_fixture(&f);
}

static void test_context_overflow(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[MAX_TOKENS + 1] = {0};
    tkv_session *session = start(&f, 0);
    assert_int_equal(tkv_session_max_tokens(session), MAX_TOKENS);
    assert_ok(eval(session, tokens, MAX_TOKENS - 2, TKV_LOGITS_NONE, NULL, &error));
    assert_fails(eval(session, tokens, 3, TKV_LOGITS_NONE, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "3 tokens after the 62 in the sequence do not fit a context of 64");
    assert_int_equal(tkv_session_length(session), MAX_TOKENS - 2);
    assert_ok(eval(session, tokens, 2, TKV_LOGITS_NONE, NULL, &error));
    tkv_session_free(session);
    close_fixture(&f);
}

static void test_wrong_arguments(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    const int32_t tokens[] = {1, 2, VOCABULARY, -1};
    tkv_session *session = start(&f, 0);
    assert_fails(eval(session, tokens, 3, TKV_LOGITS_NONE, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "token 2 of the input is 50");
    assert_fails(eval(session, tokens + 3, 1, TKV_LOGITS_NONE, NULL, &error),
                 TKV_ERR_INVALID_ARGUMENT, "token 0 of the input is -1");
    assert_fails(eval(session, tokens, 0, TKV_LOGITS_NONE, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "0 tokens");
    assert_fails(eval(session, tokens, 2, TKV_LOGITS_LAST, NULL, &error), TKV_ERR_INVALID_ARGUMENT,
                 "without a buffer");
    assert_int_equal(tkv_session_length(session), 0);
    tkv_session_free(session);

    static const struct {
        tkv_session_params params;
        const char *message;
    } wrong[] = {
        {{.max_tokens = 0}, "a context of 0 tokens"},
        {{.max_tokens = 8, .n_batch = -1}, "a batch of -1 tokens"},
        {{.max_tokens = 8, .n_batch = 1 << 30}, "a batch of 1073741824 tokens"},
        {{.max_tokens = 8, .policy = {.type_k = TKV_TYPE_COUNT}}, ""},
        {{.max_tokens = 8, .policy = {.n_sinks = 9}}, "9 sinks"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        session = NULL;
        assert_fails(tkv_session_create(f.model, f.context, &wrong[i].params, &session, &error),
                     TKV_ERR_INVALID_ARGUMENT, wrong[i].message);
        assert_null(session);
    }
    close_fixture(&f);

    /* Heads that are no whole step of the codec. */
    toy_shape odd = llama_shape;
    odd.head_dim_k = odd.head_dim_v = odd.rope_dim = 40;
    make_fixture(&f, &odd);
    const tkv_session_params coded = {.max_tokens = 8, .policy = {.type_k = TKV_TYPE_TURBO4}};
    assert_ok(tkv_session_create(f.model, f.context, &coded, &session, &error));
    tkv_session_free(session);
    close_fixture(&f);
}

typedef struct progress_log {
    int n_calls;
    int last_done;
    int last_total;
    int stop_at;
} progress_log;

static bool log_progress(void *user, int n_done, int n_total)
{
    progress_log *log = user;
    log->n_calls++;
    log->last_done = n_done;
    log->last_total = n_total;
    return n_done < log->stop_at;
}

/* The reference device has caches and no forward pass: the other layers run on the host. */
static void test_model_beside_device(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    float *expected = allocate(N_TOKENS * VOCABULARY * sizeof *expected);
    float *found = allocate(N_TOKENS * VOCABULARY * sizeof *found);
    tkv_context *context = create_reference_context();
    const tkv_session_params params = {
        .max_tokens = MAX_TOKENS, .n_batch = 16, .policy = {.sparse_v = 1e-6f}};
    tkv_session *session = NULL;
    assert_ok(tkv_session_create(f.model, f.context, &params, &session, &error));
    assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, expected, &error));
    const tkv_attend_stats counted = *tkv_session_attend_stats(session);
    tkv_session_free(session);
    assert_ok(tkv_session_create(f.model, context, &params, &session, &error));
    assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, found, &error));
    for (int i = 0; i < N_TOKENS * VOCABULARY; i++) {
        assert_true(fabs(found[i] - expected[i]) <= BATCH_TOLERANCE);
    }
    assert_int_equal(tkv_session_attend_stats(session)->n_weights, counted.n_weights);
    reference_device_fail(0, true);
    assert_true(eval(session, tokens, 1, TKV_LOGITS_ALL, found, NULL) != TKV_OK);
    assert_true(reference_device_recover());
    tkv_session_free(session);
    tkv_context_free(context);
    assert_int_equal(reference_device_bytes(), 0);
    free(expected);
    free(found);
    close_fixture(&f);
}

static void test_progress_and_cancel(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    tkv_session *session = start(&f, 10);
    progress_log log = {.stop_at = 1000};
    tkv_eval_params params = {.progress = log_progress, .progress_user = &log};
    assert_ok(tkv_session_eval(session, tokens, N_TOKENS, &params, &error));
    assert_int_equal(log.n_calls, 4);
    assert_int_equal(log.last_done, N_TOKENS);
    assert_int_equal(log.last_total, N_TOKENS);

    assert_ok(tkv_session_truncate(session, 3, &error));
    log = (progress_log){.stop_at = 20};
    float logits[VOCABULARY] = {42.0f};
    params.logits_mode = TKV_LOGITS_LAST;
    params.logits = logits;
    assert_ok(tkv_session_eval(session, tokens + 3, N_TOKENS - 3, &params, &error));
    assert_int_equal(log.n_calls, 2);
    assert_int_equal(tkv_session_length(session), 23);
    assert_true(logits[0] == 42.0f);
    tkv_session_free(session);
    close_fixture(&f);
}

/* A token whose embedding is not finite fails in the cache of layer 0; a bias that is not, in that
 * of layer 1, when layer 0 has already taken the tokens. */
static void test_failed_step_restores(void **state)
{
    (void)state;
    if (test_device()) {
        print_message("skipped: devices do not look for NaN\n");
        skip();
    }
    fixture f = {0};
    toy_shape shape = llama_shape;
    shape.has_biases = true;
    toy_model_init(&f.toy, &shape, SEED);
    toy_model_find(&f.toy, "token_embd.weight")->values[49 * 64] = INFINITY;
    open_fixture(&f);
    tkv_session *session = start(&f, 4);
    const int32_t tokens[] = {1, 2, 3, 4, 5, 49, 6};
    float before[VOCABULARY], after[VOCABULARY];
    assert_ok(eval(session, tokens, 3, TKV_LOGITS_LAST, before, &error));
    assert_fails(eval(session, tokens, 7, TKV_LOGITS_NONE, NULL, &error), TKV_ERR_NOT_FINITE,
                 "layer 0");
    assert_int_equal(tkv_session_length(session), 3);
    for (int layer = 0; layer < shape.n_layers; layer++) {
        assert_int_equal(tkv_cache_length(tkv_session_cache(session), layer), 3);
    }
    assert_ok(tkv_session_truncate(session, 2, &error));
    assert_ok(eval(session, tokens + 2, 1, TKV_LOGITS_LAST, after, &error));
    for (int i = 0; i < VOCABULARY; i++) {
        assert_float_equal(after[i], before[i], BATCH_TOLERANCE);
    }
    tkv_session_free(session);
    close_fixture(&f);

    toy_model_init(&f.toy, &shape, SEED);
    toy_model_find(&f.toy, "blk.1.attn_k.bias")->values[5] = NAN;
    open_fixture(&f);
    session = start(&f, 4);
    assert_fails(eval(session, tokens, 3, TKV_LOGITS_NONE, NULL, &error), TKV_ERR_NOT_FINITE,
                 "layer 1");
    assert_int_equal(tkv_session_length(session), 0);
    assert_int_equal(tkv_cache_length(tkv_session_cache(session), 0), 0);
    tkv_session_free(session);
    close_fixture(&f);
}

static void test_buffers_do_not_grow_with_context(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        const tkv_session_params params = {.max_tokens = i == 0 ? 100 : 1000000, .n_batch = 16};
        tkv_session *session = NULL;
        assert_ok(tkv_session_create(f.model, f.context, &params, &session, &error));
        bytes[i] = tkv_session_workspace_bytes(session);
        tkv_session_free(session);
    }
    assert_int_equal(bytes[0], bytes[1]);
    close_fixture(&f);
}

/* The policy reaches the cache: coded types take less memory, sinks and recent tokens stay exact.
 */
static void test_policy(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    static float exact[N_TOKENS * VOCABULARY], found[N_TOKENS * VOCABULARY];
    tkv_session *session = start(&f, 0);
    assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, exact, &error));
    const size_t exact_bytes = tkv_cache_bytes(tkv_session_cache(session));
    tkv_session_free(session);

    tkv_session_params params = {.max_tokens = MAX_TOKENS,
                                 .policy = {.type_k = TKV_TYPE_TURBO2, .type_v = TKV_TYPE_TURBO2}};
    assert_ok(tkv_session_create(f.model, f.context, &params, &session, &error));
    assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, found, &error));
    assert_true(tkv_cache_bytes(tkv_session_cache(session)) < exact_bytes / 2);
    assert_true(fabsf(found[N_TOKENS * VOCABULARY - 1] - exact[N_TOKENS * VOCABULARY - 1]) > 0.0f);
    tkv_session_free(session);

    params.policy.n_sinks = 8;
    params.policy.n_recent = N_TOKENS;
    assert_ok(tkv_session_create(f.model, f.context, &params, &session, &error));
    assert_ok(eval(session, tokens, N_TOKENS, TKV_LOGITS_ALL, found, &error));
    for (int i = 0; i < N_TOKENS * VOCABULARY; i++) {
        assert_float_equal(found[i], exact[i], BATCH_TOLERANCE);
    }
    tkv_session_free(session);
    close_fixture(&f);
}

/* ---- Context shift and forks --------------------------------------------------------------- */

/* In a model of one layer keys and values depend on their own token only, so a shifted context must
 * give what the remaining tokens give from scratch. Policies: exact, and coded twice. */
static void check_shift(const toy_shape *model, double tolerance)
{
    fixture f;
    toy_shape shape = *model;
    shape.n_layers = 1;
    make_fixture(&f, &shape);
    const struct {
        tkv_policy policy;
        double tolerance;
    } cases[] = {
        {{0}, TOLERANCE},
        {{.n_sinks = 3, .type_k = TKV_TYPE_TURBO8, .type_v = TKV_TYPE_TURBO8}, 4.0 * TOLERANCE},
        {{.n_recent = 8, .centre_tokens = 8, .type_k = TKV_TYPE_TURBO8, .type_v = TKV_TYPE_TURBO8},
         4.0 * TOLERANCE},
    };
    enum { FIRST = 3, N_DROP = 20 };
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    int32_t kept[N_TOKENS - N_DROP];
    memcpy(kept, tokens, FIRST * sizeof *kept);
    memcpy(kept + FIRST, tokens + FIRST + N_DROP, (N_TOKENS - N_DROP - FIRST) * sizeof *kept);
    static double expected[(N_TOKENS - N_DROP) * VOCABULARY];
    toy_model_forward(&f.toy, kept, N_TOKENS - N_DROP, expected);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tkv_session *session = NULL;
        float found[VOCABULARY];
        const tkv_session_params params = {.max_tokens = MAX_TOKENS, .policy = cases[i].policy};
        assert_ok(tkv_session_create(f.model, f.context, &params, &session, &error));
        assert_ok(eval(session, tokens, N_TOKENS - 1, TKV_LOGITS_NONE, NULL, &error));
        assert_ok(tkv_session_shift(session, FIRST, N_DROP, &error));
        assert_int_equal(tkv_session_length(session), N_TOKENS - 1 - N_DROP);
        assert_ok(eval(session, tokens + N_TOKENS - 1, 1, TKV_LOGITS_LAST, found, &error));
        check_near(found, expected + (N_TOKENS - N_DROP - 1) * VOCABULARY, VOCABULARY,
                   cases[i].tolerance * tolerance);
        assert_fails(tkv_session_shift(session, 10, 30, &error), TKV_ERR_INVALID_ARGUMENT,
                     "shift drops 30 tokens from position 10");
        assert_int_equal(tkv_session_length(session), N_TOKENS - N_DROP);
        tkv_session_free(session);
    }
    close_fixture(&f);
}

static void test_shift_equals_recomputation(void **state)
{
    (void)state;
    check_shift(&llama_shape, 1.0);
}

/* Whose layers have windows, and turn keys in two ways. */
static void test_gemma3_shifts(void **state)
{
    (void)state;
    toy_shape local = gemma3_shape;
    toy_shape global = gemma3_shape;
    global.window_period = 1;
    check_shift(&local, 1.0);
    check_shift(&global, 1.0);
}

static void test_forks_go_their_own_ways(void **state)
{
    (void)state;
    fixture f;
    make_fixture(&f, &llama_shape);
    int32_t tokens[N_TOKENS];
    fill_tokens(tokens);
    static double expected[N_TOKENS * VOCABULARY];
    float found[VOCABULARY];
    tkv_session *session = start(&f, 16);
    tkv_session *fork = NULL;
    assert_ok(eval(session, tokens, 20, TKV_LOGITS_NONE, NULL, &error));
    assert_fails(tkv_session_fork(session, 21, &fork, &error), TKV_ERR_INVALID_ARGUMENT,
                 "a fork of 21 tokens: expected 0 to the sequence's 20");
    assert_ok(tkv_session_fork(session, 12, &fork, &error));
    assert_int_equal(tkv_session_length(fork), 12);
    assert_true(tkv_cache_shared_bytes(tkv_session_cache(fork)) > 0);

    /* The fork goes on with other tokens than the original. */
    int32_t other[N_TOKENS];
    memcpy(other, tokens, sizeof other);
    for (int i = 12; i < N_TOKENS; i++) {
        other[i] = (tokens[i] + 7) % VOCABULARY;
    }
    assert_ok(eval(fork, other + 12, N_TOKENS - 12, TKV_LOGITS_LAST, found, &error));
    toy_model_forward(&f.toy, other, N_TOKENS, expected);
    check_near(found, expected + (N_TOKENS - 1) * VOCABULARY, VOCABULARY, TOLERANCE);
    assert_ok(eval(session, tokens + 20, N_TOKENS - 20, TKV_LOGITS_LAST, found, &error));
    toy_model_forward(&f.toy, tokens, N_TOKENS, expected);
    check_near(found, expected + (N_TOKENS - 1) * VOCABULARY, VOCABULARY, TOLERANCE);

    /* It outlives the original. */
    tkv_session_free(session);
    assert_ok(tkv_session_truncate(fork, 12, &error));
    assert_ok(eval(fork, tokens + 12, N_TOKENS - 12, TKV_LOGITS_LAST, found, &error));
    check_near(found, expected + (N_TOKENS - 1) * VOCABULARY, VOCABULARY, TOLERANCE);
    tkv_session_free(fork);
    close_fixture(&f);
}

int main(void)
{
    if (test_device_is_missing()) {
        return EXIT_SKIPPED;
    }
    print_message("seed %u\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_size_does_not_matter),
        cmocka_unit_test(test_truncate_goes_back),
        cmocka_unit_test(test_context_overflow),
        cmocka_unit_test(test_wrong_arguments),
        cmocka_unit_test(test_model_beside_device),
        cmocka_unit_test(test_progress_and_cancel),
        cmocka_unit_test(test_failed_step_restores),
        cmocka_unit_test(test_buffers_do_not_grow_with_context),
        cmocka_unit_test(test_policy),
        cmocka_unit_test(test_shift_equals_recomputation),
        cmocka_unit_test(test_gemma3_shifts),
        cmocka_unit_test(test_forks_go_their_own_ways),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
