/* A plan as JSON. */
#include "cli/plan.h"

#include <stdio.h>
#include <string.h>

static cJSON *choice_to_json(const plan *p)
{
    const tkv_plan_choice *c = &p->choice;
    char flags[64];
    if (!c->preset) {
        return cJSON_CreateNull();
    }
    snprintf(flags, sizeof flags, "-c %d --kv %s", c->n_tokens, c->preset);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "preset", c->preset);
    cJSON_AddNumberToObject(json, "context", c->n_tokens);
    cJSON_AddNumberToObject(json, "wanted_context", p->n_wanted);
    cJSON_AddNumberToObject(json, "kv_bytes", (double)c->kv_bytes);
    cJSON_AddStringToObject(json, "flags", flags);
    return json;
}

cJSON *plan_to_json(const plan *p)
{
    const tkv_geometry *g = &p->geometry;
    cJSON *json = cJSON_CreateObject();
    command_add_text(json, "architecture", g->architecture, strlen(g->architecture));
    cJSON_AddNumberToObject(json, "layers", g->n_layers);
    cJSON_AddNumberToObject(json, "layers_with_kv", plan_count_layers(g, PLAN_KEEPS));
    cJSON_AddNumberToObject(json, "layers_with_window", plan_count_layers(g, PLAN_WINDOW));
    cJSON_AddNumberToObject(json, "layers_with_more_keys", plan_count_layers(g, PLAN_BESIDE));
    cJSON_AddNumberToObject(json, "layers_with_state", plan_count_layers(g, PLAN_STATE));
    cJSON_AddStringToObject(json, "note", g->assumption);
    cJSON_AddNumberToObject(json, "sequences", p->params.n_sequences);
    cJSON_AddBoolToObject(json, "keeps_tokens_behind_window", p->params.keeps_all);
    cJSON_AddNumberToObject(json, "trained_context", g->context_length);
    cJSON_AddNumberToObject(json, "memory_bytes", (double)p->params.memory_bytes);
    cJSON_AddNumberToObject(json, "weight_bytes", (double)p->params.weight_bytes);
    cJSON_AddNumberToObject(json, "workspace_bytes", (double)p->params.workspace_bytes);
    cJSON_AddNumberToObject(json, "recurrent_state_bytes",
                            (double)tkv_plan_state_bytes(&p->params));
    cJSON_AddNumberToObject(json, "kv_budget_bytes", (double)tkv_plan_kv_budget(&p->params));
    cJSON_AddItemToObject(json, "contexts", cJSON_CreateIntArray(p->contexts, p->n_contexts));
    cJSON *rows = cJSON_AddArrayToObject(json, "policies");
    for (int i = 0; i < p->policies.n; i++) {
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "policy", p->rows[i].name);
        cJSON_AddNumberToObject(row, "bits_per_value", plan_bits_per_value(p, &p->rows[i]));
        cJSON *bytes = cJSON_AddArrayToObject(row, "kv_bytes");
        for (int j = 0; j < p->n_contexts; j++) {
            cJSON_AddItemToArray(bytes, cJSON_CreateNumber((double)p->rows[i].bytes[j]));
        }
        cJSON_AddNumberToObject(row, "batch_bytes", (double)p->rows[i].batch_bytes);
        cJSON_AddNumberToObject(row, "longest_context", p->rows[i].longest);
        cJSON_AddItemToArray(rows, row);
    }
    cJSON_AddItemToObject(json, "recommended", choice_to_json(p));
    return json;
}
