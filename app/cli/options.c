#include "cli/options.h"

#include "cli/command.h"
#include "cli/llama_options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where an option's value is to be put. */
typedef struct option_value {
    const option_entry *entry;
    const char *name; /* as it was given, with its dashes */
    void *target;
} option_value;

static option_result wrong(const option_value *v, const char *text, const char *expected)
{
    fprintf(stderr, "turbokv: %s is '%s': expected %s\n", v->name, text, expected);
    return OPTIONS_WRONG;
}

static option_result set_int(const option_value *v, const char *text)
{
    const option_entry *e = v->entry;
    char *end;
    char expected[96];
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || *end || errno || (double)value < e->low || (double)value > e->high) {
        snprintf(expected, sizeof expected, "a whole number from %.0f to %.0f", e->low, e->high);
        return wrong(v, text, expected);
    }
    *(int *)v->target = (int)value;
    return OPTIONS_OK;
}

static option_result set_real(const option_value *v, const char *text)
{
    const option_entry *e = v->entry;
    char *end;
    char expected[96];
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= e->low && value <= e->high)) {
        snprintf(expected, sizeof expected, "a number from %g to %g", e->low, e->high);
        return wrong(v, text, expected);
    }
    *(float *)v->target = (float)value;
    return OPTIONS_OK;
}

/* A seed of 32 bits, which JSON can name. */
static option_result draw_seed(const option_value *v)
{
    uint32_t seed = 0;
    FILE *source = fopen("/dev/urandom", "rb");
    const bool is_drawn = source && fread(&seed, sizeof seed, 1, source) == 1;
    if (source) {
        fclose(source);
    }
    *(uint64_t *)v->target = seed;
    return is_drawn ? OPTIONS_OK : wrong(v, "-1", "a number, since /dev/urandom gives none");
}

static option_result set_seed(const option_value *v, const char *text)
{
    char *end;
    errno = 0;
    if (strcmp(text, "-1") == 0) {
        return draw_seed(v);
    }
    const unsigned long long value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno) {
        return wrong(v, text, "a whole number from 0 to 18446744073709551615, or -1");
    }
    *(uint64_t *)v->target = value;
    return OPTIONS_OK;
}

/* A number of bytes; K, M, G and T are powers of 1024. */
static option_result set_size(const option_value *v, const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    double value = strtod(text, &end);
    const char *unit = end != text && *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit) {
        value *= (double)(UINT64_C(1024) << 10 * (unit - units));
        end++;
    }
    const bool is_whole =
        end != text && (!*end || (unit && (strcmp(end, "B") == 0 || strcmp(end, "iB") == 0)));
    if (!is_whole || !(value >= 1.0 && value <= 0x1p60)) {
        return wrong(v, text, "a size from 1 byte to 2^60, as 4096, 512M or 1.5G");
    }
    *(uint64_t *)v->target = (uint64_t)value;
    return OPTIONS_OK;
}

static option_result report(const option_value *v, tkv_status status, const tkv_error *error)
{
    if (status == TKV_OK) {
        return OPTIONS_OK;
    }
    fprintf(stderr, "turbokv: %s: %s\n", v->name, error->message);
    return OPTIONS_WRONG;
}

static option_result set_type(const option_value *v, const char *text)
{
    tkv_error error;
    return report(v, tkv_type_from_name(text, v->target, &error), &error);
}

static option_result set_policy(const option_value *v, const char *text)
{
    tkv_error error;
    char setting[192];
    if ((size_t)snprintf(setting, sizeof setting, "%s %s", v->entry->name, text) >=
        sizeof setting) {
        return wrong(v, text, "something shorter");
    }
    return report(v, tkv_policy_parse(setting, v->target, &error), &error);
}

static option_result set_policy_file(const option_value *v, const char *text)
{
    tkv_error error;
    tkv_policy policy = {0};
    const tkv_status status = command_read_policy(text, &policy, &error);
    if (status == TKV_OK) {
        *(tkv_policy *)v->target = policy;
    }
    return report(v, status, &error);
}

/* Words are listed as in a sentence: "fast, default or best". */
static option_result wrong_word(const option_value *v, const char *text)
{
    char expected[256] = "";
    char word[32];
    char next[32];
    for (int i = 0; option_word(v->entry, i, word); i++) {
        const bool is_last = !option_word(v->entry, i + 1, next);
        const size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s%s",
                 i == 0    ? ""
                 : is_last ? " or "
                           : ", ",
                 word);
    }
    return wrong(v, text, expected);
}

/* The index of a word among those that the option takes, or -1. */
static int find_word(const option_entry *e, const char *text)
{
    char word[32];
    for (int i = 0; option_word(e, i, word); i++) {
        if (strcmp(word, text) == 0) {
            return i;
        }
    }
    return -1;
}

