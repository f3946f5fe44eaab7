/* The gate of a llama.cpp tree as JSON. */
#include "cli/gate.h"
#include "gate/llama_tree.h"

#include <string.h>

static void add_name(cJSON *json, const char *key, const char *text)
{
    command_add_text(json, key, text, strlen(text));
}

static cJSON *item_to_json(const tkv_llama_backend *b, const tkv_evidence *item)
{
    static const char *const kinds[TKV_EVIDENCE_KINDS] = {
        "kernel", "function", "codebook", "magnitudes", "midpoints", "signs", "switch", "type"};
    cJSON *json = cJSON_CreateObject();
    add_name(json, "kind", kinds[item->kind]);
    add_name(json, "name", item->name);
    cJSON_AddNumberToObject(json, "line", item->line);
    if (item->role != TKV_LLAMA_NO_ROLE) {
        cJSON_AddStringToObject(json, "role", tkv_llama_role_name(item->role));
    }
    if (item->type_k[0]) {
        add_name(json, "type_k", item->type_k);
        add_name(json, "type_v", item->type_v);
        cJSON_AddNumberToObject(json, "head_dim_k", item->dim_k);
        cJSON_AddNumberToObject(json, "head_dim_v", item->dim_v);
    }
    if (item->n_values > 0) {
        cJSON_AddNumberToObject(json, "values", item->n_values);
    }
    double best = 0.0;
    const bool is_book =
        item->kind == TKV_EVIDENCE_CODEBOOK || item->kind == TKV_EVIDENCE_MAGNITUDES;
    const double error = is_book ? tkv_llama_codebook_error(b, item, &best) : 0.0;
    if (best > 0.0) {
        cJSON_AddNumberToObject(json, "mean_squared_error", error);
        cJSON_AddNumberToObject(json, "best_mean_squared_error", best);
    }
    return json;
}

static cJSON *backend_to_json(const tkv_llama_backend *b)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "back_end", b->name);
    cJSON_AddNumberToObject(json, "turbo_lines", b->evidence.n_mentions);
    cJSON_AddNumberToObject(json, "lines", b->evidence.n_lines);
    cJSON_AddBoolToObject(json, "complete", b->is_complete);
    cJSON_AddStringToObject(json, "types", b->types);
    cJSON *evidence = cJSON_AddArrayToObject(json, "evidence");
    for (int i = 0; i < b->evidence.n_items; i++) {
        cJSON_AddItemToArray(evidence, item_to_json(b, &b->evidence.items[i]));
    }
    return json;
}

static cJSON *summary_to_json(const tkv_llama_snapshot *s)
{
    cJSON *json = cJSON_CreateObject();
    add_name(json, "name", s->name);
    add_name(json, "commit", s->commit);
    cJSON_AddBoolToObject(json, "experiment", s->is_experiment);
    cJSON_AddBoolToObject(json, "looked_at", s->n_files > 0);
    cJSON_AddNumberToObject(json, "turbo_lines", s->n_mentions);
    cJSON_AddNumberToObject(json, "turbo_lines_metal", s->n_metal_mentions);
    cJSON_AddBoolToObject(json, "proceeds", s->proceeds);
    return json;
}

static void add_texts(cJSON *json, const char *key, int n, const char texts[][TKV_LLAMA_TEXT])
{
    cJSON *array = cJSON_AddArrayToObject(json, key);
    for (int i = 0; i < n; i++) {
        cJSON_AddItemToArray(array, cJSON_CreateString(texts[i]));
    }
}

cJSON *gate_llama_to_json(const gate_options *o, const tkv_llama_tree *tree)
{
    const tkv_llama_snapshot *s = &tree->snapshots[tree->chosen];
    cJSON *json = cJSON_CreateObject();
    add_name(json, "directory", o->llama_cpp);
    cJSON_AddStringToObject(json, "kind", tkv_llama_kind_name(tree->kind));
    add_name(json, "evidence_from", s->name);
    add_name(json, "commit", s->commit);
    cJSON_AddNumberToObject(json, "files_read", s->n_files);
    cJSON_AddNumberToObject(json, "files_unreadable", s->n_unreadable);
    cJSON_AddNumberToObject(json, "files_skipped", s->n_skipped);
    add_name(json, "trouble", s->trouble);
    cJSON *words = cJSON_AddArrayToObject(json, "type_words");
    for (int i = 0; i < tree->words.n; i++) {
        cJSON_AddItemToArray(words, cJSON_CreateString(tree->words.word[i]));
    }
    cJSON *files = cJSON_AddArrayToObject(json, "files");
    for (int i = 0; i < s->n_found; i++) {
        cJSON *file = cJSON_CreateObject();
        add_name(file, "path", s->found[i].path);
        cJSON_AddNumberToObject(file, "turbo_lines", s->found[i].n_mentions);
        cJSON_AddNumberToObject(file, "lines", s->found[i].n_lines);
        cJSON_AddItemToArray(files, file);
    }
    cJSON *backends = cJSON_AddArrayToObject(json, "back_ends");
    for (int i = 0; i < s->n_backends; i++) {
        cJSON_AddItemToArray(backends, backend_to_json(&s->backends[i]));
    }
    cJSON *states = cJSON_AddArrayToObject(json, "states");
    for (int i = 0; i < tree->n_snapshots; i++) {
        cJSON_AddItemToArray(states, summary_to_json(&tree->snapshots[i]));
    }
    add_texts(json, "warnings", s->n_warnings, s->warnings);
    add_texts(json, "missing", s->n_missing, s->missing);
    cJSON_AddStringToObject(json, "verdict", s->proceeds ? "proceed" : "fall back");
    return json;
}
