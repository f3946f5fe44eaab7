/* turbokv plan: what a context costs, and the longest one that fits this machine. */
#include "cli/plan.h"

#include "cli/commands.h"
#include "common/try.h"
#include "model/session.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CONTEXT 131072
#define DEFAULT_COLUMNS 6
#define LIST_SIZE 256

static const plan_options defaults = {.n_sequences = 1, .head_dim_v = -1};

static const option_entry entries[] = {
    {"model", NULL, 'm', OPTION_FILE, OPTION_AT(plan_options, model), 0, 0, "FILE",
     "GGUF model of any decoder architecture"},
    {"layers", NULL, 0, OPTION_INT, OPTION_AT(plan_options, n_layers), 1, 4096, "N",
     "instead of a model: layers that keep keys and values"},
    {"kv-heads", NULL, 0, OPTION_INT, OPTION_AT(plan_options, layer.n_kv_heads), 1, 4096, "N",
     "instead of a model: KV heads of a layer"},
    {"head-dim", NULL, 'd', OPTION_INT, OPTION_AT(plan_options, layer.head_dim_k), 2,
     TKV_MAX_HEAD_DIM, "N", "instead of a model: size of a head, an even number"},
    {"head-dim-v", NULL, 0, OPTION_INT, OPTION_AT(plan_options, head_dim_v), 0, TKV_MAX_HEAD_DIM,
     "N", "with --head-dim: size of its values, 0 if they are a part of the keys (as the keys)"},
    {"window", NULL, 0, OPTION_INT, OPTION_AT(plan_options, layer.window), 1, TKV_PLAN_MAX_TOKENS,
     "N", "with --layers: tokens of a sliding window that all layers have (none)"},
    {"parallel", "-np", 0, OPTION_INT, OPTION_AT(plan_options, n_sequences), 1,
     TKV_PLAN_MAX_SEQUENCES, "N", "sequences, each with a cache and a context of its own"},
    {"weights", NULL, 0, OPTION_SIZE, OPTION_AT(plan_options, weights), 0, 0, "SIZE",
     "bytes of the weights, as 4.7G (the model's file)"},
    {"memory", NULL, 0, OPTION_SIZE, OPTION_AT(plan_options, memory), 0, 0, "SIZE",
     "memory for everything, as 32G (what is available here, less an eighth)"},
    {"workspace", NULL, 0, OPTION_SIZE, OPTION_AT(plan_options, workspace), 0, 0, "SIZE",
     "bytes beside weights and cache (from the model)"},
    {"ctx-size", NULL, 'c', OPTION_INT, OPTION_AT(plan_options, n_wanted), 1, TKV_PLAN_MAX_TOKENS,
     "N", "context that is wanted (what the model was trained for)"},
    {"contexts", NULL, 0, OPTION_TEXT, OPTION_AT(plan_options, contexts), 0, 0, "LIST",
     "comma-separated contexts to list, as 4096,128K"},
    {"policies", NULL, 'P', OPTION_TEXT, OPTION_AT(plan_options, policies), 0, 0, "LIST",
     "comma-separated KV types and policies, as for eval (all types and presets)"},
    {"swa-full", NULL, 0, OPTION_FLAG, OPTION_AT(plan_options, keeps_all), 0, 0, NULL,
     "count tokens behind a sliding window too"},
    {"report", NULL, 0, OPTION_FILE, OPTION_AT(plan_options, report), 0, 0, "FILE",
     "write an HTML report with a plot"},
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(plan_options, wants_json), 0, 0, NULL, "print JSON"},
    OPTION_HELP_ROW,
};

const option_table command_plan_options = {
    .command = "plan",
    .summary = "show what a context costs in memory and the longest one that fits",
    .description = "Shows what a context costs by KV type, and the longest one that fits.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
    .operand = "model",
};

