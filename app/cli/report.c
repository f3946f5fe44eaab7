#include "cli/report.h"

#include "cli/page.h"
#include "cli/plot.h"
#include "common/try.h"

#include <stdio.h>
#include <string.h>

static void write_facts(FILE *file, const loaded_model *loaded, const eval_plan *plan)
{
    const tkv_model_config *c = tkv_model_get_config(loaded->model);
    fputs("<table class=\"facts\">\n<tr><td>Model</td>", file);
    page_write_cell(file, tkv_gguf_path(loaded->gguf));
    fprintf(file,
            "</tr>\n<tr><td>Shape</td><td>%d layers, %d KV heads, head_dim %d/%d</td></tr>\n"
            "<tr><td>Text</td>",
            c->n_layers, c->n_kv_heads, c->head_dim_k, c->head_dim_v);
    page_write_cell(file, plan->text_path);
    fprintf(file, "</tr>\n<tr><td>TurboKV</td><td>%s, %s kernels</td></tr>\n</table>\n",
            tkv_version(), tkv_context_kernels(loaded->context));
}

static void write_divergence_rows(FILE *file, const eval_plan *plan, eval_results *results)
{
    for (int i = 0; i < plan->policies.n; i++) {
        const tkv_eval_text_result *r = &results->text[i];
        const tkv_divergence_summary s = tkv_divergence_summarise(&results->text[i].divergence);
        fputs("<tr><td>", file);
        plot_write_text(file, plan->policies.name[i]);
        if (strcmp(plan->policies.name[i], plan->policies.text[i]) != 0) {
            fputs("<br><code>", file);
            plot_write_text(file, plan->policies.text[i]);
            fputs("</code>", file);
        }
        fprintf(file,
                "</td><td>%.3f</td><td>%.5f</td><td>%.5f</td><td>%.4f</td><td>%.2f %%</td>"
                "<td>%.4f</td>",
                results->text_bits[i], s.mean_kl, s.median_kl, s.kl_999, 100.0 * s.same_top,
                s.perplexity);
        if (r->n_weights) {
            fprintf(file, "<td>%.2f %%</td>", 100.0 * (double)r->n_skipped / (double)r->n_weights);
        } else {
            fputs("<td></td>", file);
        }
        fputs("</tr>\n", file);
    }
}

static void write_divergence(FILE *file, const eval_plan *plan, eval_results *results)
{
    plot_point points[EVAL_MAX_POLICIES];
    const tkv_divergence_summary first = tkv_divergence_summarise(&results->text[0].divergence);
    fprintf(file,
            "<h2>Divergence from f16 KV</h2>\n<p>%d %s of %d tokens, the second half of each "
            "scored (%zu positions), %s. Perplexity with f16 KV: %.4f.</p>\n",
            plan->text.n_chunks, plan->text.n_chunks == 1 ? "chunk" : "chunks",
            plan->text.n_context, first.n,
            plan->text.mode == TKV_EVAL_DECODE ? "token by token through the decode kernels"
                                               : "in batches, as llama-perplexity",
            first.perplexity_reference);
    fputs("<table>\n<tr><th>KV</th><th>bits a value</th><th>mean KLD</th><th>median</th>"
          "<th>99.9 %</th><th>same top token</th><th>perplexity</th><th>values skipped</th></tr>\n",
          file);
    write_divergence_rows(file, plan, results);
    fputs("</table>\n", file);
    for (int i = 0; i < plan->policies.n; i++) {
        const tkv_divergence_summary s = tkv_divergence_summarise(&results->text[i].divergence);
        points[i] = (plot_point){results->text_bits[i], s.mean_kl, plan->policies.name[i]};
    }
    const plot_axes axes = {"Mean KL divergence against memory", "bits a value, all included",
                            "mean KLD (nats)", true};
    plot_scatter(file, &axes, points, plan->policies.n);
}

