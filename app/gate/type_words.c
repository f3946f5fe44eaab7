/* Which types of a tree are compressed ones, by what is done with them: their values are rotated
 * before they are coded, or a codebook is theirs. */
#include "gate/evidence.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* The shortest family, "tbq" of "tbq3", that stands for all its types: shorter ones are in other
 * names, too. */
#define LEAST_FAMILY 3

/* From this length on what follows a word does not matter: "turboquant" is of "turbo". */
#define LEAST_PREFIX 4

static bool begins_part(const char *text, const char *at)
{
    return at == text || !isalnum((unsigned char)at[-1]) ||
           (islower((unsigned char)at[-1]) && isupper((unsigned char)*at));
}

/* Types of keys and of values have a letter before them: "ktq3", "vtq3". */
static bool follows_k_or_v(const char *text, const char *at)
{
    const char before = at > text ? (char)tolower((unsigned char)at[-1]) : '\0';
    return (before == 'k' || before == 'v') && begins_part(text, at - 1);
}

static bool ends_word(const char *word, const char *next, const char *end)
{
    const size_t length = strlen(word);
    return next == end || (isdigit((unsigned char)word[length - 1])
                               ? !isalnum((unsigned char)*next)
                               : length >= LEAST_PREFIX || !isalpha((unsigned char)*next));
}

/* In small letters or in capitals, as names are written. */
static bool is_word(const char *at, const char *word, size_t length)
{
    bool is_small = true;
    bool is_capital = true;
    for (size_t i = 0; i < length && (is_small || is_capital); i++) {
        is_small = is_small && at[i] == word[i];
        is_capital = is_capital && at[i] == (char)toupper((unsigned char)word[i]);
    }
    return is_small || is_capital;
}

bool tkv_has_word(const char *text, size_t length, const char *word)
{
    const size_t n = strlen(word);
    const char *end = text + length;
    for (const char *at = text; n > 0 && (size_t)(end - at) >= n; at++) {
        if ((*at | 0x20) == *word && is_word(at, word, n) &&
            (begins_part(text, at) || follows_k_or_v(text, at)) && ends_word(word, at + n, end)) {
            return true;
        }
    }
    return false;
}

bool tkv_has_any_word(const char *text, size_t length, const tkv_words *words)
{
    for (int i = 0; i < words->n; i++) {
        if (tkv_has_word(text, length, words->word[i])) {
            return true;
        }
    }
    return false;
}

void tkv_type_stem(const char *type, char stem[16])
{
    const size_t length = strlen(type);
    const bool is_numbered = length > 2 && strcmp(type + length - 2, "_0") == 0;
    snprintf(stem, 16, "%.*s", (int)(is_numbered ? length - 2 : length), type);
}

void tkv_encoded_type(const char *name, char type[16])
{
    static const char mark[] = "set_rows_";
    const char *at = strstr(name, mark);
    type[0] = '\0';
    if (at) {
        at += strlen(mark);
        const size_t n_letters = strspn(at, "abcdefghijklmnopqrstuvwxyz");
        const bool is_type = n_letters > 0 && isdigit((unsigned char)at[n_letters]);
        snprintf(type, 16, "%.*s", (int)(is_type ? strcspn(at, "_") : 0), at);
    }
}

/* Floating point numbers and integers, "f16", "bf16", "i32", hold no codes. */
static bool is_number_format(const char *stem)
{
    static const char *const kinds[] = {"f", "bf", "i"};
    static const char *const sizes[] = {"8", "16", "32", "64"};
    for (int i = 0; i < 12; i++) {
        const size_t n = strlen(kinds[i / 4]);
        if (strncmp(stem, kinds[i / 4], n) == 0 && strcmp(stem + n, sizes[i % 4]) == 0) {
            return true;
        }
    }
    return false;
}

static size_t family_length(const char *stem)
{
    return strcspn(stem, "0123456789_");
}

/* The word that stands for a type in names. */
static void word_of(const char *stem, char word[16])
{
    const size_t n = family_length(stem);
    snprintf(word, 16, "%.*s", (int)(n >= LEAST_FAMILY ? n : strlen(stem)), stem);
}

/* Characters of a name before what says that it rotates. */
static size_t length_before_rotation(const char *name)
{
    static const char *const marks[] = {"wht", "hadamard", "rotat"};
    const size_t length = strlen(name);
    for (size_t at = 0; at < length; at++) {
        for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
            if (strncasecmp(name + at, marks[i], strlen(marks[i])) == 0) {
                return at;
            }
        }
    }
    return length;
}

/* Whether a rotation's name says that it is this type's. A short word must come first:
 * "tq_prerotate_q8_1" is what happens before q8_1. */
static bool rotates_type(const char *name, const char *word)
{
    const bool is_short = family_length(word) < LEAST_FAMILY;
    return tkv_has_word(name, is_short ? length_before_rotation(name) : strlen(name), word);
}

static bool is_compressed(const tkv_source_report *survey, const char *stem, const char *word)
{
    for (int i = 0; i < survey->n_items; i++) {
        const tkv_evidence *item = &survey->items[i];
        const size_t length = strlen(item->name);
        if ((item->kind == TKV_EVIDENCE_CODEBOOK && tkv_has_word(item->name, length, word)) ||
            (item->role == TKV_LLAMA_ROTATE && rotates_type(item->name, word)) ||
            (item->rotates && tkv_has_word(item->name, length, stem))) {
            return true;
        }
    }
    return false;
}

/* Whether a type that only a kernel's name shows is the beginning of one that is declared. */
static bool is_cut_name(const tkv_source_report *survey, const tkv_evidence *type)
{
    for (int i = 0; i < survey->n_items && type->role == TKV_LLAMA_SET_ROWS; i++) {
        const tkv_evidence *other = &survey->items[i];
        if (other->kind == TKV_EVIDENCE_TYPE && other->role != TKV_LLAMA_SET_ROWS &&
            strncmp(other->name, type->name, strlen(type->name)) == 0) {
            return true;
        }
    }
    return false;
}

void tkv_find_words(const tkv_source_report *survey, tkv_words *words)
{
    words->n = 0;
    for (int i = 0; i < survey->n_items && words->n < TKV_MAX_WORDS; i++) {
        char stem[16];
        char word[16];
        const tkv_evidence *type = &survey->items[i];
        if (type->kind != TKV_EVIDENCE_TYPE || is_cut_name(survey, type)) {
            continue;
        }
        tkv_type_stem(type->name, stem);
        word_of(stem, word);
        if (!is_number_format(stem) && !tkv_has_any_word(word, strlen(word), words) &&
            is_compressed(survey, stem, word)) {
            memcpy(words->word[words->n++], word, sizeof word);
        }
    }
}
