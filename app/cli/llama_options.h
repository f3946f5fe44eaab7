/* Options of llama.cpp that turbokv has not. Who is used to them is told what to do instead, or
 * that they are not needed. */
#ifndef TKV_CLI_LLAMA_OPTIONS_H
#define TKV_CLI_LLAMA_OPTIONS_H

#include <stdbool.h>

typedef enum llama_argument {
    LLAMA_NO_VALUE,
    LLAMA_VALUE,
    LLAMA_SWITCH, /* on, off or auto may follow */
    LLAMA_TWO_VALUES
} llama_argument;

typedef struct llama_option {
    const char *names; /* with their dashes, separated by blanks; "x*": all that begin with x */
    llama_argument argument;
    const char *harmless; /* "*": always; else the values, separated by blanks, that change nothing
                             here; NULL: none */
    const char *reason;   /* what to do instead, or why it is not needed */
} llama_option;

/* The option of a word "--name", "--name=value" or "-name"; NULL if llama.cpp has none such. */
const llama_option *llama_option_find(const char *word);

/* How many words after this one are its values; `next` is the first of them, or NULL. */
int llama_option_takes(const llama_option *option, const char *word, const char *next);

/* Whether what it asks for is so anyway. */
bool llama_option_is_harmless(const llama_option *option, const char *value);

#endif
