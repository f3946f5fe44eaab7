/* A tokenizer from the "tokenizer.ggml" metadata of a GGUF file. */
#include "common/try.h"
#include "model/tokenizer_internal.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SIZE 64
#define MAX_WARNINGS 16
#define MAX_END_TOKENS 8

/* What is taken from the file while a tokenizer is built. */
typedef struct vocabulary {
    char model[NAME_SIZE];
    char pre_tokenizer[NAME_SIZE];
    tkv_gguf_text *tokens;
    tkv_gguf_text *merges;
    float *scores;
    int32_t *kinds;
    int32_t end_tokens[MAX_END_TOKENS];
    int n_warnings;
    tkv_tokenizer_warning_text warnings[MAX_WARNINGS];
} vocabulary;

static void warn(vocabulary *v, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void warn(vocabulary *v, const char *format, ...)
{
    if (v->n_warnings == MAX_WARNINGS) {
        return;
    }
    tkv_tokenizer_warning_text *warning = &v->warnings[v->n_warnings++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(warning->text, sizeof warning->text, format, arguments);
    va_end(arguments);
}

/* The texts of an array of strings; the caller frees them. */
static tkv_status read_texts(const tkv_gguf *gguf, const char *key, tkv_gguf_text **texts,
                             int32_t *n, tkv_error *error)
{
    const tkv_gguf_value *value = tkv_gguf_find(gguf, key);
    if (!value || !value->is_array || value->type != TKV_GGUF_STRING ||
        value->n_elements > INT32_MAX) {
        return tkv_fail(error, TKV_ERR_FORMAT, "%s: metadata key %s: expected an array of strings",
                        tkv_gguf_path(gguf), key);
    }
    *n = (int32_t)value->n_elements;
    *texts = malloc((size_t)*n * sizeof **texts + 1);
    if (!*texts) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the %d strings of %s", (int)*n,
                        key);
    }
    for (int32_t i = 0; i < *n; i++) {
        tkv_gguf_text_at(value, (uint64_t)i, &(*texts)[i]);
    }
    return TKV_OK;
}

/* An optional array with one number a token; NULL if absent. */
static tkv_status find_per_token(const tkv_gguf *gguf, const char *key, int32_t n_tokens,
                                 const tkv_gguf_value **value, tkv_error *error)
{
    *value = tkv_gguf_find(gguf, key);
    if (*value && (*value)->n_elements != (uint64_t)n_tokens) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "%s: metadata key %s has %" PRIu64 " elements: expected one for each of "
                        "the %d tokens",
                        tkv_gguf_path(gguf), key, (*value)->n_elements, (int)n_tokens);
    }
    return TKV_OK;
}

static tkv_status read_scores(const tkv_gguf *gguf, int32_t n_tokens, float **scores,
                              tkv_error *error)
{
    const tkv_gguf_value *value;
    const char *key = "tokenizer.ggml.scores";
    const tkv_status status = find_per_token(gguf, key, n_tokens, &value, error);
    if (status != TKV_OK || !value) {
        return status;
    }
    *scores = malloc((size_t)n_tokens * sizeof **scores + 1);
    for (int32_t i = 0; *scores && i < n_tokens; i++) {
        double score = 0.0;
        const bool is_number = tkv_gguf_number(value, (uint64_t)i, &score);
        if (!is_number || !(isinf(score) || fabs(score) <= (double)FLT_MAX)) {
            char found[32] = "no number";
            if (is_number) {
                snprintf(found, sizeof found, "%g", score);
            }
            return tkv_fail(error, TKV_ERR_FORMAT,
                            "%s: %s of token %d is %s: expected a number that a float32 holds",
                            tkv_gguf_path(gguf), key, (int)i, found);
        }
        (*scores)[i] = (float)score;
    }
    return *scores ? TKV_OK : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for scores");
}

