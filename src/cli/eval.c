/* turbokv eval: how far a model with a compressed KV cache is from the same model with f16 KV. */
#include "cli/command.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "eval/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_POLICIES 32
#define DEFAULT_POLICIES "turbo8,turbo4,trellis3,turbo3,trellis2,turbo2"

typedef struct eval_options {
    const char *model;
    const char *file;
    const char *policies;
    const char *mode;
    int n_bytes;
    int n_threads;
    bool wants_json;
    bool wants_help;
    tkv_eval_text_params text;
} eval_options;

/* The policies of one run, and their names as they were given. */
typedef struct policy_list {
    char *names; /* the text, cut at its commas */
    const char *name[MAX_POLICIES];
    tkv_policy policy[MAX_POLICIES];
    int n;
} policy_list;

static option_result parse(int argc, char **argv, eval_options *o)
{
    const option_entry entries[] = {
        {"model", NULL, 'm', OPTION_TEXT, &o->model, 0, 0, "FILE",
         "GGUF model (default: the one that is shipped)"},
        {"file", NULL, 'f', OPTION_TEXT, &o->file, 0, 0, "FILE", "text to score; required"},
        {"bytes", NULL, 0, OPTION_INT, &o->n_bytes, 0, INT32_MAX, "N",
         "use only the first N bytes of the text; 0: all (0)"},
        {"ctx-size", NULL, 'c', OPTION_INT, &o->text.n_context, 4, INT32_MAX, "N",
         "tokens of a chunk, of which the second half is scored (4096)"},
        {"chunks", NULL, 0, OPTION_INT, &o->text.n_chunks, 1, INT32_MAX, "N",
         "chunks to score (6)"},
        {"policies", NULL, 'P', OPTION_TEXT, &o->policies, 0, 0, "LIST",
         "comma-separated: TYPE, TYPE_K/TYPE_V, a preset, or words as in a policy file "
         "(" DEFAULT_POLICIES ")"},
        {"mode", NULL, 0, OPTION_TEXT, &o->mode, 0, 0, "MODE",
         "prefill: in batches, as llama-perplexity; decode: token by token (prefill)"},
        {"batch", NULL, 'b', OPTION_INT, &o->text.n_batch, 0, 65536, "N",
         "tokens that pass the model at once; 0: 512 (0)"},
        {"threads", NULL, 't', OPTION_INT, &o->n_threads, 0, 1024, "N",
         "threads; 0: all cores (0)"},
        {"json", NULL, 0, OPTION_FLAG, &o->wants_json, 0, 0, NULL, "print JSON"},
        {"help", NULL, 'h', OPTION_HELP, &o->wants_help, 0, 0, NULL, "print this help"},
    };
    return options_parse("eval",
                         "Compares a model with compressed KV caches against itself with f16 KV: "
                         "Kullback-Leibler\ndivergence, perplexity and agreement.",
                         entries, sizeof entries / sizeof *entries, argc, argv);
}

/* One entry: a preset, types, or a policy text. */
static tkv_status parse_policy(const char *text, tkv_policy *policy, tkv_error *error)
{
    *policy = (tkv_policy){0};
    if (tkv_policy_preset(text, policy, NULL) == TKV_OK) {
        return TKV_OK;
    }
    if (strchr(text, ' ') || strchr(text, '=')) {
        return tkv_policy_parse(text, policy, error);
    }
    char type_k[32];
    const char *slash = strchr(text, '/');
    const size_t length = slash ? (size_t)(slash - text) : strlen(text);
    snprintf(type_k, sizeof type_k, "%.*s", (int)(length < 31 ? length : 31), text);
    tkv_status status = tkv_type_from_name(type_k, &policy->type_k, error);
    if (status == TKV_OK) {
        status = tkv_type_from_name(slash ? slash + 1 : type_k, &policy->type_v, error);
    }
    return status;
}

static tkv_status parse_policies(const char *text, policy_list *list, tkv_error *error)
{
    tkv_status status = TKV_OK;
    list->names = strdup(text);
    if (!list->names) {
        *error = (tkv_error){TKV_ERR_OUT_OF_MEMORY, "no memory for the policies"};
        return error->status;
    }
    char *rest = list->names;
    for (char *name; status == TKV_OK && (name = strsep(&rest, ","));) {
        if (list->n == MAX_POLICIES) {
            *error = (tkv_error){TKV_ERR_INVALID_ARGUMENT, "more than 32 policies"};
            return error->status;
        }
        list->name[list->n] = name;
        status = parse_policy(name, &list->policy[list->n++], error);
    }
    return status;
}

static bool show_progress(void *user, int64_t n_done, int64_t n_total)
{
    progress_update(user, (double)n_done, (double)n_total);
    return true;
}

static double bits_per_value(const loaded_model *loaded, const eval_options *o,
                             const tkv_eval_text_result *r)
{
    const tkv_model_config *c = tkv_model_get_config(loaded->model);
    const double values =
        (double)c->n_layers * c->n_kv_heads * (c->head_dim_k + c->head_dim_v) * o->text.n_context;
    return 8.0 * (double)r->kv_bytes / values;
}

