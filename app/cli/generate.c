#include "cli/generate.h"

#include "cli/progress.h"
#include "common/try.h"
#include "eval/clock.h"
#include "eval/footprint.h"
#include "model/prompt.h"
#include "model/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A generation under way. */
typedef struct generator {
    const loaded_model *loaded;
    const generation_params *params;
    generation *result;
    tkv_session *session;
    tkv_sampler *sampler;
    float *logits;
    progress bar;
    size_t n_shown; /* bytes of the text that were printed */
    size_t text_capacity;
} generator;

static bool show_progress(void *user, int n_done, int n_total)
{
    generator *g = user;
    if (g->params->has_progress) {
        progress_update(&g->bar, n_done, n_total);
    }
    return !command_is_interrupted();
}

/* tkv_session_eval, for which to be interrupted is not a failure: the session's length tells. */
static tkv_status evaluate(generator *g, const int32_t *tokens, int n_tokens,
                           const tkv_eval_params *params, tkv_error *error)
{
    const tkv_status status = tkv_session_eval(g->session, tokens, n_tokens, params, error);
    return status == TKV_ERR_INTERRUPTED ? TKV_OK : status;
}

static tkv_status prefill(generator *g, tkv_error *error)
{
    const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_LAST,
                                  .logits = g->logits,
                                  .progress = show_progress,
                                  .progress_user = g};
    if (g->params->has_progress) {
        progress_begin(&g->bar, "prefill");
    }
    const double start = tkv_clock();
    const tkv_status status =
        evaluate(g, g->result->prompt_tokens.ids, (int)g->result->prompt_tokens.n, &eval, error);
    g->result->prefill_seconds = tkv_clock() - start;
    g->result->n_prefilled = tkv_session_length(g->session);
    if (g->params->has_progress) {
        progress_end(&g->bar);
    }
    return status;
}

/* Prints what ends on whole characters; at the end, everything. */
static void show_text(generator *g, bool is_end)
{
    generation *r = g->result;
    const size_t whole = is_end ? r->text_length : tkv_utf8_whole(r->text, r->text_length);
    if (!g->params->is_streamed || whole <= g->n_shown) {
        return;
    }
    fwrite(r->text + g->n_shown, 1, whole - g->n_shown, stdout);
    r->is_output_lost = !command_flush_output();
    g->n_shown = whole;
}

static tkv_status add_token(generator *g, int32_t token, tkv_error *error)
{
    generation *r = g->result;
    const tkv_gguf_text bytes = tkv_tokenizer_decode(g->loaded->tokenizer, token);
    if (r->text_length + bytes.length + 1 > g->text_capacity) {
        const size_t capacity = 2 * g->text_capacity + bytes.length + 256;
        char *text = realloc(r->text, capacity);
        if (!text) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the text");
        }
        r->text = text;
        g->text_capacity = capacity;
    }
    memcpy(r->text + r->text_length, bytes.data, bytes.length);
    r->text_length += bytes.length;
    r->text[r->text_length] = '\0';
    TKV_TRY(tkv_tokens_push(&r->tokens, token, error));
    show_text(g, false);
    return TKV_OK;
}

/* First tokens that a shift of the context leaves alone. */
static int kept_tokens(const generator *g)
{
    return g->params->n_keep < 0 ? g->params->policy.n_sinks : g->params->n_keep;
}

/* A shift needs two tokens that it may drop one of. Asked before the first token, if the text can
 * come to fill the context. */
static tkv_status check_shift(const generator *g, int max_tokens, tkv_error *error)
{
    const generation_params *p = g->params;
    const double longest = (double)g->result->prompt_tokens.n + p->n_predict;
    const bool may_shift = p->shifts_context && (p->n_predict < 0 || longest > max_tokens);
    if (may_shift && kept_tokens(g) > max_tokens - 2) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a context of %d tokens of which %d are kept cannot be shifted: expected a "
                        "smaller --keep or a larger -c",
                        max_tokens, kept_tokens(g));
    }
    return TKV_OK;
}

/* Whether one more token fits, after a shift of the context if that is wanted. */
static tkv_status make_room(generator *g, bool *has_room, tkv_error *error)
{
    const int length = tkv_session_length(g->session);
    *has_room = length < tkv_session_max_tokens(g->session);
    if (*has_room || !g->params->shifts_context) {
        return TKV_OK;
    }
    const int n_keep = kept_tokens(g);
    g->result->n_shifts++;
    *has_room = true;
    return tkv_session_shift(g->session, n_keep, (length - n_keep) / 2, error);
}

static tkv_status write_tokens(generator *g, tkv_error *error)
{
    generation *r = g->result;
    const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_LAST, .logits = g->logits};
    const int limit = g->params->n_predict;
    while (!command_is_interrupted() && !r->is_output_lost &&
           (limit < 0 || r->tokens.n < (size_t)limit)) {
        int32_t token;
        TKV_TRY(tkv_sampler_draw(g->sampler, g->logits, &token, error));
        if (tkv_tokenizer_is_end(g->loaded->tokenizer, token)) {
            break;
        }
        TKV_TRY(add_token(g, token, error));
        bool has_room = limit < 0 || r->tokens.n < (size_t)limit;
        TKV_TRY(has_room ? make_room(g, &has_room, error) : TKV_OK);
        if (!has_room) {
            break;
        }
        const int length = tkv_session_length(g->session);
        const tkv_status status = evaluate(g, &token, 1, &eval, error);
        r->n_decoded += tkv_session_length(g->session) - length;
        TKV_TRY(status);
    }
    return TKV_OK;
}