/* "4096,128K". */
static tkv_status parse_contexts(const char *text, plan *p, tkv_error *error)
{
    while (p->n_contexts < PLAN_MAX_CONTEXTS) {
        char *end;
        errno = 0;
        long value = isdigit((unsigned char)*text) ? strtol(text, &end, 10) : 0;
        if (value > 0 && (*end == 'K' || *end == 'k')) {
            value *= 1024;
            end++;
        }
        if (value < 1 || errno || value > TKV_PLAN_MAX_TOKENS || (*end != ',' && *end)) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "--contexts at '%.40s': expected 1 to %d tokens, as 4096 or 128K", text,
                            TKV_PLAN_MAX_TOKENS);
        }
        p->contexts[p->n_contexts++] = (int)value;
        if (!*end) {
            return TKV_OK;
        }
        text = end + 1;
    }
    return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "--contexts: more than %d contexts",
                    PLAN_MAX_CONTEXTS);
}

/* Doubling up to the context that the model was trained for. */
static void default_contexts(plan *p)
{
    const int trained = p->geometry.context_length;
    const int longest = trained >= 1 << DEFAULT_COLUMNS && trained <= TKV_PLAN_MAX_TOKENS
                            ? trained
                            : DEFAULT_CONTEXT;
    for (int i = DEFAULT_COLUMNS - 1; i >= 0; i--) {
        p->contexts[p->n_contexts++] = longest >> i;
    }
}

/* All types, then the presets that are not called like one. */
static void list_everything(char list[LIST_SIZE])
{
    size_t used = 0;
    const char *name;
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        used += (size_t)snprintf(list + used, LIST_SIZE - used, "%s%s", i ? "," : "",
                                 tkv_type_get_info((tkv_type)i)->name);
    }
    for (int i = 0; (name = tkv_policy_preset_name(i)) && used < LIST_SIZE; i++) {
        tkv_type type;
        if (tkv_type_from_name(name, &type, NULL) != TKV_OK) {
            used += (size_t)snprintf(list + used, LIST_SIZE - used, ",%s", name);
        }
    }
}

static tkv_status read_model(const tkv_gguf *gguf, plan *p, tkv_error *error)
{
    TKV_TRY(tkv_geometry_read(gguf, &p->geometry, error));
    if (p->geometry.n_files > 1 && !p->options->weights) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%s is one of %d files of the model: give the size of all with --weights",
                        p->options->model, p->geometry.n_files);
    }
    return TKV_OK;
}

static tkv_status read_geometry(plan *p, tkv_error *error)
{
    const plan_options *o = p->options;
    if (!o->model) {
        return tkv_geometry_uniform(o->n_layers, &o->layer, &p->geometry, error);
    }
    tkv_gguf *gguf = NULL;
    TKV_TRY(tkv_gguf_open(o->model, &gguf, error));
    const tkv_status status = read_model(gguf, p, error);
    tkv_gguf_close(gguf);
    return status;
}

static tkv_status fill_params(plan *p, tkv_error *error)
{
    const plan_options *o = p->options;
    const uint64_t machine = o->memory ? 0 : tkv_machine_memory();
    if (!o->memory && !machine) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "this machine's memory is not known: give it with --memory");
    }
    p->params = (tkv_plan_params){
        .geometry = &p->geometry,
        .keeps_all = o->keeps_all,
        .n_sequences = o->n_sequences,
        .memory_bytes = o->memory ? o->memory : machine - machine / 8,
        .weight_bytes = o->weights ? o->weights : p->geometry.file_bytes,
        .workspace_bytes = o->workspace
                               ? o->workspace
                               : tkv_plan_workspace_bytes(&p->geometry, TKV_DEFAULT_BATCH)};
    const int trained = p->geometry.context_length;
    p->n_wanted = o->n_wanted ? o->n_wanted : trained ? trained : DEFAULT_CONTEXT;
    return TKV_OK;
}

static tkv_status compute_row(plan *p, int index, tkv_error *error)
{
    plan_row *row = &p->rows[index];
    const tkv_policy *policy = &p->policies.policy[index];
    row->name = p->policies.name[index];
    TKV_TRY(tkv_plan_series(&p->params, policy, p->n_contexts, p->contexts, row->bytes, error));
    TKV_TRY(tkv_plan_longest(&p->params, policy, &row->longest, error));
    return tkv_plan_batch_bytes(&p->params, policy, p->contexts[p->n_contexts - 1],
                                TKV_DEFAULT_BATCH, &row->batch_bytes, error);
}

