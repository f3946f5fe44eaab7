/* From a text to the tokens that a model reads: the one place that puts the begin token in front,
 * and the forms of a conversation. */
#ifndef TKV_MODEL_PROMPT_H
#define TKV_MODEL_PROMPT_H

#include "model/tokenizer.h"

/* Appends the begin token where the model wants one. All that a model reads from position 0 starts
 * here: a prompt, a chunk of a text, the tokens of a benchmark. */
tkv_status tkv_prompt_begin(const tkv_tokenizer *tokenizer, tkv_tokens *tokens, tkv_error *error);

/* Appends a whole prompt: tkv_prompt_begin and the text, in which the names of special tokens stand
 * for these tokens. On error *tokens is as it was. */
tkv_status tkv_prompt_encode(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                             tkv_tokens *tokens, tkv_error *error);

/* Whether a prompt begins with two begin tokens, since its text had one. Both stay, as in
 * llama.cpp: the caller warns. */
bool tkv_prompt_begins_twice(const tkv_tokenizer *tokenizer, const tkv_tokens *tokens);

/* How a model that was trained on conversations wants them written. */
typedef enum tkv_chat_form {
    TKV_CHAT_CHATML, /* <|im_start|>user ... <|im_end|> */
    TKV_CHAT_GEMMA   /* <start_of_turn>user ... <end_of_turn> */
} tkv_chat_form;

/* Recognises the form by the file's chat template, or without one by the special tokens that the
 * tokenizer has. TKV_ERR_UNSUPPORTED with what was looked for if it is neither. */
tkv_status tkv_chat_find(const tkv_gguf *gguf, const tkv_tokenizer *tokenizer, tkv_chat_form *form,
                         tkv_error *error);

/* Writes `length` bytes of what a user says as a conversation of one turn that the model is to
 * answer, after what the system says (NULL: nothing). The caller frees *chat, of *chat_length
 * bytes. */
tkv_status tkv_chat_write(tkv_chat_form form, const char *system, const char *text, size_t length,
                          char **chat, size_t *chat_length, tkv_error *error);

#endif
