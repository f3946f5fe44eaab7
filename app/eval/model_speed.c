#include "eval/model_speed.h"

#include "common/try.h"
#include "eval/clock.h"
#include "eval/footprint.h"
#include "model/prompt.h"
#include "model/session.h"

#include <stdlib.h>

#define WARM_UP_TOKENS 4

struct tkv_model_work {
    int n_vocabulary;
    const tkv_model *model;
    tkv_session *session;
    float *logits;     /* [n_vocabulary] */
    tkv_tokens tokens; /* for all positions */
};

static tkv_status choose_tokens(tkv_model_work *work, const tkv_tokenizer *tokenizer, int n,
                                tkv_error *error)
{
    uint32_t seed = 1;
    TKV_TRY(tkv_prompt_begin(tokenizer, &work->tokens, error));
    while (work->tokens.n < (size_t)n) {
        seed = seed * 1664525u + 1013904223u;
        const int32_t token = (int32_t)((seed >> 8) % (uint32_t)work->n_vocabulary);
        TKV_TRY(tkv_tokens_push(&work->tokens, token, error));
    }
    return TKV_OK;
}

tkv_status tkv_model_work_create(const tkv_model *model, const tkv_tokenizer *tokenizer,
                                 tkv_context *context, const tkv_policy *policy, int max_tokens,
                                 tkv_model_work **work, tkv_error *error)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    const tkv_session_params params = {.max_tokens = max_tokens, .policy = *policy};
    *work = NULL;
    tkv_model_work *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the benchmark");
    }
    created->n_vocabulary = config->vocabulary_size;
    created->model = model;
    tkv_status status = tkv_session_create(model, context, &params, &created->session, error);
    if (status == TKV_OK) {
        created->logits = malloc((size_t)created->n_vocabulary * sizeof *created->logits);
        status = created->logits
                     ? choose_tokens(created, tokenizer, max_tokens, error)
                     : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the logits");
    }
    if (status != TKV_OK) {
        tkv_model_work_free(created);
        return status;
    }
    *work = created;
    return TKV_OK;
}

void tkv_model_work_free(tkv_model_work *work)
{
    if (work) {
        tkv_session_free(work->session);
        free(work->logits);
        tkv_tokens_free(&work->tokens);
        free(work);
    }
}

/* Passes n_tokens after a session's through the model, n_at_once at a time. */
static tkv_status eval(const tkv_model_work *work, tkv_session *session, int n_tokens,
                       int n_at_once, tkv_error *error)
{
    const int length = tkv_session_length(session);
    const tkv_eval_params params = {.logits_mode = TKV_LOGITS_LAST, .logits = work->logits};
    for (int done = 0; done < n_tokens; done += n_at_once) {
        const int left = n_tokens - done;
        TKV_TRY(tkv_session_eval(session, work->tokens.ids + length + done,
                                 left < n_at_once ? left : n_at_once, &params, error));
    }
    return TKV_OK;
}

/* Lets a session do what it does once: on a device it captures its step. */
static tkv_status warm_up(const tkv_model_work *work, tkv_session *session, tkv_error *error)
{
    const int length = tkv_session_length(session);
    const int room = (int)work->tokens.n - length;
    TKV_TRY(eval(work, session, room < WARM_UP_TOKENS ? room : WARM_UP_TOKENS, 1, error));
    return tkv_session_truncate(session, length, error);
}

/* Times a pass in a copy of the sequence that shares its pages. */
static tkv_status pass(const tkv_model_work *work, int n_tokens, int n_at_once, double *seconds,
                       tkv_error *error)
{
    tkv_session *copy = NULL;
    tkv_status status =
        tkv_session_fork(work->session, tkv_session_length(work->session), &copy, error);
    if (status == TKV_OK) {
        status = warm_up(work, copy, error);
    }
    const double start = tkv_clock();
    if (status == TKV_OK) {
        status = eval(work, copy, n_tokens, n_at_once, error);
    }
    *seconds = tkv_clock() - start;
    tkv_session_free(copy);
    return status;
}

/* Who wants to know how far a filling is. */
typedef struct listener {
    void (*progress)(void *user, int n_done);
    void *user;
} listener;

static bool tell(void *user, int n_done, int n_total)
{
    const listener *l = user;
    (void)n_total;
    if (l->progress) {
        l->progress(l->user, n_done);
    }
    return true;
}

static tkv_status extend(tkv_model_work *work, int depth, listener *l, tkv_error *error)
{
    const int length = tkv_session_length(work->session);
    const tkv_eval_params params = {
        .logits_mode = TKV_LOGITS_NONE, .progress = tell, .progress_user = l};
    return depth > length ? tkv_session_eval(work->session, work->tokens.ids + length,
                                             depth - length, &params, error)
                          : TKV_OK;
}

/* The last token comes by itself: a policy with a recent window keeps a batch exact until the next
 * one comes. */
tkv_status tkv_model_work_fill(tkv_model_work *work, int depth,
                               void (*progress)(void *user, int n_done), void *progress_user,
                               tkv_error *error)
{
    listener all_but_one = {progress, progress_user};
    listener none = {NULL, NULL};
    TKV_TRY(extend(work, depth - 1, &all_but_one, error));
    return extend(work, depth, &none, error);
}

tkv_status tkv_model_work_prefill(const tkv_model_work *work, int n_tokens, double *seconds,
                                  tkv_error *error)
{
    return pass(work, n_tokens, n_tokens, seconds, error);
}

tkv_status tkv_model_work_decode(const tkv_model_work *work, int n_tokens, double *seconds,
                                 tkv_error *error)
{
    return pass(work, n_tokens, 1, seconds, error);
}

size_t tkv_model_work_bytes(const tkv_model_work *work)
{
    return tkv_cache_bytes(tkv_session_cache(work->session));
}

double tkv_model_work_bits(const tkv_model_work *work)
{
    return tkv_kv_bits(work->model, tkv_model_work_bytes(work), tkv_session_length(work->session));
}
