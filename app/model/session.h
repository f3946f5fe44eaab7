/* A running sequence: a model, the KV cache of the tokens seen so far, and the buffers that one
 * step needs. Sessions are independent of each other; each has one user at a time. */
#ifndef TKV_MODEL_SESSION_H
#define TKV_MODEL_SESSION_H

#include "model/model.h"
#include "turbokv.h"

#define TKV_DEFAULT_BATCH 512

typedef struct tkv_session tkv_session;

typedef struct tkv_session_params {
    int max_tokens; /* the context: tokens that the sequence can hold; a preset's exact tokens and
                       any policy's means shrink to it */
    int n_batch;    /* tokens that pass the model at once; 0: TKV_DEFAULT_BATCH */
    tkv_policy policy; /* KV types of the layers and what is kept exact; all zero: f16 */
} tkv_session_params;

/* Creates an empty session; params are copied. Model and context must outlive it. Its buffers are
 * bounded by n_batch and the model's shape, not by max_tokens. The caller frees it with
 * tkv_session_free. */
tkv_status tkv_session_create(const tkv_model *model, tkv_context *context,
                              const tkv_session_params *params, tkv_session **session,
                              tkv_error *error);
void tkv_session_free(tkv_session *session);

/* Which rows of logits an evaluation gives. */
typedef enum tkv_logits_mode {
    TKV_LOGITS_NONE,
    TKV_LOGITS_LAST, /* of the last token: [vocabulary_size] */
    TKV_LOGITS_ALL   /* of every token: [n_tokens][vocabulary_size] */
} tkv_logits_mode;

/* Called after each batch with the tokens of this evaluation that are done. False stops. */
typedef bool (*tkv_progress)(void *user, int n_done, int n_total);

typedef struct tkv_eval_params {
    tkv_logits_mode logits_mode;
    float *logits;         /* the caller's buffer, of the size that logits_mode says; else NULL */
    tkv_progress progress; /* NULL: none */
    void *progress_user;
} tkv_eval_params;

/* Appends n_tokens (>= 1) to the sequence, in batches of n_batch, and gives the logits asked for.
 * On any error (token id out of range, context full, cache or attention failing) the session is as
 * it was before the call, except that TKV_ERR_INTERRUPTED, when the context is to stop, leaves the
 * batches done so far. If progress returns false, the batches done so far stay in the sequence,
 * the call returns TKV_OK, tkv_session_length says how far it came, and logits of tokens that were
 * not reached are not written. */
tkv_status tkv_session_eval(tkv_session *session, const int32_t *tokens, int n_tokens,
                            const tkv_eval_params *params, tkv_error *error);

/* Drops the tokens from position n_tokens on; 0 empties the sequence. An n_tokens beyond the
 * session's length is an error. */
tkv_status tkv_session_truncate(tkv_session *session, int n_tokens, tkv_error *error);

/* A second session, of the same model, context and policy, that starts with the first n_tokens of
 * this one and shares their memory (tkv_cache_fork). The caller frees it, in any order. */
tkv_status tkv_session_fork(const tkv_session *session, int n_tokens, tkv_session **fork,
                            tkv_error *error);

/* Context shift (tkv_cache_shift): drops n_drop tokens from position `first` on; the later ones
 * move down. What they took from the dropped ones while these were there stays in them, as in every
 * context shift. On error the session is as it was. */
tkv_status tkv_session_shift(tkv_session *session, int first, int n_drop, tkv_error *error);

/* Tokens in the sequence, and how many it can hold. */
int tkv_session_length(const tkv_session *session);
int tkv_session_max_tokens(const tkv_session *session);

/* The session's cache, for its size and content. It belongs to the session. */
const tkv_cache *tkv_session_cache(const tkv_session *session);

/* What policy.sparse_v skipped so far; zero where it is off. Lives as long as the session. */
const tkv_attend_stats *tkv_session_attend_stats(const tkv_session *session);

/* Bytes of the buffers beside the cache. */
size_t tkv_session_workspace_bytes(const tkv_session *session);

#endif
