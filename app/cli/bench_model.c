/* turbokv bench model: tokens a second of a model by KV type and tokens already in the cache. */
#include "cli/bench.h"
#include "cli/check_memory.h"
#include "cli/commands.h"
#include "cli/open_context.h"
#include "cli/progress.h"
#include "common/try.h"
#include "eval/clock.h"
#include "eval/model_speed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTHS 16
#define MAX_POLICIES 16
#define MAX_REPETITIONS 1000
#define MAX_NAME 32
#define DEFAULT_DEPTHS "0,2048,8192,32768"

typedef struct model_options {
    const char *model;
    const char *types;
    const char *depths;
    bool goes_beyond; /* what the model was trained for */
    int n_prompt;
    int n_decode;
    int n_repetitions;
    tkv_context_params context;
    bool ignores_gate;
    bool wants_json;
} model_options;

/* A KV type, a pair of them or a preset. */
typedef struct named_policy {
    char name[MAX_NAME];
    tkv_policy policy;
    tkv_model_work *work;
} named_policy;

typedef struct model_result {
    size_t bytes;
    double bits;
    double *prefill; /* [n_repetitions] seconds, ascending in the end */
    double *decode;
} model_result;

typedef struct model_run {
    const model_options *options;
    const loaded_model *loaded;
    int n_depths;
    int depths[MAX_DEPTHS]; /* ascending */
    int n_policies;
    named_policy policies[MAX_POLICIES];
    model_result results[MAX_DEPTHS][MAX_POLICIES];
    double *seconds; /* of all results */
    progress bar;
    double n_passed; /* tokens through the model */
    double n_total;
} model_run;

static const model_options defaults = {.types = "f16,turbo4,turbo3,trellis3",
                                       .depths = DEFAULT_DEPTHS,
                                       .n_prompt = 512,
                                       .n_decode = 64,
                                       .n_repetitions = 3,
                                       .context = {.device = "cpu"}};

static const option_entry entries[] = {
    {"model", NULL, 'm', OPTION_FILE, OPTION_AT(model_options, model), 0, 0, "FILE",
     "GGUF model; without one, the one that is shipped"},
    {"types", NULL, 'T', OPTION_TEXT, OPTION_AT(model_options, types), 0, 0, "LIST",
     "KV types, pairs TYPE_K/TYPE_V or presets"},
    {"depths", NULL, 'd', OPTION_TEXT, OPTION_AT(model_options, depths), 0, 0, "LIST",
     "tokens in the cache before"},
    {"beyond-context", NULL, 0, OPTION_FLAG, OPTION_AT(model_options, goes_beyond), 0, 0, NULL,
     "also depths beyond what the model was trained for: speeds are right, its text is not"},
    {"prompt", "--n-prompt", 'p', OPTION_INT, OPTION_AT(model_options, n_prompt), 0, 1000000, "N",
     "tokens of prefill; 0: none"},
    {"predict", "--n-gen", 'n', OPTION_INT, OPTION_AT(model_options, n_decode), 0, 1000000, "N",
     "tokens of decode; 0: none"},
    {"repetitions", NULL, 'r', OPTION_INT, OPTION_AT(model_options, n_repetitions), 1,
     MAX_REPETITIONS, "N", "of each, the types in turns"},
    CONTEXT_THREADS_ROW(model_options),
    CONTEXT_DEVICE_ROW(model_options),
    CONTEXT_EFFORT_ROW(model_options),
    IGNORE_GATE_ROW(model_options),
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(model_options, wants_json), 0, 0, NULL, "print JSON"},
    OPTION_HELP_ROW,
};

