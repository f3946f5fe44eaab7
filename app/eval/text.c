#include "eval/text.h"

#include "common/try.h"
#include "eval/clock.h"
#include "model/prompt.h"
#include "model/session.h"

#include <stdlib.h>
#include <string.h>

/* Tokens of the scored half that pass at once in prefill mode: bounds the logits in memory. */
#define SCORED_STEP 256

/* An evaluation under way. */
typedef struct evaluation {
    const tkv_eval_text_params *params;
    tkv_eval_text_result *results;
    const tkv_model *model;
    tkv_context *context;
    int n_vocabulary;
    int step;
    tkv_tokens chunk; /* [n_context] under way */
    int first_scored; /* of a chunk */
    bool is_kept;
    float *reference; /* logits of f16's [step][n_vocabulary], or of all scored tokens if is_kept */
    float *tested;    /* [step][n_vocabulary] */
    int64_t n_done;   /* tokens through the model */
    int64_t n_total;
    bool is_stopped;
} evaluation;

tkv_status tkv_eval_text_check(const tkv_eval_text_params *p, tkv_error *error)
{
    if (p->n_context < 4 || p->n_chunks < 1 || p->n_policies < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d chunks of %d tokens with %d policies: expected at least one chunk of 4 "
                        "tokens and one policy",
                        p->n_chunks, p->n_context, p->n_policies);
    }
    if (p->n_tokens / (size_t)p->n_context < (size_t)p->n_chunks) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "the text has %zu tokens: expected %d chunks of %d, %.0f in all: give a "
                        "longer text, fewer chunks or shorter ones",
                        p->n_tokens, p->n_chunks, p->n_context, (double)p->n_chunks * p->n_context);
    }
    return TKV_OK;
}

static tkv_status create_session(const evaluation *e, const tkv_policy *policy,
                                 tkv_session **session, tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    const tkv_session_params params = {
        .max_tokens = p->n_context, .n_batch = p->n_batch, .policy = *policy};
    return tkv_session_create(e->model, e->context, &params, session, error);
}

/* A policy that no session takes is found before any other one is measured. */
static tkv_status check_policies(const evaluation *e, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int i = 0; i < e->params->n_policies && status == TKV_OK; i++) {
        tkv_session *session = NULL;
        status = create_session(e, &e->params->policies[i], &session, error);
        tkv_session_free(session);
    }
    return status;
}

static bool report(void *user, int n_done, int n_total)
{
    evaluation *e = user;
    const tkv_eval_text_params *p = e->params;
    (void)n_total;
    e->is_stopped = e->is_stopped ||
                    (p->progress && !p->progress(p->progress_user, e->n_done + n_done, e->n_total));
    return !e->is_stopped;
}

/* Passes tokens through a session; logits NULL: none are wanted. */
static tkv_status pass(evaluation *e, tkv_session *session, const int32_t *tokens, int n,
                       float *logits, tkv_error *error)
{
    const tkv_eval_params params = {.logits_mode = logits ? TKV_LOGITS_ALL : TKV_LOGITS_NONE,
                                    .logits = logits,
                                    .progress = report,
                                    .progress_user = e};
    const tkv_status status = tkv_session_eval(session, tokens, n, &params, error);
    e->n_done += n;
    return status;
}

/* Scores `n` tokens from `at` on, of which the first n_scored have a successor. `exact` NULL: the
 * reference's logits are there already. */
static tkv_status score_step(evaluation *e, int policy, tkv_session *exact, tkv_session *session,
                             const int32_t *tokens, int at, int n, tkv_error *error)
{
    const size_t n_vocabulary = (size_t)e->n_vocabulary;
    tkv_eval_text_result *result = &e->results[policy];
    float *reference =
        e->reference + (e->is_kept ? (size_t)(at - e->first_scored) * n_vocabulary : 0);
    TKV_TRY(exact ? pass(e, exact, tokens + at, n, reference, error) : TKV_OK);
    const double start = tkv_clock();
    if (!e->is_stopped) {
        TKV_TRY(pass(e, session, tokens + at, n, e->tested, error));
    }
    result->seconds += tkv_clock() - start;
    const int n_scored = at + n == e->params->n_context ? n - 1 : n;
    for (int t = 0; t < n_scored && !e->is_stopped; t++) {
        const size_t row = (size_t)t * n_vocabulary;
        TKV_TRY(tkv_divergence_add(&result->divergence, reference + row, e->tested + row,
                                   e->n_vocabulary, tokens[at + t + 1], error));
    }
    return TKV_OK;
}

static void add_session(const tkv_session *session, tkv_eval_text_result *result)
{
    const tkv_attend_stats *stats = tkv_session_attend_stats(session);
    result->kv_bytes = tkv_cache_bytes(tkv_session_cache(session));
    result->n_weights += stats->n_weights;
    result->n_skipped += stats->n_skipped;
}

/* One policy on a chunk; `prefix` has seen the half that is not scored, with f16. */
/* The sessions of one policy: its own, and f16's where its logits are not kept. */
typedef struct policy_sessions {
    tkv_session *tested;
    tkv_session *exact;
} policy_sessions;

