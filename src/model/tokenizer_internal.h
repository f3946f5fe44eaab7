/* Shared by the parts of the tokenizer. */
#ifndef TKV_MODEL_TOKENIZER_INTERNAL_H
#define TKV_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <uthash.h>

#define TKV_MAX_STAGES 2

typedef struct tkv_token_entry {
    tkv_gguf_text bytes; /* what it stands for; also the hash key */
    int32_t id;
    float score;
    int32_t kind;
    UT_hash_handle hh;
} tkv_token_entry;

typedef struct tkv_merge_entry {
    uint64_t pair; /* left id << 32 | right id */
    int32_t rank;
    int32_t merged;
    UT_hash_handle hh;
} tkv_merge_entry;

struct tkv_tokenizer {
    bool is_sentencepiece;
    bool tries_whole_pieces; /* a piece that is a token is not merged step by step */
    bool adds_bos;
    bool adds_space_prefix;
    int32_t n_tokens;
    int32_t bos_token;
    int32_t eos_token;
    int32_t unknown_token;
    tkv_token_entry *entries;  /* [n_tokens] */
    char *byte_pool;           /* the bytes of all entries */
    tkv_token_entry *by_bytes; /* hash of the tokens that text can become */
    int32_t byte_tokens[256];  /* -1: none */
    int32_t *specials;         /* ids of control and user-defined tokens, longest first */
    int32_t n_specials;
    tkv_merge_entry *merges; /* [n_merges] */
    tkv_merge_entry *by_pair;
    int n_stages;
    pcre2_code *stages[TKV_MAX_STAGES];
};

/* A run of text between special tokens, or one piece of it, to tokens. */
tkv_status tkv_tokenizer_merge(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                               tkv_tokens *tokens, tkv_error *error);

/* Cuts a run of text into pieces and merges each. */
tkv_status tkv_tokenizer_cut(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                             tkv_tokens *tokens, tkv_error *error);

/* Compiles the expressions of a pre-tokenizer; an unknown name is an error that lists the known. */
tkv_status tkv_tokenizer_compile(tkv_tokenizer *tokenizer, const char *pre_tokenizer,
                                 tkv_error *error);

tkv_status tkv_tokens_push(tkv_tokens *tokens, int32_t id, tkv_error *error);

#endif
