/* Scoring policies on the shipped model. */
#include "eval/text.h"
#include "model/tokenizer.h"
#include "support/support.h"

typedef struct fixture {
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_context *context;
    tkv_tokenizer *tokenizer;
    tkv_tokens tokens;
} fixture;

static const char paragraph[] =
    "The road to the mill ran along the bank, and in spring the water came up to the stones of the "
    "bridge. The miller knew every tree on the way, and when he was asked how old they were he "
    "would "
    "answer that his grandfather had found them there. ";

static int set_up(void **state)
{
    fixture *f = allocate(sizeof *f);
    assert_ok(tkv_gguf_open(TKV_SOURCE_DIR "/models/tiny-q8_0.gguf", &f->gguf, &error));
    assert_ok(tkv_model_create(f->gguf, &f->model, &error));
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &f->context, &error));
    assert_ok(tkv_tokenizer_from_gguf(f->gguf, &f->tokenizer, &error));
    for (int i = 0; i < 5; i++) {
        assert_ok(tkv_tokenizer_encode(f->tokenizer, paragraph, strlen(paragraph), false,
                                       &f->tokens, &error));
    }
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    tkv_tokens_free(&f->tokens);
    tkv_tokenizer_free(f->tokenizer);
    tkv_context_free(f->context);
    tkv_model_free(f->model);
    tkv_gguf_close(f->gguf);
    free(f);
    return 0;
}

enum { N_POLICIES = 3 };

static void run(const fixture *f, tkv_eval_mode mode, tkv_divergence_summary s[N_POLICIES])
{
    const tkv_policy policies[N_POLICIES] = {
        {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16},
        {.type_k = TKV_TYPE_TURBO8, .type_v = TKV_TYPE_TURBO8},
        {.type_k = TKV_TYPE_TURBO2, .type_v = TKV_TYPE_TURBO2}};
    tkv_eval_text_result results[N_POLICIES] = {0};
    const tkv_eval_text_params params = {.tokenizer = f->tokenizer,
                                         .tokens = f->tokens.ids,
                                         .n_tokens = f->tokens.n,
                                         .n_context = 96,
                                         .n_chunks = 2,
                                         .mode = mode,
                                         .policies = policies,
                                         .n_policies = N_POLICIES};
    assert_ok(tkv_eval_text(f->model, f->context, &params, results, &error));
    for (int i = 0; i < N_POLICIES; i++) {
        s[i] = tkv_divergence_summarise(&results[i].divergence);
        assert_int_equal(s[i].n, 2 * 47);
        assert_true(results[i].kv_bytes > 0 && results[i].seconds > 0.0);
        tkv_divergence_free(&results[i].divergence);
    }
}

/* f16 against f16 is no distance; fewer bits are farther; both modes see the same model. */
static void policies_are_ranked(void **state)
{
    tkv_divergence_summary prefill[N_POLICIES];
    tkv_divergence_summary decode[N_POLICIES];
    run(*state, TKV_EVAL_PREFILL, prefill);
    run(*state, TKV_EVAL_DECODE, decode);
    assert_true(prefill[0].max_kl == 0.0 && prefill[0].same_top == 1.0);
    assert_true(prefill[1].mean_kl > 0.0 && prefill[1].mean_kl < 0.01);
    assert_true(prefill[2].mean_kl > 10.0 * prefill[1].mean_kl);
    assert_true(prefill[0].perplexity > 1.0 && prefill[0].perplexity < 200.0);
    for (int i = 0; i < N_POLICIES; i++) {
        assert_true(fabs(prefill[i].perplexity_reference - decode[i].perplexity_reference) < 1e-2);
        assert_true(fabs(prefill[i].mean_kl - decode[i].mean_kl) <
                    0.05 * prefill[i].mean_kl + 1e-6);
    }
}

/* What a caller keeps after each policy of each chunk. */
typedef struct kept {
    int n;
    int policies[8];
    size_t positions[8];
    const tkv_eval_text_result *results;
    int stops_at; /* policy whose call fails; -1: none */
} kept;