const option_table bench_model_options = {
    .command = "bench model",
    .summary = "prefill and decode of a model by KV type and depth",
    .description = "Times prefill and decode of a model, by KV type and by how many tokens "
                   "the cache holds\nbefore.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

static bool is_preset(const char *name)
{
    const char *preset;
    for (int i = 0; (preset = tkv_policy_preset_name(i)); i++) {
        if (strcmp(preset, name) == 0) {
            return true;
        }
    }
    return false;
}

static tkv_status parse_policy(named_policy *p, tkv_error *error)
{
    char text[3 * MAX_NAME];
    const size_t length_k = strcspn(p->name, "/");
    const char *value = p->name[length_k] ? p->name + length_k + 1 : p->name;
    if (is_preset(p->name)) {
        return tkv_policy_preset(p->name, &p->policy, error);
    }
    p->policy = (tkv_policy)COMMAND_POLICY;
    snprintf(text, sizeof text, "k %.*s v %s", (int)length_k, p->name, value);
    return tkv_policy_parse(text, &p->policy, error);
}

static tkv_status parse_policies(model_run *run, const char *text, tkv_error *error)
{
    tkv_status status = TKV_OK;
    do {
        const size_t length = strcspn(text, ",");
        if (run->n_policies == MAX_POLICIES || length >= MAX_NAME) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "--types: expected up to %d KV types, found '%.60s'", MAX_POLICIES,
                            text);
        }
        named_policy *p = &run->policies[run->n_policies++];
        snprintf(p->name, sizeof p->name, "%.*s", (int)length, text);
        status = parse_policy(p, error);
        text += length;
    } while (status == TKV_OK && *text++);
    return status;
}

static int compare_depths(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static tkv_status parse_lists(model_run *run, tkv_error *error)
{
    const model_options *o = run->options;
    TKV_TRY(bench_parse_numbers("depths", o->depths, 0, MAX_DEPTHS, run->depths, &run->n_depths,
                                error));
    qsort(run->depths, (size_t)run->n_depths, sizeof *run->depths, compare_depths);
    return parse_policies(run, o->types, error);
}

static tkv_status check_length(const model_run *run, const char *option, int n_tokens,
                               tkv_error *error)
{
    const int trained = tkv_model_get_config(run->loaded->model)->context_length;
    return run->options->goes_beyond || n_tokens <= trained
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                          "--%s: %d tokens, but the model was trained for %d: expected no more, or "
                          "--beyond-context",
                          option, n_tokens, trained);
}

/* Lengths that the model was not trained for are refused, or left out if nobody asked for them. */
static tkv_status check_lengths(model_run *run, tkv_error *error)
{
    const model_options *o = run->options;
    int *n = &run->n_depths;
    while (o->depths == defaults.depths &&
           check_length(run, "depths", run->depths[*n - 1], NULL) != TKV_OK) {
        fprintf(stderr,
                "turbokv: depth %d is left out, the model was trained for %d tokens: "
                "--beyond-context times it too\n",
                run->depths[*n - 1], tkv_model_get_config(run->loaded->model)->context_length);
        --*n;
    }
    TKV_TRY(check_length(run, "depths", run->depths[*n - 1], error));
    TKV_TRY(check_length(run, "prompt", o->n_prompt, error));
    return check_length(run, "predict", o->n_decode, error);
}

/* Tokens that a sequence has room for. */
static int longest_sequence(const model_run *run)
{
    const model_options *o = run->options;
    return run->depths[run->n_depths - 1] + (o->n_prompt > o->n_decode ? o->n_prompt : o->n_decode);
}

/* The sequences of all policies are there together. A device says itself what it has. */
static tkv_status check_memory(const model_run *run, tkv_error *error)
{
    const tkv_model_config *c = tkv_model_get_config(run->loaded->model);
    const int n_tokens = longest_sequence(run);
    const double values =
        (double)n_tokens * c->n_layers * c->n_kv_heads * (c->head_dim_k + c->head_dim_v);
    double bytes = 0.0;
    if (tkv_context_device_kind(run->loaded->context) != TKV_DEVICE_CPU) {
        return TKV_OK;
    }
    for (int i = 0; i < run->n_policies; i++) {
        const double bits = tkv_policy_bits(&run->policies[i].policy, c->n_layers, c->n_kv_heads,
                                            c->head_dim_k, c->head_dim_v, n_tokens);
        bytes += bits / 8.0 * values + (double)n_tokens * sizeof(int32_t);
    }
    char what[96];
    snprintf(what, sizeof what, "KV caches of %d tokens for %d policies (--depths, --types)",
             n_tokens, run->n_policies);
    return command_check_memory(what, bytes, error);
}

