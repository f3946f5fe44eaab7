/* An option table as help, and as JSON. */
#include "cli/options.h"

#include <stdlib.h>
#include <string.h>

#define NAMES_WIDTH 34
#define LINE_WIDTH 100
#define POLICY_TEXT 1024

const tkv_effort option_efforts[TKV_EFFORT_COUNT] = {TKV_EFFORT_FAST, TKV_EFFORT_DEFAULT,
                                                     TKV_EFFORT_BEST};

bool option_word(const option_entry *entry, int i, char word[32])
{
    static const char *const efforts[TKV_EFFORT_COUNT] = {"fast", "default", "best"};
    const char *found = NULL;
    size_t length = 0;
    if (entry->kind == OPTION_TYPE) {
        const tkv_type_info *info = i < TKV_TYPE_COUNT ? tkv_type_get_info((tkv_type)i) : NULL;
        found = info ? info->name : NULL;
    } else if (entry->kind == OPTION_EFFORT) {
        found = i < TKV_EFFORT_COUNT ? efforts[i] : NULL;
    } else if (entry->kind == OPTION_PRESET) {
        found = tkv_policy_preset_name(i);
    } else if (entry->kind == OPTION_CHOICE) {
        found = entry->argument;
        for (; found && i > 0; i--) {
            found = strchr(found, '|');
            found += found != NULL;
        }
        length = found ? strcspn(found, "|") : 0;
    }
    if (found) {
        snprintf(word, 32, "%.*s", (int)(length ? length : strlen(found)), found);
    }
    return found != NULL;
}

/* The value of a policy's key as tkv_policy_format writes it; what it leaves out is off. */
static bool policy_default(const tkv_policy *policy, const char *key, char *text, size_t size)
{
    static const struct {
        const char *key;
        const char *off;
    } keys[] = {{"sinks", "0"}, {"recent", "0"}, {"centre", "0"}, {"sparse-v", "off"}};
    char all[POLICY_TEXT];
    char pattern[32];
    snprintf(pattern, sizeof pattern, " %s=", key);
    if (tkv_policy_format(policy, all, sizeof all, NULL) != TKV_OK) {
        return false;
    }
    const char *found = strstr(all, pattern);
    if (found) {
        found += strlen(pattern);
        snprintf(text, size, "%.*s", (int)strcspn(found, " "), found);
        return true;
    }
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i].key, key) == 0) {
            snprintf(text, size, "%s", keys[i].off);
            return true;
        }
    }
    return false;
}

static bool text_default(const void *value, char *text, size_t size)
{
    const char *given;
    memcpy(&given, value, sizeof given);
    snprintf(text, size, "%s", given ? given : "");
    return given != NULL;
}

bool option_default(const option_table *table, const option_entry *entry, char *text, size_t size)
{
    const void *value = (const char *)table->defaults + entry->offset;
    const tkv_type_info *info;
    char word[32] = "";
    switch (entry->kind) {
    case OPTION_FLAG:
    case OPTION_POLICY_FILE:
    case OPTION_HELP: return false;
    case OPTION_TEXT:
    case OPTION_FILE:
    case OPTION_DIRECTORY:
    case OPTION_CHOICE: return text_default(value, text, size);
    case OPTION_INT:
        snprintf(text, size, "%d", *(const int *)value);
        return *(const int *)value >= entry->low && *(const int *)value <= entry->high;
    case OPTION_REAL: snprintf(text, size, "%g", (double)*(const float *)value); return true;
    case OPTION_SEED:
        snprintf(text, size, "%llu", (unsigned long long)*(const uint64_t *)value);
        return true;
    case OPTION_SIZE:
        snprintf(text, size, "%llu", (unsigned long long)*(const uint64_t *)value);
        return *(const uint64_t *)value != 0;
    case OPTION_TYPE:
        info = tkv_type_get_info(*(const tkv_type *)value);
        snprintf(text, size, "%s", info ? info->name : "");
        return info != NULL;
    case OPTION_POLICY:
    case OPTION_POLICY_LIST:
    case OPTION_PRESET: return policy_default(value, entry->name, text, size);
    case OPTION_EFFORT:
        for (int i = 0; option_word(entry, i, word); i++) {
            if (option_efforts[i] == *(const tkv_effort *)value) {
                snprintf(text, size, "%s", word);
                return true;
            }
        }
        return false;
    }
    return false;
}

/* Prints a text from column NAMES_WIDTH + 3 on, in lines of LINE_WIDTH. */
static void print_wrapped(FILE *file, const char *text)
{
    const size_t width = LINE_WIDTH - NAMES_WIDTH - 3;
    while (strlen(text) > width) {
        size_t length = width;
        while (length > 0 && (text[length] != ' ' || text[length - 1] == ':')) {
            length--;
        }
        length = length ? length : width;
        fprintf(file, "%.*s\n%*s", (int)length, text, NAMES_WIDTH + 3, "");
        text += length + (text[length] == ' ');
    }
    fprintf(file, "%s\n", text);
}

