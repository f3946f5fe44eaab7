/* turbokv demo: the main job in one go. A model reads a long text and answers a question about it
 * with exact and with compressed caches side by side. */
#include "cli/demo.h"

#include "cli/commands.h"
#include "cli/open_context.h"
#include "common/try.h"

typedef struct demo_options {
    const char *model;
    int n_threads;
    int n_text;
    bool ignores_gate;
    bool wants_json;
} demo_options;

static const demo_options defaults = {.n_text = 2048};

static const option_entry entries[] = {
    {"model", NULL, 'm', OPTION_FILE, OPTION_AT(demo_options, model), 0, 0, "FILE",
     "GGUF model; without one, the one that is shipped"},
    {"threads", NULL, 't', OPTION_INT, OPTION_AT(demo_options, n_threads), 0, 1024, "N",
     "threads; 0: all cores"},
    {"text", NULL, 'n', OPTION_INT, OPTION_AT(demo_options, n_text), 16, INT32_MAX, "N",
     "tokens of text to read"},
    {"json", NULL, 0, OPTION_FLAG, OPTION_AT(demo_options, wants_json), 0, 0, NULL,
     "print everything as one JSON object"},
    IGNORE_GATE_ROW(demo_options),
    OPTION_HELP_ROW,
};

const option_table command_demo_options = {
    .command = "demo",
    .summary = "answer a question about a long text with exact and compressed caches side by side",
    .description = "A model reads a long text and answers a question about it, with KV caches in "
                   "f16, 4bit, 3bit and 2bit side by side.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

typedef struct demo_work {
    const demo_options *options;
    demo_prompt prompt;
    demo_result results[DEMO_SETTINGS];
} demo_work;

static tkv_status measure(loaded_model *loaded, void *user, tkv_error *error)
{
    demo_work *work = user;
    TKV_TRY(demo_prompt_create(loaded, work->options->n_text, &work->prompt, error));
    return demo_measure(loaded, &work->prompt, work->results, error);
}

static int show(const loaded_model *loaded, void *user)
{
    demo_work *work = user;
    if (work->options->wants_json) {
        return command_print_json(demo_to_json(loaded, &work->prompt, work->results));
    }
    demo_print(loaded, &work->prompt, work->results);
    return EXIT_OK;
}

int command_demo(int argc, char **argv)
{
    demo_options o;
    int code;
    if (!options_take(&command_demo_options, argc, argv, &o, &code)) {
        return code;
    }
    static const model_command steps = {.measure = measure, .show = show};
    demo_work work = {.options = &o};
    code = command_with_model(o.model, &(tkv_context_params){.n_threads = o.n_threads},
                              o.ignores_gate, &steps, &work);
    demo_results_free(work.results);
    demo_prompt_free(&work.prompt);
    return code;
}
