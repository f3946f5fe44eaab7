/* What an evaluation found, as tables and as JSON. */
#include "cli/eval.h"

#include <stdio.h>

static void print_divergence(const eval_plan *plan, eval_results *results)
{
    const policy_list *list = &plan->policies;
    for (int i = 0; i < list->n; i++) {
        const tkv_eval_text_result *r = &results->text[i];
        const tkv_divergence_summary s = tkv_divergence_summarise(&results->text[i].divergence);
        if (i == 0) {
            printf("%zu positions, perplexity with f16 KV %.4f\n", s.n, s.perplexity_reference);
            printf("%-34s %10s %10s %10s %10s %9s %9s %8s\n", "KV", "bits/value", "mean KLD",
                   "median", "99.9 %", "same top", "PPL", "skipped");
        }
        printf("%-34s %10.3f %10.5f %10.5f %10.4f %8.2f%% %9.4f", list->name[i],
               results->text_bits[i], s.mean_kl, s.median_kl, s.kl_999, 100.0 * s.same_top,
               s.perplexity);
        if (r->n_weights) {
            printf(" %7.2f%%", 100.0 * (double)r->n_skipped / (double)r->n_weights);
        }
        putchar('\n');
    }
}

static void print_counts(const eval_plan *plan, const char *name, const needle_counts *counts,
                         const needle_counts *exact)
{
    for (int i = 0; i < plan->n_lengths; i++) {
        const double recall = eval_recall(plan, counts, i);
        const double reference = eval_recall(plan, exact, i);
        printf("%-34s %8d %10.3f", i == 0 ? name : "", plan->lengths[i], counts->bits_per_value[i]);
        for (int k = 0; k < plan->n_facts; k++) {
            printf(" %5.0f%%", 100.0 * counts->n_found[i][k] / plan->n_prompts);
        }
        printf(" %6.1f%%", 100.0 * recall);
        if (reference > 0.0) {
            printf(" %7.1f%%", 100.0 * recall / reference);
        }
        putchar('\n');
    }
}

static void print_needles(const eval_plan *plan, const eval_results *results)
{
    printf("needles: %d facts a prompt, %d prompts a length; facts found by depth\n", plan->n_facts,
           plan->n_prompts);
    printf("%-34s %8s %10s", "KV", "tokens", "bits/value");
    for (int k = 0; k < plan->n_facts; k++) {
        printf(" %5.0f%%", 100.0 * tkv_needles_depth(plan->n_facts, k));
    }
    printf(" %7s %8s\n", "all", "of f16");
    print_counts(plan, "f16", &results->needles_f16, &results->needles_f16);
    for (int i = 0; i < plan->policies.n; i++) {
        print_counts(plan, plan->policies.name[i], &results->needles[i], &results->needles_f16);
    }
}

void eval_print(const eval_plan *plan, eval_results *results)
{
    if (plan->text.n_chunks > 0) {
        print_divergence(plan, results);
    }
    if (plan->has_needles) {
        print_needles(plan, results);
    }
}

static cJSON *divergence_to_json(const eval_plan *plan, eval_results *results, int i)
{
    const tkv_eval_text_result *r = &results->text[i];
    const tkv_divergence_summary s = tkv_divergence_summarise(&results->text[i].divergence);
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "policy", plan->policies.name[i]);
    cJSON_AddStringToObject(row, "policy_text", plan->policies.text[i]);
    cJSON_AddNumberToObject(row, "bits_per_value", results->text_bits[i]);
    cJSON_AddNumberToObject(row, "positions", (double)s.n);
    cJSON_AddNumberToObject(row, "mean_kl", s.mean_kl);
    cJSON_AddNumberToObject(row, "median_kl", s.median_kl);
    cJSON_AddNumberToObject(row, "kl_999", s.kl_999);
    cJSON_AddNumberToObject(row, "max_kl", s.max_kl);
    cJSON_AddNumberToObject(row, "same_top", s.same_top);
    cJSON_AddNumberToObject(row, "perplexity", s.perplexity);
    cJSON_AddNumberToObject(row, "perplexity_f16", s.perplexity_reference);
    cJSON_AddNumberToObject(row, "seconds", r->seconds);
    if (r->n_weights) {
        cJSON_AddNumberToObject(row, "values_skipped", (double)r->n_skipped / (double)r->n_weights);
    }
    return row;
}

static void add_counts(cJSON *rows, const eval_plan *plan, const char *name,
                       const needle_counts *counts)
{
    for (int i = 0; i < plan->n_lengths; i++) {
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "policy", name);
        cJSON_AddNumberToObject(row, "length", plan->lengths[i]);
        cJSON_AddNumberToObject(row, "bits_per_value", counts->bits_per_value[i]);
        cJSON_AddItemToObject(row, "found",
                              cJSON_CreateIntArray(counts->n_found[i], plan->n_facts));
        cJSON_AddNumberToObject(row, "recall", eval_recall(plan, counts, i));
        cJSON_AddItemToArray(rows, row);
    }
}

static cJSON *needles_to_json(const eval_plan *plan, const eval_results *results)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "prompts", plan->n_prompts);
    cJSON *depths = cJSON_AddArrayToObject(json, "depths");
    for (int k = 0; k < plan->n_facts; k++) {
        cJSON_AddItemToArray(depths, cJSON_CreateNumber(tkv_needles_depth(plan->n_facts, k)));
    }
    cJSON *rows = cJSON_AddArrayToObject(json, "policies");
    add_counts(rows, plan, "f16", &results->needles_f16);
    for (int i = 0; i < plan->policies.n; i++) {
        add_counts(rows, plan, plan->policies.name[i], &results->needles[i]);
    }
    return json;
}

cJSON *eval_to_json(const loaded_model *loaded, const eval_plan *plan, eval_results *results)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "turbokv", tkv_version());
    cJSON_AddStringToObject(json, "model", tkv_gguf_path(loaded->gguf));
    cJSON_AddStringToObject(json, "text", plan->text_path);
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(loaded->context));
    if (plan->text.n_chunks > 0) {
        cJSON_AddStringToObject(json, "mode", plan->mode);
        cJSON_AddNumberToObject(json, "context", plan->text.n_context);
        cJSON_AddNumberToObject(json, "chunks", plan->text.n_chunks);
        cJSON *rows = cJSON_AddArrayToObject(json, "policies");
        for (int i = 0; i < plan->policies.n; i++) {
            cJSON_AddItemToArray(rows, divergence_to_json(plan, results, i));
        }
    }
    if (plan->has_needles) {
        cJSON_AddItemToObject(json, "needles", needles_to_json(plan, results));
    }
    return json;
}