static void show_filling(void *user, int n_done)
{
    model_run *run = user;
    progress_update(&run->bar, run->n_passed + n_done, run->n_total);
}

static void add_passed(model_run *run, int n_tokens)
{
    run->n_passed += n_tokens;
    progress_update(&run->bar, run->n_passed, run->n_total);
}

/* Tokens that all measurements together pass through the model. */
static double count_tokens(const model_run *run)
{
    const model_options *o = run->options;
    const double timed = (double)o->n_repetitions * ((double)o->n_prompt + o->n_decode);
    return run->n_policies * (run->depths[run->n_depths - 1] + run->n_depths * timed);
}

/* Room for all times, and a sequence for each policy. */
static tkv_status prepare(model_run *run, tkv_error *error)
{
    const model_options *o = run->options;
    const size_t n = (size_t)o->n_repetitions;
    run->seconds = calloc((size_t)(run->n_depths * run->n_policies) * 2 * n, sizeof *run->seconds);
    if (!run->seconds) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the times");
    }
    double *next = run->seconds;
    for (int i = 0; i < run->n_depths * run->n_policies; i++, next += 2 * n) {
        model_result *result = &run->results[i / run->n_policies][i % run->n_policies];
        result->prefill = next;
        result->decode = next + n;
    }
    for (int i = 0; i < run->n_policies; i++) {
        TKV_TRY(tkv_model_work_create(run->loaded->model, run->loaded->tokenizer,
                                      run->loaded->context, &run->policies[i].policy,
                                      longest_sequence(run), &run->policies[i].work, error));
    }
    return TKV_OK;
}

/* All policies in turns, so that what else the machine does falls on all of them. */
static tkv_status measure_depth(model_run *run, int depth, tkv_error *error)
{
    const model_options *o = run->options;
    tkv_status status = TKV_OK;
    for (int i = 0; i < run->n_policies && status == TKV_OK; i++) {
        status = tkv_model_work_fill(run->policies[i].work, run->depths[depth], show_filling, run,
                                     error);
        add_passed(run, run->depths[depth] - (depth > 0 ? run->depths[depth - 1] : 0));
        run->results[depth][i].bytes = tkv_model_work_bytes(run->policies[i].work);
        run->results[depth][i].bits = tkv_model_work_bits(run->policies[i].work);
    }
    for (int turn = 0; turn < o->n_repetitions * run->n_policies && status == TKV_OK; turn++) {
        const int repetition = turn / run->n_policies;
        const tkv_model_work *work = run->policies[turn % run->n_policies].work;
        model_result *result = &run->results[depth][turn % run->n_policies];
        status = tkv_model_work_prefill(work, o->n_prompt, &result->prefill[repetition], error);
        if (status == TKV_OK) {
            status = tkv_model_work_decode(work, o->n_decode, &result->decode[repetition], error);
        }
        add_passed(run, o->n_prompt + o->n_decode);
    }
    for (int i = 0; i < run->n_policies; i++) {
        model_result *result = &run->results[depth][i];
        tkv_sort_seconds(o->n_repetitions, result->prefill);
        tkv_sort_seconds(o->n_repetitions, result->decode);
    }
    return status;
}

static tkv_status measure_depths(model_run *run, tkv_error *error)
{
    for (int i = 0; i < run->n_depths; i++) {
        TKV_TRY(measure_depth(run, i, error));
    }
    return TKV_OK;
}

static tkv_status measure(model_run *run, tkv_error *error)
{
    TKV_TRY(check_lengths(run, error));
    TKV_TRY(check_memory(run, error));
    TKV_TRY(prepare(run, error));
    run->n_total = count_tokens(run);
    progress_begin(&run->bar, "bench model");
    const tkv_status status = measure_depths(run, error);
    progress_end(&run->bar);
    return status;
}

/* Tokens a second of the median and of the fastest repetition. */
typedef struct token_speed {
    double median;
    double best;
} token_speed;

static token_speed speed_of(const model_run *run, const double *seconds, int n_tokens)
{
    const int middle = run->options->n_repetitions / 2;
    return n_tokens ? (token_speed){n_tokens / seconds[middle], n_tokens / seconds[0]}
                    : (token_speed){0.0, 0.0};
}

