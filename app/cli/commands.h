/* The commands' entry points and option tables. Entry points get the words from the command's own
 * name on and return an exit code. */
#ifndef TKV_CLI_COMMANDS_H
#define TKV_CLI_COMMANDS_H

#include "cli/options.h"

int command_run(int argc, char **argv);
int command_demo(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_gate(int argc, char **argv);
int command_plan(int argc, char **argv);
int command_types(int argc, char **argv);
int bench_attention(int argc, char **argv);
int bench_codec(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_model(int argc, char **argv);

extern const option_table command_run_options;
extern const option_table command_demo_options;
extern const option_table command_eval_options;
extern const option_table command_gate_options;
extern const option_table command_plan_options;
extern const option_table command_types_options;
extern const option_table bench_attention_options;
extern const option_table bench_codec_options;
extern const option_table bench_kernels_options;
extern const option_table bench_model_options;

/* What 'turbokv NAME' does, or which members it has, as 'turbokv bench' has. */
typedef struct command {
    const char *name;
    const char *noun;            /* what its members are called */
    const char *summary;         /* of one with members; others have their table's */
    const option_table *options; /* NULL with members */
    int (*run)(int argc, char **argv);
    const struct command *members; /* [n_members] */
    int n_members;
} command;

/* All commands, as the members of one without a name. */
const command *command_root(void);

/* The line that tells what a command does. */
const char *command_summary(const command *c);

/* The member of that name, or NULL. */
const command *command_find(const command *parent, const char *name);

/* Prints the members of a command. */
void command_print_members(FILE *file, const command *c);

/* All tables as JSON, for who makes man pages and completions of them: {"program", "version",
 * "commands": [{"name", "summary", "options": as options_to_json, "commands": members}]}. */
cJSON *command_dump(void);

#endif
