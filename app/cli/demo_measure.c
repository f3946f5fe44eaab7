/* One model reads one prompt with several caches. f16 comes first: its distributions are what those
 * of the others are compared with. */
#include "cli/demo.h"
#include "cli/progress.h"
#include "common/try.h"
#include "eval/clock.h"
#include "eval/footprint.h"
#include "model/sampler.h"
#include "model/session.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Positions at the end of the prompt whose distributions are compared, in its second half. */
#define N_SCORED 256
/* Tokens of them that pass at once: what a batch appends is exact until the next one. */
#define SCORED_STEP 32
#define ANSWER_TOKENS 32

static const char *const presets[DEMO_SETTINGS] = {"f16", "4bit", "3bit", "2bit"};

/* A pass with one cache. */
typedef struct pass {
    const loaded_model *loaded;
    const demo_prompt *prompt;
    int n_vocabulary;
    int n_scored;
    float *reference; /* [n_scored][n_vocabulary], of f16 */
    float *tested;    /* [SCORED_STEP][n_vocabulary] */
    bool is_reference;
    demo_result *result;
    tkv_session *session;
    progress bar;
    char label[32]; /* of the bar */
} pass;

static bool show_progress(void *user, int n_done, int n_total)
{
    pass *p = user;
    progress_update(&p->bar, n_done, n_total);
    return true;
}

/* Everything before the scored positions. */
static tkv_status read_beginning(pass *p, tkv_error *error)
{
    const tkv_eval_params eval = {
        .logits_mode = TKV_LOGITS_NONE, .progress = show_progress, .progress_user = p};
    const int n = (int)p->prompt->tokens.n - 1 - p->n_scored;
    snprintf(p->label, sizeof p->label, "reading with %s", p->result->preset);
    progress_begin(&p->bar, p->label);
    const double start = tkv_clock();
    const tkv_status status =
        n > 0 ? tkv_session_eval(p->session, p->prompt->tokens.ids, n, &eval, error) : TKV_OK;
    p->result->read_seconds = tkv_clock() - start;
    p->result->n_read = n;
    progress_end(&p->bar);
    return status;
}

/* The scored positions: all but the last token, which has no successor in the prompt. */
static tkv_status score(pass *p, tkv_error *error)
{
    const int32_t *ids = p->prompt->tokens.ids;
    const int first = (int)p->prompt->tokens.n - 1 - p->n_scored;
    for (int done = 0; done < p->n_scored; done += SCORED_STEP) {
        const int left = p->n_scored - done;
        const int n = left < SCORED_STEP ? left : SCORED_STEP;
        float *reference = p->reference + (size_t)done * (size_t)p->n_vocabulary;
        float *logits = p->is_reference ? reference : p->tested;
        const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_ALL, .logits = logits};
        TKV_TRY(tkv_session_eval(p->session, ids + first + done, n, &eval, error));
        for (int i = 0; i < n; i++) {
            const size_t row = (size_t)i * (size_t)p->n_vocabulary;
            TKV_TRY(tkv_divergence_add(&p->result->divergence, reference + row, logits + row,
                                       p->n_vocabulary, ids[first + done + i + 1], error));
        }
    }
    return TKV_OK;
}

static void measure_cache(pass *p)
{
    p->result->kv_bytes = tkv_cache_bytes(tkv_session_cache(p->session));
    p->result->bits_per_value =
        tkv_kv_bits(p->loaded->model, p->result->kv_bytes, tkv_session_length(p->session));
}

/* Appends a token's bytes to the answer. */
static tkv_status add_text(demo_result *r, tkv_gguf_text bytes, tkv_error *error)
{
    char *text = realloc(r->text, r->text_length + bytes.length + 1);
    if (!text) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the answer");
    }
    memcpy(text + r->text_length, bytes.data, bytes.length);
    r->text = text;
    r->text_length += bytes.length;
    r->text[r->text_length] = '\0';
    return TKV_OK;
}

/* Whether the answer is complete without an end token. */
static bool is_answered(const pass *p)
{
    return !p->prompt->is_chat && strchr(p->result->text, '\n');
}

