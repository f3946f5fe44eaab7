#include "eval/needles.h"

#include "common/random.h"
#include "common/try.h"
#include "eval/clock.h"
#include "model/prompt.h"
#include "model/sampler.h"
#include "model/session.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_TOKENS 12
#define TEXT_SIZE 160

static const char *const colours[] = {"red",    "blue",   "green", "black",   "white",
                                      "golden", "silver", "brown", "crimson", "yellow"};
static const char *const places[] = {
    "castle", "river",   "tower",  "garden",   "bridge",  "forest",     "harbour", "temple",
    "market", "village", "palace", "mountain", "orchard", "lighthouse", "mill",    "abbey"};

enum {
    N_COLOURS = sizeof colours / sizeof *colours,
    N_PLACES = sizeof places / sizeof *places,
    N_SUBJECTS = N_COLOURS * N_PLACES
};

typedef struct fact {
    int subject; /* colour and place */
    int number;  /* of five digits */
} fact;

/* A prompt under construction and what is asked about it. */
typedef struct haystack {
    const tkv_needles_params *params;
    const tkv_tokenizer *tokenizer;
    fact facts[TKV_NEEDLES_MAX_FACTS];
    tkv_tokens fact_tokens[TKV_NEEDLES_MAX_FACTS];
    tkv_tokens questions[TKV_NEEDLES_MAX_FACTS];
    tkv_tokens prompt;
} haystack;

double tkv_needles_depth(int n_facts, int index)
{
    return n_facts > 1 ? (double)index / (n_facts - 1) : 0.5;
}

static void draw_facts(haystack *h, uint64_t *state)
{
    bool is_taken[N_SUBJECTS] = {false};
    for (int i = 0; i < h->params->n_facts; i++) {
        int subject;
        do {
            subject = (int)(tkv_draw(state) % N_SUBJECTS);
        } while (is_taken[subject]);
        is_taken[subject] = true;
        h->facts[i] = (fact){subject, 10000 + (int)(tkv_draw(state) % 90000)};
    }
}

static tkv_status encode(const haystack *h, const char *text, tkv_tokens *tokens, tkv_error *error)
{
    return tkv_tokenizer_encode(h->tokenizer, text, strlen(text), false, tokens, error);
}

static tkv_status encode_facts(haystack *h, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int i = 0; i < h->params->n_facts && status == TKV_OK; i++) {
        char text[TEXT_SIZE];
        const fact *f = &h->facts[i];
        const char *colour = colours[f->subject / N_PLACES];
        const char *place = places[f->subject % N_PLACES];
        snprintf(text, sizeof text, "\nThe secret number of the %s %s is %d.\n", colour, place,
                 f->number);
        status = encode(h, text, &h->fact_tokens[i], error);
        snprintf(text, sizeof text,
                 "\nQuestion: What is the secret number of the %s %s?\nAnswer: ", colour, place);
        if (status == TKV_OK) {
            status = encode(h, text, &h->questions[i], error);
        }
    }
    return status;
}

static tkv_status append(tkv_tokens *tokens, const int32_t *ids, size_t n, tkv_error *error)
{
    if (n == 0) {
        return TKV_OK;
    }
    if (tokens->n + n > tokens->capacity) {
        const size_t capacity = 2 * tokens->capacity + n;
        int32_t *larger = realloc(tokens->ids, capacity * sizeof *larger);
        if (!larger) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a prompt");
        }
        tokens->ids = larger;
        tokens->capacity = capacity;
    }
    memcpy(tokens->ids + tokens->n, ids, n * sizeof *ids);
    tokens->n += n;
    return TKV_OK;
}

/* How many tokens of filler the prompt takes. */
static tkv_status measure_filler(const haystack *h, size_t *room, tkv_error *error)
{
    size_t used = h->prompt.n;
    size_t longest = 0;
    for (int i = 0; i < h->params->n_facts; i++) {
        used += h->fact_tokens[i].n;
        longest = h->questions[i].n > longest ? h->questions[i].n : longest;
    }
    used += longest;
    if (used > (size_t)h->params->length) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a prompt of %d tokens with %d facts: the facts and a question alone are "
                        "%zu tokens",
                        h->params->length, h->params->n_facts, used);
    }
    *room = (size_t)h->params->length - used;
    if (*room > h->params->n_filler) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "the text has %zu tokens: a prompt of %d needs %zu", h->params->n_filler,
                        h->params->length, *room);
    }
    return TKV_OK;
}

static tkv_status build_prompt(haystack *h, tkv_error *error)
{
    const tkv_needles_params *p = h->params;
    uint64_t state = p->seed;
    size_t room = 0;
    draw_facts(h, &state);
    tkv_status status = tkv_prompt_begin(h->tokenizer, &h->prompt, error);
    if (status == TKV_OK) {
        status = encode_facts(h, error);
    }
    if (status == TKV_OK) {
        status = measure_filler(h, &room, error);
    }
    const int32_t *filler =
        p->filler + (status == TKV_OK ? tkv_draw(&state) % (p->n_filler - room + 1) : 0);
    size_t done = 0;
    for (int i = 0; i < p->n_facts && status == TKV_OK; i++) {
        const size_t until = (size_t)(tkv_needles_depth(p->n_facts, i) * (double)room + 0.5);
        status = append(&h->prompt, filler + done, until - done, error);
        if (status == TKV_OK) {
            status = append(&h->prompt, h->fact_tokens[i].ids, h->fact_tokens[i].n, error);
        }
        done = until;
    }
    return status == TKV_OK ? append(&h->prompt, filler + done, room - done, error) : status;
}

