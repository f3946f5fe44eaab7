/* A byte-level vocabulary for toy models: a token for each byte, then named ones. */
#ifndef TESTS_MODEL_TOY_VOCABULARY_H
#define TESTS_MODEL_TOY_VOCABULARY_H

#include "model/toy_model.h"

enum { TOY_BYTES = 256, TOY_MAX_TOKENS = 320 };

typedef struct toy_vocabulary {
    char characters[TOY_BYTES][3]; /* GPT-2's names of the bytes */
    const char *tokens[TOY_MAX_TOKENS];
    int32_t kinds[TOY_MAX_TOKENS];
    int n_tokens;
} toy_vocabulary;

void toy_vocabulary_init(toy_vocabulary *vocabulary);

/* Adds a token whose name lives on; returns its id. The program ends if there are too many. */
int32_t toy_vocabulary_add(toy_vocabulary *vocabulary, const char *name, int32_t kind);

/* Puts it into the model's metadata, which point to it: tokens, types and no merges, for the
 * "qwen2" pre-tokenizer. */
void toy_vocabulary_set(const toy_vocabulary *vocabulary, toy_model *model);

#endif
