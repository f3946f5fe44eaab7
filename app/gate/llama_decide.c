/* What follows from the evidence in a llama.cpp tree. */
#include "gate/codebook_error.h"
#include "gate/llama_tree.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tables of more levels take Lloyd's iteration too long. */
#define MAX_LEVELS 64

/* Compressed types of a tree. */
#define MAX_TYPES 32

/* A table whose error is this many times the best one's is not converged. */
static const double TOLERANCE = 1.05;

/* Of thresholds halfway between levels, for tables that are written with six digits. */
static const float HALFWAY = 1e-4f;

/* Of a table whose file shows no rotation. */
static const int DEFAULT_GROUP = 128;

__attribute__((format(printf, 2, 3))) static void add_missing(tkv_llama_snapshot *snapshot,
                                                              const char *format, ...)
{
    const int room = (int)(sizeof snapshot->missing / sizeof *snapshot->missing);
    if (snapshot->n_missing < room) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(snapshot->missing[snapshot->n_missing++], TKV_LLAMA_TEXT, format, arguments);
        va_end(arguments);
    }
}

__attribute__((format(printf, 2, 3))) static void add_warning(tkv_llama_snapshot *snapshot,
                                                              const char *format, ...)
{
    const int room = (int)(sizeof snapshot->warnings / sizeof *snapshot->warnings);
    if (snapshot->n_warnings < room) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(snapshot->warnings[snapshot->n_warnings++], TKV_LLAMA_TEXT, format, arguments);
        va_end(arguments);
    }
}

static bool is_code(const tkv_evidence *item)
{
    return item->kind == TKV_EVIDENCE_KERNEL || item->kind == TKV_EVIDENCE_FUNCTION;
}

/* On a GPU what encodes and attends must be kernels; the rest may be a part of them. */
static bool fills_role(const tkv_llama_backend *backend, const tkv_evidence *item,
                       tkv_llama_role role)
{
    const bool is_part = role == TKV_LLAMA_ROTATE || role == TKV_LLAMA_DEQUANTISE ||
                         strcmp(backend->name, "cpu") == 0;
    return is_code(item) && item->role == role && (is_part || item->kind == TKV_EVIDENCE_KERNEL);
}

static bool has_type(const char *name, const char *type)
{
    char stem[16];
    tkv_type_stem(type, stem);
    return tkv_has_word(name, strlen(name), stem);
}

static bool is_same_type(const char *a, const char *b)
{
    char stems[2][16];
    tkv_type_stem(a, stems[0]);
    tkv_type_stem(b, stems[1]);
    return strcmp(stems[0], stems[1]) == 0;
}

/* Whether a type, "turbo4", is encoded and attended on, as keys with itself as values. */
static bool is_type_ready(const tkv_llama_backend *backend, const char *type)
{
    bool is_encoded = false;
    bool is_attended = false;
    for (int i = 0; i < backend->evidence.n_items; i++) {
        const tkv_evidence *item = &backend->evidence.items[i];
        is_encoded = is_encoded ||
                     (fills_role(backend, item, TKV_LLAMA_SET_ROWS) && has_type(item->name, type));
        if (fills_role(backend, item, TKV_LLAMA_ATTENTION)) {
            is_attended = is_attended || (item->type_k[0] ? is_same_type(item->type_k, type) &&
                                                                is_same_type(item->type_v, type)
                                                          : has_type(item->name, type));
        }
    }
    return is_encoded && is_attended;
}

/* Compressed types of a state, each once, ascending: those that are declared, and (headers may be
 * missing) those that Metal encodes. */
typedef struct type_list {
    int n;
    char types[MAX_TYPES][16];
} type_list;

static void add_type(type_list *list, const char *type)
{
    int at = 0;
    while (at < list->n && strcmp(list->types[at], type) < 0) {
        at++;
    }
    for (int i = 0; i < list->n; i++) {
        if (is_same_type(list->types[i], type)) {
            return;
        }
    }
    if (list->n < MAX_TYPES) {
        memmove(list->types[at + 1], list->types[at], (size_t)(list->n - at) * sizeof *list->types);
        snprintf(list->types[at], sizeof *list->types, "%s", type);
        list->n++;
    }
}

static bool begins_known_type(const type_list *list, const char *type)
{
    for (int i = 0; i < list->n; i++) {
        if (strncmp(list->types[i], type, strlen(type)) == 0) {
            return true;
        }
    }
    return false;
}

