/* turbokv run: generate text. */
#include "cli/commands.h"
#include "cli/generate.h"
#include "cli/open_context.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct run_options {
    const char *model;
    const char *prompt;
    const char *file;
    tkv_context_params context;
    bool ignores_gate;
    bool wants_json;
    generation_params generation;
} run_options;

static const run_options defaults = {
    .generation = {.n_predict = -1,
                   .n_keep = -1,
                   .policy = COMMAND_POLICY,
                   .sampling = {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f}},
    .context = {.device = "cpu", .is_stopped = command_stops}};

static const option_entry entries[] = {
    {"model", NULL, 'm', OPTION_FILE, OPTION_AT(run_options, model), 0, 0, "FILE",
     "GGUF model; without one, the one that is shipped"},
    {"prompt", NULL, 'p', OPTION_TEXT, OPTION_AT(run_options, prompt), 0, 0, "TEXT", "prompt"},
    {"chat", NULL, 0, OPTION_FLAG, OPTION_AT(run_options, generation.is_chat), 0, 0, NULL,
     "the prompt is what a user says: put it in the model's chat form (ChatML or Gemma)"},
    {"system-prompt", "-sys", 0, OPTION_TEXT, OPTION_AT(run_options, generation.system), 0, 0,
     "TEXT", "with --chat: what the system says first"},
    {"file", NULL, 'f', OPTION_FILE, OPTION_AT(run_options, file), 0, 0, "FILE",
     "read the prompt from a file, - for standard input"},
    {"predict", "--n-predict", 'n', OPTION_INT, OPTION_AT(run_options, generation.n_predict), -1,
     INT32_MAX, "N", "tokens to generate; -1: until the text ends or the context is full"},
    {"ctx-size", NULL, 'c', OPTION_INT, OPTION_AT(run_options, generation.max_tokens), 0, INT32_MAX,
     "N", "context in tokens; 0: what the model was trained for"},
    {"context-shift", NULL, 0, OPTION_FLAG, OPTION_AT(run_options, generation.shifts_context), 0, 0,
     NULL, "when the context is full, drop the older half and go on"},
    {"keep", NULL, 0, OPTION_INT, OPTION_AT(run_options, generation.n_keep), -1, INT32_MAX, "N",
     "first tokens that a context shift never drops; -1: the sinks"},
    CONTEXT_THREADS_ROW(run_options),
    CONTEXT_DEVICE_ROW(run_options),
    {"seed", NULL, 's', OPTION_SEED, OPTION_AT(run_options, generation.sampling.seed), 0, 0, "N",
     "seed of sampling; -1: another one each time"},
    {"temp", NULL, 0, OPTION_REAL, OPTION_AT(run_options, generation.sampling.temperature), -100,
     100, "T", "temperature; 0 or less: always the most likely token"},
    {"top-k", NULL, 0, OPTION_INT, OPTION_AT(run_options, generation.sampling.top_k), -INT32_MAX,
     INT32_MAX, "K", "sample from the K most likely tokens; 0 or less: all"},
    {"top-p", NULL, 0, OPTION_REAL, OPTION_AT(run_options, generation.sampling.top_p), -100, 100,
     "P", "sample from the most likely tokens up to this probability; 1 or more: all"},
    {"min-p", NULL, 0, OPTION_REAL, OPTION_AT(run_options, generation.sampling.min_p), -100, 1, "P",
     "drop tokens below this share of the most likely one; 0 or less: none"},
    {"cache-type-k", "-ctk", 0, OPTION_TYPE, OPTION_AT(run_options, generation.policy.type_k), 0, 0,
     "TYPE", "KV type of keys, see 'turbokv types'"},
    {"cache-type-v", "-ctv", 0, OPTION_TYPE, OPTION_AT(run_options, generation.policy.type_v), 0, 0,
     "TYPE", "KV type of values"},
    {"kv", NULL, 0, OPTION_PRESET, OPTION_AT(run_options, generation.policy), 0, 0, "PRESET",
     "preset of types and exact tokens: f16, 8bit, 4bit, 3bit or 2bit; options after it change it"},
    {"sinks", NULL, 0, OPTION_POLICY, OPTION_AT(run_options, generation.policy), 0, 0, "N",
     "first tokens kept exact"},
    {"recent", NULL, 0, OPTION_POLICY, OPTION_AT(run_options, generation.policy), 0, 0, "N",
     "last tokens kept exact"},
    {"centre", NULL, 0, OPTION_POLICY, OPTION_AT(run_options, generation.policy), 0, 0, "N",
     "code keys and values relative to their mean over the first N tokens; 0: off"},
    {"boundary", NULL, 0, OPTION_POLICY, OPTION_AT(run_options, generation.policy), 0, 0, "N:TYPE",
     "type of the first and last N layers"},
    {"layers", NULL, 0, OPTION_POLICY_LIST, OPTION_AT(run_options, generation.policy), 0, 0,
     "A-B:TYPE", "type of layers A to B, or TYPE_K/TYPE_V; may be repeated"},
    {"sparse-v", NULL, 0, OPTION_POLICY, OPTION_AT(run_options, generation.policy), 0, 0, "T",
     "skip values with a smaller weight: off, auto or a threshold"},
    {"policy", NULL, 0, OPTION_POLICY_FILE, OPTION_AT(run_options, generation.policy), 0, 0, "FILE",
     "take the policy of a file, as it is; options after it change it"},
    CONTEXT_EFFORT_ROW(run_options),
    IGNORE_GATE_ROW(run_options),
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(run_options, wants_json), 0, 0, NULL,
     "print text and summary as one JSON object"},
    OPTION_HELP_ROW,
};

