#include "eval/text.h"

#include "common/error.h"
#include "eval/clock.h"
#include "model/prompt.h"
#include "model/session.h"

#include <stdlib.h>
#include <string.h>

/* Tokens of the scored half that pass at once in prefill mode: bounds the logits in memory. */
#define SCORED_STEP 256

/* An evaluation under way: session 0 is the reference, session i + 1 has policy i. */
typedef struct evaluation {
    const tkv_eval_text_params *params;
    tkv_eval_text_result *results;
    int n_vocabulary;
    int step;
    tkv_tokens chunk;       /* [n_context] under way */
    tkv_session **sessions; /* [n_policies + 1] */
    float *reference;       /* [step][n_vocabulary] */
    float *tested;          /* likewise */
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
                        "the text has %zu tokens: expected %d chunks of %d", p->n_tokens,
                        p->n_chunks, p->n_context);
    }
    return TKV_OK;
}

static tkv_status create_sessions(evaluation *e, const tkv_model *model, tkv_context *context,
                                  tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    tkv_status status = TKV_OK;
    for (int i = 0; i <= p->n_policies && status == TKV_OK; i++) {
        tkv_session_params params = {.max_tokens = p->n_context, .n_batch = p->n_batch};
        if (i > 0) {
            params.policy = p->policies[i - 1];
        }
        status = tkv_session_create(model, context, &params, &e->sessions[i], error);
    }
    return status;
}

/* Passes tokens through one session; logits NULL: none are wanted. */
static tkv_status pass(evaluation *e, int index, const int32_t *tokens, int n, float *logits,
                       tkv_error *error)
{
    const tkv_eval_params params = {.logits_mode = logits ? TKV_LOGITS_ALL : TKV_LOGITS_NONE,
                                    .logits = logits};
    const double start = tkv_clock();
    const tkv_status status = tkv_session_eval(e->sessions[index], tokens, n, &params, error);
    if (index > 0) {
        e->results[index - 1].seconds += tkv_clock() - start;
    }
    return status;
}

/* One step of the scored half: `n` tokens, of which the first n_scored have a successor. */
static tkv_status score_step(evaluation *e, const int32_t *tokens, int n, int n_scored,
                             tkv_error *error)
{
    tkv_status status = pass(e, 0, tokens, n, e->reference, error);
    for (int i = 0; i < e->params->n_policies && status == TKV_OK; i++) {
        status = pass(e, i + 1, tokens, n, e->tested, error);
        for (int t = 0; t < n_scored && status == TKV_OK; t++) {
            const size_t row = (size_t)t * (size_t)e->n_vocabulary;
            status = tkv_divergence_add(&e->results[i].divergence, e->reference + row,
                                        e->tested + row, e->n_vocabulary, tokens[t + 1], error);
        }
    }
    return status;
}

static void report(evaluation *e, int64_t n_done)
{
    const tkv_eval_text_params *p = e->params;
    const int64_t n_total = (int64_t)p->n_chunks * p->n_context;
    if (p->progress && !p->progress(p->progress_user, n_done, n_total)) {
        e->is_stopped = true;
    }
}

/* The tokens of a chunk, which is a text of its own for the model. */
static tkv_status fill_chunk(evaluation *e, int chunk, tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    const int32_t *text = p->tokens + (size_t)chunk * (size_t)p->n_context;
    e->chunk.n = 0;
    tkv_status status = tkv_prompt_begin(p->tokenizer, &e->chunk, error);
    while (status == TKV_OK && e->chunk.n < (size_t)p->n_context) {
        status = tkv_tokens_push(&e->chunk, *text++, error);
    }
    return status;
}

static tkv_status run_chunk(evaluation *e, int chunk, tkv_error *error)
{
    const tkv_eval_text_params *p = e->params;
    const int64_t before = (int64_t)chunk * p->n_context;
    const int first_scored = p->n_context / 2;
    tkv_status status = fill_chunk(e, chunk, error);
    const int32_t *tokens = e->chunk.ids;
    for (int i = 0; i <= p->n_policies && status == TKV_OK; i++) {
        status = tkv_session_truncate(e->sessions[i], 0, error);
        if (status == TKV_OK) {
            status = pass(e, i, tokens, first_scored, NULL, error);
        }
        report(e, before + (int64_t)first_scored * (i + 1) / (p->n_policies + 1));
    }
    for (int at = first_scored; at < p->n_context && status == TKV_OK && !e->is_stopped;) {
        const int n = p->n_context - at < e->step ? p->n_context - at : e->step;
        const bool is_last = at + n == p->n_context;
        status = score_step(e, tokens + at, n, is_last ? n - 1 : n, error);
        at += n;
        report(e, before + at);
    }
    for (int i = 0; i < p->n_policies; i++) {
        e->results[i].kv_bytes = tkv_cache_bytes(tkv_session_cache(e->sessions[i + 1]));
    }
    return status;
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
                    .n_vocabulary = tkv_model_get_config(model)->vocabulary_size,
                    .step = params->mode == TKV_EVAL_DECODE ? 1 : SCORED_STEP};
    const size_t n_logits = (size_t)e.step * (size_t)e.n_vocabulary;
    e.sessions = calloc((size_t)params->n_policies + 1, sizeof *e.sessions);
    e.reference = malloc(n_logits * sizeof *e.reference);
    e.tested = malloc(n_logits * sizeof *e.tested);
    status = e.sessions && e.reference && e.tested
                 ? create_sessions(&e, model, context, error)
                 : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu logits", n_logits);
    for (int chunk = 0; chunk < params->n_chunks && status == TKV_OK && !e.is_stopped; chunk++) {
        status = run_chunk(&e, chunk, error);
    }
    for (int i = 0; e.sessions && i <= params->n_policies; i++) {
        if (i > 0 && e.sessions[i]) {
            const tkv_attend_stats *stats = tkv_session_attend_stats(e.sessions[i]);
            results[i - 1].n_weights = stats->n_weights;
            results[i - 1].n_skipped = stats->n_skipped;
        }
        tkv_session_free(e.sessions[i]);
    }
    tkv_tokens_free(&e.chunk);
    free(e.sessions);
    free(e.reference);
    free(e.tested);
    return status;
}