static void write_heat_map(FILE *file, const eval_plan *plan, const char *name,
                           const needle_counts *counts)
{
    static double values[TKV_NEEDLES_MAX_FACTS * EVAL_MAX_LENGTHS];
    char texts[TKV_NEEDLES_MAX_FACTS + EVAL_MAX_LENGTHS][16];
    const char *rows[TKV_NEEDLES_MAX_FACTS];
    const char *columns[EVAL_MAX_LENGTHS];
    char title[192];
    for (int k = 0; k < plan->n_facts; k++) {
        snprintf(texts[k], sizeof texts[k], "%.0f %%", 100.0 * tkv_needles_depth(plan->n_facts, k));
        rows[k] = texts[k];
    }
    for (int i = 0; i < plan->n_lengths; i++) {
        char *text = texts[TKV_NEEDLES_MAX_FACTS + i];
        snprintf(text, sizeof texts[0], "%d", plan->lengths[i]);
        columns[i] = text;
        for (int k = 0; k < plan->n_facts; k++) {
            values[k * plan->n_lengths + i] = (double)counts->n_found[i][k] / plan->n_prompts;
        }
    }
    snprintf(title, sizeof title, "%.100s: %.1f %% of the facts found", name,
             100.0 * eval_recall(plan, counts, -1));
    const plot_cells cells = {title,         "depth",         "tokens of the prompt",
                              plan->n_facts, plan->n_lengths, values,
                              rows,          columns};
    plot_heat_map(file, &cells);
}

static void write_recall_row(FILE *file, const eval_plan *plan, const char *name,
                             const needle_counts *counts, const needle_counts *exact)
{
    fputs("<tr>", file);
    page_write_cell(file, name);
    for (int i = 0; i < plan->n_lengths; i++) {
        const double reference = eval_recall(plan, exact, i);
        fprintf(file, "<td>%.1f %%", 100.0 * eval_recall(plan, counts, i));
        if (counts != exact && reference > 0.0) {
            fprintf(file, " (%.1f %%)", 100.0 * eval_recall(plan, counts, i) / reference);
        }
        fprintf(file, "<br><code>%.2f bits</code></td>", counts->bits_per_value[i]);
    }
    fputs("</tr>\n", file);
}

static void write_recall(FILE *file, const eval_plan *plan, const eval_results *results)
{
    fputs("<table>\n<tr><th>KV, tokens of the prompt</th>", file);
    for (int i = 0; i < plan->n_lengths; i++) {
        fprintf(file, "<th>%d</th>", plan->lengths[i]);
    }
    fputs("</tr>\n", file);
    write_recall_row(file, plan, "f16", &results->needles_f16, &results->needles_f16);
    for (int i = 0; i < plan->policies.n; i++) {
        write_recall_row(file, plan, plan->policies.name[i], &results->needles[i],
                         &results->needles_f16);
    }
    fputs("</table>\n", file);
}

static void write_needles(FILE *file, const eval_plan *plan, const eval_results *results)
{
    fprintf(file,
            "<h2>Needles</h2>\n<p>%d facts hidden in each prompt, each asked for; prompts of each "
            "length: %d; greedy answers. In brackets: share of what f16 finds.</p>\n",
            plan->n_facts, plan->n_prompts);
    write_recall(file, plan, results);
    write_heat_map(file, plan, "f16", &results->needles_f16);
    for (int i = 0; i < plan->policies.n; i++) {
        write_heat_map(file, plan, plan->policies.name[i], &results->needles[i]);
    }
}

static const char note[] =
    "The reference is the same model with f16 keys and values. Bits a value count all that the "
    "cache holds: codes, scales, means, exact tokens, unused slots.";

tkv_status report_write(const char *path, const loaded_model *loaded, const eval_plan *plan,
                        eval_results *results, tkv_error *error)
{
    FILE *file = NULL;
    TKV_TRY(page_open(path, "TurboKV evaluation", &file, error));
    write_facts(file, loaded, plan);
    if (plan->text.n_chunks > 0) {
        write_divergence(file, plan, results);
    }
    if (plan->has_needles) {
        write_needles(file, plan, results);
    }
    return page_close(file, path, note, error);
}
