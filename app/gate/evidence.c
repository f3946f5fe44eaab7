#include "gate/evidence.h"

#include "common/try.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* More than any tree has; a hostile one ends here. */
#define MAX_ITEMS 4000

tkv_status tkv_report_add(tkv_source_report *report, tkv_evidence *item, tkv_error *error)
{
    for (int i = 0; i < report->n_items && report->n_items < MAX_ITEMS; i++) {
        if (report->items[i].kind == item->kind && strcmp(report->items[i].name, item->name) == 0) {
            free(item->values);
            item->values = NULL;
            return TKV_OK;
        }
    }
    if (report->n_items == report->capacity && report->n_items < MAX_ITEMS) {
        const int capacity = report->capacity ? 2 * report->capacity : 16;
        tkv_evidence *items = realloc(report->items, (size_t)capacity * sizeof *items);
        if (!items) {
            free(item->values);
            item->values = NULL;
            return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d names", capacity);
        }
        report->items = items;
        report->capacity = capacity;
    }
    if (report->n_items < MAX_ITEMS) {
        report->items[report->n_items++] = *item;
    } else {
        free(item->values);
    }
    item->values = NULL;
    return TKV_OK;
}

tkv_status tkv_report_merge(const tkv_source_report *from, tkv_source_report *to, tkv_error *error)
{
    for (int i = 0; i < from->n_items; i++) {
        tkv_evidence item = from->items[i];
        const size_t bytes = (size_t)item.n_values * sizeof *item.values;
        if (item.values) {
            item.values = malloc(bytes);
            if (!item.values) {
                return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table");
            }
            memcpy(item.values, from->items[i].values, bytes);
        }
        TKV_TRY(tkv_report_add(to, &item, error));
    }
    return TKV_OK;
}

void tkv_source_report_free(tkv_source_report *report)
{
    for (int i = 0; i < report->n_items; i++) {
        free(report->items[i].values);
    }
    free(report->items);
    *report = (tkv_source_report){0};
}

bool tkv_name_contains(const char *name, const char *part)
{
    const size_t length = strlen(part);
    for (; strlen(name) >= length; name++) {
        if (strncasecmp(name, part, length) == 0) {
            return true;
        }
    }
    return false;
}

static bool contains_any(const char *name, const char *const *parts)
{
    while (*parts && !tkv_name_contains(name, *parts)) {
        parts++;
    }
    return *parts != NULL;
}

tkv_llama_role tkv_role_of_name(const char *name)
{
    static const char *const storing[] = {"set_rows", NULL};
    static const char *const attention[] = {"flash_attn", "fattn", "_flash", "vec_dot", NULL};
    static const char *const rotation[] = {"wht", "hadamard", "rotate", "rotation", NULL};
    static const char *const dequantising[] = {"dequant", "_to_f16", "_to_f32", NULL};
    static const char *const encoding[] = {"quantize", "quantise", "copy_to_quant",
                                           "cpy_f32",  "cpy_f16",  NULL};
    return contains_any(name, storing)        ? TKV_LLAMA_SET_ROWS
           : contains_any(name, attention)    ? TKV_LLAMA_ATTENTION
           : contains_any(name, dequantising) ? TKV_LLAMA_DEQUANTISE
           : contains_any(name, rotation)     ? TKV_LLAMA_ROTATE
           : contains_any(name, encoding)     ? TKV_LLAMA_SET_ROWS
                                              : TKV_LLAMA_NO_ROLE;
}

/* Letters that a type's name begins with. */
static size_t family_length(const char *name)
{
    size_t n = 0;
    while (isalpha((unsigned char)name[n])) {
        n++;
    }
    return n;
}

void tkv_short_type_name(const char *name, size_t length, char type[16])
{
    const bool is_numbered = length > 2 && name[length - 2] == '_' && name[length - 1] == '0';
    /* "q8_0" is what people say; "turbo4" and "tq3" are said without the end. */
    length -= is_numbered && family_length(name) > 1 ? 2 : 0;
    length = length < 15 ? length : 15;
    for (size_t i = 0; i < length; i++) {
        type[i] = (char)tolower((unsigned char)name[i]);
    }
    type[length] = '\0';
}

int tkv_number_of_name(const char *digits)
{
    int number = 0;
    for (; isdigit((unsigned char)*digits) && number <= TKV_MAX_NAMED_NUMBER; digits++) {
        number = 10 * number + (*digits - '0');
    }
    return number <= TKV_MAX_NAMED_NUMBER ? number : 0;
}

static int number_after(const char *name, const char *mark)
{
    const char *at = strstr(name, mark);
    return at ? tkv_number_of_name(at + strlen(mark)) : 0;
}

/* Letters and then a digit: "turbo4", "bf16", not "ernel". */
static bool is_type(const char *name)
{
    const size_t n = family_length(name);
    return n > 0 && isdigit((unsigned char)name[n]);
}

void tkv_read_attention_name(tkv_evidence *item)
{
    const char *dims = strstr(item->name, "_dk");
    const char *end = dims ? dims : item->name + strlen(item->name);
    const char *key = NULL;
    const char *value = NULL;
    for (const char *at = item->name; (at = strstr(at, "_k")) && at < end && !value; at++) {
        const char *next = strstr(at + 2, "_v");
        if (next && next < end && is_type(at + 2) && is_type(next + 2)) {
            key = at + 2;
            value = next + 2;
        }
    }
    if (value) {
        tkv_short_type_name(key, (size_t)(value - 2 - key), item->type_k);
        tkv_short_type_name(value, (size_t)(end - value), item->type_v);
    }
    item->dim_k = number_after(item->name, "_dk");
    item->dim_v = number_after(item->name, "_dv");
}