static tkv_status compute(plan *p, tkv_error *error)
{
    const plan_options *o = p->options;
    char everything[LIST_SIZE];
    list_everything(everything);
    TKV_TRY(read_geometry(p, error));
    TKV_TRY(fill_params(p, error));
    if (o->contexts) {
        TKV_TRY(parse_contexts(o->contexts, p, error));
    } else {
        default_contexts(p);
    }
    TKV_TRY(policy_list_parse(o->policies ? o->policies : everything, &p->policies, error));
    for (int i = 0; i < p->policies.n; i++) {
        TKV_TRY(compute_row(p, i, error));
    }
    return tkv_plan_choose(&p->params, p->n_wanted, &p->choice, error);
}

void plan_format_tokens(int n_tokens, char text[16])
{
    const bool is_round = n_tokens % 1024 == 0;
    snprintf(text, 16, is_round ? "%dK" : "%d", is_round ? n_tokens / 1024 : n_tokens);
}

double plan_bits_per_value(const plan *p, const plan_row *row)
{
    const int last = p->n_contexts - 1;
    const uint64_t n_values = tkv_plan_values(&p->params, p->contexts[last]);
    return n_values ? 8.0 * (double)row->bytes[last] / (double)n_values : 0.0;
}

static bool is_of_kind(const tkv_geometry_layer *layer, plan_layer_kind kind)
{
    const bool keeps = layer->n_kv_heads > 0;
    switch (kind) {
    case PLAN_KEEPS: return keeps;
    case PLAN_WINDOW: return keeps && layer->window > 0;
    case PLAN_BESIDE: return keeps && layer->compressed.width + layer->indexer.width > 0;
    case PLAN_STATE: return layer->state_bytes > 0;
    }
    return false;
}

int plan_count_layers(const tkv_geometry *geometry, plan_layer_kind kind)
{
    int n = 0;
    for (int i = 0; i < geometry->n_layers; i++) {
        n += is_of_kind(&geometry->layers[i], kind);
    }
    return n;
}

uint64_t plan_batch_bytes(const plan *p)
{
    uint64_t most = 0;
    for (int i = 0; i < p->policies.n; i++) {
        most = p->rows[i].batch_bytes > most ? p->rows[i].batch_bytes : most;
    }
    return most;
}

static void print_shape(const plan *p)
{
    const tkv_geometry *g = &p->geometry;
    const int n_windows = plan_count_layers(g, PLAN_WINDOW);
    const int n_beside = plan_count_layers(g, PLAN_BESIDE);
    const int n_states = plan_count_layers(g, PLAN_STATE);
    printf("%s%s%d layers, %d of them keep keys and values\n", g->architecture,
           g->architecture[0] ? ": " : "", g->n_layers, plan_count_layers(g, PLAN_KEEPS));
    if (n_windows > 0) {
        printf("%d layers have a sliding window: tokens behind it are %s\n", n_windows,
               p->params.keeps_all ? "kept and counted" : "dropped and not counted");
    }
    if (n_beside > 0) {
        printf("%d layers keep keys of an indexer or of several tokens too: counted as keys\n",
               n_beside);
    }
    if (n_states > 0) {
        printf("recurrent state of %d layers: %.1f MiB, whatever the context\n", n_states,
               (double)tkv_plan_state_bytes(&p->params) / 0x1p20);
    }
    if (g->assumption[0]) {
        printf("note: %s\n", g->assumption);
    }
}

