#include "model/tokenizer.h"

#include "common/try.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define SPACE_MARK "\xe2\x96\x81" /* U+2581, SentencePiece's space */
#define MAX_TOKENS (1 << 24)

tkv_status tkv_tokens_push(tkv_tokens *tokens, int32_t id, tkv_error *error)
{
    if (tokens->n == tokens->capacity) {
        const size_t capacity = tokens->capacity ? 2 * tokens->capacity : 64;
        int32_t *ids = realloc(tokens->ids, capacity * sizeof *ids);
        if (!ids) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu tokens", capacity);
        }
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->n++] = id;
    return TKV_OK;
}

void tkv_tokens_free(tkv_tokens *tokens)
{
    free(tokens->ids);
    *tokens = (tkv_tokens){0};
}

/* Reads one UTF-8 sequence; returns its length, 0 if it is not valid. */
static size_t read_code_point(const char *text, size_t length, uint32_t *code_point)
{
    const unsigned char first = (unsigned char)text[0];
    const size_t size = first < 0x80    ? 1
                        : first >= 0xf0 ? 4
                        : first >= 0xe0 ? 3
                        : first >= 0xc0 ? 2
                                        : 0;
    if (size == 0 || size > length) {
        return 0;
    }
    *code_point = size == 1 ? first : first & (0xffu >> (size + 1));
    for (size_t i = 1; i < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        if ((c & 0xc0) != 0x80) {
            return 0;
        }
        *code_point = *code_point << 6 | (c & 0x3fu);
    }
    return size;
}

/* GPT-2 writes every byte as a printable character: printable ones as themselves, the others, in
 * order, as U+0100 and up. Returns the byte of a character, or -1. */
static int byte_of_character(uint32_t code_point)
{
    int shifted = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        const bool is_printable =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        if ((is_printable ? byte : shifted) == (int)code_point) {
            return byte;
        }
        shifted += !is_printable;
    }
    return -1;
}

