#include "model/toy_vocabulary.h"

#include <stdlib.h>

void toy_vocabulary_init(toy_vocabulary *vocabulary)
{
    *vocabulary = (toy_vocabulary){.n_tokens = 0};
    int shifted = 0x100;
    for (int byte = 0; byte < TOY_BYTES; byte++) {
        const bool is_printable =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        const int character = is_printable ? byte : shifted++;
        char *name = vocabulary->characters[byte];
        if (character < 0x80) {
            name[0] = (char)character;
        } else {
            name[0] = (char)(0xc0 | character >> 6);
            name[1] = (char)(0x80 | (character & 0x3f));
        }
        toy_vocabulary_add(vocabulary, name, 1);
    }
}

int32_t toy_vocabulary_add(toy_vocabulary *vocabulary, const char *name, int32_t kind)
{
    if (vocabulary->n_tokens == TOY_MAX_TOKENS) {
        abort();
    }
    vocabulary->tokens[vocabulary->n_tokens] = name;
    vocabulary->kinds[vocabulary->n_tokens] = kind;
    return vocabulary->n_tokens++;
}

void toy_vocabulary_set(const toy_vocabulary *vocabulary, toy_model *model)
{
    const toy_metadata metadata[] = {
        {.key = "tokenizer.ggml.model", .kind = TOY_TEXT, .text = "gpt2"},
        {.key = "tokenizer.ggml.pre", .kind = TOY_TEXT, .text = "qwen2"},
        {.key = "tokenizer.ggml.tokens",
         .kind = TOY_TEXTS,
         .texts = vocabulary->tokens,
         .n_items = vocabulary->n_tokens},
        {.key = "tokenizer.ggml.token_type",
         .kind = TOY_LIST,
         .list = vocabulary->kinds,
         .n_items = vocabulary->n_tokens},
        {.key = "tokenizer.ggml.merges", .kind = TOY_TEXTS}};
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++) {
        toy_model_set(model, &metadata[i]);
    }
}
