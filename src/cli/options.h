/* Command line options from a table, with names as in llama.cpp (-ctk, --cache-type-k). */
#ifndef TKV_CLI_OPTIONS_H
#define TKV_CLI_OPTIONS_H

#include "turbokv.h"

typedef enum option_kind {
    OPTION_FLAG,        /* bool, set to true */
    OPTION_TEXT,        /* const char * */
    OPTION_INT,         /* int within [low, high] */
    OPTION_REAL,        /* float within [low, high] */
    OPTION_SEED,        /* uint64_t; "-1" draws one */
    OPTION_SIZE,        /* uint64_t of bytes, as 4096, 512M or 1.5G */
    OPTION_TYPE,        /* tkv_type by name */
    OPTION_POLICY,      /* tkv_policy, changed by "NAME VALUE" */
    OPTION_POLICY_FILE, /* tkv_policy, changed by a file */
    OPTION_EFFORT,      /* tkv_effort by name */
    OPTION_HELP         /* bool, set to true */
} option_kind;

typedef struct option_entry {
    const char *name;  /* long name without dashes */
    const char *alias; /* another long name, or NULL */
    char letter;       /* or 0 */
    option_kind kind;
    void *target;
    double low;
    double high;
    const char *argument; /* its name in the help; NULL for flags */
    const char *help;
} option_entry;

typedef enum option_result {
    OPTIONS_OK,
    OPTIONS_HELP, /* the help was asked for and printed */
    OPTIONS_WRONG /* a message and the valid options were printed */
} option_result;

/* Parses argv[1] .. argv[argc-1] of subcommand `command`; arguments that belong to no option are
 * wrong. Prints to stdout (help) or stderr (mistakes). */
option_result options_parse(const char *command, const char *summary, const option_entry *entries,
                            int n_entries, int argc, char **argv);

#endif
