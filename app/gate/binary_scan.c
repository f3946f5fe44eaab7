/* Reading libraries and compiled shaders: the names in them, and sources that are embedded. */
#include "common/try.h"
#include "gate/evidence.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A run of text as long as this is a source, not a name. */
#define SOURCE_LENGTH 2048

static bool is_text(char c)
{
    return isprint((unsigned char)c) || c == '\n' || c == '\t' || c == '\r';
}

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* What is read, for which types. */
typedef struct binary_scan {
    const tkv_words *words; /* NULL: a survey of all types */
    tkv_source_report *report;
    tkv_error *error;
} binary_scan;

/* Whether a name says something of the types in question. */
static bool is_ours(const binary_scan *s, const char *name)
{
    return s->words ? tkv_has_any_word(name, strlen(name), s->words)
                    : tkv_role_of_name(name) != TKV_LLAMA_NO_ROLE;
}

/* The part that matters of a mangled name, in which each part follows its length:
 * "_Z15k_set_rows_turboIiEvv". */
static void demangle(const binary_scan *s, char *name, size_t size)
{
    for (char *at = name; *at; at++) {
        const long length = isdigit((unsigned char)*at) ? strtol(at, NULL, 10) : 0;
        const char *part = at;
        while (isdigit((unsigned char)*part)) {
            part++;
        }
        if (length >= 5 && (size_t)length < size && (size_t)length <= strlen(part)) {
            char text[96];
            snprintf(text, sizeof text, "%.*s", (int)length, part);
            if (is_ours(s, text)) {
                snprintf(name, size, "%s", text);
                return;
            }
        }
        at = *part && part > at ? (char *)(uintptr_t)(part - 1) : at;
    }
}

/* Of a survey: rotations, and types that are encoded. */
static tkv_status survey_name(const binary_scan *s, tkv_evidence *item)
{
    tkv_evidence encoded = {.kind = TKV_EVIDENCE_TYPE, .role = TKV_LLAMA_SET_ROWS};
    char type[16];
    tkv_status status = TKV_OK;
    tkv_encoded_type(item->name, type);
    if (type[0]) {
        snprintf(encoded.name, sizeof encoded.name, "%s", type);
        status = tkv_report_add(s->report, &encoded, s->error);
    }
    return status == TKV_OK && item->role == TKV_LLAMA_ROTATE
               ? tkv_report_add(s->report, item, s->error)
               : status;
}

/* "TURBO_SPARSE_V": capitals that begin with a word. */
static bool is_switch(const binary_scan *s, const char *name)
{
    const char *line = strchr(name, '_');
    for (const char *c = name; *c; c++) {
        if (islower((unsigned char)*c)) {
            return false;
        }
    }
    return line && tkv_has_any_word(name, (size_t)(line - name), s->words);
}

/* A name that stands alone, [begin, end). */
static tkv_status look_at_name(const binary_scan *s, const char *begin, const char *end)
{
    tkv_evidence item = {.kind = TKV_EVIDENCE_KERNEL, .role = TKV_LLAMA_NO_ROLE};
    if (end - begin < 5 || (size_t)(end - begin) >= sizeof item.name) {
        return TKV_OK;
    }
    snprintf(item.name, sizeof item.name, "%.*s", (int)(end - begin), begin);
    if (s->words && is_switch(s, item.name)) {
        item.kind = TKV_EVIDENCE_SWITCH;
        return tkv_report_add(s->report, &item, s->error);
    }
    if (strncmp(item.name, "_Z", 2) == 0) {
        demangle(s, item.name, sizeof item.name);
    }
    item.role = tkv_role_of_name(item.name);
    if (!s->words) {
        return survey_name(s, &item);
    }
    if (item.role == TKV_LLAMA_ATTENTION) {
        tkv_read_attention_name(&item);
    }
    return item.role != TKV_LLAMA_NO_ROLE && is_ours(s, item.name)
               ? tkv_report_add(s->report, &item, s->error)
               : TKV_OK;
}

/* A source that is embedded. */
static tkv_status look_at_source(const binary_scan *s, const char *begin, size_t size)
{
    tkv_source_report source;
    if (!s->words) {
        return tkv_source_survey(begin, size, s->report, s->error);
    }
    TKV_TRY(tkv_source_scan(begin, size, s->words, &source, s->error));
    const tkv_status status = tkv_report_merge(&source, s->report, s->error);
    s->report->n_lines += source.n_lines;
    s->report->n_mentions += source.n_mentions;
    tkv_source_report_free(&source);
    return status;
}

/* A run of text: a source, or names. */
static tkv_status look_at_run(const binary_scan *s, const char *begin, const char *end)
{
    if (end - begin >= SOURCE_LENGTH) {
        return look_at_source(s, begin, (size_t)(end - begin));
    }
    while (begin < end) {
        const char *stop = begin;
        while (stop < end && is_name_char(*stop)) {
            stop++;
        }
        TKV_TRY(look_at_name(s, begin, stop));
        begin = stop + 1;
    }
    return TKV_OK;
}

static tkv_status read_binary(const binary_scan *s, const char *bytes, size_t size)
{
    const char *end = bytes + size;
    for (const char *at = bytes; at < end;) {
        const char *stop = at;
        while (stop < end && is_text(*stop)) {
            stop++;
        }
        if (stop - at >= 5) {
            TKV_TRY(look_at_run(s, at, stop));
        }
        at = stop + 1;
    }
    return TKV_OK;
}

tkv_status tkv_binary_scan(const char *bytes, size_t size, const tkv_words *words,
                           tkv_source_report *report, tkv_error *error)
{
    *report = (tkv_source_report){0};
    const tkv_status status = read_binary(&(binary_scan){words, report, error}, bytes, size);
    if (status != TKV_OK) {
        tkv_source_report_free(report);
    }
    return status;
}

tkv_status tkv_binary_survey(const char *bytes, size_t size, tkv_source_report *report,
                             tkv_error *error)
{
    return read_binary(&(binary_scan){NULL, report, error}, bytes, size);
}
