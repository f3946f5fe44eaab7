/* Generating text: prompt in, tokens out, with figures of what it took. */
#ifndef TKV_CLI_GENERATE_H
#define TKV_CLI_GENERATE_H

#include "cli/command.h"
#include "model/sampler.h"

typedef struct generation_params {
    const char *prompt;
    size_t prompt_length;
    bool is_chat;        /* the prompt is what a user says, in the model's form of a conversation */
    const char *system;  /* what the system says before; NULL: nothing */
    int n_predict;       /* -1: until the context is full or the text ends */
    int max_tokens;      /* context; 0: what the model was trained for */
    bool shifts_context; /* when it is full, drop the older half and go on */
    int n_keep;          /* first tokens that a shift never drops; -1: the policy's sinks */
    tkv_policy policy;
    tkv_sampler_params sampling;
    bool is_streamed;        /* print the text as it comes */
    bool has_progress;       /* show the prefill's progress on a terminal */
    bool catches_interrupts; /* from the prefill on: what was done until one comes is the result */
} generation_params;

typedef struct generation {
    tkv_tokens prompt_tokens;
    tkv_tokens tokens; /* generated; an end token is not among them */
    char *text;        /* their bytes */
    size_t text_length;
    int n_prefilled; /* of the prompt's tokens: fewer only after an interrupt */
    double prefill_seconds;
    double decode_seconds;
    int n_decoded; /* steps that decode_seconds took: the first token comes from the prefill */
    int n_cached;  /* tokens in the KV cache at the end */
    size_t kv_bytes;
    size_t kv_bytes_f16; /* of an f16 cache of the same tokens, counted alike */
    double bits_per_value;
    int n_shifts;
    int64_t n_weights; /* of attention, and skipped by sparse V */
    int64_t n_skipped;
    bool was_interrupted;
    bool is_output_lost; /* the text could not be printed: it ends there */
} generation;

/* Runs a generation; the caller frees the result with generation_free, also after an error. */
tkv_status generation_run(const loaded_model *loaded, const generation_params *params,
                          generation *result, tkv_error *error);
void generation_free(generation *result);

double generation_prefill_speed(const generation *g); /* tokens a second; 0 if none */
double generation_decode_speed(const generation *g);

#endif
