/* Special tokens: those that are found in text before anything else, and those that end a text. */
#include "common/try.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* DeepSeek's name has a fullwidth bar and SentencePiece's space. */
#define DEEPSEEK_END                                                                               \
    "<\xef\xbd\x9c"                                                                                \
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"

/* Tokens of these names end a text, whatever type a file gives them: llama.cpp 0.7.0 ends on all
 * but those of the last group, which files of their models name as eos or eot. */
static const char *const end_names[] = {
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>",
    "<|flush|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<turn|>", "<eos>", "</s>",
    "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<|tool_response>", "[e~[",
    DEEPSEEK_END,
    /* Padding and borders of files, which a model of code writes when it has filled a gap. */
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
    /* Llama 4, OpenChat, HyperCLOVA, EXAONE, Command R and PLaMo. */
    "<|eot|>", "<|end_of_turn|>", "<|endofturn|>", "[|endofturn|]", "<|END_OF_TURN_TOKEN|>",
    "<|plamo:eos|>"};

enum { N_END_NAMES = sizeof end_names / sizeof *end_names };

/* Names that end no text in vocabularies that have the two others: with them "<|end|>" ends a part
 * of a message, and "</s>" is markup. */
static const struct {
    const char *name;
    const char *beside[2];
} exceptions[] = {{"<|end|>", {"<|return|>", "<|call|>"}},
                  {"<|end|>", {"<|return|>", "<|calls|>"}},
                  {"<|end|>", {"<|flush|>", "<|call|>"}},
                  {"<|end|>", {"<|flush|>", "<|calls|>"}},
                  {"</s>", {"<|tool_response>", "<|tool_response>"}},
                  {"</s>", {"<|plamo:eos|>", "<|plamo:eos|>"}}};

static bool equals(tkv_gguf_text text, const char *name)
{
    return text.length == strlen(name) && memcmp(text.data, name, text.length) == 0;
}

/* The token of end name `name`, or -1. */
static int32_t find_named(const int32_t found[N_END_NAMES], const char *name)
{
    for (int i = 0; i < N_END_NAMES; i++) {
        if (strcmp(end_names[i], name) == 0) {
            return found[i];
        }
    }
    return -1;
}

static void drop_exceptions(int32_t found[N_END_NAMES])
{
    for (size_t e = 0; e < sizeof exceptions / sizeof *exceptions; e++) {
        if (find_named(found, exceptions[e].beside[0]) < 0 ||
            find_named(found, exceptions[e].beside[1]) < 0) {
            continue;
        }
        for (int i = 0; i < N_END_NAMES; i++) {
            found[i] = strcmp(end_names[i], exceptions[e].name) == 0 ? -1 : found[i];
        }
    }
}

static void find_end_names(const tkv_tokenizer_params *params, int32_t found[N_END_NAMES])
{
    for (int i = 0; i < N_END_NAMES; i++) {
        found[i] = -1;
    }
    for (int32_t id = 0; id < params->n_tokens; id++) {
        const tkv_gguf_text text = params->tokens[id];
        if (text.length < 4 || (*text.data != '<' && *text.data != '[' && *text.data != '_')) {
            continue;
        }
        for (int i = 0; i < N_END_NAMES; i++) {
            if (equals(text, end_names[i])) {
                found[i] = id;
            }
        }
    }
    drop_exceptions(found);
}

tkv_status tkv_tokenizer_fill_ends(tkv_tokenizer *tokenizer, const tkv_tokenizer_params *params,
                                   tkv_error *error)
{
    int32_t found[N_END_NAMES];
    find_end_names(params, found);
    for (int i = 0; i < N_END_NAMES; i++) {
        if (found[i] >= 0) {
            TKV_TRY(tkv_tokens_push(&tokenizer->ends, found[i], error));
        }
    }
    tokenizer->n_named_ends = tokenizer->ends.n;
    for (int32_t i = 0; i < params->n_end_tokens; i++) {
        TKV_TRY(tkv_tokens_push(&tokenizer->ends, params->end_tokens[i], error));
    }
    return TKV_OK;
}