static tkv_status read_kinds(const tkv_gguf *gguf, int32_t n_tokens, int32_t **kinds,
                             tkv_error *error)
{
    const tkv_gguf_value *value;
    const char *key = "tokenizer.ggml.token_type";
    const tkv_status status = find_per_token(gguf, key, n_tokens, &value, error);
    if (status != TKV_OK || !value) {
        return status;
    }
    *kinds = malloc((size_t)n_tokens * sizeof **kinds + 1);
    for (int32_t i = 0; *kinds && i < n_tokens; i++) {
        int64_t kind = 0;
        if (!tkv_gguf_integer(value, (uint64_t)i, &kind) || kind < 0 || kind > TKV_TOKEN_BYTE) {
            return tkv_fail(error, TKV_ERR_FORMAT, "%s: %s of token %d is not a type from 0 to %d",
                            tkv_gguf_path(gguf), key, (int)i, TKV_TOKEN_BYTE);
        }
        (*kinds)[i] = kind ? (int32_t)kind : TKV_TOKEN_NORMAL;
    }
    return *kinds ? TKV_OK : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for token types");
}

static tkv_status read_name(const tkv_gguf *gguf, const char *key, bool required,
                            char name[NAME_SIZE], tkv_error *error)
{
    tkv_gguf_text text = {"", 0};
    const tkv_status status = tkv_gguf_get_text(gguf, key, required, &text, error);
    snprintf(name, NAME_SIZE, "%.*s", (int)(text.length < NAME_SIZE ? text.length : NAME_SIZE),
             text.data);
    return status;
}

/* An optional token. One that the vocabulary does not have is warned of, and *id stays as it was;
 * -1 stands for none. */
static tkv_status read_token(const tkv_gguf *gguf, const char *key, int32_t n_tokens, vocabulary *v,
                             int32_t *id, tkv_error *error)
{
    int64_t value = *id;
    TKV_TRY(tkv_gguf_get_integer(gguf, key, false, &value, error));
    if (value >= -1 && value < n_tokens) {
        *id = (int32_t)value;
        return TKV_OK;
    }
    char fallback[32] = "none";
    if (*id >= 0) {
        snprintf(fallback, sizeof fallback, "token %d", (int)*id);
    }
    warn(v, "%s is %" PRId64 ", beyond the %d tokens of the vocabulary: the default, %s, is used",
         key, value, (int)n_tokens, fallback);
    return TKV_OK;
}

/* An optional flag. */
static tkv_status read_flag(const tkv_gguf *gguf, const char *key, bool *flag, tkv_error *error)
{
    int64_t value = *flag;
    const tkv_status status = tkv_gguf_get_integer(gguf, key, false, &value, error);
    *flag = value > 0;
    return status;
}

/* Tokens that end a text by their keys. */
static tkv_status read_ends(const tkv_gguf *gguf, vocabulary *v, tkv_tokenizer_params *params,
                            tkv_error *error)
{
    static const char *const keys[] = {
        "tokenizer.ggml.eos_token_id",     "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",     "tokenizer.ggml.fim_pad_token_id",
        "tokenizer.ggml.fim_rep_token_id", "tokenizer.ggml.fim_sep_token_id"};
    const bool is_llama = strcmp(params->model, "llama") == 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int32_t id = is_llama && i == 0 && params->n_tokens > 2 ? 2 : -1;
        TKV_TRY(read_token(gguf, keys[i], params->n_tokens, v, &id, error));
        if (id >= 0) {
            v->end_tokens[params->n_end_tokens++] = id;
        }
    }
    params->end_tokens = v->end_tokens;
    return TKV_OK;
}

/* The begin token, and whether texts begin with it. */
static tkv_status read_begin(const tkv_gguf *gguf, vocabulary *v, tkv_tokenizer_params *params,
                             tkv_error *error)
{
    const bool is_llama = strcmp(params->model, "llama") == 0;
    const char *flag = "tokenizer.ggml.add_bos_token";
    params->bos_token = is_llama && params->n_tokens > 1 ? 1 : -1;
    params->adds_bos = is_llama || tkv_pre_tokenizer_adds_bos(params->pre_tokenizer);
    TKV_TRY(read_token(gguf, "tokenizer.ggml.bos_token_id", params->n_tokens, v, &params->bos_token,
                       error));
    TKV_TRY(read_flag(gguf, flag, &params->adds_bos, error));
    if (params->adds_bos && params->bos_token < 0 && tkv_gguf_find(gguf, flag)) {
        warn(v, "%s is true, but the file names no begin token: texts begin without one", flag);
    }
    return TKV_OK;
}