static tkv_status decode(generator *g, tkv_error *error)
{
    const double start = tkv_clock();
    const tkv_status status = write_tokens(g, error);
    g->result->decode_seconds = tkv_clock() - start;
    TKV_TRY(status);
    show_text(g, true);
    return TKV_OK;
}

static void measure_cache(generator *g)
{
    generation *r = g->result;
    const tkv_attend_stats *stats = tkv_session_attend_stats(g->session);
    r->n_weights = stats->n_weights;
    r->n_skipped = stats->n_skipped;
    r->n_cached = tkv_session_length(g->session);
    r->kv_bytes = tkv_cache_bytes(tkv_session_cache(g->session));
    r->kv_bytes_f16 = tkv_kv_bytes_f16(g->loaded->model, r->n_cached);
    r->bits_per_value = tkv_kv_bits(g->loaded->model, r->kv_bytes, r->n_cached);
}

static void warn_of_second_begin(const tkv_tokenizer *tokenizer, const tkv_tokens *tokens)
{
    if (tkv_prompt_begins_twice(tokenizer, tokens)) {
        const tkv_gguf_text name = tkv_tokenizer_decode(tokenizer, tokens->ids[0]);
        fprintf(stderr,
                "turbokv: warning: the prompt begins with %.*s, and this model gets one before "
                "every prompt: now there are two\n",
                (int)name.length, name.data);
    }
}

/* The prompt's tokens, as text or as a conversation. */
static tkv_status prepare_prompt(generator *g, tkv_error *error)
{
    const generation_params *p = g->params;
    const tkv_tokenizer *tokenizer = g->loaded->tokenizer;
    tkv_tokens *tokens = &g->result->prompt_tokens;
    char *chat = NULL;
    size_t length = p->prompt_length;
    if (p->is_chat) {
        tkv_chat_form form;
        TKV_TRY(tkv_chat_find(g->loaded->gguf, tokenizer, &form, error));
        TKV_TRY(tkv_chat_write(form, p->system, p->prompt, length, &chat, &length, error));
    }
    const tkv_status status =
        tkv_prompt_encode(tokenizer, chat ? chat : p->prompt, length, tokens, error);
    free(chat);
    TKV_TRY(status);
    warn_of_second_begin(tokenizer, tokens);
    return TKV_OK;
}

static tkv_status encode_prompt(generator *g, int *max_tokens, tkv_error *error)
{
    const generation_params *p = g->params;
    const tkv_model_config *config = tkv_model_get_config(g->loaded->model);
    tkv_tokens *tokens = &g->result->prompt_tokens;
    *max_tokens = p->max_tokens ? p->max_tokens : config->context_length;
    TKV_TRY(prepare_prompt(g, error));
    if (tokens->n == 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "the prompt is empty: expected at least one token");
    }
    if (tokens->n > (size_t)*max_tokens) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "the prompt has %zu tokens, the context %d: give a larger one with -c",
                        tokens->n, *max_tokens);
    }
    return check_shift(g, *max_tokens, error);
}

static tkv_status generate(generator *g, tkv_error *error)
{
    const loaded_model *loaded = g->loaded;
    const int n_vocabulary = tkv_model_get_config(loaded->model)->vocabulary_size;
    tkv_session_params session = {.policy = g->params->policy};
    TKV_TRY(encode_prompt(g, &session.max_tokens, error));
    command_warn_of_context(loaded, session.max_tokens);
    g->logits = malloc((size_t)n_vocabulary * sizeof *g->logits);
    g->result->text = calloc(1, 1);
    g->text_capacity = 1;
    if (!g->logits || !g->result->text) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the logits and the text");
    }
    TKV_TRY(tkv_session_create(loaded->model, loaded->context, &session, &g->session, error));
    /* Only tokens that the tokenizer knows can be printed. */
    TKV_TRY(tkv_sampler_create(&g->params->sampling, tkv_tokenizer_size(loaded->tokenizer),
                               &g->sampler, error));
    if (g->params->catches_interrupts) {
        command_catch_interrupt();
    }
    TKV_TRY(prefill(g, error));
    return command_is_interrupted() ? TKV_OK : decode(g, error);
}

tkv_status generation_run(const loaded_model *loaded, const generation_params *params,
                          generation *result, tkv_error *error)
{
    *result = (generation){0};
    generator g = {.loaded = loaded, .params = params, .result = result};
    const tkv_status status = generate(&g, error);
    if (g.session) {
        measure_cache(&g);
    }
    result->was_interrupted = command_is_interrupted();
    tkv_session_free(g.session);
    tkv_sampler_free(g.sampler);
    free(g.logits);
    return status;
}

void generation_free(generation *result)
{
    tkv_tokens_free(&result->prompt_tokens);
    tkv_tokens_free(&result->tokens);
    free(result->text);
    *result = (generation){0};
}

double generation_prefill_speed(const generation *g)
{
    return g->prefill_seconds > 0.0 ? g->n_prefilled / g->prefill_seconds : 0.0;
}

double generation_decode_speed(const generation *g)
{
    return g->decode_seconds > 0.0 ? g->n_decoded / g->decode_seconds : 0.0;
}