/* Names of one dash come before the option's own, as "-ctk, ", the others after it. */
static void add_aliases(const option_entry *e, bool is_long, char *names, size_t size)
{
    for (const char *alias = e->aliases; alias && *alias;) {
        const size_t used = strlen(names);
        const int length = (int)strcspn(alias, " ");
        if ((strncmp(alias, "--", 2) == 0) == is_long) {
            snprintf(names + used, size - used, is_long ? ", %.*s" : "%.*s, ", length, alias);
        }
        alias += length + (alias[length] == ' ');
    }
}

static void print_option(FILE *file, const option_table *table, const option_entry *e)
{
    char names[128] = "";
    char value[512];
    char text[1024];
    if (e->letter) {
        snprintf(names, sizeof names, "-%c, ", e->letter);
    }
    add_aliases(e, false, names, sizeof names);
    const size_t used = strlen(names);
    snprintf(names + used, sizeof names - used, "--%s", e->name);
    add_aliases(e, true, names, sizeof names);
    if (e->argument) {
        const size_t length = strlen(names);
        snprintf(names + length, sizeof names - length, " %s", e->argument);
    }
    const bool has_default = option_default(table, e, value, sizeof value);
    snprintf(text, sizeof text, "%s%s%s%s", e->help, has_default ? " (default: " : "",
             has_default ? value : "", has_default ? ")" : "");
    fprintf(file, "  %-*s ", NAMES_WIDTH, names);
    if (strlen(names) > NAMES_WIDTH) {
        fprintf(file, "\n%*s", NAMES_WIDTH + 3, "");
    }
    print_wrapped(file, text);
}

void options_print_help(FILE *file, const option_table *table)
{
    fprintf(file, "usage: turbokv %s [options]\n%s\n\noptions:\n", table->command,
            table->description);
    for (int i = 0; i < table->n_entries; i++) {
        print_option(file, table, &table->entries[i]);
    }
}

void options_print_names(FILE *file, const option_table *table)
{
    int column = fprintf(file, "options of %s:", table->command);
    for (int i = 0; i < table->n_entries; i++) {
        const int length = (int)strlen(table->entries[i].name) + 3;
        const bool is_full = column + length > LINE_WIDTH;
        column = (is_full ? 2 : column) + length;
        fprintf(file, "%s --%s", is_full ? "\n  " : "", table->entries[i].name);
    }
    fputc('\n', file);
}

/* In the order of option_kind. */
static const char *const kind_names[] = {
    "flag", "text", "file",   "directory",   "choice", "int",         "real",   "seed",
    "size", "type", "policy", "policy-list", "preset", "policy-file", "effort", "help"};

static cJSON *entry_to_json(const option_table *table, const option_entry *e)
{
    char text[512];
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", e->name);
    if (e->letter) {
        cJSON_AddStringToObject(json, "letter", (const char[]){e->letter, '\0'});
    }
    cJSON *aliases = cJSON_AddArrayToObject(json, "aliases");
    for (const char *alias = e->aliases; alias && *alias;) {
        const size_t length = strcspn(alias, " ");
        snprintf(text, sizeof text, "%.*s", (int)length, alias);
        cJSON_AddItemToArray(aliases, cJSON_CreateString(text));
        alias += length + (alias[length] == ' ');
    }
    cJSON_AddStringToObject(json, "kind", kind_names[e->kind]);
    if (e->argument) {
        cJSON_AddStringToObject(json, "argument", e->argument);
    }
    if (e->kind == OPTION_INT || e->kind == OPTION_REAL) {
        cJSON_AddNumberToObject(json, "low", e->low);
        cJSON_AddNumberToObject(json, "high", e->high);
    }
    cJSON *words = cJSON_AddArrayToObject(json, "words");
    char word[32];
    for (int i = 0; option_word(e, i, word); i++) {
        cJSON_AddItemToArray(words, cJSON_CreateString(word));
    }
    if (option_default(table, e, text, sizeof text)) {
        cJSON_AddStringToObject(json, "default", text);
    }
    cJSON_AddStringToObject(json, "help", e->help);
    return json;
}

cJSON *options_to_json(const option_table *table)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "command", table->command);
    cJSON_AddStringToObject(json, "summary", table->summary);
    cJSON_AddStringToObject(json, "description", table->description);
    if (table->operand) {
        cJSON_AddStringToObject(json, "operand", table->operand);
    }
    cJSON *options = cJSON_AddArrayToObject(json, "options");
    for (int i = 0; i < table->n_entries; i++) {
        cJSON_AddItemToArray(options, entry_to_json(table, &table->entries[i]));
    }
    return json;
}