static void list_types(const tkv_llama_snapshot *snapshot, type_list *list)
{
    list->n = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int b = 0; b < snapshot->n_backends; b++) {
            const tkv_llama_backend *backend = &snapshot->backends[b];
            for (int i = 0; i < backend->evidence.n_items; i++) {
                const tkv_evidence *item = &backend->evidence.items[i];
                char encoded[16] = "";
                if (pass == 0 && item->kind == TKV_EVIDENCE_TYPE) {
                    add_type(list, item->name);
                } else if (pass == 1 && fills_role(backend, item, TKV_LLAMA_SET_ROWS)) {
                    tkv_encoded_type(item->name, encoded);
                }
                if (encoded[0] && !begins_known_type(list, encoded)) {
                    add_type(list, encoded);
                }
            }
        }
    }
}

/* A kernel for keys and values of one type names it once. */
static void name_attended_types(tkv_llama_backend *backend, const type_list *list)
{
    for (int i = 0; i < backend->evidence.n_items; i++) {
        tkv_evidence *item = &backend->evidence.items[i];
        for (int t = 0; t < list->n && item->role == TKV_LLAMA_ATTENTION && !item->type_k[0]; t++) {
            if (item->dim_k > 0 && has_type(item->name, list->types[t])) {
                memcpy(item->type_k, list->types[t], sizeof item->type_k);
                memcpy(item->type_v, list->types[t], sizeof item->type_v);
            }
        }
    }
}

static void judge_backend(tkv_llama_backend *backend, const type_list *list)
{
    size_t used = 0;
    for (int i = 0; i < backend->evidence.n_items; i++) {
        for (int role = 0; role < TKV_LLAMA_ROLES; role++) {
            backend->has_role[role] =
                backend->has_role[role] ||
                fills_role(backend, &backend->evidence.items[i], (tkv_llama_role)role);
        }
    }
    name_attended_types(backend, list);
    for (int i = 0; i < list->n && used < sizeof backend->types; i++) {
        if (is_type_ready(backend, list->types[i])) {
            used += (size_t)snprintf(backend->types + used, sizeof backend->types - used, "%s%s",
                                     used ? ", " : "", list->types[i]);
        }
    }
    backend->is_complete = used > 0;
    for (int role = 0; role < TKV_LLAMA_ROLES; role++) {
        backend->is_complete = backend->is_complete && backend->has_role[role];
    }
}