static void print_table(const model_run *run)
{
    const model_options *o = run->options;
    printf("%s: %s, %s kernels, %d threads; prefill of %d tokens, decode of %d; medians of %d "
           "(best)\n",
           tkv_gguf_path(run->loaded->gguf), tkv_context_device(run->loaded->context),
           tkv_context_kernels(run->loaded->context), tkv_context_threads(run->loaded->context),
           o->n_prompt, o->n_decode, o->n_repetitions);
    printf("%-17s %8s %9s %7s %22s %22s\n", "type", "depth", "KV MB", "bits", "prefill, tokens/s",
           "decode, tokens/s");
    for (int i = 0; i < run->n_depths * run->n_policies; i++) {
        const int depth = i / run->n_policies;
        const model_result *r = &run->results[depth][i % run->n_policies];
        const token_speed prefill = speed_of(run, r->prefill, o->n_prompt);
        const token_speed decode = speed_of(run, r->decode, o->n_decode);
        printf("%-17s %8d %9.2f %7.3f %10.1f (%9.1f) %10.1f (%9.1f)\n",
               run->policies[i % run->n_policies].name, run->depths[depth], (double)r->bytes * 1e-6,
               r->bits, prefill.median, prefill.best, decode.median, decode.best);
    }
}

static cJSON *to_json(const model_run *run)
{
    const model_options *o = run->options;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "model", tkv_gguf_path(run->loaded->gguf));
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(run->loaded->context));
    cJSON_AddStringToObject(json, "device", tkv_context_device(run->loaded->context));
    cJSON_AddNumberToObject(json, "threads", tkv_context_threads(run->loaded->context));
    cJSON_AddNumberToObject(json, "prefill_tokens", o->n_prompt);
    cJSON_AddNumberToObject(json, "decoded_tokens", o->n_decode);
    cJSON_AddNumberToObject(json, "repetitions", o->n_repetitions);
    cJSON *rows = cJSON_AddArrayToObject(json, "results");
    for (int i = 0; i < run->n_depths * run->n_policies; i++) {
        const int depth = i / run->n_policies;
        const model_result *r = &run->results[depth][i % run->n_policies];
        const token_speed prefill = speed_of(run, r->prefill, o->n_prompt);
        const token_speed decode = speed_of(run, r->decode, o->n_decode);
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "type", run->policies[i % run->n_policies].name);
        cJSON_AddNumberToObject(row, "depth", run->depths[depth]);
        cJSON_AddNumberToObject(row, "kv_bytes", (double)r->bytes);
        cJSON_AddNumberToObject(row, "bits_per_value", r->bits);
        cJSON_AddNumberToObject(row, "prefill_tokens_per_second", prefill.median);
        cJSON_AddNumberToObject(row, "prefill_tokens_per_second_best", prefill.best);
        cJSON_AddNumberToObject(row, "decode_tokens_per_second", decode.median);
        cJSON_AddNumberToObject(row, "decode_tokens_per_second_best", decode.best);
        cJSON_AddItemToArray(rows, row);
    }
    return json;
}

static tkv_status measure_model(loaded_model *loaded, void *user, tkv_error *error)
{
    model_run *run = user;
    run->loaded = loaded;
    const tkv_status status = measure(run, error);
    for (int i = 0; i < run->n_policies; i++) {
        tkv_model_work_free(run->policies[i].work);
    }
    return status;
}

static int show(const loaded_model *loaded, void *user)
{
    const model_run *run = user;
    (void)loaded;
    if (run->options->wants_json) {
        return command_print_json(to_json(run));
    }
    print_table(run);
    return EXIT_OK;
}

int bench_model(int argc, char **argv)
{
    static const model_command steps = {
        .measure = measure_model, .show = show, .blames_options = true};
    model_options o;
    int code;
    if (!options_take(&bench_model_options, argc, argv, &o, &code)) {
        return code;
    }
    tkv_error error;
    model_run run = {.options = &o};
    if (parse_lists(&run, &error) != TKV_OK) {
        command_fail(&error);
        return EXIT_USAGE;
    }
    code = command_with_model(o.model, &o.context, o.ignores_gate, &steps, &run);
    free(run.seconds);
    return code;
}
