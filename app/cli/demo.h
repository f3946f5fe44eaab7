/* What the files of `turbokv demo` share: the text that a model reads with each cache, and what
 * came of it. */
#ifndef TKV_CLI_DEMO_H
#define TKV_CLI_DEMO_H

#include "cli/command.h"
#include "eval/divergence.h"

/* A text into which one line was put, a fact, and a question about that fact. */
typedef struct demo_prompt {
    tkv_tokens tokens;    /* all of it, in the model's chat form if it has one */
    bool is_chat;         /* else the answer is the line that follows */
    int n_before;         /* tokens of the text before the fact, */
    int n_after;          /* and behind it */
    const char *fact;     /* without line breaks */
    const char *question; /* likewise */
    const char *begun;    /* what the answer begins with, at the prompt's end */
    const char *answer;   /* the number that is right */
} demo_prompt;

/* As many whole paragraphs of the shipped text as fit n_text tokens, with the fact in them. The
 * caller frees it with demo_prompt_free, also after an error. A text that is shorter than n_text is
 * an error. */
tkv_status demo_prompt_create(const loaded_model *loaded, int n_text, demo_prompt *prompt,
                              tkv_error *error);
void demo_prompt_free(demo_prompt *prompt);

/* What one cache made of the prompt. */
typedef struct demo_result {
    const char *preset;
    size_t kv_bytes; /* of the whole prompt, before the answer */
    double bits_per_value;
    double read_seconds; /* of n_read tokens that came in batches */
    int n_read;
    double write_seconds; /* of n_written tokens that came one by one */
    int n_written;
    tkv_divergence divergence; /* from f16, at the scored positions */
    char *text;                /* the answer, behind what was begun */
    size_t text_length;
    bool is_right;
} demo_result;

#define DEMO_SETTINGS 4

/* Lets the model read the prompt and answer with f16 and three presets, f16 first: results
 * [DEMO_SETTINGS], zero-initialised, to be freed with demo_results_free, also after an error. */
tkv_status demo_measure(const loaded_model *loaded, const demo_prompt *prompt, demo_result *results,
                        tkv_error *error);
void demo_results_free(demo_result *results);

/* Whether the first number in a text is this one. */
bool demo_is_right(const char *text, const char *number);

void demo_print(const loaded_model *loaded, const demo_prompt *prompt, demo_result *results);
cJSON *demo_to_json(const loaded_model *loaded, const demo_prompt *prompt, demo_result *results);

#endif
