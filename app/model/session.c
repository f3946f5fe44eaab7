#include "model/session.h"

#include "common/try.h"
#include "model/runner.h"
#include "model/weights.h"

#include <math.h>
#include <stdlib.h>

#define MAX_BATCH 65536

struct tkv_session {
    const tkv_model *model;
    tkv_context *context;
    tkv_cache *cache;
    tkv_runner *runner;
    int n_batch;
    int max_tokens;
    int length;
    float sparse_v;
    tkv_attend_stats stats;
};

#define MAX_ROPES 2

/* How the keys of some of the layers carry positions; the frequencies are its own. */
typedef struct layer_rope {
    tkv_rope rope;
    float frequencies[TKV_MAX_HEAD_DIM / 2];
} layer_rope;

static void describe_rope(const tkv_model *model, int index, layer_rope *described)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    for (int i = 0; i < config->rope_dim / 2; i++) {
        described->frequencies[i] = (float)tkv_model_rope(model, index)[i];
    }
    described->rope = (tkv_rope){config->rope_pairing == TKV_ROPE_INTERLEAVED, config->rope_dim,
                                 described->frequencies};
}

/* A window and a rope for each layer, beside what they have in common. */
static void describe_layers(const tkv_model *model, const layer_rope *ropes,
                            tkv_layer_shape *shapes)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    for (int i = 0; i < config->n_layers; i++) {
        const tkv_layer_weights *layer = &model->layers[i];
        shapes[i] = (tkv_layer_shape){.n_kv_heads = config->n_kv_heads,
                                      .head_dim_k = config->head_dim_k,
                                      .head_dim_v = config->head_dim_v,
                                      .window = layer->window,
                                      .rope = &ropes[layer->rope].rope};
    }
}

static int at_most(int n, int limit)
{
    return n < limit ? n : limit;
}

static bool has_exact_tokens_of_preset(const tkv_policy *policy)
{
    const char *name;
    tkv_policy preset;
    for (int i = 0; (name = tkv_policy_preset_name(i)); i++) {
        if (tkv_policy_preset(name, &preset, NULL) == TKV_OK && preset.n_sinks == policy->n_sinks &&
            preset.n_recent == policy->n_recent) {
            return true;
        }
    }
    return false;
}

/* A preset is for contexts of any length, and so are means, which a short text never gets; numbers
 * of exact tokens of one's own are checked by the cache. */
static tkv_policy fit_policy(const tkv_policy *policy, int max_tokens)
{
    tkv_policy fitted = *policy;
    fitted.centre_tokens = at_most(policy->centre_tokens, max_tokens);
    if (has_exact_tokens_of_preset(policy)) {
        fitted.n_sinks = at_most(policy->n_sinks, max_tokens);
        fitted.n_recent = at_most(policy->n_recent, max_tokens);
    }
    return fitted;
}

static tkv_status create_cache(const tkv_model *model, tkv_context *context,
                               const tkv_session_params *params, tkv_cache **cache,
                               tkv_error *error)
{
    const tkv_model_config *config = tkv_model_get_config(model);
    const tkv_policy policy = fit_policy(&params->policy, params->max_tokens);
    layer_rope ropes[MAX_ROPES];
    for (int i = 0; i < model->n_ropes; i++) {
        describe_rope(model, i, &ropes[i]);
    }
    const size_t n_layers = (size_t)config->n_layers;
    tkv_layer_shape *shapes = malloc(n_layers * sizeof *shapes);
    if (!shapes) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to describe %zu layers", n_layers);
    }
    describe_layers(model, ropes, shapes);
    const tkv_cache_params cache_params = {
        .n_layers = config->n_layers, .shapes = shapes, .max_tokens = params->max_tokens};
    const tkv_status status =
        tkv_policy_create_cache(context, &cache_params, &policy, cache, error);
    free(shapes);
    return status;
}

static tkv_status check_params(const tkv_session_params *params, tkv_error *error)
{
    if (params->max_tokens < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a context of %d tokens: expected at least 1", params->max_tokens);
    }
    if (params->n_batch < 0 || params->n_batch > MAX_BATCH) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a batch of %d tokens: expected 1 to %d, or 0 for the default",
                        params->n_batch, MAX_BATCH);
    }
    return TKV_OK;
}

static int batch_size(const tkv_session_params *params)
{
    const int n_batch = params->n_batch > 0 ? params->n_batch : TKV_DEFAULT_BATCH;
    return n_batch < params->max_tokens ? n_batch : params->max_tokens;
}

tkv_status tkv_session_create(const tkv_model *model, tkv_context *context,
                              const tkv_session_params *params, tkv_session **session,
                              tkv_error *error)
{
    tkv_status status = check_params(params, error);
    if (status != TKV_OK) {
        return status;
    }
    tkv_session *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a session");
    }
    created->model = model;
    created->max_tokens = params->max_tokens;
    created->n_batch = batch_size(params);
    created->context = context;
    created->sparse_v = params->policy.sparse_v;
    status = create_cache(model, context, params, &created->cache, error);
    if (status == TKV_OK) {
        status = tkv_runner_create(model, context, created->n_batch, &created->runner, error);
    }
    if (status != TKV_OK) {
        tkv_session_free(created);
        return status;
    }
    *session = created;
    return TKV_OK;
}

void tkv_session_free(tkv_session *session)
{
    if (session) {
        if (session->runner) {
            session->runner->table->free(session->runner);
        }
        tkv_cache_free(session->cache);
        free(session);
    }
}

