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
    int n_sequences;
    tkv_geometry_layer layer; /* of a shape that is given by hand */
    int head_dim_v;           /* of it; -1: as the keys' */
    uint64_t memory;
    uint64_t weights;
    uint64_t workspace;
    bool keeps_all;
    bool wants_json;
} plan_options;

typedef struct plan_row {
    const char *name;
    int longest;
    uint64_t batch_bytes; /* what the caches hold beside while a batch is read */
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

typedef enum plan_layer_kind {
    PLAN_KEEPS,  /* keys and values, or keys only */
    PLAN_WINDOW, /* of these, the ones with a sliding window */
    PLAN_BESIDE, /* of these, the ones that keep more rows that grow with the context */
    PLAN_STATE   /* a recurrent state */
} plan_layer_kind;

int plan_count_layers(const tkv_geometry *geometry, plan_layer_kind kind);

/* The most that a policy of the list holds beside its figures while a batch is read. */
uint64_t plan_batch_bytes(const plan *p);

cJSON *plan_to_json(const plan *p);
tkv_status plan_write_report(const char *path, const plan *p, tkv_error *error);

#endif