static option_result set_word(const option_value *v, const char *text)
{
    const int index = find_word(v->entry, text);
    if (index < 0) {
        return wrong_word(v, text);
    }
    if (v->entry->kind == OPTION_EFFORT) {
        *(tkv_effort *)v->target = option_efforts[index];
    } else {
        *(const char **)v->target = text;
    }
    return OPTIONS_OK;
}

static option_result set_option(const option_value *v, const char *text)
{
    switch (v->entry->kind) {
    case OPTION_HELP: return OPTIONS_HELP;
    case OPTION_FLAG: *(bool *)v->target = true; return OPTIONS_OK;
    case OPTION_TEXT:
    case OPTION_FILE:
    case OPTION_DIRECTORY: *(const char **)v->target = text; return OPTIONS_OK;
    case OPTION_INT: return set_int(v, text);
    case OPTION_REAL: return set_real(v, text);
    case OPTION_SEED: return set_seed(v, text);
    case OPTION_SIZE: return set_size(v, text);
    case OPTION_TYPE: return set_type(v, text);
    case OPTION_POLICY:
    case OPTION_POLICY_LIST:
    case OPTION_PRESET: return set_policy(v, text);
    case OPTION_POLICY_FILE: return set_policy_file(v, text);
    case OPTION_CHOICE:
    case OPTION_EFFORT: return set_word(v, text);
    }
    return OPTIONS_WRONG;
}

/* Whether a list of names that blanks separate holds one. */
static bool has_name(const char *names, const char *name, size_t length)
{
    while (names && *names) {
        const size_t n = strcspn(names, " ");
        if (n == length && strncmp(names, name, n) == 0) {
            return true;
        }
        names += n + (names[n] == ' ');
    }
    return false;
}

static const option_entry *find(const option_table *table, const char *name, size_t length)
{
    for (int i = 0; i < table->n_entries; i++) {
        const option_entry *e = &table->entries[i];
        const bool is_long = length == strlen(e->name) + 2 && strncmp(name, "--", 2) == 0 &&
                             strncmp(name + 2, e->name, length - 2) == 0;
        const bool is_letter = length == 2 && e->letter && name[0] == '-' && name[1] == e->letter;
        if (is_long || is_letter || has_name(e->aliases, name, length)) {
            return e;
        }
    }
    return NULL;
}

const option_entry *option_find(const option_table *table, const char *name)
{
    return find(table, name, strlen(name));
}

static bool is_number(option_kind kind)
{
    return kind == OPTION_INT || kind == OPTION_REAL || kind == OPTION_SEED || kind == OPTION_SIZE;
}

/* Finds an option as "--name", "--name=value", "-n" or, for numbers, "-n5"; *value is what the word
 * itself gives, or NULL. */
static const option_entry *match(const option_table *table, const char *word, char *name,
                                 size_t size, const char **value)
{
    const bool is_long = strncmp(word, "--", 2) == 0;
    const char *equals = is_long ? strchr(word, '=') : NULL;
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    *value = equals ? equals + 1 : NULL;
    const option_entry *e = find(table, word, length);
    if (!e && !is_long && length > 2 && isdigit((unsigned char)word[2])) {
        length = 2;
        *value = word + 2;
        e = find(table, word, length);
        e = e && is_number(e->kind) ? e : NULL;
    }
    snprintf(name, size, "%.*s", (int)(length < size ? length : size - 1), word);
    return e;
}

/* The long option that a word with too few dashes, or cut short, may have meant; NULL if none or
 * several. */
static const char *guess(const option_table *table, const char *word)
{
    const char *bare = word + strspn(word, "-");
    const size_t length = strcspn(bare, "=");
    const char *found = NULL;
    for (int i = 0; i < table->n_entries && length > 1; i++) {
        if (strncmp(table->entries[i].name, bare, length) == 0) {
            if (found) {
                return NULL;
            }
            found = table->entries[i].name;
        }
    }
    return found;
}

static option_result unknown(const option_table *table, const char *word)
{
    const char *meant = guess(table, word);
    if (meant) {
        fprintf(stderr, "turbokv: no option '%s': did you mean --%s?\n", word, meant);
    } else {
        options_print_names(stderr, table);
        fprintf(stderr, "turbokv: no option '%s': 'turbokv %s --help' explains those there are\n",
                word, table->command);
    }
    return OPTIONS_WRONG;
}

/* The words that are left to read, and which of the table's options were given. */
typedef struct reader {
    int n;
    char **words;
    bool is_given[OPTION_MAX_ENTRIES];
} reader;

static bool may_be_repeated(option_kind kind)
{
    return kind == OPTION_HELP || kind == OPTION_FLAG || kind == OPTION_POLICY_LIST;
}