/* Coordinates that are rotated together: as many as signs, or as a transform's name says. */
static int rotation_group(const tkv_llama_backend *backend)
{
    int group = 0;
    for (int i = 0; i < backend->evidence.n_items; i++) {
        const tkv_evidence *item = &backend->evidence.items[i];
        const char *transform = strstr(item->name, "fwht_");
        const int named = transform ? tkv_number_of_name(transform + 5) : 0;
        const int n = item->kind == TKV_EVIDENCE_SIGNS ? item->n_values : named;
        group = n > group ? n : group;
    }
    return group >= 8 ? group : DEFAULT_GROUP;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Levels of a unit Gaussian, ascending; returns how many, 0 if the table is no codebook. Tables for
 * vectors of norm 1 are in units of 1 over the root of the group. */
static int read_levels(const tkv_evidence *item, int group, double levels[MAX_LEVELS])
{
    const bool is_half = item->kind == TKV_EVIDENCE_MAGNITUDES;
    const int n = is_half ? 2 * item->n_values : item->n_values;
    double largest = 0.0;
    if (n < 2 || n > MAX_LEVELS || !item->values) {
        return 0;
    }
    for (int i = 0; i < item->n_values; i++) {
        levels[i] = (double)item->values[i];
        levels[n - 1 - i] = is_half ? -levels[i] : levels[n - 1 - i];
        largest = fmax(largest, fabs(levels[i]));
    }
    qsort(levels, (size_t)n, sizeof *levels, ascending);
    for (int i = 0; i < n; i++) {
        levels[i] *= largest < 0.5 ? sqrt(group) : 1.0;
    }
    return n;
}

double tkv_llama_codebook_error(const tkv_llama_backend *backend, const tkv_evidence *item,
                                double *best)
{
    double levels[MAX_LEVELS];
    const int n = read_levels(item, rotation_group(backend), levels);
    *best = n > 0 ? tkv_codebook_best_error(n) : 0.0;
    return n > 0 ? tkv_codebook_error(n, levels) : 0.0;
}

static void judge_codebook(tkv_llama_snapshot *snapshot, const tkv_llama_backend *backend,
                           const tkv_evidence *item)
{
    double best;
    const double error = tkv_llama_codebook_error(backend, item, &best);
    if (best > 0.0 && error > TOLERANCE * best) {
        add_warning(snapshot,
                    "%s: %s is not converged: mean squared error %.4f on N(0,1), Lloyd-Max has "
                    "%.4f (%.1f times)",
                    backend->name, item->name, error, best, error / best);
    }
}

/* Thresholds belong halfway between the levels of the table whose name differs in that word. */
static void judge_midpoints(tkv_llama_snapshot *snapshot, const tkv_llama_backend *backend,
                            const tkv_evidence *mid)
{
    const char *suffix = strrchr(mid->name, '_');
    for (int i = 0; suffix && mid->values && i < backend->evidence.n_items; i++) {
        const tkv_evidence *book = &backend->evidence.items[i];
        const char *theirs = strrchr(book->name, '_');
        if (book->kind != TKV_EVIDENCE_CODEBOOK || !theirs || strcmp(theirs, suffix) != 0 ||
            !book->values || book->n_values != mid->n_values + 1) {
            continue;
        }
        for (int j = 0; j < mid->n_values; j++) {
            const float halfway = 0.5f * (book->values[j] + book->values[j + 1]);
            if (fabsf(mid->values[j] - halfway) > HALFWAY * fabsf(book->values[0])) {
                add_warning(snapshot, "%s: %s[%d] is not halfway between the levels of %s",
                            backend->name, mid->name, j, book->name);
                return;
            }
        }
    }
}

static void judge_tables(tkv_llama_snapshot *snapshot)
{
    for (int b = 0; b < snapshot->n_backends; b++) {
        const tkv_llama_backend *backend = &snapshot->backends[b];
        for (int i = 0; i < backend->evidence.n_items; i++) {
            const tkv_evidence *item = &backend->evidence.items[i];
            if (item->kind == TKV_EVIDENCE_CODEBOOK || item->kind == TKV_EVIDENCE_MAGNITUDES) {
                judge_codebook(snapshot, backend, item);
            } else if (item->kind == TKV_EVIDENCE_MIDPOINTS) {
                judge_midpoints(snapshot, backend, item);
            }
        }
    }
}

static bool declares_types(const tkv_llama_snapshot *snapshot)
{
    for (int b = 0; b < snapshot->n_backends; b++) {
        const tkv_source_report *evidence = &snapshot->backends[b].evidence;
        for (int i = 0; i < evidence->n_items; i++) {
            if (evidence->items[i].kind == TKV_EVIDENCE_TYPE) {
                return true;
            }
        }
    }
    return false;
}

static void list_missing(tkv_llama_snapshot *snapshot, const tkv_llama_backend *metal)
{
    static const char *const needs[] = {"no set-rows kernel that encodes keys and values",
                                        "no Walsh-Hadamard rotation", "nothing that dequantises",
                                        "no flash attention kernel"};
    if (snapshot->n_mentions == 0) {
        add_missing(snapshot,
                    "none of %d files read has a type that is rotated or has a codebook: no KV "
                    "compression here",
                    snapshot->n_files);
    }
    if (!metal) {
        add_missing(snapshot, "metal: not in this tree");
    }
    for (int role = 0; metal && role < TKV_LLAMA_ROLES; role++) {
        if (!metal->has_role[role]) {
            add_missing(snapshot, "metal: %s for a compressed type", needs[role]);
        }
    }
    if (metal && !metal->types[0] && metal->has_role[TKV_LLAMA_SET_ROWS] &&
        metal->has_role[TKV_LLAMA_ATTENTION]) {
        add_missing(snapshot, "metal: no compressed type is both encoded and attended on");
    }
    if (!declares_types(snapshot)) {
        add_missing(snapshot, "ggml.h declares no compressed type%s",
                    snapshot->is_installation ? " (headers are needed to tell)" : "");
    }
}

void tkv_llama_decide(tkv_llama_snapshot *snapshot)
{
    const tkv_llama_backend *metal = NULL;
    type_list list;
    snapshot->n_missing = 0;
    snapshot->n_warnings = 0;
    list_types(snapshot, &list);
    for (int i = 0; i < snapshot->n_backends; i++) {
        judge_backend(&snapshot->backends[i], &list);
        metal = strcmp(snapshot->backends[i].name, "metal") == 0 ? &snapshot->backends[i] : metal;
    }
    list_missing(snapshot, metal);
    judge_tables(snapshot);
    snapshot->proceeds = metal && metal->is_complete && snapshot->n_missing == 0;
}
