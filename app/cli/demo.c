/* turbokv demo: the main job in one go. A model reads a long text and answers a question about it
 * with exact and with compressed caches side by side. */
#include "cli/demo.h"

#include "cli/commands.h"
#include "cli/open_context.h"

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

static int run_demo(const demo_options *o)
{
    tkv_error error;
    loaded_model loaded;
    demo_prompt prompt = {0};
    demo_result results[DEMO_SETTINGS] = {0};
    tkv_status status =
        loaded_model_open(&loaded, o->model, &(tkv_context_params){.n_threads = o->n_threads},
                          o->ignores_gate, &error);
    if (status == TKV_OK) {
        status = demo_prompt_create(&loaded, o->n_text, &prompt, &error);
    }
    if (status == TKV_OK) {
        status = demo_measure(&loaded, &prompt, results, &error);
    }
    int code = EXIT_OK;
    if (status != TKV_OK) {
        code = command_fail(&error);
    } else if (o->wants_json) {
        code = command_print_json(demo_to_json(&loaded, &prompt, results));
    } else {
        demo_print(&loaded, &prompt, results);
    }
    demo_results_free(results);
    demo_prompt_free(&prompt);
    loaded_model_free(&loaded);
    return code;
}

int command_demo(int argc, char **argv)
{
    demo_options o;
    const option_result result = options_parse(&command_demo_options, argc, argv, &o);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    }
    return run_demo(&o);
}
