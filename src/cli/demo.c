/* turbokv demo: the main job in one go. The shipped model continues a prompt and answers a question
 * about a fact far back in the text, with exact and with compressed caches side by side. */
#include "cli/commands.h"
#include "cli/generate.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char continuation_prompt[] =
    "It was a cold evening in November when the old captain came to the house by the river. He "
    "took off his coat, looked at the fire, and said";

static const char fact[] = "\nThe secret number of the red castle is 48213.\n";
static const char question[] = "\nQuestion: What is the secret number of the red castle?\nAnswer: ";
static const char answer[] = "48213";

/* What stands between the fact and the question. */
static const char filler[] =
    "The road to the mill ran along the bank, and in spring the water came up to the stones of the "
    "bridge. The miller knew every tree on the way, and when he was asked how old they were he "
    "would answer that his grandfather had found them there. In the evening the carts came back "
    "from the market, one after the other, and the children ran out to meet them. There was bread, "
    "and salt, and sometimes a piece of blue cloth for the eldest girl.\n"
    "When the snow fell the village was quiet. The smith mended what had been broken in the "
    "summer, the women sat together and sewed, and the schoolmaster read aloud from a book of "
    "travels until the candle was burnt down. Nobody believed all that was in it, but nobody "
    "wished him to stop. The ships in that book were as large as churches, and the men in them "
    "spoke of stars as if they were neighbours.\n"
    "In the year of the great flood a stranger stayed at the inn for eleven days. He paid in "
    "silver and asked for nothing but paper. On the last morning he was seen upon the hill with a "
    "small brass instrument, measuring the valley from one end to the other. What he wrote down "
    "nobody ever learned, for he left before the rain did, and the inn had a new roof that "
    "winter.\n"
    "The doctor held that the air of the place was good for those who had worked too much with "
    "their eyes. He himself walked for an hour before breakfast, in any weather, with a stick that "
    "he did not need. If he met the priest on these walks they talked about bees. They had never "
    "agreed about anything else, and so had come, in thirty years, to know a good deal of honey.\n"
    "The garden behind the house went down to the water in three steps. On the upper one grew "
    "roses "
    "that nobody had planted, on the middle one beans and cabbages, and on the lowest a willow "
    "whose "
    "branches touched the boats in summer. It was said that a bishop had once slept under it for a "
    "whole afternoon, and that his secretary had not dared to wake him, though a council was "
    "waiting.\n"
    "My uncle kept a ledger of every journey that he made. He wrote down the weather, the price of "
    "the horses, and what had been served at table, but never whom he had met. When I asked him "
    "why, "
    "he said that he would remember the people well enough, and that a dinner, once eaten, has no "
    "other friend than the man who writes it down.\n"
    "There is a kind of silence in a house where somebody is expected. The clock is heard, and the "
    "dog lifts his head at every wheel upon the road. The lamp had been lit too early, and the old "
    "woman had twice gone to the window and come back again, when at last the gate was opened and "
    "a "
    "boy ran in to tell them that the ferry had been late.\n"
    "The captain of the ferry was not a patient man. He had been at sea in his youth, and thought "
    "little of a river that a strong swimmer could cross. But he kept his boat in order, and in "
    "all "
    "the years that he had it no passenger was ever lost, except a merchant who stepped into the "
    "water of his own will because his hat had fallen in.\n";

/* One setting of the cache. */
typedef struct setting {
    const char *label;
    const char *policy;
} setting;

static const setting settings[] = {
    {"f16", "k f16 v f16"},
    {"turbo4/turbo3", "k turbo4 v turbo3 centre 64"},
    {"3bit preset", "kv 3bit"},
};

enum { N_SETTINGS = sizeof settings / sizeof *settings };

typedef struct task {
    const char *title;
    const char *prompt;
    int n_predict;
    const char *expected; /* NULL: nothing to check */
} task;

/* Whether the text begins with the number that is expected, and with no more digits. */
static bool has_answer(const task *t, const generation *g)
{
    const size_t length = strlen(t->expected);
    return strncmp(g->text, t->expected, length) == 0 && !isdigit((unsigned char)g->text[length]);
}

/* Greedy tokens that agree before the first difference. */
static size_t agreement(const generation *a, const generation *b)
{
    size_t n = 0;
    while (n < a->tokens.n && n < b->tokens.n && a->tokens.ids[n] == b->tokens.ids[n]) {
        n++;
    }
    return n;
}

static void print_text(const char *text)
{
    fputs("    ", stdout);
    for (; *text; text++) {
        fputs(*text == '\n' ? "\n    " : (char[]){*text, '\0'}, stdout);
    }
    putchar('\n');
}

