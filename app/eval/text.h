/* Quality of KV policies on a text: the model with each policy beside the same model with f16 KV.
 */
#ifndef TKV_EVAL_TEXT_H
#define TKV_EVAL_TEXT_H

#include "eval/divergence.h"
#include "model/model.h"
#include "model/tokenizer.h"

/* Whether the scored half of a chunk passes the model in batches or token by token. */
typedef enum tkv_eval_mode { TKV_EVAL_PREFILL, TKV_EVAL_DECODE } tkv_eval_mode;

typedef struct tkv_eval_text_params {
    const tkv_tokenizer *tokenizer; /* knows whether a chunk begins with a token of its own */
    const int32_t *tokens;          /* [n_tokens] of the text, without a begin of text */
    size_t n_tokens;
    /* Tokens of a chunk; the second half is scored, as by llama-perplexity. Where the model wants a
     * begin token, it takes the place of the last token of a chunk, and the others move up. */
    int n_context;
    int n_chunks;
    int n_batch; /* in prefill mode; 0: the default */
    tkv_eval_mode mode;
    const tkv_policy *policies; /* [n_policies] */
    int n_policies;
    /* Logits of the f16 model that may be kept for the policies after the first; where they take
     * more, it passes each scored half again for each policy. */
    size_t max_reference_bytes;
    /* NULL, or called when a policy has passed a chunk, with results[policy] of all chunks so far;
     * an error ends the evaluation with it. */
    tkv_status (*measured)(void *user, int policy, tkv_error *error);
    void *measured_user;
    bool (*progress)(void *user, int64_t n_done, int64_t n_total); /* NULL: none; false: stop */
    void *progress_user;
} tkv_eval_text_params;

typedef struct tkv_eval_text_result {
    tkv_divergence divergence;
    size_t kv_bytes; /* at the end of a chunk */
    double seconds;  /* spent in the model with this policy */
    int64_t n_weights;
    int64_t n_skipped; /* by sparse V */
} tkv_eval_text_result;

/* Whether the text holds the chunks that are asked for, and there are policies to score. */
tkv_status tkv_eval_text_check(const tkv_eval_text_params *params, tkv_error *error);

/* Scores every policy on the first n_chunks chunks, on each chunk one policy after the other;
 * results [n_policies] zero-initialised, to be
 * freed with tkv_divergence_free by the caller, also after an error. A text that is too short is an
 * error that says how many tokens it has. If progress stops it, the positions so far count. */
tkv_status tkv_eval_text(const tkv_model *model, tkv_context *context,
                         const tkv_eval_text_params *params, tkv_eval_text_result *results,
                         tkv_error *error);

#endif
