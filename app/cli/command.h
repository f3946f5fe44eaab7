/* What the subcommands share: exit codes, messages, loading a model. */
#ifndef TKV_CLI_COMMAND_H
#define TKV_CLI_COMMAND_H

#include "model/model.h"
#include "model/tokenizer.h"
#include "turbokv.h"

#include <cjson/cJSON.h>

enum { EXIT_OK = 0, EXIT_RUNTIME = 1, EXIT_USAGE = 2 };

/* What a KV policy is before options name types: f16; types that are coded then are relative to
 * their means. */
#define COMMAND_POLICY                                                                             \
    {                                                                                              \
        .centre_tokens = 64                                                                        \
    }

/* Prints "turbokv: MESSAGE" to stderr; returns the exit code of a failure, or of an interrupt if
 * the error is that. */
int command_fail(const tkv_error *error);

/* Prints a JSON value and a newline to stdout, and deletes it; returns an exit code. Whether it
 * could be written, command_end finds. */
int command_print_json(cJSON *json);

/* Writes out what was printed so far. False: that failed, there is no use in going on, and
 * command_end will say why. */
bool command_flush_output(void);

/* To be called once, at the very end: `code`, or EXIT_RUNTIME and a message if the output could not
 * be written. If its reader has gone, the process ends as others do then, by SIGPIPE. */
int command_end(int code);

/* Adds a text of which some bytes may be no UTF-8; these become U+FFFD. */
void command_add_text(cJSON *object, const char *name, const char *text, size_t length);

/* A model with everything that it needs to run. */
typedef struct loaded_model {
    tkv_gguf *gguf;
    tkv_model *model;
    tkv_tokenizer *tokenizer;
    tkv_context *context;
} loaded_model;

/* Loads a file, or the model that is shipped with TurboKV if path is NULL, and opens its context
 * (cli/open_context.h). The caller frees it with loaded_model_free, also after an error. */
tkv_status loaded_model_open(loaded_model *loaded, const char *path,
                             const tkv_context_params *params, bool ignores_gate, tkv_error *error);
void loaded_model_free(loaded_model *loaded);

/* How a command goes that runs a model: what it measures, and what it shows of it. */
typedef struct model_command {
    tkv_status (*measure)(loaded_model *loaded, void *user, tkv_error *error);
    int (*show)(const loaded_model *loaded, void *user); /* returns an exit code */
    bool blames_options; /* TKV_ERR_INVALID_ARGUMENT is wrong usage */
} model_command;

/* Opens the model, as loaded_model_open, measures, shows or prints the error, and frees the model;
 * returns an exit code. */
int command_with_model(const char *path, const tkv_context_params *params, bool ignores_gate,
                       const model_command *command, void *user);

/* Warns on stderr if the model is to see more tokens than it was trained for. */
void command_warn_of_context(const loaded_model *loaded, int n_tokens);

/* Reads a whole file, "-" for standard input, into a NUL-terminated buffer that the caller frees. A
 * file with NUL bytes is no text, and an error. */
tkv_status command_read_text(const char *path, char **text, size_t *length, tkv_error *error);

/* The same of a file that is shipped with TurboKV, "texts/alice.txt". */
tkv_status command_read_shipped(const char *name, char **text, size_t *length, tkv_error *error);

/* Applies a policy file to *policy; on error it is as it was. */
tkv_status command_read_policy(const char *path, tkv_policy *policy, tkv_error *error);

/* From then on the first Ctrl-C or SIGTERM is noted, for the command to end cleanly; the second one
 * of its kind ends the process. */
void command_catch_interrupt(void);
bool command_is_interrupted(void);

/* The exit code after an interrupt: 130 or, after SIGTERM, 143. */
int command_interrupted_code(void);

/* For tkv_context_params.is_stopped: whether the command is interrupted. */
bool command_stops(void *user);

#endif
