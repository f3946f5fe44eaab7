/* turbokv eval: how far a model with a compressed KV cache is from the same model with f16 KV. */
#include "cli/eval.h"

#include "cli/check_memory.h"
#include "cli/commands.h"
#include "cli/open_context.h"
#include "cli/page.h"
#include "cli/report.h"
#include "common/try.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_POLICIES "turbo8,turbo4,trellis3,turbo3,trellis2,turbo2"
#define MAX_LENGTH 100000000
#define DEFAULT_LENGTHS "2048,4096,8192"

typedef struct eval_options {
    const char *model;
    const char *file;
    const char *policies;
    const char *lengths;
    const char *report;
    int n_bytes;
    tkv_context_params context;
    bool ignores_gate;
    bool wants_json;
    eval_plan plan;
} eval_options;

static const eval_options defaults = {.policies = DEFAULT_POLICIES,
                                      .lengths = DEFAULT_LENGTHS,
                                      .context = {.device = "cpu", .is_stopped = command_stops},
                                      .plan = {.mode = "prefill",
                                               .text = {.n_context = 4096, .n_chunks = 6},
                                               .n_facts = 5,
                                               .n_prompts = 10}};

static const option_entry entries[] = {
    {"model", NULL, 'm', OPTION_FILE, OPTION_AT(eval_options, model), 0, 0, "FILE",
     "GGUF model; without one, the one that is shipped"},
    {"file", NULL, 'f', OPTION_FILE, OPTION_AT(eval_options, file), 0, 0, "FILE",
     "text to score, and to hide needles in; required"},
    {"bytes", NULL, 0, OPTION_INT, OPTION_AT(eval_options, n_bytes), 0, INT32_MAX, "N",
     "use only the first N bytes of the text; 0: all"},
    {"ctx-size", NULL, 'c', OPTION_INT, OPTION_AT(eval_options, plan.text.n_context), 4, INT32_MAX,
     "N", "tokens of a chunk, of which the second half is scored"},
    {"chunks", NULL, 0, OPTION_INT, OPTION_AT(eval_options, plan.text.n_chunks), 0, INT32_MAX, "N",
     "chunks to score; 0: only needles"},
    {"policies", NULL, 'P', OPTION_TEXT, OPTION_AT(eval_options, policies), 0, 0, "LIST",
     "comma-separated: TYPE or TYPE_K/TYPE_V, centred as by 'run', a preset, @FILE (a policy "
     "file), or words as in a policy file"},
    {"mode", NULL, 0, OPTION_CHOICE, OPTION_AT(eval_options, plan.mode), 0, 0, "prefill|decode",
     "prefill: in batches, as llama-perplexity; decode: token by token"},
    {"batch", NULL, 'b', OPTION_INT, OPTION_AT(eval_options, plan.text.n_batch), 0, 65536, "N",
     "tokens that pass the model at once; 0: 512"},
    {"needles", NULL, 0, OPTION_FLAG, OPTION_AT(eval_options, plan.has_needles), 0, 0, NULL,
     "also ask for facts hidden in the text"},
    {"needle-lengths", NULL, 0, OPTION_TEXT, OPTION_AT(eval_options, lengths), 0, 0, "LIST",
     "tokens of the prompts"},
    {"needle-facts", NULL, 0, OPTION_INT, OPTION_AT(eval_options, plan.n_facts), 1,
     TKV_NEEDLES_MAX_FACTS, "N", "facts in a prompt, at depths from 0 to 100 %"},
    {"needle-prompts", NULL, 0, OPTION_INT, OPTION_AT(eval_options, plan.n_prompts), 1, 100000, "N",
     "prompts of each length"},
    CONTEXT_THREADS_ROW(eval_options),
    CONTEXT_DEVICE_ROW(eval_options),
    CONTEXT_EFFORT_ROW(eval_options),
    {"resume", NULL, 0, OPTION_FILE, OPTION_AT(eval_options, plan.state_path), 0, 0, "FILE",
     "keep every step in this file and go on from what it holds"},
    {"report", NULL, 0, OPTION_FILE, OPTION_AT(eval_options, report), 0, 0, "FILE",
     "write an HTML page with tables and plots"},
    IGNORE_GATE_ROW(eval_options),
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(eval_options, wants_json), 0, 0, NULL, "print JSON"},
    OPTION_HELP_ROW,
};

const option_table command_eval_options = {
    .command = "eval",
    .summary = "measure the quality of KV types and policies on a text",
    .description = "Compares a model with compressed KV caches against itself with f16 KV: "
                   "Kullback-Leibler\ndivergence, perplexity, agreement, and recall of facts "
                   "hidden in a long text.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
    .hint = "a text is given with -f FILE",
};

static tkv_status parse_lengths(const char *text, eval_plan *plan, tkv_error *error)
{
    for (;;) {
        char *end;
        const long length = strtol(text, &end, 10);
        if (!isdigit((unsigned char)*text) || (*end && *end != ',') || length < 1 ||
            length > MAX_LENGTH || plan->n_lengths == EVAL_MAX_LENGTHS) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "--needle-lengths: expected up to %d whole numbers from 1 to %d, "
                            "as " DEFAULT_LENGTHS ", found '%.40s'",
                            EVAL_MAX_LENGTHS, MAX_LENGTH, text);
        }
        plan->lengths[plan->n_lengths++] = (int)length;
        if (!*end) {
            return TKV_OK;
        }
        text = end + 1;
    }
}