static tkv_status read_ids(const tkv_gguf *gguf, vocabulary *v, tkv_tokenizer_params *params,
                           tkv_error *error)
{
    const bool is_llama = strcmp(params->model, "llama") == 0;
    params->unknown_token = is_llama ? 0 : -1;
    params->adds_space_prefix = is_llama;
    TKV_TRY(read_begin(gguf, v, params, error));
    TKV_TRY(read_ends(gguf, v, params, error));
    TKV_TRY(read_token(gguf, "tokenizer.ggml.unknown_token_id", params->n_tokens, v,
                       &params->unknown_token, error));
    return read_flag(gguf, "tokenizer.ggml.add_space_prefix", &params->adds_space_prefix, error);
}

/* The name of a byte-level BPE's pre-tokenizer, which early files lack. */
static tkv_status read_pre_tokenizer(const tkv_gguf *gguf, vocabulary *v, tkv_error *error)
{
    const char *key = "tokenizer.ggml.pre";
    TKV_TRY(read_name(gguf, key, false, v->pre_tokenizer, error));
    if (strcmp(v->model, "gpt2") == 0 && !*v->pre_tokenizer) {
        warn(v,
             "%s is missing: text is cut as by 'default', which may differ from how the model was "
             "trained",
             key);
    }
    return TKV_OK;
}

static tkv_status read_vocabulary(const tkv_gguf *gguf, vocabulary *v, tkv_tokenizer_params *params,
                                  tkv_error *error)
{
    TKV_TRY(read_name(gguf, "tokenizer.ggml.model", true, v->model, error));
    TKV_TRY(read_pre_tokenizer(gguf, v, error));
    params->model = v->model;
    params->pre_tokenizer = v->pre_tokenizer;
    TKV_TRY(read_texts(gguf, "tokenizer.ggml.tokens", &v->tokens, &params->n_tokens, error));
    TKV_TRY(read_scores(gguf, params->n_tokens, &v->scores, error));
    TKV_TRY(read_kinds(gguf, params->n_tokens, &v->kinds, error));
    if (strcmp(v->model, "gpt2") == 0) {
        TKV_TRY(read_texts(gguf, "tokenizer.ggml.merges", &v->merges, &params->n_merges, error));
    }
    return read_ids(gguf, v, params, error);
}

static tkv_status create_with_warnings(const vocabulary *v, const tkv_tokenizer_params *params,
                                       tkv_tokenizer **tokenizer, tkv_error *error)
{
    tkv_tokenizer *created;
    TKV_TRY(tkv_tokenizer_create(params, &created, error));
    created->warnings = malloc((size_t)v->n_warnings * sizeof *created->warnings + 1);
    if (!created->warnings) {
        tkv_tokenizer_free(created);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a tokenizer");
    }
    memcpy(created->warnings, v->warnings, (size_t)v->n_warnings * sizeof *v->warnings);
    created->n_warnings = v->n_warnings;
    *tokenizer = created;
    return TKV_OK;
}

tkv_status tkv_tokenizer_from_gguf(const tkv_gguf *gguf, tkv_tokenizer **tokenizer,
                                   tkv_error *error)
{
    vocabulary v = {.tokens = NULL};
    tkv_tokenizer_params params = {.n_tokens = 0};
    tkv_status status = read_vocabulary(gguf, &v, &params, error);
    if (status == TKV_OK) {
        params.tokens = v.tokens;
        params.merges = v.merges;
        params.scores = v.scores;
        params.kinds = v.kinds;
        status = create_with_warnings(&v, &params, tokenizer, error);
    }
    free(v.tokens);
    free(v.merges);
    free(v.scores);
    free(v.kinds);
    return status;
}