static tkv_status keep(void *user, int policy, tkv_error *failure)
{
    kept *k = user;
    k->policies[k->n] = policy;
    k->positions[k->n++] = k->results[policy].divergence.n;
    if (policy == k->stops_at) {
        *failure = (tkv_error){TKV_ERR_IO, "the disk is full"};
        return TKV_ERR_IO;
    }
    return TKV_OK;
}

/* Policies are done one after the other; with and without room for the reference's logits the
 * numbers are the same. */
static void every_policy_is_a_step(void **state)
{
    const fixture *f = *state;
    const tkv_policy policies[2] = {
        {.type_k = TKV_TYPE_TURBO4, .type_v = TKV_TYPE_TURBO4},
        {.type_k = TKV_TYPE_TURBO2, .type_v = TKV_TYPE_TURBO2, .sparse_v = 0.01f}};
    tkv_eval_text_result results[2][2] = {0};
    kept k = {.stops_at = -1};
    tkv_eval_text_params params = {.tokenizer = f->tokenizer,
                                   .tokens = f->tokens.ids,
                                   .n_tokens = f->tokens.n,
                                   .n_context = 64,
                                   .n_chunks = 2,
                                   .policies = policies,
                                   .n_policies = 2,
                                   .measured = keep,
                                   .measured_user = &k};
    for (int i = 0; i < 2; i++) {
        params.max_reference_bytes = i ? (size_t)1 << 30 : 0;
        k.n = 0;
        k.results = results[i];
        assert_ok(tkv_eval_text(f->model, f->context, &params, results[i], &error));
        assert_int_equal(k.n, 4);
        for (int j = 0; j < 4; j++) {
            assert_int_equal(k.policies[j], j % 2);
            assert_int_equal(k.positions[j], 31 * (j / 2 + 1));
        }
    }
    for (int i = 0; i < 2; i++) {
        const tkv_divergence *a = &results[0][i].divergence;
        const tkv_divergence *b = &results[1][i].divergence;
        assert_int_equal(a->n, 62);
        assert_memory_equal(a->kl, b->kl, a->n * sizeof *a->kl);
        assert_true(a->nll == b->nll && a->nll_reference == b->nll_reference);
        assert_int_equal(results[0][i].n_weights, results[1][i].n_weights);
        tkv_divergence_free(&results[0][i].divergence);
        tkv_divergence_free(&results[1][i].divergence);
    }
    assert_true(results[0][1].n_skipped > 0);

    tkv_eval_text_result stopped[2] = {0};
    k = (kept){.results = stopped, .stops_at = 0};
    assert_fails(tkv_eval_text(f->model, f->context, &params, stopped, &error), TKV_ERR_IO,
                 "the disk is full");
    assert_int_equal(k.n, 1);
    assert_int_equal(stopped[1].divergence.n, 0);
    tkv_divergence_free(&stopped[0].divergence);
}

static void impossible_runs_are_explained(void **state)
{
    const fixture *f = *state;
    const tkv_policy policy = {.type_k = TKV_TYPE_TURBO3, .type_v = TKV_TYPE_TURBO3};
    tkv_eval_text_result result = {0};
    tkv_eval_text_params params = {.tokenizer = f->tokenizer,
                                   .tokens = f->tokens.ids,
                                   .n_tokens = 100,
                                   .n_context = 96,
                                   .n_chunks = 2,
                                   .policies = &policy,
                                   .n_policies = 1};
    assert_fails(tkv_eval_text(f->model, f->context, &params, &result, &error),
                 TKV_ERR_INVALID_ARGUMENT, "100 tokens: expected 2 chunks of 96");
    params.n_chunks = 0;
    assert_fails(tkv_eval_text(f->model, f->context, &params, &result, &error),
                 TKV_ERR_INVALID_ARGUMENT, "at least one chunk");
    const tkv_policy sinks = {.type_k = TKV_TYPE_TURBO3, .type_v = TKV_TYPE_TURBO3, .n_sinks = 97};
    params.n_chunks = 1;
    params.policies = &sinks;
    assert_fails(tkv_eval_text(f->model, f->context, &params, &result, &error),
                 TKV_ERR_INVALID_ARGUMENT, "97 sinks");
    tkv_divergence_free(&result.divergence);
}