const option_table command_run_options = {
    .command = "run",
    .summary = "generate text with a model on a compressed KV cache",
    .description = "Generates text with a model on a compressed KV cache.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
    .hint = "a prompt is given with -p TEXT or -f FILE, and -f - reads standard input",
};

static void print_summary(const generation *g)
{
    fprintf(stderr,
            "\nprefill %d tokens, %.0f tokens/s; decode %d tokens, %.0f tokens/s\n"
            "KV cache of %d tokens: %zu bytes, %.3f bits a value; with f16: %zu (%.2fx)\n",
            g->n_prefilled, generation_prefill_speed(g), g->n_decoded, generation_decode_speed(g),
            g->n_cached, g->kv_bytes, g->bits_per_value, g->kv_bytes_f16,
            g->kv_bytes ? (double)g->kv_bytes_f16 / (double)g->kv_bytes : 0.0);
    if (g->n_shifts) {
        fprintf(stderr, "the context was full and was shifted %d times\n", g->n_shifts);
    }
    if (g->n_weights) {
        fprintf(stderr, "sparse V skipped %.2f %% of %.3g values\n",
                100.0 * (double)g->n_skipped / (double)g->n_weights, (double)g->n_weights);
    }
}

static int print_json(const loaded_model *loaded, const run_options *o, const generation *g)
{
    const tkv_policy *policy = &o->generation.policy;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "model", tkv_gguf_path(loaded->gguf));
    cJSON_AddStringToObject(json, "cache_type_k", tkv_type_get_info(policy->type_k)->name);
    cJSON_AddStringToObject(json, "cache_type_v", tkv_type_get_info(policy->type_v)->name);
    char text[1024];
    if (tkv_policy_format(policy, text, sizeof text, NULL) == TKV_OK) {
        cJSON_AddStringToObject(json, "policy", text);
    }
    cJSON_AddStringToObject(json, "kernels", tkv_context_kernels(loaded->context));
    cJSON_AddStringToObject(json, "device", tkv_context_device(loaded->context));
    cJSON_AddNumberToObject(json, "threads", tkv_context_threads(loaded->context));
    command_add_text(json, "text", g->text, g->text_length);
    cJSON *tokens = cJSON_AddArrayToObject(json, "tokens");
    for (size_t i = 0; i < g->tokens.n; i++) {
        cJSON_AddItemToArray(tokens, cJSON_CreateNumber(g->tokens.ids[i]));
    }
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, o->generation.sampling.seed);
    cJSON_AddRawToObject(json, "seed", seed);
    cJSON_AddNumberToObject(json, "prompt_tokens", (double)g->prompt_tokens.n);
    cJSON_AddNumberToObject(json, "prefilled_tokens", g->n_prefilled);
    cJSON_AddNumberToObject(json, "prefill_tokens_per_second", generation_prefill_speed(g));
    cJSON_AddNumberToObject(json, "decoded_tokens", g->n_decoded);
    cJSON_AddNumberToObject(json, "decode_tokens_per_second", generation_decode_speed(g));
    cJSON_AddNumberToObject(json, "cached_tokens", g->n_cached);
    cJSON_AddNumberToObject(json, "kv_bytes", (double)g->kv_bytes);
    cJSON_AddNumberToObject(json, "kv_bytes_f16", (double)g->kv_bytes_f16);
    cJSON_AddNumberToObject(json, "bits_per_value", g->bits_per_value);
    cJSON_AddNumberToObject(json, "context_shifts", g->n_shifts);
    if (g->n_weights) {
        cJSON_AddNumberToObject(json, "values_skipped",
                                (double)g->n_skipped / (double)g->n_weights);
    }
    cJSON_AddBoolToObject(json, "interrupted", g->was_interrupted);
    return command_print_json(json);
}

