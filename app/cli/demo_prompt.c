/* The prompt of the demo: the beginning of the shipped text with a fact in it, and a question. */
#include "cli/demo.h"
#include "common/try.h"

#include "model/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_NAME "texts/alice.txt"
#define FACT "The secret number of the red castle is 48213."
#define QUESTION "What is the secret number of the red castle?"
#define ANSWER "48213"

/* A chat model's answer is begun for it: how it would begin by itself hangs on a hair, and says
 * nothing of the cache. */
#define BEGUN "The secret number of the red castle is"

/* The fact stands behind this share of the text. */
#define DEPTH 0.3

/* Where the text is cut. */
typedef struct passage {
    size_t fact_at; /* bytes before the fact, */
    size_t end;     /* and in all: both at the end of a paragraph */
    int n_before;   /* the same in tokens */
    int n_tokens;
} passage;

/* Bytes of the paragraph that begins at `at`, with the empty lines behind it. */
static size_t paragraph_length(const char *text, size_t length, size_t at)
{
    size_t end = at;
    while (end < length && strncmp(text + end, "\n\n", 2) != 0) {
        end++;
    }
    while (end < length && text[end] == '\n') {
        end++;
    }
    return end - at;
}

/* As many paragraphs as fit n_wanted tokens. */
static tkv_status cut_passage(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                              int n_wanted, passage *p, tkv_error *error)
{
    *p = (passage){0};
    tkv_tokens tokens = {0};
    tkv_status status = TKV_OK;
    while (p->end < length) {
        const size_t size = paragraph_length(text, length, p->end);
        status = tkv_tokenizer_encode(tokenizer, text + p->end, size, false, &tokens, error);
        if (status != TKV_OK || tokens.n > (size_t)n_wanted) {
            break;
        }
        p->end += size;
        p->n_tokens = (int)tokens.n;
        if (p->n_tokens <= DEPTH * n_wanted) {
            p->fact_at = p->end;
            p->n_before = p->n_tokens;
        }
    }
    const bool is_too_short = status == TKV_OK && tokens.n <= (size_t)n_wanted;
    tkv_tokens_free(&tokens);
    if (is_too_short) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%s has %d tokens for this model: expected a demo of fewer than %d",
                        TEXT_NAME, p->n_tokens, n_wanted);
    }
    return status;
}

/* The passage with the fact, and the question; the caller frees it. */
static char *write_prompt(const char *text, const passage *p, bool is_chat)
{
    static const char fact[] = "  " FACT "\n\n";
    const char *question = is_chat ? QUESTION : "Question: " QUESTION "\nAnswer: ";
    const size_t size = p->end + sizeof fact + strlen(question) + 1;
    char *prompt = malloc(size);
    if (prompt) {
        snprintf(prompt, size, "%.*s%s%.*s%s", (int)p->fact_at, text, fact,
                 (int)(p->end - p->fact_at), text + p->fact_at, question);
    }
    return prompt;
}

/* Tokens of the prompt, which is what a user says if the model has a chat form, before an answer
 * that is begun. */
static tkv_status encode(const loaded_model *loaded, const char *text, const tkv_chat_form *form,
                         tkv_tokens *tokens, tkv_error *error)
{
    size_t length = strlen(text);
    if (!form) {
        return tkv_prompt_encode(loaded->tokenizer, text, length, tokens, error);
    }
    char *chat = NULL;
    TKV_TRY(tkv_chat_write(*form, NULL, text, length, &chat, &length, error));
    const tkv_status status = tkv_prompt_encode(loaded->tokenizer, chat, length, tokens, error);
    free(chat);
    TKV_TRY(status);
    return tkv_tokenizer_encode(loaded->tokenizer, BEGUN, strlen(BEGUN), false, tokens, error);
}

/* The prompt from the whole text. */
static tkv_status fill_prompt(const loaded_model *loaded, const char *text, size_t length,
                              int n_text, const tkv_chat_form *form, demo_prompt *prompt,
                              tkv_error *error)
{
    passage p;
    TKV_TRY(cut_passage(loaded->tokenizer, text, length, n_text, &p, error));
    prompt->n_before = p.n_before;
    prompt->n_after = p.n_tokens - p.n_before;
    char *whole = write_prompt(text, &p, prompt->is_chat);
    if (!whole) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the prompt");
    }
    const tkv_status status = encode(loaded, whole, form, &prompt->tokens, error);
    free(whole);
    return status;
}

tkv_status demo_prompt_create(const loaded_model *loaded, int n_text, demo_prompt *prompt,
                              tkv_error *error)
{
    *prompt = (demo_prompt){.fact = FACT, .question = QUESTION, .answer = ANSWER};
    tkv_chat_form form;
    prompt->is_chat = tkv_chat_find(loaded->gguf, loaded->tokenizer, &form, NULL) == TKV_OK;
    prompt->begun = prompt->is_chat ? BEGUN : "";
    char *text = NULL;
    size_t length = 0;
    TKV_TRY(command_read_shipped(TEXT_NAME, &text, &length, error));
    const tkv_status status =
        fill_prompt(loaded, text, length, n_text, prompt->is_chat ? &form : NULL, prompt, error);
    free(text);
    return status;
}

void demo_prompt_free(demo_prompt *prompt)
{
    tkv_tokens_free(&prompt->tokens);
}