static tkv_status read_prefix(evaluation *e, int policy, tkv_session *session,
                              const int32_t *tokens, tkv_error *error)
{
    const double start = tkv_clock();
    const tkv_status status = pass(e, session, tokens, e->first_scored, NULL, error);
    e->results[policy].seconds += tkv_clock() - start;
    return status;
}

static tkv_status run_sessions(evaluation *e, int policy, const tkv_session *prefix,
                               const int32_t *tokens, policy_sessions *s, tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    TKV_TRY(create_session(e, &p->policies[policy], &s->tested, error));
    if (policy == 0 || !e->is_kept) {
        TKV_TRY(tkv_session_fork(prefix, e->first_scored, &s->exact, error));
    }
    TKV_TRY(read_prefix(e, policy, s->tested, tokens, error));
    for (int at = e->first_scored; at < p->n_context && !e->is_stopped;) {
        const int n = p->n_context - at < e->step ? p->n_context - at : e->step;
        TKV_TRY(score_step(e, policy, s->exact, s->tested, tokens, at, n, error));
        at += n;
    }
    add_session(s->tested, &e->results[policy]);
    return !e->is_stopped && p->measured ? p->measured(p->measured_user, policy, error) : TKV_OK;
}

static tkv_status run_policy(evaluation *e, int policy, const tkv_session *prefix,
                             const int32_t *tokens, tkv_error *error)
{
    policy_sessions sessions = {NULL, NULL};
    const tkv_status status = run_sessions(e, policy, prefix, tokens, &sessions, error);
    tkv_session_free(sessions.tested);
    tkv_session_free(sessions.exact);
    return status;
}

/* The tokens of a chunk, which is a text of its own for the model. */
static tkv_status fill_chunk(evaluation *e, int chunk, tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    const int32_t *text = p->tokens + (size_t)chunk * (size_t)p->n_context;
    e->chunk.n = 0;
    TKV_TRY(tkv_prompt_begin(p->tokenizer, &e->chunk, error));
    while (e->chunk.n < (size_t)p->n_context) {
        TKV_TRY(tkv_tokens_push(&e->chunk, *text++, error));
    }
    return TKV_OK;
}

static tkv_status run_policies(evaluation *e, tkv_session *prefix, tkv_error *error)
{
    const int32_t *tokens = e->chunk.ids;
    TKV_TRY(pass(e, prefix, tokens, e->first_scored, NULL, error));
    for (int i = 0; i < e->params->n_policies && !e->is_stopped; i++) {
        TKV_TRY(run_policy(e, i, prefix, tokens, error));
    }
    return TKV_OK;
}

static tkv_status run_chunk(evaluation *e, int chunk, tkv_error *error)
{
    tkv_session *prefix = NULL;
    TKV_TRY(fill_chunk(e, chunk, error));
    TKV_TRY(create_session(e, &(tkv_policy){.type_k = TKV_TYPE_F16}, &prefix, error));
    const tkv_status status = run_policies(e, prefix, error);
    tkv_session_free(prefix);
    return status;
}

/* Room for logits: of all scored tokens if they may be kept. */
static tkv_status allocate_logits(evaluation *e, tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    const size_t row = (size_t)e->n_vocabulary * sizeof(float);
    const int n_scored = p->n_context - e->first_scored;
    e->is_kept = (size_t)n_scored <= p->max_reference_bytes / row;
    e->reference = malloc((size_t)(e->is_kept ? n_scored : e->step) * row);
    e->tested = malloc((size_t)e->step * row);
    const int n_passes = e->is_kept ? 1 : p->n_policies;
    e->n_total = (int64_t)p->n_chunks * ((int64_t)p->n_policies * p->n_context + e->first_scored +
                                         (int64_t)n_passes * n_scored);
    return e->reference && e->tested
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the logits of %d tokens",
                          e->is_kept ? n_scored : e->step);
}

tkv_status tkv_eval_text(const tkv_model *model, tkv_context *context,
                         const tkv_eval_text_params *params, tkv_eval_text_result *results,
                         tkv_error *error)
{
    tkv_status status = tkv_eval_text_check(params, error);
    if (status != TKV_OK) {
        return status;
    }
    evaluation e = {.params = params,
                    .results = results,
                    .model = model,
                    .context = context,
                    .n_vocabulary = tkv_model_get_config(model)->vocabulary_size,
                    .step = params->mode == TKV_EVAL_DECODE ? 1 : SCORED_STEP,
                    .first_scored = params->n_context / 2};
    status = check_policies(&e, error);
    if (status == TKV_OK) {
        status = allocate_logits(&e, error);
    }
    for (int chunk = 0; chunk < params->n_chunks && status == TKV_OK && !e.is_stopped; chunk++) {
        status = run_chunk(&e, chunk, error);
    }
    tkv_tokens_free(&e.chunk);
    free(e.reference);
    free(e.tested);
    return status;
}