/* GPT-2's characters to bytes. Returns the length, or SIZE_MAX if a character stands for none. */
static size_t bytes_of_characters(tkv_gguf_text text, const int16_t byte_of[0x200], char *bytes)
{
    size_t n = 0;
    for (size_t at = 0; at < text.length;) {
        uint32_t code_point;
        const size_t size = read_code_point(text.data + at, text.length - at, &code_point);
        if (size == 0 || code_point >= 0x200 || byte_of[code_point] < 0) {
            return SIZE_MAX;
        }
        bytes[n++] = (char)byte_of[code_point];
        at += size;
    }
    return n;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte of "<0x41>", or -1. */
static int byte_of_name(tkv_gguf_text name)
{
    if (name.length != 6 || memcmp(name.data, "<0x", 3) != 0 || name.data[5] != '>') {
        return -1;
    }
    const int high = hex_digit(name.data[3]);
    const int low = hex_digit(name.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* SentencePiece's spelling to bytes. */
static size_t bytes_of_piece(tkv_gguf_text piece, char *bytes)
{
    size_t n = 0;
    for (size_t at = 0; at < piece.length;) {
        if (piece.length - at >= 3 && memcmp(piece.data + at, SPACE_MARK, 3) == 0) {
            bytes[n++] = ' ';
            at += 3;
        } else {
            bytes[n++] = piece.data[at++];
        }
    }
    return n;
}

/* What a file says that a token is. */
static int32_t stated_kind(const tkv_tokenizer_params *params, int32_t id)
{
    return params->kinds ? params->kinds[id] : TKV_TOKEN_NORMAL;
}

/* Fills entry `id` with the bytes that the token stands for, written at `bytes`. */
static tkv_status fill_entry(tkv_tokenizer *tokenizer, const tkv_tokenizer_params *params,
                             int32_t id, const int16_t byte_of[0x200], char *bytes,
                             tkv_error *error)
{
    const tkv_gguf_text text = params->tokens[id];
    const int32_t kind =
        tkv_tokenizer_is_named_end(tokenizer, id) ? TKV_TOKEN_CONTROL : stated_kind(params, id);
    size_t length = text.length;
    if (kind == TKV_TOKEN_CONTROL || kind == TKV_TOKEN_USER_DEFINED || kind == TKV_TOKEN_UNKNOWN) {
        memcpy(bytes, text.data, text.length);
    } else if (!tokenizer->is_sentencepiece) {
        length = bytes_of_characters(text, byte_of, bytes);
        if (length == SIZE_MAX) {
            /* Unused places of a vocabulary may hold anything: they stand for their name. */
            memcpy(bytes, text.data, text.length);
            length = text.length;
        }
    } else if (kind == TKV_TOKEN_BYTE) {
        const int byte = byte_of_name(text);
        if (byte < 0) {
            return tkv_fail(error, TKV_ERR_FORMAT,
                            "token %d is a byte named '%.*s': expected '<0x00>' to '<0xFF>'",
                            (int)id, (int)(text.length < 40 ? text.length : 40), text.data);
        }
        bytes[0] = (char)byte;
        length = 1;
        tokenizer->byte_tokens[byte] = id;
    } else {
        length = bytes_of_piece(text, bytes);
    }
    tokenizer->entries[id] = (tkv_token_entry){.bytes = {bytes, length},
                                               .id = id,
                                               .score = params->scores ? params->scores[id] : 0.0f,
                                               .kind = kind};
    return TKV_OK;
}

/* Makes a token of the stated kind findable by its bytes. SentencePiece pieces are found with
 * spaces as they are in the text; its user-defined tokens that have spaces, as Gemma's runs of
 * them, only as special tokens: they do not come from merging. The first of equal tokens wins. */
static tkv_status index_entry(tkv_tokenizer *tokenizer, int32_t kind, tkv_token_entry *entry,
                              tkv_error *error)
{
    const bool is_text = kind == TKV_TOKEN_NORMAL || kind == TKV_TOKEN_USER_DEFINED;
    const bool has_spaces = tokenizer->is_sentencepiece && kind == TKV_TOKEN_USER_DEFINED &&
                            memchr(entry->bytes.data, ' ', entry->bytes.length);
    if (!is_text || has_spaces || entry->bytes.length == 0) {
        return TKV_OK;
    }
    tkv_token_entry *known;
    HASH_FIND(hh, tokenizer->by_bytes, entry->bytes.data, entry->bytes.length, known);
    if (!known) {
        HASH_ADD_KEYPTR(hh, tokenizer->by_bytes, entry->bytes.data, entry->bytes.length, entry);
        if (!entry->hh.tbl) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of tokens");
        }
        if (!tokenizer->is_sentencepiece && entry->bytes.length == 1) {
            tokenizer->byte_tokens[(unsigned char)entry->bytes.data[0]] = entry->id;
        }
    }
    return TKV_OK;
}

static tkv_status fill_entries(tkv_tokenizer *tokenizer, const tkv_tokenizer_params *params,
                               tkv_error *error)
{
    size_t pool_bytes = 1;
    for (int32_t i = 0; i < params->n_tokens; i++) {
        pool_bytes += params->tokens[i].length + 1;
    }
    tokenizer->entries = calloc((size_t)params->n_tokens, sizeof *tokenizer->entries);
    tokenizer->byte_pool = malloc(pool_bytes);
    if (!tokenizer->entries || !tokenizer->byte_pool) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a vocabulary of %d tokens",
                        (int)params->n_tokens);
    }
    int16_t byte_of[0x200];
    for (int i = 0; i < 0x200; i++) {
        byte_of[i] = (int16_t)byte_of_character((uint32_t)i);
    }
    char *bytes = tokenizer->byte_pool;
    for (int32_t i = 0; i < params->n_tokens; i++) {
        TKV_TRY(fill_entry(tokenizer, params, i, byte_of, bytes, error));
        TKV_TRY(index_entry(tokenizer, stated_kind(params, i), &tokenizer->entries[i], error));
        bytes += params->tokens[i].length + 1;
    }
    return TKV_OK;
}