/* Greedy, from the prompt's last token on. */
static tkv_status answer(pass *p, tkv_sampler *sampler, tkv_error *error)
{
    demo_result *r = p->result;
    const tkv_tokenizer *tokenizer = p->loaded->tokenizer;
    const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_LAST, .logits = p->tested};
    int32_t token = p->prompt->tokens.ids[p->prompt->tokens.n - 1];
    TKV_TRY(add_text(r, (tkv_gguf_text){"", 0}, error));
    while (r->n_written < ANSWER_TOKENS && !is_answered(p)) {
        const double start = tkv_clock();
        TKV_TRY(tkv_session_eval(p->session, &token, 1, &eval, error));
        r->write_seconds += tkv_clock() - start;
        if (r->n_written++ == 0) {
            measure_cache(p);
        }
        TKV_TRY(tkv_sampler_draw(sampler, p->tested, &token, error));
        if (tkv_tokenizer_is_end(tokenizer, token)) {
            break;
        }
        TKV_TRY(add_text(r, tkv_tokenizer_decode(tokenizer, token), error));
    }
    r->is_right = demo_is_right(r->text, p->prompt->answer);
    return TKV_OK;
}

bool demo_is_right(const char *text, const char *number)
{
    const size_t length = strlen(number);
    text += strcspn(text, "0123456789");
    return strncmp(text, number, length) == 0 && !isdigit((unsigned char)text[length]);
}

static tkv_status run_with(pass *p, tkv_sampler **sampler, tkv_error *error)
{
    const loaded_model *loaded = p->loaded;
    tkv_session_params params = {.max_tokens = (int)p->prompt->tokens.n + ANSWER_TOKENS};
    TKV_TRY(tkv_policy_preset(p->result->preset, &params.policy, error));
    TKV_TRY(tkv_session_create(loaded->model, loaded->context, &params, &p->session, error));
    TKV_TRY(tkv_sampler_create(&(tkv_sampler_params){.top_p = 1.0f},
                               tkv_tokenizer_size(loaded->tokenizer), sampler, error));
    TKV_TRY(read_beginning(p, error));
    TKV_TRY(score(p, error));
    return answer(p, *sampler, error);
}

static tkv_status run_pass(pass *p, tkv_error *error)
{
    tkv_sampler *sampler = NULL;
    const tkv_status status = run_with(p, &sampler, error);
    tkv_sampler_free(sampler);
    tkv_session_free(p->session);
    p->session = NULL;
    return status;
}

/* Brings the weights into memory, which the first figures would pay for otherwise. */
static tkv_status warm_up(const pass *p, tkv_error *error)
{
    const tkv_session_params params = {.max_tokens = 1};
    const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_LAST, .logits = p->tested};
    tkv_session *session = NULL;
    tkv_status status =
        tkv_session_create(p->loaded->model, p->loaded->context, &params, &session, error);
    if (status == TKV_OK) {
        status = tkv_session_eval(session, p->prompt->tokens.ids, 1, &eval, error);
    }
    tkv_session_free(session);
    return status;
}

tkv_status demo_measure(const loaded_model *loaded, const demo_prompt *prompt, demo_result *results,
                        tkv_error *error)
{
    const int half = (int)prompt->tokens.n / 2;
    pass p = {.loaded = loaded,
              .prompt = prompt,
              .n_vocabulary = tkv_model_get_config(loaded->model)->vocabulary_size,
              .n_scored = half < N_SCORED ? half : N_SCORED};
    const size_t row = (size_t)p.n_vocabulary * sizeof *p.tested;
    p.reference = malloc((size_t)p.n_scored * row);
    p.tested = malloc(SCORED_STEP * row);
    tkv_status status = p.reference && p.tested
                            ? warm_up(&p, error)
                            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the logits");
    for (int i = 0; i < DEMO_SETTINGS && status == TKV_OK; i++) {
        p.is_reference = i == 0;
        p.result = &results[i];
        p.result->preset = presets[i];
        status = run_pass(&p, error);
    }
    free(p.reference);
    free(p.tested);
    return status;
}

void demo_results_free(demo_result *results)
{
    for (int i = 0; i < DEMO_SETTINGS; i++) {
        tkv_divergence_free(&results[i].divergence);
        free(results[i].text);
        results[i] = (demo_result){0};
    }
}