/* What only reading the options together can tell. */
static tkv_status check(eval_options *o, tkv_error *error)
{
    eval_plan *plan = &o->plan;
    if (!o->file) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "expected a text: -f FILE");
    }
    if (strcmp(plan->mode, "prefill") != 0 && strcmp(plan->mode, "decode") != 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "--mode is '%.40s': expected prefill or decode", plan->mode);
    }
    if (plan->text.n_chunks == 0 && !plan->has_needles) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "nothing to measure: expected chunks, or --needles");
    }
    plan->text_path = o->file;
    plan->effort = o->context.effort;
    plan->text.mode = strcmp(plan->mode, "decode") == 0 ? TKV_EVAL_DECODE : TKV_EVAL_PREFILL;
    tkv_status status = policy_list_parse(o->policies, &plan->policies, error);
    plan->text.policies = plan->policies.policy;
    plan->text.n_policies = plan->policies.n;
    return status == TKV_OK && plan->has_needles ? parse_lengths(o->lengths, plan, error) : status;
}

static tkv_status read_tokens(const loaded_model *loaded, eval_options *o, tkv_tokens *tokens,
                              tkv_error *error)
{
    char *text = NULL;
    size_t length = 0;
    TKV_TRY(command_read_text(o->file, &text, &length, error));
    length = o->n_bytes > 0 && (size_t)o->n_bytes < length ? (size_t)o->n_bytes : length;
    const tkv_status status =
        tkv_tokenizer_encode(loaded->tokenizer, text, length, false, tokens, error);
    free(text);
    TKV_TRY(status);
    o->plan.text.tokenizer = loaded->tokenizer;
    o->plan.text.tokens = tokens->ids;
    o->plan.text.n_tokens = tokens->n;
    return o->plan.text.n_chunks > 0 ? tkv_eval_text_check(&o->plan.text, error) : TKV_OK;
}

/* Chunks pass the model with f16 (twice, the second from the middle on) beside one policy after the
 * other. A device says itself what it has. */
static tkv_status check_memory(const loaded_model *loaded, const tkv_eval_text_params *p,
                               tkv_error *error)
{
    const tkv_model_config *c = tkv_model_get_config(loaded->model);
    const double values =
        (double)p->n_context * c->n_layers * c->n_kv_heads * (c->head_dim_k + c->head_dim_v);
    double bits = 0.0;
    if (p->n_chunks == 0 || tkv_context_device_kind(loaded->context) != TKV_DEVICE_CPU) {
        return TKV_OK;
    }
    for (int i = 0; i < p->n_policies; i++) {
        bits = fmax(bits, tkv_policy_bits(&p->policies[i], c->n_layers, c->n_kv_heads,
                                          c->head_dim_k, c->head_dim_v, p->n_context));
    }
    char what[64];
    snprintf(what, sizeof what, "KV caches of %d tokens (--ctx-size)", p->n_context);
    return command_check_memory(what, (1.5 * 16.0 + bits) / 8.0 * values, error);
}

typedef struct eval_work {
    eval_options *options;
    eval_results *results;
} eval_work;

static int show(const loaded_model *loaded, void *user)
{
    const eval_options *o = ((eval_work *)user)->options;
    eval_results *results = ((eval_work *)user)->results;
    tkv_error error;
    if (results->was_interrupted) {
        fprintf(stderr, "turbokv: interrupted%s\n",
                o->plan.state_path ? "; the same command goes on from here" : "");
        return command_interrupted_code();
    }
    int code = EXIT_OK;
    if (o->wants_json) {
        code = command_print_json(eval_to_json(loaded, &o->plan, results));
    } else {
        eval_print(&o->plan, results);
    }
    if (o->report && report_write(o->report, loaded, &o->plan, results, &error) != TKV_OK) {
        code = command_fail(&error);
    }
    return code;
}

/* Of the chunks and of the needles' prompts. */
static int longest_context(const eval_plan *plan)
{
    int longest = plan->text.n_chunks > 0 ? plan->text.n_context : 0;
    for (int i = 0; i < plan->n_lengths; i++) {
        longest = plan->lengths[i] > longest ? plan->lengths[i] : longest;
    }
    return longest;
}

static tkv_status measure_tokens(loaded_model *loaded, const eval_work *work, tkv_tokens *tokens,
                                 tkv_error *error)
{
    eval_options *o = work->options;
    TKV_TRY(read_tokens(loaded, o, tokens, error));
    TKV_TRY(check_memory(loaded, &o->plan.text, error));
    TKV_TRY(o->report ? page_check(o->report, error) : TKV_OK);
    command_warn_of_context(loaded, longest_context(&o->plan));
    command_catch_interrupt();
    return eval_measure(loaded, &o->plan, work->results, error);
}

static tkv_status measure(loaded_model *loaded, void *user, tkv_error *error)
{
    const eval_work *work = user;
    tkv_tokens tokens = {0};
    const tkv_status status = measure_tokens(loaded, work, &tokens, error);
    tkv_tokens_free(&tokens);
    if (status != TKV_ERR_INTERRUPTED) {
        return status;
    }
    work->results->was_interrupted = true;
    return TKV_OK;
}

int command_eval(int argc, char **argv)
{
    tkv_error error;
    int code = EXIT_RUNTIME;
    eval_options *o = calloc(1, sizeof *o);
    eval_results *results = calloc(1, sizeof *results);
    if (!o || !results) {
        fprintf(stderr, "turbokv: no memory for an evaluation\n");
        goto done;
    }
    const option_result result = options_parse(&command_eval_options, argc, argv, o);
    if (result != OPTIONS_OK) {
        code = result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    } else if (check(o, &error) != TKV_OK) {
        command_fail(&error);
        code = EXIT_USAGE;
    } else {
        static const model_command steps = {.measure = measure, .show = show};
        code = command_with_model(o->model, &o->context, o->ignores_gate, &steps,
                                  &(eval_work){o, results});
    }
    eval_results_free(results);
    free(o->plan.policies.names);
done:
    free(o);
    free(results);
    return code;
}