/* One line "left right" of the merge list. */
static tkv_status fill_merge(tkv_tokenizer *tokenizer, tkv_gguf_text line, int32_t rank,
                             const int16_t byte_of[0x200], char *bytes, tkv_error *error)
{
    const char *space = line.length > 1 ? memchr(line.data + 1, ' ', line.length - 1) : NULL;
    const size_t left = space ? (size_t)(space - line.data) : 0;
    size_t left_bytes = SIZE_MAX;
    size_t right_bytes = SIZE_MAX;
    if (space) {
        left_bytes = bytes_of_characters((tkv_gguf_text){line.data, left}, byte_of, bytes);
    }
    if (left_bytes != SIZE_MAX) {
        right_bytes = bytes_of_characters((tkv_gguf_text){space + 1, line.length - left - 1},
                                          byte_of, bytes + left_bytes);
    }
    const tkv_token_entry *a = NULL;
    const tkv_token_entry *b = NULL;
    const tkv_token_entry *ab = NULL;
    if (right_bytes != SIZE_MAX) {
        HASH_FIND(hh, tokenizer->by_bytes, bytes, left_bytes, a);
        HASH_FIND(hh, tokenizer->by_bytes, bytes + left_bytes, right_bytes, b);
        HASH_FIND(hh, tokenizer->by_bytes, bytes, left_bytes + right_bytes, ab);
    }
    if (!a || !b || !ab) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "merge %d is '%.*s': expected two tokens whose join is a token", (int)rank,
                        (int)(line.length < 60 ? line.length : 60), line.data);
    }
    tkv_merge_entry *merge = &tokenizer->merges[rank];
    *merge = (tkv_merge_entry){
        .pair = (uint64_t)(uint32_t)a->id << 32 | (uint32_t)b->id, .rank = rank, .merged = ab->id};
    tkv_merge_entry *known;
    HASH_FIND(hh, tokenizer->by_pair, &merge->pair, sizeof merge->pair, known);
    if (!known) {
        HASH_ADD(hh, tokenizer->by_pair, pair, sizeof merge->pair, merge);
        if (!merge->hh.tbl) {
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of merges");
        }
    }
    return TKV_OK;
}

static tkv_status fill_merges(tkv_tokenizer *tokenizer, const tkv_tokenizer_params *params,
                              tkv_error *error)
{
    size_t longest = 1;
    for (int32_t i = 0; i < params->n_merges; i++) {
        longest = params->merges[i].length > longest ? params->merges[i].length : longest;
    }
    char *bytes = malloc(longest);
    tokenizer->merges = calloc((size_t)params->n_merges + 1, sizeof *tokenizer->merges);
    tkv_status status = TKV_OK;
    if (!bytes || !tokenizer->merges) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d merges",
                          (int)params->n_merges);
    }
    int16_t byte_of[0x200];
    for (int i = 0; i < 0x200; i++) {
        byte_of[i] = (int16_t)byte_of_character((uint32_t)i);
    }
    for (int32_t i = 0; i < params->n_merges && status == TKV_OK; i++) {
        status = fill_merge(tokenizer, params->merges[i], i, byte_of, bytes, error);
    }
    free(bytes);
    return status;
}

static tkv_status check_special_id(int32_t id, int32_t n_tokens, const char *what, tkv_error *error)
{
    if (id < -1 || id >= n_tokens) {
        return tkv_fail(error, TKV_ERR_FORMAT, "%s token is %d: the vocabulary is 0 to %d", what,
                        (int)id, (int)n_tokens - 1);
    }
    return TKV_OK;
}

static tkv_status check_params(const tkv_tokenizer_params *params, tkv_error *error)
{
    const bool is_llama = strcmp(params->model, "llama") == 0;
    if (!is_llama && strcmp(params->model, "gpt2") != 0) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "tokenizer.ggml.model is '%.40s': expected gpt2 or llama", params->model);
    }
    if (params->n_tokens < 1 || params->n_tokens > MAX_TOKENS || params->n_merges < 0) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "a vocabulary of %d tokens and %d merges: expected 1 to %d tokens",
                        (int)params->n_tokens, (int)params->n_merges, MAX_TOKENS);
    }
    if (is_llama && !params->scores) {
        return tkv_fail(error, TKV_ERR_FORMAT, "the llama tokenizer needs scores");
    }
    TKV_TRY(check_special_id(params->bos_token, params->n_tokens, "begin", error));
    TKV_TRY(check_special_id(params->unknown_token, params->n_tokens, "unknown", error));
    for (int32_t i = 0; i < params->n_end_tokens; i++) {
        TKV_TRY(check_special_id(params->end_tokens[i], params->n_tokens, "end", error));
    }
    return TKV_OK;
}

static tkv_status fill(tkv_tokenizer *tokenizer, const tkv_tokenizer_params *params,
                       tkv_error *error)
{
    TKV_TRY(tkv_tokenizer_fill_ends(tokenizer, params, error));
    TKV_TRY(fill_entries(tokenizer, params, error));
    TKV_TRY(tkv_tokenizer_fill_specials(tokenizer, error));
    if (tokenizer->is_sentencepiece) {
        return TKV_OK;
    }
    TKV_TRY(fill_merges(tokenizer, params, error));
    return tkv_tokenizer_compile(tokenizer, params->pre_tokenizer, error);
}

