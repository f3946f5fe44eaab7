#include "cli/options.h"

#include "cli/command.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 64
#define FIRST_CODE 1000 /* of long options; short ones are characters */

static void print_help(FILE *file, const char *command, const char *summary,
                       const option_entry *entries, int n_entries)
{
    fprintf(file, "usage: turbokv %s [options]\n%s\n\noptions:\n", command, summary);
    for (int i = 0; i < n_entries; i++) {
        const option_entry *e = &entries[i];
        char names[96];
        int used = 0;
        if (e->letter) {
            used += snprintf(names, sizeof names, "-%c, ", e->letter);
        }
        if (e->alias) {
            used += snprintf(names + used, sizeof names - (size_t)used, "-%s, ", e->alias);
        }
        snprintf(names + used, sizeof names - (size_t)used, "--%s%s%s", e->name,
                 e->argument ? " " : "", e->argument ? e->argument : "");
        fprintf(file, "  %-34s %s\n", names, e->help);
    }
}

static option_result wrong(const char *name, const char *text, const char *expected)
{
    fprintf(stderr, "turbokv: --%s is '%s': expected %s\n", name, text, expected);
    return OPTIONS_WRONG;
}

static option_result set_int(const option_entry *e, const char *text)
{
    char *end;
    char expected[96];
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || *end || errno || (double)value < e->low || (double)value > e->high) {
        snprintf(expected, sizeof expected, "a whole number from %.0f to %.0f", e->low, e->high);
        return wrong(e->name, text, expected);
    }
    *(int *)e->target = (int)value;
    return OPTIONS_OK;
}

static option_result set_real(const option_entry *e, const char *text)
{
    char *end;
    char expected[96];
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= e->low && value <= e->high)) {
        snprintf(expected, sizeof expected, "a number from %g to %g", e->low, e->high);
        return wrong(e->name, text, expected);
    }
    *(float *)e->target = (float)value;
    return OPTIONS_OK;
}

/* A seed of 32 bits, which JSON can name. */
static option_result draw_seed(const option_entry *e)
{
    uint32_t seed = 0;
    FILE *source = fopen("/dev/urandom", "rb");
    const bool is_drawn = source && fread(&seed, sizeof seed, 1, source) == 1;
    if (source) {
        fclose(source);
    }
    *(uint64_t *)e->target = seed;
    return is_drawn ? OPTIONS_OK : wrong(e->name, "-1", "a number, since /dev/urandom gives none");
}

static option_result set_seed(const option_entry *e, const char *text)
{
    char *end;
    errno = 0;
    if (strcmp(text, "-1") == 0) {
        return draw_seed(e);
    }
    const unsigned long long value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno) {
        return wrong(e->name, text, "a whole number from 0 to 18446744073709551615, or -1");
    }
    *(uint64_t *)e->target = value;
    return OPTIONS_OK;
}

/* A number of bytes; K, M, G and T are powers of 1024. */
static option_result set_size(const option_entry *e, const char *text)
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
        return wrong(e->name, text, "a size in bytes, as 4096, 512M or 1.5G");
    }
    *(uint64_t *)e->target = (uint64_t)value;
    return OPTIONS_OK;
}

static option_result report(const char *name, tkv_status status, const tkv_error *error)
{
    if (status == TKV_OK) {
        return OPTIONS_OK;
    }
    fprintf(stderr, "turbokv: --%s: %s\n", name, error->message);
    return OPTIONS_WRONG;
}

static option_result set_policy(const option_entry *e, const char *text)
{
    tkv_error error;
    char setting[192];
    if ((size_t)snprintf(setting, sizeof setting, "%s %s", e->name, text) >= sizeof setting) {
        return wrong(e->name, text, "something shorter");
    }
    return report(e->name, tkv_policy_parse(setting, e->target, &error), &error);
}

static option_result set_effort(const option_entry *e, const char *text)
{
    static const char *const names[TKV_EFFORT_COUNT] = {"default", "fast", "best"};
    for (int i = 0; i < TKV_EFFORT_COUNT; i++) {
        if (strcmp(text, names[i]) == 0) {
            *(tkv_effort *)e->target = (tkv_effort)i;
            return OPTIONS_OK;
        }
    }
    return wrong(e->name, text, "fast, default or best");
}

static option_result set_option(const option_entry *e, const char *text)
{
    tkv_error error;
    switch (e->kind) {
    case OPTION_HELP:
    case OPTION_FLAG: *(bool *)e->target = true; return OPTIONS_OK;
    case OPTION_TEXT: *(const char **)e->target = text; return OPTIONS_OK;
    case OPTION_INT: return set_int(e, text);
    case OPTION_REAL: return set_real(e, text);
    case OPTION_SEED: return set_seed(e, text);
    case OPTION_SIZE: return set_size(e, text);
    case OPTION_TYPE: return report(e->name, tkv_type_from_name(text, e->target, &error), &error);
    case OPTION_POLICY: return set_policy(e, text);
    case OPTION_POLICY_FILE:
        return report(e->name, command_read_policy(text, e->target, &error), &error);
    case OPTION_EFFORT: return set_effort(e, text);
    }
    return OPTIONS_WRONG;
}

/* The tables of getopt_long_only, which takes long names with one dash, as llama.cpp does. */
static void build_tables(const option_entry *entries, int n_entries, struct option *longs,
                         char *shorts)
{
    *shorts++ = ':';
    for (int i = 0; i < n_entries; i++) {
        const int has_argument = entries[i].argument ? required_argument : no_argument;
        *longs++ = (struct option){entries[i].name, has_argument, NULL, FIRST_CODE + i};
        if (entries[i].alias) {
            *longs++ = (struct option){entries[i].alias, has_argument, NULL, FIRST_CODE + i};
        }
        if (entries[i].letter) {
            *shorts++ = entries[i].letter;
            if (has_argument) {
                *shorts++ = ':';
            }
        }
    }
    *longs = (struct option){0};
    *shorts = '\0';
}

static int find_entry(const option_entry *entries, int n_entries, int code)
{
    for (int i = 0; i < n_entries; i++) {
        if (code == FIRST_CODE + i || (entries[i].letter && code == entries[i].letter)) {
            return i;
        }
    }
    return -1;
}

option_result options_parse(const char *command, const char *summary, const option_entry *entries,
                            int n_entries, int argc, char **argv)
{
    struct option longs[2 * MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 2];
    option_result result = OPTIONS_OK;
    if (n_entries > MAX_OPTIONS) {
        return OPTIONS_WRONG;
    }
    build_tables(entries, n_entries, longs, shorts);
    opterr = 0;
    optind = 1;
    int code;
    while (result == OPTIONS_OK &&
           (code = getopt_long_only(argc, argv, shorts, longs, NULL)) != -1) {
        const int i = find_entry(entries, n_entries, code);
        if (i >= 0) {
            result = set_option(&entries[i], optarg);
            if (result == OPTIONS_OK && entries[i].kind == OPTION_HELP) {
                print_help(stdout, command, summary, entries, n_entries);
                return OPTIONS_HELP;
            }
            continue;
        }
        fprintf(stderr,
                code == ':' ? "turbokv: %s needs a value\n\n" : "turbokv: no option '%s'\n\n",
                argv[optind - 1]);
        print_help(stderr, command, summary, entries, n_entries);
        return OPTIONS_WRONG;
    }
    if (result == OPTIONS_OK && optind < argc) {
        fprintf(stderr, "turbokv: unexpected argument '%s'\n\n", argv[optind]);
        print_help(stderr, command, summary, entries, n_entries);
        result = OPTIONS_WRONG;
    }
    return result;
}