/* Whether an option puts a whole policy in the place of the one that another has set or changed. */
static bool replaces(const option_entry *e, const option_entry *earlier)
{
    return (e->kind == OPTION_PRESET || e->kind == OPTION_POLICY_FILE) &&
           earlier->offset >= e->offset && earlier->offset < e->offset + sizeof(tkv_policy);
}

/* Notes that an option is given. What was given before must not be lost without a word. */
static option_result note_given(const option_table *table, const option_value *v, reader *r)
{
    bool *is_given = &r->is_given[v->entry - table->entries];
    if (*is_given && !may_be_repeated(v->entry->kind)) {
        fprintf(stderr, "turbokv: %s is given twice: expected one %s\n", v->name,
                v->entry->argument);
        return OPTIONS_WRONG;
    }
    *is_given = true;
    for (int i = 0; i < table->n_entries; i++) {
        const option_entry *earlier = &table->entries[i];
        if (r->is_given[i] && earlier != v->entry && replaces(v->entry, earlier)) {
            fprintf(stderr, "turbokv: %s comes after --%s and would undo it: expected %s first\n",
                    v->name, earlier->name, v->name);
            return OPTIONS_WRONG;
        }
    }
    return OPTIONS_OK;
}

/* A word that this command has no option for: llama.cpp may have one. */
static option_result take_foreign(const option_table *table, const char *word, reader *rest)
{
    const llama_option *llama = llama_option_find(word);
    if (!llama) {
        return unknown(table, word);
    }
    const char *next = rest->n > 0 ? rest->words[0] : NULL;
    const int n_taken = llama_option_takes(llama, word, next);
    const char *value = strchr(word, '=') ? strchr(word, '=') + 1 : n_taken ? next : NULL;
    const int length = (int)strcspn(word, "=");
    rest->n -= n_taken;
    rest->words += n_taken;
    if (llama_option_is_harmless(llama, value)) {
        fprintf(stderr, "turbokv: note: %.*s, an option of llama.cpp, has no effect: %s\n", length,
                word, llama->reason);
        return OPTIONS_OK;
    }
    fprintf(stderr, "turbokv: %.*s: %s (an option of llama.cpp that turbokv lacks)\n", length, word,
            llama->reason);
    return OPTIONS_WRONG;
}

static option_result take_operand(const option_table *table, const char *word, reader *rest,
                                  char *options)
{
    for (int i = 0; table->operand && i < table->n_entries; i++) {
        const option_entry *e = &table->entries[i];
        if (strcmp(e->name, table->operand) == 0) {
            const option_value value = {e, e->name, options + e->offset};
            if (!rest->is_given[i]) {
                rest->is_given[i] = true;
                return set_option(&value, word);
            }
        }
    }
    fprintf(stderr, "turbokv: unexpected argument '%s'%s%s\n", word, table->hint ? ": " : "",
            table->hint ? table->hint : "");
    return OPTIONS_WRONG;
}

static option_result take_option(const option_table *table, const char *word, reader *rest,
                                 char *options)
{
    char name[64];
    const char *text;
    const option_entry *e = match(table, word, name, sizeof name, &text);
    if (!e) {
        return take_foreign(table, word, rest);
    }
    const option_value value = {e, name, options + e->offset};
    if (!e->argument && text) {
        return wrong(&value, text, "no value");
    }
    if (e->argument && !text) {
        if (rest->n == 0) {
            fprintf(stderr, "turbokv: %s needs a value: %s\n", name, e->argument);
            return OPTIONS_WRONG;
        }
        text = *rest->words++;
        rest->n--;
    }
    const option_result result = note_given(table, &value, rest);
    return result == OPTIONS_OK ? set_option(&value, text) : result;
}

option_result options_parse(const option_table *table, int argc, char **argv, void *options)
{
    option_result result = OPTIONS_OK;
    bool has_ended = false;
    reader rest = {.n = argc - 1, .words = argv + 1};
    memcpy(options, table->defaults, table->size);
    while (result == OPTIONS_OK && rest.n > 0) {
        const char *word = *rest.words++;
        rest.n--;
        if (!has_ended && strcmp(word, "--") == 0) {
            has_ended = true;
        } else if (!has_ended && word[0] == '-' && word[1]) {
            result = take_option(table, word, &rest, options);
        } else {
            result = take_operand(table, word, &rest, options);
        }
    }
    if (result == OPTIONS_HELP) {
        options_print_help(stdout, table);
    }
    return result;
}

bool options_take(const option_table *table, int argc, char **argv, void *options, int *code)
{
    const option_result result = options_parse(table, argc, argv, options);
    *code = result == OPTIONS_WRONG ? EXIT_USAGE : EXIT_OK;
    return result == OPTIONS_OK;
}
