/* A plan as an HTML page with a plot. */
#include "cli/page.h"
#include "cli/plan.h"
#include "cli/plot.h"
#include "common/try.h"
#include "model/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Curves that are nearer than this share of their value are one to the eye: one name is enough. */
static const double ALIKE = 0.06;

static void write_fact(FILE *file, const char *name, const char *text)
{
    fputs("<tr>", file);
    page_write_cell(file, name);
    page_write_cell(file, text);
    fputs("</tr>\n", file);
}

static void write_shape(FILE *file, const plan *p)
{
    const tkv_geometry *g = &p->geometry;
    const int n_beside = plan_count_layers(g, PLAN_BESIDE);
    const int n_states = plan_count_layers(g, PLAN_STATE);
    char text[256];
    snprintf(text, sizeof text, "%s%s%d layers, %d keep keys and values, %d of these in a window%s",
             g->architecture, g->architecture[0] ? ", " : "", g->n_layers,
             plan_count_layers(g, PLAN_KEEPS), plan_count_layers(g, PLAN_WINDOW),
             plan_count_layers(g, PLAN_WINDOW) == 0 ? ""
             : p->params.keeps_all                  ? " (tokens behind it are kept)"
                                                    : " (tokens behind it are dropped)");
    write_fact(file, "Shape", text);
    if (n_beside > 0) {
        snprintf(text, sizeof text, "in %d layers keys of an indexer or of several tokens",
                 n_beside);
        write_fact(file, "Beside keys and values", text);
    }
    if (n_states > 0) {
        snprintf(text, sizeof text, "%.1f MiB in %d layers, whatever the context",
                 (double)tkv_plan_state_bytes(&p->params) / 0x1p20, n_states);
        write_fact(file, "Recurrent state", text);
    }
    if (p->params.n_sequences > 1) {
        snprintf(text, sizeof text, "%d, each with the context that is listed",
                 p->params.n_sequences);
        write_fact(file, "Sequences", text);
    }
    if (g->assumption[0]) {
        write_fact(file, "Note", g->assumption);
    }
}

static void write_facts(FILE *file, const plan *p)
{
    char text[256];
    fputs("<table class=\"facts\">\n", file);
    write_fact(file, "Model", p->options->model ? p->options->model : "given by its shape");
    write_shape(file, p);
    snprintf(text, sizeof text, "%.2f GiB: weights %.2f, workspace %.2f%s, left for the cache %.2f",
             (double)p->params.memory_bytes / GIB, (double)p->params.weight_bytes / GIB,
             (double)p->params.workspace_bytes / GIB, p->params.workspace_bytes ? "" : " (unknown)",
             (double)tkv_plan_kv_budget(&p->params) / GIB);
    write_fact(file, "Memory", text);
    snprintf(text, sizeof text, "up to %.1f MiB more while a batch of %d tokens is read",
             (double)plan_batch_bytes(p) / 0x1p20, TKV_DEFAULT_BATCH);
    write_fact(file, "Exact tokens", text);
    if (p->choice.preset) {
        snprintf(text, sizeof text, "-c %d --kv %s (KV cache %.2f GiB)%s", p->choice.n_tokens,
                 p->choice.preset, (double)p->choice.kv_bytes / GIB,
                 p->choice.n_tokens < p->n_wanted ? ", less than was wanted" : "");
    }
    write_fact(file, "Recommended", p->choice.preset ? text : "nothing fits");
    write_fact(file, "TurboKV", tkv_version());
    fputs("</table>\n", file);
}

static void write_table(FILE *file, const plan *p)
{
    const uint64_t budget = tkv_plan_kv_budget(&p->params);
    char text[32];
    fputs("<h2>Bytes of the KV cache, in MiB</h2>\n<table>\n<tr><th>KV</th><th>bits a value</th>",
          file);
    for (int i = 0; i < p->n_contexts; i++) {
        plan_format_tokens(p->contexts[i], text);
        fprintf(file, "<th>%s</th>", text);
    }
    fputs("<th>longest context</th></tr>\n", file);
    for (int i = 0; i < p->policies.n; i++) {
        const plan_row *row = &p->rows[i];
        fputs("<tr>", file);
        page_write_cell(file, row->name);
        fprintf(file, "<td>%.3f</td>", plan_bits_per_value(p, row));
        for (int j = 0; j < p->n_contexts; j++) {
            const bool fits = row->bytes[j] <= budget;
            fprintf(file, fits ? "<td>%.1f</td>" : "<td><code>%.1f</code></td>",
                    (double)row->bytes[j] / 0x1p20);
        }
        fprintf(file, "<td>%d%s</td></tr>\n", row->longest,
                row->longest == TKV_PLAN_MAX_TOKENS ? "+" : "");
    }
    fputs("</table>\n", file);
}

/* Gives the curves of about equal height one colour, and the first of them all their names. */
static void name_curves(const plan *p, plot_curve *curves, char labels[][64])
{
    const int last = p->n_contexts - 1;
    int n_groups = 0;
    for (int i = 0; i < p->policies.n; i++) {
        int first = 0;
        while (fabs(curves[first].values[last] / curves[i].values[last] - 1.0) > ALIKE) {
            first++;
        }
        const bool is_new = first == i;
        const size_t used = strlen(labels[first]);
        curves[i].colour = is_new ? n_groups++ : curves[first].colour;
        curves[i].label = labels[i];
        snprintf(labels[first] + used, 64 - used, "%s%.24s", is_new ? "" : ", ", p->rows[i].name);
        if (!is_new && used > 24) {
            snprintf(labels[first] + used, 64 - used, "%s",
                     labels[first][used - 1] == '.' ? "" : ", ...");
        }
    }
}

static void write_plot(FILE *file, const plan *p)
{
    static double values[EVAL_MAX_POLICIES][PLAN_MAX_CONTEXTS];
    static char labels[EVAL_MAX_POLICIES][64];
    plot_curve curves[EVAL_MAX_POLICIES];
    double x[PLAN_MAX_CONTEXTS];
    char names[PLAN_MAX_CONTEXTS][16];
    const char *x_names[PLAN_MAX_CONTEXTS];
    for (int j = 0; j < p->n_contexts; j++) {
        plan_format_tokens(p->contexts[j], names[j]);
        x_names[j] = names[j];
        x[j] = p->contexts[j];
    }
    for (int i = 0; i < p->policies.n; i++) {
        for (int j = 0; j < p->n_contexts; j++) {
            values[i][j] = (double)p->rows[i].bytes[j] / GIB;
        }
        labels[i][0] = '\0';
        curves[i] = (plot_curve){.values = values[i], .label = labels[i]};
    }
    name_curves(p, curves, labels);
    const plot_curves c = {.title = "Memory of the KV cache by context",
                           .x_label = "tokens of context",
                           .y_label = "GiB",
                           .n_points = p->n_contexts,
                           .x = x,
                           .x_names = x_names,
                           .n_curves = p->policies.n,
                           .curves = curves,
                           .limit = (double)tkv_plan_kv_budget(&p->params) / GIB,
                           .limit_label = "memory left for the KV cache"};
    plot_write_curves(file, &c);
}

tkv_status plan_write_report(const char *path, const plan *p, tkv_error *error)
{
    FILE *file = NULL;
    TKV_TRY(page_open(path, "TurboKV plan", &file, error));
    write_facts(file, p);
    write_plot(file, p);
    write_table(file, p);
    return page_close(file, path,
                      "Bytes count all that the cache holds: codes, scales, means, exact tokens, "
                      "unused slots, tables. Grey ones do not fit.",
                      error);
}
