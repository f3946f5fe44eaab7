/* A tokenizer from the "tokenizer.ggml" metadata of a GGUF file. */
#include "common/error.h"
#include "model/tokenizer.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SIZE 64

/* Arrays taken from the file while a tokenizer is built. */
typedef struct vocabulary {
    char model[NAME_SIZE];
    char pre_tokenizer[NAME_SIZE];
    tkv_gguf_text *tokens;
    tkv_gguf_text *merges;
    float *scores;
    int32_t *kinds;
} vocabulary;

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

/* An optional token id or flag; -1 is kept for "none". */
static tkv_status read_id(const tkv_gguf *gguf, const char *key, int32_t *id, tkv_error *error)
{
    int64_t value = *id;
    const tkv_status status = tkv_gguf_get_integer(gguf, key, false, &value, error);
    if (status == TKV_OK && (value < -1 || value > INT32_MAX)) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "%s: metadata key %s is %" PRId64 ": expected a token", tkv_gguf_path(gguf),
                        key, value);
    }
    *id = (int32_t)value;
    return status;
}

static tkv_status read_ids(const tkv_gguf *gguf, tkv_tokenizer_params *params, tkv_error *error)
{
    const bool is_llama = strcmp(params->model, "llama") == 0;
    int32_t adds_bos = is_llama;
    int32_t adds_space = is_llama;
    params->bos_token = is_llama ? 1 : -1;
    params->eos_token = is_llama ? 2 : -1;
    params->unknown_token = is_llama ? 0 : -1;
    const struct {
        const char *key;
        int32_t *id;
    } fields[] = {{"tokenizer.ggml.bos_token_id", &params->bos_token},
                  {"tokenizer.ggml.eos_token_id", &params->eos_token},
                  {"tokenizer.ggml.unknown_token_id", &params->unknown_token},
                  {"tokenizer.ggml.add_bos_token", &adds_bos},
                  {"tokenizer.ggml.add_space_prefix", &adds_space}};
    tkv_status status = TKV_OK;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && status == TKV_OK; i++) {
        status = read_id(gguf, fields[i].key, fields[i].id, error);
    }
    /* Llama 3 files of the first months do not say that they want a begin of text. */
    if (strcmp(params->pre_tokenizer, "llama-bpe") == 0 &&
        !tkv_gguf_find(gguf, "tokenizer.ggml.add_bos_token")) {
        adds_bos = 1;
    }
    params->adds_bos = adds_bos > 0;
    params->adds_space_prefix = adds_space > 0;
    return status;
}

static tkv_status read_vocabulary(const tkv_gguf *gguf, vocabulary *v, tkv_tokenizer_params *params,
                                  tkv_error *error)
{
    tkv_status status = read_name(gguf, "tokenizer.ggml.model", true, v->model, error);
    if (status == TKV_OK) {
        status = read_name(gguf, "tokenizer.ggml.pre", false, v->pre_tokenizer, error);
    }
    params->model = v->model;
    params->pre_tokenizer = v->pre_tokenizer;
    if (status == TKV_OK) {
        status = read_texts(gguf, "tokenizer.ggml.tokens", &v->tokens, &params->n_tokens, error);
    }
    if (status == TKV_OK) {
        status = read_scores(gguf, params->n_tokens, &v->scores, error);
    }
    if (status == TKV_OK) {
        status = read_kinds(gguf, params->n_tokens, &v->kinds, error);
    }
    if (status == TKV_OK && strcmp(v->model, "gpt2") == 0) {
        status = read_texts(gguf, "tokenizer.ggml.merges", &v->merges, &params->n_merges, error);
    }
    if (status == TKV_OK) {
        status = read_ids(gguf, params, error);
    }
    return status;
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
        status = tkv_tokenizer_create(&params, tokenizer, error);
    }
    free(v.tokens);
    free(v.merges);
    free(v.scores);
    free(v.kinds);
    return status;
}
