/* What `turbokv plan` computes, for those who print it. */
#ifndef TKV_CLI_PLAN_H
#define TKV_CLI_PLAN_H

#include "cli/eval.h"
#include "eval/plan.h"

#define PLAN_MAX_CONTEXTS 12
#define GIB 0x1p30

typedef struct plan_options {
    const char *model;
    const char *contexts;
    const char *policies;
    const char *report;
    int n_layers;
    int n_wanted;
    tkv_geometry_layer layer;
    uint64_t memory;
    uint64_t weights;
    uint64_t workspace;
    bool keeps_all;
    bool wants_json;
} plan_options;

typedef struct plan_row {
    const char *name;
    int longest;
    uint64_t bytes[PLAN_MAX_CONTEXTS];
} plan_row;

typedef struct plan {
    const plan_options *options;
    tkv_geometry geometry;
    tkv_plan_params params;
    int n_contexts;
    int contexts[PLAN_MAX_CONTEXTS];
    policy_list policies;
    plan_row rows[EVAL_MAX_POLICIES];
    int n_wanted;
    tkv_plan_choice choice;
} plan;

/* "128K", or digits. */
void plan_format_tokens(int n_tokens, char text[16]);

/* At the longest context that is listed. */
double plan_bits_per_value(const plan *p, const plan_row *row);

/* Layers that keep keys and values, or of these the ones with a sliding window. */
int plan_count_layers(const tkv_geometry *geometry, bool has_window);

cJSON *plan_to_json(const plan *p);
tkv_status plan_write_report(const char *path, const plan *p, tkv_error *error);

#endif