/* The prompt from -p or -f; exactly one must be given. `text` is to be freed. */
static int find_prompt(run_options *o, char **text)
{
    tkv_error error;
    if (!o->prompt == !o->file) {
        fprintf(stderr,
                "turbokv: expected a prompt: either -p TEXT or -f FILE, of which -f - reads "
                "standard input\n");
        return EXIT_USAGE;
    }
    if (o->generation.system && !o->generation.is_chat) {
        fprintf(stderr, "turbokv: --system-prompt: expected --chat beside it\n");
        return EXIT_USAGE;
    }
    o->generation.prompt = o->prompt;
    o->generation.prompt_length = o->prompt ? strlen(o->prompt) : 0;
    if (o->file) {
        if (command_read_text(o->file, text, &o->generation.prompt_length, &error) != TKV_OK) {
            return command_fail(&error);
        }
        o->generation.prompt = *text;
    }
    return EXIT_OK;
}

/* Says so if nothing but the model bounds the text. */
static void note_endless(const run_options *o, const loaded_model *loaded)
{
    if (o->generation.n_predict >= 0 || !o->generation.shifts_context) {
        return;
    }
    const int32_t n_tokens = tkv_tokenizer_size(loaded->tokenizer);
    bool has_end = false;
    for (int32_t id = 0; id < n_tokens && !has_end; id++) {
        has_end = tkv_tokenizer_is_end(loaded->tokenizer, id);
    }
    fprintf(stderr,
            "turbokv: note: with --context-shift and without -n %s; -n N sets a bound, Ctrl-C "
            "stops\n",
            has_end ? "a text goes on until the model ends it, which it may never do"
                    : "the text has no end, since the model has no end token");
}

/* What was asked for, and what came of it. */
typedef struct run_work {
    const run_options *options;
    generation generation;
} run_work;

static tkv_status generate(loaded_model *loaded, void *user, tkv_error *error)
{
    run_work *work = user;
    note_endless(work->options, loaded);
    return generation_run(loaded, &work->options->generation, &work->generation, error);
}

static int show(const loaded_model *loaded, void *user)
{
    const run_work *work = user;
    const generation *g = &work->generation;
    int code = EXIT_OK;
    if (work->options->wants_json) {
        code = print_json(loaded, work->options, g);
    } else if (!g->is_output_lost) {
        putchar('\n');
        command_flush_output();
        print_summary(g);
    }
    return code == EXIT_OK && g->was_interrupted ? command_interrupted_code() : code;
}

int command_run(int argc, char **argv)
{
    run_options o;
    int code;
    if (!options_take(&command_run_options, argc, argv, &o, &code)) {
        return code;
    }
    o.generation.is_streamed = !o.wants_json;
    o.generation.has_progress = !o.wants_json;
    o.generation.catches_interrupts = true;
    char *text = NULL;
    code = find_prompt(&o, &text);
    if (code == EXIT_OK) {
        static const model_command steps = {.measure = generate, .show = show};
        run_work work = {.options = &o};
        code = command_with_model(o.model, &o.context, o.ignores_gate, &steps, &work);
        generation_free(&work.generation);
    }
    free(text);
    return code;
}
