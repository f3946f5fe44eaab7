/* What the files of `turbokv eval` share: what is to be measured, and what was. */
#ifndef TKV_CLI_EVAL_H
#define TKV_CLI_EVAL_H

#include "cli/command.h"
#include "eval/needles.h"
#include "eval/text.h"

#define EVAL_MAX_POLICIES 32
#define EVAL_MAX_LENGTHS 16
#define EVAL_POLICY_TEXT 1024

/* Policies under their names as they were given, and as text that tells them apart. */
typedef struct policy_list {
    char *names; /* the list, cut at its commas */
    const char *name[EVAL_MAX_POLICIES];
    char text[EVAL_MAX_POLICIES][EVAL_POLICY_TEXT];
    tkv_policy policy[EVAL_MAX_POLICIES];
    int n;
} policy_list;

/* Reads a comma-separated list of types, TYPE_K/TYPE_V, presets, policy texts and @FILE, a policy
 * file. The caller frees list->names, also after an error. */
tkv_status policy_list_parse(const char *text, policy_list *list, tkv_error *error);

typedef struct eval_plan {
    const char *model_path; /* for messages and results */
    const char *text_path;
    const char *mode;
    tkv_effort effort;
    policy_list policies;
    tkv_eval_text_params text; /* n_chunks 0: no divergences */
    bool has_needles;
    int lengths[EVAL_MAX_LENGTHS];
    int n_lengths;
    int n_facts;
    int n_prompts;          /* of each length */
    const char *state_path; /* NULL: what was measured is not kept */
} eval_plan;

/* Facts found, of n_prompts each. */
typedef struct needle_counts {
    int n_found[EVAL_MAX_LENGTHS][TKV_NEEDLES_MAX_FACTS];
    double bits_per_value[EVAL_MAX_LENGTHS];
} needle_counts;

typedef struct eval_results {
    tkv_eval_text_result text[EVAL_MAX_POLICIES];
    double text_bits[EVAL_MAX_POLICIES]; /* a value, at the end of a chunk */
    needle_counts needles_f16;
    needle_counts needles[EVAL_MAX_POLICIES];
    int n_resumed; /* steps that were taken from the state file */
    bool was_interrupted;
} eval_results;

/* Measures what the plan says with a progress bar, and keeps each step in the state file. `results`
 * is zero-initialised; the caller frees it with eval_results_free, also after an error. */
tkv_status eval_measure(const loaded_model *loaded, eval_plan *plan, eval_results *results,
                        tkv_error *error);
void eval_results_free(eval_results *results);

/* Facts found of all that were asked at one length; of all lengths if it is -1. */
double eval_recall(const eval_plan *plan, const needle_counts *counts, int length);

void eval_print(const eval_plan *plan, eval_results *results);
cJSON *eval_to_json(const loaded_model *loaded, const eval_plan *plan, eval_results *results);

#endif