/* Whether a token is among the first n that end a text. */
static bool is_end_of(const tkv_tokenizer *tokenizer, size_t n, int32_t token)
{
    for (size_t i = 0; i < n; i++) {
        if (tokenizer->ends.ids[i] == token) {
            return true;
        }
    }
    return false;
}

bool tkv_tokenizer_is_named_end(const tkv_tokenizer *tokenizer, int32_t token)
{
    return is_end_of(tokenizer, tokenizer->n_named_ends, token);
}

bool tkv_tokenizer_is_end(const tkv_tokenizer *tokenizer, int32_t token)
{
    return is_end_of(tokenizer, tokenizer->ends.n, token);
}

static bool is_special(const tkv_token_entry *entry)
{
    return entry->bytes.length > 0 &&
           (entry->kind == TKV_TOKEN_CONTROL || entry->kind == TKV_TOKEN_USER_DEFINED ||
            entry->kind == TKV_TOKEN_UNKNOWN);
}

/* By first byte, then longest first, so that the longest match wins. */
static int compare_specials(const void *a, const void *b)
{
    const tkv_token_entry *x = *(const tkv_token_entry *const *)a;
    const tkv_token_entry *y = *(const tkv_token_entry *const *)b;
    const unsigned char first_x = (unsigned char)x->bytes.data[0];
    const unsigned char first_y = (unsigned char)y->bytes.data[0];
    if (first_x != first_y) {
        return first_x < first_y ? -1 : 1;
    }
    if (x->bytes.length != y->bytes.length) {
        return x->bytes.length > y->bytes.length ? -1 : 1;
    }
    return (x->id > y->id) - (x->id < y->id);
}

tkv_status tkv_tokenizer_fill_specials(tkv_tokenizer *tokenizer, tkv_error *error)
{
    int32_t n = 0;
    for (int32_t i = 0; i < tokenizer->n_tokens; i++) {
        n += is_special(&tokenizer->entries[i]);
    }
    tokenizer->specials = malloc(((size_t)n + 1) * sizeof *tokenizer->specials);
    if (!tokenizer->specials) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d special tokens", (int)n);
    }
    n = 0;
    for (int32_t i = 0; i < tokenizer->n_tokens; i++) {
        if (is_special(&tokenizer->entries[i])) {
            tokenizer->specials[n++] = &tokenizer->entries[i];
        }
    }
    qsort(tokenizer->specials, (size_t)n, sizeof *tokenizer->specials, compare_specials);
    int32_t at = 0;
    for (int byte = 0; byte <= 256; byte++) {
        while (at < n && (unsigned char)tokenizer->specials[at]->bytes.data[0] < byte) {
            at++;
        }
        tokenizer->first_special[byte] = at;
    }
    return TKV_OK;
}

int32_t tkv_tokenizer_special_at(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                                 bool parse_special)
{
    const unsigned char byte = (unsigned char)text[0];
    for (int32_t i = tokenizer->first_special[byte]; i < tokenizer->first_special[byte + 1]; i++) {
        const tkv_token_entry *entry = tokenizer->specials[i];
        if (entry->bytes.length <= length &&
            (parse_special || entry->kind == TKV_TOKEN_USER_DEFINED) &&
            memcmp(entry->bytes.data, text, entry->bytes.length) == 0) {
            return entry->id;
        }
    }
    return -1;
}

int32_t tkv_tokenizer_find_special(const tkv_tokenizer *tokenizer, const char *name)
{
    const size_t length = strlen(name);
    const int32_t id = length ? tkv_tokenizer_special_at(tokenizer, name, length, true) : -1;
    return id >= 0 && tokenizer->entries[id].bytes.length == length ? id : -1;
}
