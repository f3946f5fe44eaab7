/* Reading libraries and compiled shaders: the names in them, and sources that are embedded. */
#include "common/error.h"
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

/* The part with "turbo" of a mangled name, in which each part follows its length:
 * "_Z15k_set_rows_turboIiEvv". */
static void demangle(char *name, size_t size)
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
            if (strstr(text, "turbo")) {
                snprintf(name, size, "%s", text);
                return;
            }
        }
        at = *part && part > at ? (char *)(uintptr_t)(part - 1) : at;
    }
}

/* A name that stands alone, [begin, end). */
static tkv_status look_at_name(const char *begin, const char *end, tkv_source_report *report,
                               tkv_error *error)
{
    tkv_evidence item = {.kind = TKV_EVIDENCE_KERNEL, .role = TKV_LLAMA_NO_ROLE};
    if (end - begin < 5 || (size_t)(end - begin) >= sizeof item.name) {
        return TKV_OK;
    }
    snprintf(item.name, sizeof item.name, "%.*s", (int)(end - begin), begin);
    if (strncmp(item.name, "TURBO_", 6) == 0) {
        item.kind = TKV_EVIDENCE_SWITCH;
        return tkv_report_add(report, &item, error);
    }
    if (!strstr(item.name, "turbo")) {
        return TKV_OK;
    }
    if (strncmp(item.name, "_Z", 2) == 0) {
        demangle(item.name, sizeof item.name);
    }
    item.role = tkv_role_of_name(item.name);
    if (item.role == TKV_LLAMA_ATTENTION) {
        tkv_read_attention_name(&item);
    }
    return item.role == TKV_LLAMA_NO_ROLE ? TKV_OK : tkv_report_add(report, &item, error);
}

/* A run of text: a source, or names. */
static tkv_status look_at_run(const char *begin, const char *end, tkv_source_report *report,
                              tkv_error *error)
{
    tkv_status status = TKV_OK;
    if (end - begin >= SOURCE_LENGTH) {
        tkv_source_report source;
        status = tkv_source_scan(begin, (size_t)(end - begin), &source, error);
        if (status == TKV_OK) {
            status = tkv_report_merge(&source, report, error);
            report->n_lines += source.n_lines;
            report->n_mentions += source.n_mentions;
            tkv_source_report_free(&source);
        }
        return status;
    }
    while (begin < end && status == TKV_OK) {
        const char *stop = begin;
        while (stop < end && is_name_char(*stop)) {
            stop++;
        }
        status = look_at_name(begin, stop, report, error);
        begin = stop + 1;
    }
    return status;
}

tkv_status tkv_binary_scan(const char *bytes, size_t size, tkv_source_report *report,
                           tkv_error *error)
{
    *report = (tkv_source_report){0};
    tkv_status status = TKV_OK;
    const char *end = bytes + size;
    for (const char *at = bytes; at < end && status == TKV_OK;) {
        const char *stop = at;
        while (stop < end && is_text(*stop)) {
            stop++;
        }
        if (stop - at >= 5) {
            status = look_at_run(at, stop, report, error);
        }
        at = stop + 1;
    }
    if (status != TKV_OK) {
        tkv_source_report_free(report);
    }
    return status;
}