static bool stop_at_once(void *user, int64_t n_done, int64_t n_total)
{
    (void)n_total;
    *(int64_t *)user = n_done;
    return false;
}

static void progress_can_stop_it(void **state)
{
    const fixture *f = *state;
    const tkv_policy policy = {.type_k = TKV_TYPE_TURBO3, .type_v = TKV_TYPE_TURBO3};
    tkv_eval_text_result result = {0};
    int64_t n_done = 0;
    const tkv_eval_text_params params = {.tokenizer = f->tokenizer,
                                         .tokens = f->tokens.ids,
                                         .n_tokens = f->tokens.n,
                                         .n_context = 96,
                                         .n_chunks = 2,
                                         .policies = &policy,
                                         .n_policies = 1,
                                         .progress = stop_at_once,
                                         .progress_user = &n_done};
    assert_ok(tkv_eval_text(f->model, f->context, &params, &result, &error));
    assert_true(n_done > 0 && n_done <= 48);
    assert_int_equal(result.divergence.n, 0);
    tkv_divergence_free(&result.divergence);
}

/* A tokenizer of one token that every text begins with. */
static tkv_tokenizer *create_beginner(void)
{
    tkv_tokenizer *tokenizer = NULL;
    const tkv_gguf_text token = {"<s>", 3};
    const int32_t kind = TKV_TOKEN_CONTROL;
    const tkv_tokenizer_params params = {.model = "gpt2",
                                         .pre_tokenizer = "gpt-2",
                                         .n_tokens = 1,
                                         .tokens = &token,
                                         .kinds = &kind,
                                         .unknown_token = -1,
                                         .adds_bos = true};
    assert_ok(tkv_tokenizer_create(&params, &tokenizer, &error));
    assert_int_equal(tkv_tokenizer_begin(tokenizer), 0);
    return tokenizer;
}

/* Where the model wants it, every chunk begins with the begin token, as if the text had it there.
 */
static void chunks_begin_as_the_model_wants(void **state)
{
    const fixture *f = *state;
    enum { N_CONTEXT = 48, N_CHUNKS = 2 };
    const tkv_policy policy = {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16};
    tkv_tokenizer *beginner = create_beginner();
    int32_t by_hand[N_CONTEXT * N_CHUNKS];
    for (int chunk = 0; chunk < N_CHUNKS; chunk++) {
        by_hand[chunk * N_CONTEXT] = 0;
        memcpy(by_hand + chunk * N_CONTEXT + 1, f->tokens.ids + chunk * N_CONTEXT,
               (N_CONTEXT - 1) * sizeof *by_hand);
    }
    const struct {
        const tkv_tokenizer *tokenizer;
        const int32_t *tokens;
    } cases[] = {{f->tokenizer, f->tokens.ids}, {beginner, f->tokens.ids}, {f->tokenizer, by_hand}};
    double perplexity[3];
    for (int i = 0; i < 3; i++) {
        tkv_eval_text_result result = {0};
        const tkv_eval_text_params params = {.tokenizer = cases[i].tokenizer,
                                             .tokens = cases[i].tokens,
                                             .n_tokens = N_CONTEXT * N_CHUNKS,
                                             .n_context = N_CONTEXT,
                                             .n_chunks = N_CHUNKS,
                                             .policies = &policy,
                                             .n_policies = 1};
        assert_ok(tkv_eval_text(f->model, f->context, &params, &result, &error));
        perplexity[i] = tkv_divergence_summarise(&result.divergence).perplexity_reference;
        tkv_divergence_free(&result.divergence);
    }
    assert_true(perplexity[0] != perplexity[1]);
    assert_true(perplexity[1] == perplexity[2]);
    tkv_tokenizer_free(beginner);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policies_are_ranked), cmocka_unit_test(every_policy_is_a_step),
        cmocka_unit_test(impossible_runs_are_explained), cmocka_unit_test(progress_can_stop_it),
        cmocka_unit_test(chunks_begin_as_the_model_wants)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