static void free_haystack(haystack *h)
{
    for (int i = 0; i < TKV_NEEDLES_MAX_FACTS; i++) {
        tkv_tokens_free(&h->fact_tokens[i]);
        tkv_tokens_free(&h->questions[i]);
    }
    tkv_tokens_free(&h->prompt);
}

static int32_t most_likely(const float *logits, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return (int32_t)best;
}

/* Whether the answer is the number, after any blanks and with no more digits. */
static bool is_right(const char *answer, int number)
{
    char *end;
    while (isspace((unsigned char)*answer)) {
        answer++;
    }
    return isdigit((unsigned char)*answer) && strtol(answer, &end, 10) == number &&
           end - answer == 5;
}

/* Answers one question on a fork of the session. */
/* Asks one question and reads the answer, which ends where there is no more room. */
static tkv_status read_answer(const haystack *h, tkv_session *session, int index, float *logits,
                              int n_vocabulary, char text[TEXT_SIZE], tkv_error *error)
{
    const tkv_eval_params eval = {.logits_mode = TKV_LOGITS_LAST, .logits = logits};
    const tkv_tokens *question = &h->questions[index];
    size_t used = 0;
    TKV_TRY(tkv_session_eval(session, question->ids, (int)question->n, &eval, error));
    for (int i = 0; i < ANSWER_TOKENS; i++) {
        const int32_t token = most_likely(logits, n_vocabulary);
        const tkv_gguf_text bytes = tkv_tokenizer_decode(h->tokenizer, token);
        if (tkv_tokenizer_is_end(h->tokenizer, token) || used + bytes.length >= TEXT_SIZE) {
            break;
        }
        memcpy(text + used, bytes.data, bytes.length);
        used += bytes.length;
        text[used] = '\0';
        TKV_TRY(tkv_session_eval(session, &token, 1, &eval, error));
    }
    return TKV_OK;
}

/* Answers one question on a fork of the session. */
static tkv_status answer(const haystack *h, const tkv_session *asked, int index, float *logits,
                         int n_vocabulary, tkv_needles_result *result, tkv_error *error)
{
    tkv_session *session = NULL;
    char text[TEXT_SIZE] = "";
    TKV_TRY(tkv_session_fork(asked, tkv_session_length(asked), &session, error));
    const tkv_status status = read_answer(h, session, index, logits, n_vocabulary, text, error);
    result->is_found[index] = status == TKV_OK && is_right(text, h->facts[index].number);
    if (index == 0) {
        result->kv_bytes = tkv_cache_bytes(tkv_session_cache(session));
        result->n_cached = tkv_session_length(session);
    }
    tkv_session_free(session);
    return status;
}

static tkv_status ask_all(const haystack *h, tkv_session *session, int n_vocabulary,
                          tkv_needles_result *result, tkv_error *error)
{
    float *logits = malloc((size_t)n_vocabulary * sizeof *logits);
    if (!logits) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for logits");
    }
    tkv_status status =
        tkv_session_eval(session, h->prompt.ids, (int)h->prompt.n, &(tkv_eval_params){0}, error);
    for (int i = 0; i < h->params->n_facts && status == TKV_OK; i++) {
        status = answer(h, session, i, logits, n_vocabulary, result, error);
    }
    free(logits);
    return status;
}

/* The prompt, and a session with room for it and an answer; to be freed also after an error. */
static tkv_status prepare(haystack *h, const tkv_model *model, tkv_context *context,
                          const tkv_policy *policy, tkv_session **session, tkv_error *error)
{
    const tkv_needles_params *p = h->params;
    const tkv_session_params params = {
        .max_tokens = p->length + ANSWER_TOKENS, .n_batch = p->n_batch, .policy = *policy};
    if (p->n_facts < 1 || p->n_facts > TKV_NEEDLES_MAX_FACTS || p->length < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "a prompt of %d tokens with %d facts: expected at least 1 token and 1 to "
                        "%d facts",
                        p->length, p->n_facts, TKV_NEEDLES_MAX_FACTS);
    }
    TKV_TRY(build_prompt(h, error));
    return tkv_session_create(model, context, &params, session, error);
}

tkv_status tkv_needles_check(const tkv_model *model, const tkv_tokenizer *tokenizer,
                             tkv_context *context, const tkv_needles_params *params,
                             const tkv_policy *policy, tkv_error *error)
{
    haystack h = {.params = params, .tokenizer = tokenizer};
    tkv_session *session = NULL;
    const tkv_status status = prepare(&h, model, context, policy, &session, error);
    tkv_session_free(session);
    free_haystack(&h);
    return status;
}

tkv_status tkv_needles_ask(const tkv_model *model, const tkv_tokenizer *tokenizer,
                           tkv_context *context, const tkv_needles_params *params,
                           const tkv_policy *policy, tkv_needles_result *result, tkv_error *error)
{
    *result = (tkv_needles_result){0};
    const double start = tkv_clock();
    haystack h = {.params = params, .tokenizer = tokenizer};
    tkv_session *session = NULL;
    tkv_status status = prepare(&h, model, context, policy, &session, error);
    if (status == TKV_OK) {
        status = ask_all(&h, session, tkv_model_get_config(model)->vocabulary_size, result, error);
    }
    tkv_session_free(session);
    free_haystack(&h);
    result->seconds = tkv_clock() - start;
    return status;
}
