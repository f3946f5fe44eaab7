/* The regular expressions that cut text into pieces before byte-level BPE, as the models' authors
 * published them in their tokenizer files. */
#include "common/try.h"
#include "model/tokenizer_internal.h"

#include <stdio.h>
#include <string.h>

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define CL100K(digits)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

typedef struct pre_tokenizer {
    const char *names; /* separated by spaces; a file may use any */
    bool tries_whole_pieces;
    bool adds_bos; /* if the file does not say */
    /* Each stage cuts the pieces of the one before. */
    const char *stages[TKV_MAX_STAGES];
} pre_tokenizer;

static const pre_tokenizer pre_tokenizers[] = {
    {"default", false, false, {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 olmo trillion granite-docling",
     false,
     false,
     {GPT2}},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
     true,
     true,
     {CL100K("\\p{N}{1,3}")}},
    {"glm4", true, false, {CL100K("\\p{N}{1,3}")}},
    {"dbrx smaug-bpe chatglm-bpe", false, false, {CL100K("\\p{N}{1,3}")}},
    {"qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2",
     false,
     false,
     {CL100K("\\p{N}")}},
    {"smollm starcoder refact command-r codeshell exaone minerva-7b",
     false,
     false,
     {"\\p{N}", GPT2}},
    {"tekken",
     true,
     true,
     {"[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER
      "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
};

enum { N_PRE_TOKENIZERS = sizeof pre_tokenizers / sizeof *pre_tokenizers };

/* Whether `name` is one of several that are separated by spaces. */
static bool is_one_of(const char *names, const char *name)
{
    const size_t length = strlen(name);
    for (; *names; names += strspn(names, " ")) {
        const size_t size = strcspn(names, " ");
        if (size == length && memcmp(names, name, length) == 0) {
            return true;
        }
        names += size;
    }
    return false;
}

/* NULL if it is unknown. */
static const pre_tokenizer *find_pre_tokenizer(const char *name)
{
    for (int i = 0; i < N_PRE_TOKENIZERS; i++) {
        if (is_one_of(pre_tokenizers[i].names, *name ? name : "default")) {
            return &pre_tokenizers[i];
        }
    }
    return NULL;
}

bool tkv_pre_tokenizer_adds_bos(const char *name)
{
    const pre_tokenizer *pre = find_pre_tokenizer(name);
    return pre && pre->adds_bos;
}

static tkv_status compile_stage(tkv_tokenizer *tokenizer, const char *pattern, tkv_error *error)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &code, &at, NULL);
    if (!compiled) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "PCRE2 refuses a pre-tokenizer (error %d at %zu): it needs Unicode support",
                        code, at);
    }
    /* Without the just-in-time compiler matching is slower, not different. */
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    tokenizer->stages[tokenizer->n_stages++] = compiled;
    return TKV_OK;
}

static tkv_status fail_unknown(const char *name, tkv_error *error)
{
    char known[sizeof error->message] = "";
    for (int i = 0; i < N_PRE_TOKENIZERS; i++) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, " %s", pre_tokenizers[i].names);
    }
    return tkv_fail(error, TKV_ERR_UNSUPPORTED, "tokenizer.ggml.pre is '%.20s'; known are%s", name,
                    known);
}

tkv_status tkv_tokenizer_compile(tkv_tokenizer *tokenizer, const char *name, tkv_error *error)
{
    const pre_tokenizer *pre = find_pre_tokenizer(name);
    if (!pre) {
        return fail_unknown(name, error);
    }
    tokenizer->tries_whole_pieces = pre->tries_whole_pieces;
    for (int i = 0; i < TKV_MAX_STAGES && pre->stages[i]; i++) {
        TKV_TRY(compile_stage(tokenizer, pre->stages[i], error));
    }
    return TKV_OK;
}

static tkv_status cut(const tkv_tokenizer *tokenizer, int stage, const char *text, size_t length,
                      tkv_tokens *tokens, tkv_error *error);

static tkv_status pass_on(const tkv_tokenizer *tokenizer, int stage, const char *text, size_t begin,
                          size_t end, tkv_tokens *tokens, tkv_error *error)
{
    if (begin == end) {
        return TKV_OK;
    }
    return stage + 1 < tokenizer->n_stages
               ? cut(tokenizer, stage + 1, text + begin, end - begin, tokens, error)
               : tkv_tokenizer_merge(tokenizer, text + begin, end - begin, tokens, error);
}

/* Matches are pieces, and so is what lies between them. */
static tkv_status cut(const tkv_tokenizer *tokenizer, int stage, const char *text, size_t length,
                      tkv_tokens *tokens, tkv_error *error)
{
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(tokenizer->stages[stage], NULL);
    if (!match) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a match");
    }
    tkv_status status = TKV_OK;
    size_t done = 0;
    while (status == TKV_OK && done < length) {
        const int found =
            pcre2_match(tokenizer->stages[stage], (PCRE2_SPTR)text, length, done, 0, match, NULL);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
            status = tkv_fail(error, TKV_ERR_UNSUPPORTED,
                              "PCRE2 gives up on the text at byte %zu (error %d)", done, found);
            break;
        }
        const PCRE2_SIZE *place = pcre2_get_ovector_pointer(match);
        const size_t begin = found < 0 ? length : place[0];
        const size_t end = found < 0 ? length : place[1];
        status = pass_on(tokenizer, stage, text, done, begin, tokens, error);
        if (status == TKV_OK) {
            status = pass_on(tokenizer, stage, text, begin, end, tokens, error);
        }
        done = end;
    }
    pcre2_match_data_free(match);
    return status;
}

tkv_status tkv_tokenizer_cut(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                             tkv_tokens *tokens, tkv_error *error)
{
    return cut(tokenizer, 0, text, length, tokens, error);
}
