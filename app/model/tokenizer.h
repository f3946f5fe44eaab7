/* Text to token ids and back, for the two tokenizers of GGUF files: "gpt2" (byte-level BPE with a
 * regular expression that cuts the text first) and "llama" (SentencePiece BPE by scores). */
#ifndef TKV_MODEL_TOKENIZER_H
#define TKV_MODEL_TOKENIZER_H

#include "model/gguf.h"

typedef struct tkv_tokenizer tkv_tokenizer;

/* What a tokenizer is made of; arrays are copied. */
typedef enum tkv_token_kind {
    TKV_TOKEN_NORMAL = 1,
    TKV_TOKEN_UNKNOWN = 2,
    TKV_TOKEN_CONTROL = 3,      /* begin and end of text, roles */
    TKV_TOKEN_USER_DEFINED = 4, /* matched in text before anything else */
    TKV_TOKEN_UNUSED = 5,
    TKV_TOKEN_BYTE = 6 /* "<0x41>" */
} tkv_token_kind;

typedef struct tkv_tokenizer_params {
    const char *model;         /* "gpt2" or "llama" */
    const char *pre_tokenizer; /* of gpt2: "gpt-2", "llama-bpe", ...; "": "default" */
    int32_t n_tokens;
    const tkv_gguf_text *tokens; /* [n_tokens] as in the file */
    const float *scores;         /* [n_tokens]; llama only */
    const int32_t *kinds;        /* [n_tokens] tkv_token_kind; NULL: all normal */
    int32_t n_merges;
    const tkv_gguf_text *merges; /* [n_merges] "left right", best first; gpt2 only */
    int32_t bos_token;           /* -1: none */
    int32_t n_end_tokens;
    const int32_t *end_tokens; /* [n_end_tokens] that end a text, beside those known by name */
    int32_t unknown_token;     /* -1: none */
    bool adds_bos;
    bool adds_space_prefix; /* llama: a space before every run of text */
} tkv_tokenizer_params;

/* The caller frees the tokenizer with tkv_tokenizer_free. Errors name the entry that is wrong. */
tkv_status tkv_tokenizer_create(const tkv_tokenizer_params *params, tkv_tokenizer **tokenizer,
                                tkv_error *error);

/* The same from the "tokenizer.ggml" metadata of a file, which may be closed afterwards. What is
 * wrong there but has a default is a warning. */
tkv_status tkv_tokenizer_from_gguf(const tkv_gguf *gguf, tkv_tokenizer **tokenizer,
                                   tkv_error *error);
void tkv_tokenizer_free(tkv_tokenizer *tokenizer);

int32_t tkv_tokenizer_size(const tkv_tokenizer *tokenizer);

/* Warning number `index` from 0, for the user to see; NULL if there are no more. */
const char *tkv_tokenizer_warning(const tkv_tokenizer *tokenizer, int index);

/* The token that every text begins with; -1: the model wants none. prompt.h puts it there. */
int32_t tkv_tokenizer_begin(const tkv_tokenizer *tokenizer);

/* The special token of this name, or -1. */
int32_t tkv_tokenizer_find_special(const tkv_tokenizer *tokenizer, const char *name);

/* Whether a token ends the text: end of text, of turn or of message, by the file's keys or by its
 * name. */
bool tkv_tokenizer_is_end(const tkv_tokenizer *tokenizer, int32_t token);

typedef struct tkv_tokens {
    int32_t *ids;
    size_t n;
    size_t capacity;
} tkv_tokens;

void tkv_tokens_free(tkv_tokens *tokens);

tkv_status tkv_tokens_push(tkv_tokens *tokens, int32_t id, tkv_error *error);

/* Appends the tokens of `length` bytes of text to *tokens (zero-initialised before the first use;
 * the caller frees it), without a begin of text. parse_special: control tokens written in the text
 * become such tokens. Bytes that are no UTF-8 are kept. On error *tokens is as it was. */
tkv_status tkv_tokenizer_encode(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                                bool parse_special, tkv_tokens *tokens, tkv_error *error);

/* The bytes that a token stands for, as long as the tokenizer lives; they may be part of a UTF-8
 * sequence. Control tokens stand for their name. Empty if there is no such token. */
tkv_gguf_text tkv_tokenizer_decode(const tkv_tokenizer *tokenizer, int32_t token);

/* How many of `length` bytes end on a whole UTF-8 sequence: what may be shown while more is to
 * come. Bytes that can never become UTF-8 count as whole. */
size_t tkv_utf8_whole(const char *text, size_t length);

#endif