static void print_task(const task *t, const generation results[N_SETTINGS])
{
    printf("\n%s (prompt of %zu tokens)\n", t->title, results[0].prompt_tokens.n);
    for (int i = 0; i < N_SETTINGS; i++) {
        printf("\n  KV %s:\n", settings[i].label);
        print_text(results[i].text);
    }
    printf("\n  %-15s %12s %11s %11s %11s %10s%s\n", "KV", "bytes", "bits/value", "prefill/s",
           "decode/s", "agreement", t->expected ? "  answer" : "");
    for (int i = 0; i < N_SETTINGS; i++) {
        const generation *g = &results[i];
        printf("  %-15s %12zu %11.3f %11.0f %11.0f %6zu/%-3zu%s%s\n", settings[i].label,
               g->kv_bytes, g->bits_per_value, generation_prefill_speed(g),
               generation_decode_speed(g), agreement(&results[0], g), results[0].tokens.n,
               t->expected ? "  " : "",
               !t->expected       ? ""
               : has_answer(t, g) ? "right"
                                  : "wrong");
    }
    fflush(stdout);
}

static tkv_status run_task(const loaded_model *loaded, const task *t, tkv_error *error)
{
    generation results[N_SETTINGS] = {0};
    tkv_status status = TKV_OK;
    for (int i = 0; i < N_SETTINGS && status == TKV_OK; i++) {
        generation_params params = {.prompt = t->prompt,
                                    .prompt_length = strlen(t->prompt),
                                    .n_predict = t->n_predict,
                                    .has_progress = true};
        status = tkv_policy_parse(settings[i].policy, &params.policy, error);
        if (status == TKV_OK) {
            status = generation_run(loaded, &params, &results[i], error);
        }
    }
    if (status == TKV_OK) {
        print_task(t, results);
    }
    for (int i = 0; i < N_SETTINGS; i++) {
        generation_free(&results[i]);
    }
    return status;
}

/* The fact, text, and the question; the caller frees it. */
static char *needle_prompt(void)
{
    const size_t size = sizeof fact + sizeof filler + sizeof question;
    char *prompt = malloc(size);
    if (prompt) {
        snprintf(prompt, size, "%s%s%s", fact, filler, question);
    }
    return prompt;
}

/* Brings the weights into memory, which the first figures would pay for otherwise. */
static tkv_status warm_up(const loaded_model *loaded, tkv_error *error)
{
    generation result;
    const generation_params params = {.prompt = continuation_prompt,
                                      .prompt_length = strlen(continuation_prompt),
                                      .n_predict = 1};
    const tkv_status status = generation_run(loaded, &params, &result, error);
    generation_free(&result);
    return status;
}

static int run_demo(const char *model, int n_threads)
{
    tkv_error error;
    loaded_model loaded;
    char *needle = needle_prompt();
    tkv_status status =
        loaded_model_open(&loaded, model, &(tkv_context_params){.n_threads = n_threads}, &error);
    if (status == TKV_OK) {
        status = warm_up(&loaded, &error);
    }
    if (status == TKV_OK && needle) {
        const tkv_model_config *config = tkv_model_get_config(loaded.model);
        const task tasks[] = {{"Continuing a text, greedily", continuation_prompt, 48, NULL},
                              {"A fact far back in the text", needle, 8, answer}};
        printf("model %s: %s, %d layers, %d KV heads of %d; kernels %s, %d threads\n",
               tkv_gguf_path(loaded.gguf), config->architecture, config->n_layers,
               config->n_kv_heads, config->head_dim_k, tkv_context_kernels(loaded.context),
               tkv_context_threads(loaded.context));
        for (size_t i = 0; i < sizeof tasks / sizeof *tasks && status == TKV_OK; i++) {
            status = run_task(&loaded, &tasks[i], &error);
        }
    }
    free(needle);
    loaded_model_free(&loaded);
    return status == TKV_OK ? EXIT_OK : command_fail(&error);
}

typedef struct demo_options {
    const char *model;
    int n_threads;
} demo_options;

static const demo_options defaults = {.model = NULL};

static const option_entry entries[] = {
    {"model", NULL, 'm', OPTION_FILE, OPTION_AT(demo_options, model), 0, 0, "FILE",
     "GGUF model; without one, the one that is shipped, which knows the question's form"},
    {"threads", NULL, 't', OPTION_INT, OPTION_AT(demo_options, n_threads), 0, 1024, "N",
     "threads; 0: all cores"},
    OPTION_HELP_ROW,
};

const option_table command_demo_options = {
    .command = "demo",
    .summary = "show the shipped model with exact and compressed caches side by side",
    .description = "Shows exact and compressed KV caches side by side.",
    .entries = entries,
    .n_entries = sizeof entries / sizeof *entries,
    .defaults = &defaults,
    .size = sizeof defaults,
};

int command_demo(int argc, char **argv)
{
    demo_options o;
    const option_result result = options_parse(&command_demo_options, argc, argv, &o);
    if (result != OPTIONS_OK) {
        return result == OPTIONS_HELP ? EXIT_OK : EXIT_USAGE;
    }
    return run_demo(o.model, o.n_threads);
}
