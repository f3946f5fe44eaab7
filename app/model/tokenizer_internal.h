/* Shared by the parts of the tokenizer. */
#ifndef TKV_MODEL_TOKENIZER_INTERNAL_H
#define TKV_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
/* Without memory it leaves an element without a table; its default is to end the process. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#define TKV_MAX_STAGES 4

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

typedef struct tkv_tokenizer_warning_text {
    char text[192];
} tkv_tokenizer_warning_text;

struct tkv_tokenizer {
    bool is_sentencepiece;
    bool tries_whole_pieces; /* a piece that is a token is not merged step by step */
    bool adds_space_prefix;
    int32_t n_tokens;
    int32_t begin_token;
    int32_t unknown_token;
    tkv_tokens ends;     /* tokens that end a text, those by name first */
    size_t n_named_ends; /* these are control tokens, whatever the file says */
    int n_warnings;
    tkv_tokenizer_warning_text *warnings; /* [n_warnings] */
    tkv_token_entry *entries;             /* [n_tokens] */
    char *byte_pool;                      /* the bytes of all entries */
    tkv_token_entry *by_bytes;            /* hash of the tokens that text can become */
    int32_t byte_tokens[256];             /* -1: none */
    /* Tokens to be found in text, by their first byte, longest first; those of byte b are
     * specials[first_special[b]] to specials[first_special[b + 1] - 1]. */
    const tkv_token_entry **specials;
    int32_t first_special[257];
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

/* What a file without "add_bos_token" means, by its pre-tokenizer. */
bool tkv_pre_tokenizer_adds_bos(const char *pre_tokenizer);

/* Notes which tokens end a text. Comes before the entries are filled. */
tkv_status tkv_tokenizer_fill_ends(tkv_tokenizer *tokenizer, const tkv_tokenizer_params *params,
                                   tkv_error *error);
bool tkv_tokenizer_is_named_end(const tkv_tokenizer *tokenizer, int32_t token);

/* Sorts the special tokens. Comes after the entries are filled. */
tkv_status tkv_tokenizer_fill_specials(tkv_tokenizer *tokenizer, tkv_error *error);

/* The special token that a text of at least one byte begins with, or -1. Without parse_special only
 * user-defined tokens are found. */
int32_t tkv_tokenizer_special_at(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                                 bool parse_special);

#endif
