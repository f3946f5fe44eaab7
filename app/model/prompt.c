#include "model/prompt.h"

#include "common/try.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define TEMPLATE_KEY "tokenizer.chat_template"

tkv_status tkv_prompt_begin(const tkv_tokenizer *tokenizer, tkv_tokens *tokens, tkv_error *error)
{
    const int32_t begin = tkv_tokenizer_begin(tokenizer);
    return begin < 0 ? TKV_OK : tkv_tokens_push(tokens, begin, error);
}

tkv_status tkv_prompt_encode(const tkv_tokenizer *tokenizer, const char *text, size_t length,
                             tkv_tokens *tokens, tkv_error *error)
{
    const size_t before = tokens->n;
    tkv_status status = tkv_prompt_begin(tokenizer, tokens, error);
    if (status == TKV_OK) {
        status = tkv_tokenizer_encode(tokenizer, text, length, true, tokens, error);
    }
    if (status != TKV_OK) {
        tokens->n = before;
    }
    return status;
}

bool tkv_prompt_begins_twice(const tkv_tokenizer *tokenizer, const tkv_tokens *tokens)
{
    const int32_t begin = tkv_tokenizer_begin(tokenizer);
    return begin >= 0 && tokens->n >= 2 && tokens->ids[0] == begin && tokens->ids[1] == begin;
}

/* What a form writes around what the system and the user say. */
typedef struct chat_syntax {
    const char *start;   /* of a turn: a special token */
    const char *end;     /* likewise */
    const char *foreign; /* in templates of another form that begins turns alike; or NULL */
    const char *before_system;
    const char *system_to_user;
    const char *before_user; /* if there is no system */
    const char *after_user;
    bool is_trimmed; /* blanks around what is said are dropped */
} chat_syntax;

static const chat_syntax forms[] = {
    [TKV_CHAT_CHATML] = {.start = "<|im_start|>",
                         .end = "<|im_end|>",
                         .foreign = "<|im_sep|>",
                         .before_system = "<|im_start|>system\n",
                         .system_to_user = "<|im_end|>\n<|im_start|>user\n",
                         .before_user = "<|im_start|>user\n",
                         .after_user = "<|im_end|>\n<|im_start|>assistant\n"},
    /* Gemma has no turn of a system: it comes first in the user's. */
    [TKV_CHAT_GEMMA] = {.start = "<start_of_turn>",
                        .end = "<end_of_turn>",
                        .before_system = "<start_of_turn>user\n",
                        .system_to_user = "\n\n",
                        .before_user = "<start_of_turn>user\n",
                        .after_user = "<end_of_turn>\n<start_of_turn>model\n",
                        .is_trimmed = true}};

enum { N_FORMS = sizeof forms / sizeof *forms };

static bool contains(tkv_gguf_text text, const char *part)
{
    const size_t size = strlen(part);
    for (size_t at = 0; at + size <= text.length; at++) {
        if (memcmp(text.data + at, part, size) == 0) {
            return true;
        }
    }
    return false;
}

tkv_status tkv_chat_find(const tkv_gguf *gguf, const tkv_tokenizer *tokenizer, tkv_chat_form *form,
                         tkv_error *error)
{
    tkv_gguf_text template = {"", 0};
    TKV_TRY(tkv_gguf_get_text(gguf, TEMPLATE_KEY, false, &template, error));
    for (int i = 0; i < N_FORMS; i++) {
        const chat_syntax *f = &forms[i];
        const bool is_foreign = f->foreign && contains(template, f->foreign);
        const bool is_template = template.length == 0 || contains(template, f->start);
        if (is_template && !is_foreign && tkv_tokenizer_find_special(tokenizer, f->start) >= 0 &&
            tkv_tokenizer_find_special(tokenizer, f->end) >= 0) {
            *form = (tkv_chat_form)i;
            return TKV_OK;
        }
    }
    return tkv_fail(
        error, TKV_ERR_UNSUPPORTED,
        "%.120s: no chat form is known for this model: expected the tokens <|im_start|> "
        "and <|im_end|> (ChatML) or <start_of_turn> and <end_of_turn> (Gemma)%s",
        tkv_gguf_path(gguf),
        template.length ? ", and the first of them in " TEMPLATE_KEY
                        : ", since " TEMPLATE_KEY " is missing");
}

static void trim(tkv_gguf_text *text)
{
    while (text->length && isspace((unsigned char)text->data[0])) {
        text->data++;
        text->length--;
    }
    while (text->length && isspace((unsigned char)text->data[text->length - 1])) {
        text->length--;
    }
}

tkv_status tkv_chat_write(tkv_chat_form form, const char *system, const char *text, size_t length,
                          char **chat, size_t *chat_length, tkv_error *error)
{
    const chat_syntax *f = &forms[form];
    tkv_gguf_text says[] = {{system ? system : "", system ? strlen(system) : 0}, {text, length}};
    if (f->is_trimmed) {
        trim(&says[0]);
        trim(&says[1]);
    }
    const bool has_system = says[0].length > 0;
    const char *before = has_system ? f->before_system : "";
    const char *between = has_system ? f->system_to_user : f->before_user;
    const tkv_gguf_text parts[] = {{before, strlen(before)},
                                   says[0],
                                   {between, strlen(between)},
                                   says[1],
                                   {f->after_user, strlen(f->after_user)}};
    size_t total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        total += parts[i].length;
    }
    char *written = malloc(total + 1);
    if (!written) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a prompt of %zu bytes", total);
    }
    size_t at = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        memcpy(written + at, parts[i].data, parts[i].length);
        at += parts[i].length;
    }
    written[at] = '\0';
    *chat = written;
    *chat_length = at;
    return TKV_OK;
}