static tkv_status check_eval(const tkv_session *session, const int32_t *tokens, int n_tokens,
                             const tkv_eval_params *params, tkv_error *error)
{
    if (n_tokens < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "%d tokens: expected at least 1",
                        n_tokens);
    }
    if (n_tokens > session->max_tokens - session->length) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d tokens after the %d in the sequence do not fit a context of %d",
                        n_tokens, session->length, session->max_tokens);
    }
    const int vocabulary_size = tkv_model_get_config(session->model)->vocabulary_size;
    for (int i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || tokens[i] >= vocabulary_size) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "token %d of the input is %d: the vocabulary is 0 to %d", i,
                            (int)tokens[i], vocabulary_size - 1);
        }
    }
    if (params->logits_mode != TKV_LOGITS_NONE && !params->logits) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "logits are asked for without a buffer");
    }
    return TKV_OK;
}

/* The batch of an evaluation that starts at its token n_done. */
static tkv_batch next_batch(tkv_session *session, const int32_t *tokens, int n_done, int n_total,
                            const tkv_eval_params *params)
{
    const int left = n_total - n_done;
    tkv_batch batch = {.tokens = tokens + n_done,
                       .n_tokens = left < session->n_batch ? left : session->n_batch,
                       .first_position = session->length,
                       .sparse_v = session->sparse_v,
                       .stats = &session->stats};
    if (params->logits_mode == TKV_LOGITS_ALL) {
        const int vocabulary_size = tkv_model_get_config(session->model)->vocabulary_size;
        batch.n_logits = batch.n_tokens;
        batch.logits = params->logits + (size_t)n_done * (size_t)vocabulary_size;
    } else if (params->logits_mode == TKV_LOGITS_LAST && batch.n_tokens == left) {
        batch.n_logits = 1;
        batch.logits = params->logits;
    }
    return batch;
}

static tkv_status interrupted(tkv_error *error)
{
    return tkv_fail(error, TKV_ERR_INTERRUPTED, "the evaluation was interrupted");
}

/* After a failure: as it was before, or, where a layer has given back what lies behind its window
 * since then, with the batches that were done. */
static void give_back(tkv_session *session, int n_tokens)
{
    if (tkv_cache_truncate(session->cache, n_tokens, NULL) == TKV_OK) {
        session->length = n_tokens;
    } else {
        tkv_cache_truncate(session->cache, session->length, NULL);
    }
}

tkv_status tkv_session_eval(tkv_session *session, const int32_t *tokens, int n_tokens,
                            const tkv_eval_params *params, tkv_error *error)
{
    tkv_status status = check_eval(session, tokens, n_tokens, params, error);
    if (status != TKV_OK) {
        return status;
    }
    const int start = session->length;
    for (int n_done = 0; n_done < n_tokens;) {
        if (tkv_context_is_stopped(session->context)) {
            return interrupted(error);
        }
        const tkv_batch batch = next_batch(session, tokens, n_done, n_tokens, params);
        status = session->runner->table->forward(session->runner, session->cache, &batch, error);
        if (status != TKV_OK) {
            give_back(session, status == TKV_ERR_INTERRUPTED ? session->length : start);
            return status;
        }
        n_done += batch.n_tokens;
        session->length += batch.n_tokens;
        if (params->progress && !params->progress(params->progress_user, n_done, n_tokens)) {
            break;
        }
    }
    return TKV_OK;
}

tkv_status tkv_session_truncate(tkv_session *session, int n_tokens, tkv_error *error)
{
    if (n_tokens < 0 || n_tokens > session->length) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "truncation to %d tokens: expected 0 to the sequence's %d", n_tokens,
                        session->length);
    }
    TKV_TRY(tkv_cache_truncate(session->cache, n_tokens, error));
    session->length = n_tokens;
    return TKV_OK;
}

tkv_status tkv_session_fork(const tkv_session *session, int n_tokens, tkv_session **fork,
                            tkv_error *error)
{
    if (n_tokens < 0 || n_tokens > session->length) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a fork of %d tokens: expected 0 to the sequence's %d", n_tokens,
                        session->length);
    }
    tkv_session *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a session");
    }
    *created = *session;
    created->cache = NULL;
    created->runner = NULL;
    created->length = n_tokens;
    created->stats = (tkv_attend_stats){0};
    tkv_status status = tkv_cache_fork(session->cache, n_tokens, &created->cache, error);
    if (status == TKV_OK) {
        status = tkv_runner_create(session->model, session->context, session->n_batch,
                                   &created->runner, error);
    }
    if (status != TKV_OK) {
        tkv_session_free(created);
        return status;
    }
    *fork = created;
    return TKV_OK;
}

tkv_status tkv_session_shift(tkv_session *session, int first, int n_drop, tkv_error *error)
{
    layer_rope any; /* layers have their own */
    describe_rope(session->model, 0, &any);
    TKV_TRY(tkv_cache_shift(session->cache, first, n_drop, &any.rope, error));
    session->length -= n_drop;
    return TKV_OK;
}

int tkv_session_length(const tkv_session *session)
{
    return session->length;
}

int tkv_session_max_tokens(const tkv_session *session)
{
    return session->max_tokens;
}

const tkv_cache *tkv_session_cache(const tkv_session *session)
{
    return session->cache;
}

const tkv_attend_stats *tkv_session_attend_stats(const tkv_session *session)
{
    return &session->stats;
}

size_t tkv_session_workspace_bytes(const tkv_session *session)
{
    return session->runner->table->bytes(session->runner);
}