tkv_status tkv_tokenizer_create(const tkv_tokenizer_params *params, tkv_tokenizer **tokenizer,
                                tkv_error *error)
{
    TKV_TRY(check_params(params, error));
    tkv_tokenizer *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a tokenizer");
    }
    created->is_sentencepiece = strcmp(params->model, "llama") == 0;
    created->begin_token = params->adds_bos ? params->bos_token : -1;
    created->adds_space_prefix = params->adds_space_prefix;
    created->n_tokens = params->n_tokens;
    created->unknown_token = params->unknown_token;
    memset(created->byte_tokens, -1, sizeof created->byte_tokens);
    const tkv_status status = fill(created, params, error);
    if (status != TKV_OK) {
        tkv_tokenizer_free(created);
        return status;
    }
    *tokenizer = created;
    return TKV_OK;
}

void tkv_tokenizer_free(tkv_tokenizer *tokenizer)
{
    if (!tokenizer) {
        return;
    }
    HASH_CLEAR(hh, tokenizer->by_bytes);
    HASH_CLEAR(hh, tokenizer->by_pair);
    for (int i = 0; i < tokenizer->n_stages; i++) {
        pcre2_code_free(tokenizer->stages[i]);
    }
    free(tokenizer->entries);
    free(tokenizer->byte_pool);
    free(tokenizer->specials);
    free(tokenizer->warnings);
    tkv_tokens_free(&tokenizer->ends);
    free(tokenizer->merges);
    free(tokenizer);
}

int32_t tkv_tokenizer_size(const tkv_tokenizer *tokenizer)
{
    return tokenizer->n_tokens;
}

int32_t tkv_tokenizer_begin(const tkv_tokenizer *tokenizer)
{
    return tokenizer->begin_token;
}

const char *tkv_tokenizer_warning(const tkv_tokenizer *tokenizer, int index)
{
    return index < tokenizer->n_warnings ? tokenizer->warnings[index].text : NULL;
}

/* Tokens of a run without special tokens. SentencePiece's space is put before every such run, and
 * its mark, written in a text, is a space: as by llama.cpp. */
static tkv_status encode_run(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                             tkv_tokens *tokens, tkv_error *error)
{
    if (length == 0) {
        return TKV_OK;
    }
    if (!tokenizer->is_sentencepiece) {
        return tkv_tokenizer_cut(tokenizer, text, length, tokens, error);
    }
    char *spaced = malloc(length + 1);
    if (!spaced) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to tokenise %zu bytes", length);
    }
    spaced[0] = ' ';
    const size_t prefix = tokenizer->adds_space_prefix ? 1 : 0;
    const size_t n = prefix + bytes_of_piece((tkv_gguf_text){text, length}, spaced + prefix);
    const tkv_status status = tkv_tokenizer_merge(tokenizer, spaced, n, tokens, error);
    free(spaced);
    return status;
}

static tkv_status encode_all(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                             bool parse_special, tkv_tokens *tokens, tkv_error *error)
{
    size_t run = 0;
    for (size_t at = 0; at < length;) {
        const int32_t special =
            tkv_tokenizer_special_at(tokenizer, text + at, length - at, parse_special);
        if (special < 0) {
            at++;
            continue;
        }
        tkv_status status = encode_run(tokenizer, text + run, at - run, tokens, error);
        if (status == TKV_OK) {
            status = tkv_tokens_push(tokens, special, error);
        }
        if (status != TKV_OK) {
            return status;
        }
        at += tokenizer->entries[special].bytes.length;
        run = at;
    }
    return encode_run(tokenizer, text + run, length - run, tokens, error);
}

tkv_status tkv_tokenizer_encode(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                                bool parse_special, tkv_tokens *tokens, tkv_error *error)
{
    const size_t before = tokens->n;
    const tkv_status status = encode_all(tokenizer, text, length, parse_special, tokens, error);
    if (status != TKV_OK) {
        tokens->n = before;
    }
    return status;
}

tkv_gguf_text tkv_tokenizer_decode(const tkv_tokenizer *tokenizer, int32_t token)
{
    if (token < 0 || token >= tokenizer->n_tokens) {
        return (tkv_gguf_text){"", 0};
    }
    return tokenizer->entries[token].bytes;
}

size_t tkv_utf8_whole(const char *text, size_t length)
{
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        const unsigned char c = (unsigned char)text[length - back];
        if (c < 0x80) {
            break;
        }
        if (c >= 0xc0) {
            const size_t size = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
            return size > back && c < 0xf8 ? length - back : length;
        }
    }
    return length;
}
