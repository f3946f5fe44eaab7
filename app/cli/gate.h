/* The three gates of `turbokv gate`: this machine, a llama.cpp tree, and MLX. */
#ifndef TKV_CLI_GATE_H
#define TKV_CLI_GATE_H

#include "cli/command.h"

/* Exit status of every gate; mistakes of use end with EXIT_GATE_ERROR, to be told from no-go. */
enum { EXIT_GATE_GO = 0, EXIT_GATE_FALLBACK = 1, EXIT_GATE_NO_GO = 2, EXIT_GATE_ERROR = 3 };

typedef struct gate_options {
    const char *llama_cpp; /* directory, or NULL */
    const char *ref;
    const char *python;
    int n_threads;
    bool is_mlx;
    bool is_cached;
    bool wants_json;
} gate_options;

int gate_machine(const gate_options *options);
int gate_llama_cpp(const gate_options *options);
int gate_mlx(const gate_options *options);

struct tkv_llama_tree;
cJSON *gate_llama_to_json(const gate_options *options, const struct tkv_llama_tree *tree);

#endif