static void print_head(const plan *p)
{
    const uint64_t state = tkv_plan_state_bytes(&p->params);
    print_shape(p);
    if (p->params.n_sequences > 1) {
        printf("%d sequences, each with the context that is listed\n", p->params.n_sequences);
    }
    printf("%.2f GiB of memory: %.2f weights, %.2f workspace%s, ",
           (double)p->params.memory_bytes / GIB, (double)p->params.weight_bytes / GIB,
           (double)p->params.workspace_bytes / GIB, p->params.workspace_bytes ? "" : " (unknown)");
    if (state > 0) {
        printf("%.2f recurrent state, ", (double)state / GIB);
    }
    printf("%.2f for the KV cache\n", (double)tkv_plan_kv_budget(&p->params) / GIB);
    if (plan_batch_bytes(p) > 0) {
        printf("while a batch of %d tokens is read, its exact tokens take up to %.1f MiB more\n",
               TKV_DEFAULT_BATCH, (double)plan_batch_bytes(p) / 0x1p20);
    }
    printf("\n");
}

static void print_choice(const plan *p)
{
    const tkv_plan_choice *c = &p->choice;
    if (!c->preset) {
        const uint64_t used =
            p->params.weight_bytes + p->params.workspace_bytes + tkv_plan_state_bytes(&p->params);
        printf("\nnothing fits: all but the KV cache takes %.2f of %.2f GiB\n", (double)used / GIB,
               (double)p->params.memory_bytes / GIB);
        return;
    }
    printf("\nrecommended: -c %d --kv %s (KV cache %.2f GiB)%s\n", c->n_tokens, c->preset,
           (double)c->kv_bytes / GIB, c->n_tokens < p->n_wanted ? ", less than was wanted" : "");
}

static void print_table(const plan *p)
{
    char text[16];
    print_head(p);
    printf("%-22s %10s", "KV cache in MiB", "bits/value");
    for (int i = 0; i < p->n_contexts; i++) {
        plan_format_tokens(p->contexts[i], text);
        printf(" %9s", text);
    }
    printf(" %12s\n", "longest");
    for (int i = 0; i < p->policies.n; i++) {
        const plan_row *row = &p->rows[i];
        printf("%-22s %10.3f", row->name, plan_bits_per_value(p, row));
        for (int j = 0; j < p->n_contexts; j++) {
            printf(" %9.1f", (double)row->bytes[j] / 0x1p20);
        }
        printf(" %11d%s\n", row->longest, row->longest == TKV_PLAN_MAX_TOKENS ? "+" : "");
    }
    print_choice(p);
}

static bool is_complete(const plan_options *o)
{
    const int n_given = (o->n_layers > 0) + (o->layer.n_kv_heads > 0) + (o->layer.head_dim_k > 0);
    const bool has_more = o->head_dim_v >= 0 || o->layer.window > 0;
    if (o->model ? n_given == 0 && !has_more : n_given == 3) {
        return true;
    }
    fprintf(stderr, "turbokv: expected either -m MODEL or --layers, --kv-heads and --head-dim, "
                    "with --head-dim-v and --window if need be\n");
    return false;
}

int command_plan(int argc, char **argv)
{
    plan_options o;
    int code;
    if (!options_take(&command_plan_options, argc, argv, &o, &code)) {
        return code;
    }
    if (!is_complete(&o)) {
        return EXIT_USAGE;
    }
    o.layer.head_dim_v = o.head_dim_v >= 0 ? o.head_dim_v : o.layer.head_dim_k;
    plan *p = calloc(1, sizeof *p);
    tkv_error error = {TKV_ERR_OUT_OF_MEMORY, "no memory for a plan"};
    if (!p) {
        return command_fail(&error);
    }
    p->options = &o;
    if (compute(p, &error) != TKV_OK ||
        (o.report && plan_write_report(o.report, p, &error) != TKV_OK)) {
        code = command_fail(&error);
    } else if (o.wants_json) {
        code = command_print_json(plan_to_json(p));
    } else {
        print_table(p);
        code = EXIT_OK;
    }
    if (code == EXIT_OK && !p->choice.preset) {
        code = EXIT_RUNTIME;
    }
    free(p->policies.names);
    tkv_geometry_free(&p->geometry);
    free(p);
    return code;
}
