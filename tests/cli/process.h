/* The command run as a process, as a user meets it: its outputs and exit status. */
#ifndef TKV_TESTS_CLI_PROCESS_H
#define TKV_TESTS_CLI_PROCESS_H

#include "support/support.h"

#include <cjson/cJSON.h>
#include <sys/types.h>

typedef struct outcome {
    int status; /* exit status, or 1000 + signal */
    char *out;
    char *err;
} outcome;

/* Starts the program with NULL-terminated arguments and both outputs in pipes. */
pid_t start(const char *const *arguments, int *out, int *err);

/* Reads to the end and closes the file; the caller frees the text. */
char *read_all(int file);

/* Exit status, or 1000 + signal. */
int wait_for(pid_t child);

#define run(...) run_with((const char *const[]){__VA_ARGS__, NULL})
outcome run_with(const char *const *arguments);

/* Runs a script of /bin/sh, in which $TURBOKV is the program. */
outcome run_script(const char *script);
void done(outcome *o);

/* The outputs hold these parts; frees the outcome. */
void assert_outcome(outcome o, int status, const char *out_part, const char *err_part);

/* Runs a command that must succeed and print JSON. */
cJSON *run_json(const char *const *arguments);
double number_of(const cJSON *json, const char *name);
const char *text_of(const cJSON *json, const char *name);

#endif