static void print_table(const loaded_model *loaded, const eval_options *o, const policy_list *list,
                        tkv_eval_text_result *results)
{
    for (int i = 0; i < list->n; i++) {
        const tkv_divergence_summary s = tkv_divergence_summarise(&results[i].divergence);
        if (i == 0) {
            printf("%zu positions, perplexity with f16 KV %.4f\n", s.n, s.perplexity_reference);
            printf("%-34s %10s %10s %10s %10s %9s %9s %8s\n", "KV", "bits/value", "mean KLD",
                   "median", "99.9 %", "same top", "PPL", "skipped");
        }
        printf("%-34s %10.3f %10.5f %10.5f %10.4f %8.2f%% %9.4f", list->name[i],
               bits_per_value(loaded, o, &results[i]), s.mean_kl, s.median_kl, s.kl_999,
               100.0 * s.same_top, s.perplexity);
        if (results[i].n_weights) {
            printf(" %7.2f%%", 100.0 * (double)results[i].n_skipped / (double)results[i].n_weights);
        }
        putchar('\n');
    }
}

static cJSON *to_json(const loaded_model *loaded, const eval_options *o, const policy_list *list,
                      tkv_eval_text_result *results)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "model", tkv_gguf_path(loaded->gguf));
    cJSON_AddStringToObject(json, "text", o->file);
    cJSON_AddStringToObject(json, "mode", o->mode);
    cJSON_AddNumberToObject(json, "context", o->text.n_context);
    cJSON_AddNumberToObject(json, "chunks", o->text.n_chunks);
    cJSON *rows = cJSON_AddArrayToObject(json, "policies");
    for (int i = 0; i < list->n; i++) {
        const tkv_divergence_summary s = tkv_divergence_summarise(&results[i].divergence);
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "policy", list->name[i]);
        cJSON_AddNumberToObject(row, "bits_per_value", bits_per_value(loaded, o, &results[i]));
        cJSON_AddNumberToObject(row, "positions", (double)s.n);
        cJSON_AddNumberToObject(row, "mean_kl", s.mean_kl);
        cJSON_AddNumberToObject(row, "median_kl", s.median_kl);
        cJSON_AddNumberToObject(row, "kl_999", s.kl_999);
        cJSON_AddNumberToObject(row, "max_kl", s.max_kl);
        cJSON_AddNumberToObject(row, "same_top", s.same_top);
        cJSON_AddNumberToObject(row, "perplexity", s.perplexity);
        cJSON_AddNumberToObject(row, "perplexity_f16", s.perplexity_reference);
        cJSON_AddNumberToObject(row, "seconds", results[i].seconds);
        if (results[i].n_weights) {
            cJSON_AddNumberToObject(row, "values_skipped",
                                    (double)results[i].n_skipped / (double)results[i].n_weights);
        }
        cJSON_AddItemToArray(rows, row);
    }
    return json;
}

static tkv_status evaluate(const loaded_model *loaded, eval_options *o, const char *text,
                           size_t length, tkv_eval_text_result *results, tkv_error *error)
{
    progress bar;
    tkv_tokens tokens = {0};
    tkv_status status =
        tkv_tokenizer_encode(loaded->tokenizer, text, length, false, false, &tokens, error);
    if (status == TKV_OK) {
        o->text.tokens = tokens.ids;
        o->text.n_tokens = tokens.n;
        o->text.progress = show_progress;
        o->text.progress_user = &bar;
        progress_begin(&bar, "eval");
        status = tkv_eval_text(loaded->model, loaded->context, &o->text, results, error);
        progress_end(&bar);
    }
    tkv_tokens_free(&tokens);
    return status;
}

static int run(eval_options *o, const policy_list *list)
{
    tkv_error error;
    loaded_model loaded;
    tkv_eval_text_result results[MAX_POLICIES] = {0};
    char *text = NULL;
    size_t length = 0;
    o->text.policies = list->policy;
    o->text.n_policies = list->n;
    tkv_status status = loaded_model_open(&loaded, o->model, o->n_threads, &error);
    if (status == TKV_OK) {
        status = command_read_text(o->file, &text, &length, &error);
    }
    if (status == TKV_OK) {
        length = o->n_bytes > 0 && (size_t)o->n_bytes < length ? (size_t)o->n_bytes : length;
        status = evaluate(&loaded, o, text, length, results, &error);
    }
    int code = EXIT_OK;
    if (status != TKV_OK) {
        code = command_fail(&error);
    } else if (o->wants_json) {
        code = command_print_json(to_json(&loaded, o, list, results));
    } else {
        print_table(&loaded, o, list, results);
    }
    for (int i = 0; i < list->n; i++) {
        tkv_divergence_free(&results[i].divergence);
    }
    free(text);
    loaded_model_free(&loaded);
    return code;
}

int command_eval(int argc, char **argv)
{
    eval_options o = {.policies = DEFAULT_POLICIES,
                      .mode = "prefill",
                      .text = {.n_context = 4096, .n_chunks = 6}};
    const option_result result = parse(argc, argv, &o);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    }
    if (!o.file) {
        fprintf(stderr, "turbokv: expected a text: -f FILE\n");
        return EXIT_USAGE;
    }
    if (strcmp(o.mode, "prefill") != 0 && strcmp(o.mode, "decode") != 0) {
        fprintf(stderr, "turbokv: --mode is '%s': expected prefill or decode\n", o.mode);
        return EXIT_USAGE;
    }
    o.text.mode = strcmp(o.mode, "decode") == 0 ? TKV_EVAL_DECODE : TKV_EVAL_PREFILL;
    tkv_error error;
    policy_list list = {.names = NULL};
    int code = EXIT_USAGE;
    if (parse_policies(o.policies, &list, &error) == TKV_OK) {
        code = run(&o, &list);
    } else {
        fprintf(stderr, "turbokv: --policies: %s\n", error.message);
    }
    free(list.names);
    return code;
}
