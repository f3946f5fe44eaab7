/* Command line options: one table a command, from which it is parsed and its help, its man page and
 * its completions are made. Names are those of llama.cpp where it has such an option (-ctk,
 * --cache-type-k). */
#ifndef TKV_CLI_OPTIONS_H
#define TKV_CLI_OPTIONS_H

#include "turbokv.h"

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdio.h>

typedef enum option_kind {
    OPTION_FLAG,        /* bool, set to true */
    OPTION_TEXT,        /* const char * */
    OPTION_FILE,        /* const char *, a path */
    OPTION_DIRECTORY,   /* const char *, a path */
    OPTION_CHOICE,      /* const char *, one of the words that `argument` lists as "a|b|c" */
    OPTION_INT,         /* int within [low, high] */
    OPTION_REAL,        /* float within [low, high] */
    OPTION_SEED,        /* uint64_t */
    OPTION_SIZE,        /* uint64_t of bytes, as 4096, 512M or 1.5G; 0: not given */
    OPTION_TYPE,        /* tkv_type by name */
    OPTION_POLICY,      /* tkv_policy, changed by "NAME VALUE" */
    OPTION_POLICY_LIST, /* likewise, each time by one more */
    OPTION_PRESET,      /* tkv_policy, the preset of that name in its place */
    OPTION_POLICY_FILE, /* tkv_policy, what a file says in its place */
    OPTION_EFFORT,      /* tkv_effort by name */
    OPTION_HELP         /* prints the help; has no value */
} option_kind;

typedef struct option_entry {
    const char *name;    /* long name without dashes */
    const char *aliases; /* other names with their dashes, separated by blanks; or NULL */
    char letter;         /* or 0 */
    option_kind kind;
    size_t offset; /* of the value in the command's options: OPTION_AT */
    double low;
    double high;
    const char *argument; /* its name in the help; NULL for flags */
    const char *help;     /* without the default, which is added */
} option_entry;

/* The most rows that a table may have. */
enum { OPTION_MAX_ENTRIES = 64 };

#define OPTION_AT(options, member) offsetof(options, member)

/* The last row of every table. */
#define OPTION_HELP_ROW                                                                            \
    {                                                                                              \
        "help", NULL, 'h', OPTION_HELP, 0, 0, 0, NULL, "print this help"                           \
    }

typedef struct option_table {
    const char *command;     /* as it is called: "run", "bench model" */
    const char *summary;     /* a line for the list of commands */
    const char *description; /* what the help begins with */
    const option_entry *entries;
    int n_entries;
    const void *defaults; /* the command's options before parsing, of `size` bytes */
    size_t size;
    const char *operand; /* name of the option that an argument without a name sets; or NULL */
    const char *hint;    /* what to do instead of giving an argument without a name; or NULL */
} option_table;

typedef enum option_result {
    OPTIONS_OK,
    OPTIONS_HELP, /* the help was asked for and printed */
    OPTIONS_WRONG /* a message was printed */
} option_result;

/* Sets `options`, of table->size bytes, to the defaults, then to what argv[1] .. argv[argc-1] say.
 * Names count only in full. A value is given once, but to OPTION_POLICY_LIST, and none to a policy
 * that a later option replaces. Prints to stdout (help) or one message to stderr (mistakes). */
option_result options_parse(const option_table *table, int argc, char **argv, void *options);

/* The same for a command that goes on only with right options. False: it ends, with *code. */
bool options_take(const option_table *table, int argc, char **argv, void *options, int *code);

void options_print_help(FILE *file, const option_table *table);

/* The long names, some to a line. */
void options_print_names(FILE *file, const option_table *table);

/* The table with types, ranges, defaults and valid words, for who makes man pages and completions
 * of it ('turbokv help --dump'). */
cJSON *options_to_json(const option_table *table);

/* An option's default as one would give it; false if there is none to be told. */
bool option_default(const option_table *table, const option_entry *entry, char *text, size_t size);

/* The option of that name, with its dashes; NULL if there is none. */
const option_entry *option_find(const option_table *table, const char *name);

/* The i-th word of those that an option takes; false if there are fewer, or any text is taken. */
bool option_word(const option_entry *entry, int i, char word[32]);

/* What the words of OPTION_EFFORT stand for, in their order. */
extern const tkv_effort option_efforts[TKV_EFFORT_COUNT];

#endif
