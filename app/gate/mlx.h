/* The pre-flight check of the fallback: whether the Python of this machine has an MLX that a bridge
 * of ours could use. */
#ifndef TKV_GATE_MLX_H
#define TKV_GATE_MLX_H

#include "turbokv.h"

#define TKV_MLX_MAX_STEPS 24

typedef enum tkv_mlx_verdict {
    TKV_MLX_READY = 0,   /* everything is there and right */
    TKV_MLX_PARTLY = 1,  /* right, but without Metal or mlx-lm: fit for tests only */
    TKV_MLX_UNUSABLE = 2 /* no Python, no MLX, calls missing or answers wrong */
} tkv_mlx_verdict;

typedef struct tkv_mlx_step {
    char name[64];
    bool has_passed;
    char detail[304];
} tkv_mlx_step;

typedef struct tkv_mlx_gate {
    char python[256]; /* as it was called */
    int n_steps;
    tkv_mlx_step steps[TKV_MLX_MAX_STEPS];
    tkv_mlx_verdict verdict;
    char reason[304];
} tkv_mlx_gate;

/* "ready", "partly", "unusable". Static storage. */
const char *tkv_mlx_verdict_name(tkv_mlx_verdict verdict);

/* Runs the check with a Python: a path, or a name that is looked up in PATH. Whatever that program
 * does, within timeout_seconds, is a result; an error is what keeps this process from trying. */
tkv_status tkv_mlx_gate_run(const char *python, int timeout_seconds, tkv_mlx_gate *gate,
                            tkv_error *error);

/* The library's answers, as JSON, that the check compares with; the caller frees the text. */
tkv_status tkv_mlx_known_answers(char **json, tkv_error *error);

/* Runs a program with arguments (argv[0] is looked up in PATH), `input` on its standard input; out
 * [size] and err [size] receive the beginnings of its outputs. *status is that of waitpid, *is_late
 * whether it was ended for the time it took. SIGPIPE must be ignored: the program may not read.
 * TKV_ERR_IO if it cannot be started. */
tkv_status tkv_run_program(const char *const *argv, const char *input, int timeout_seconds,
                           char *out, char *err, size_t size, int *status, bool *is_late,
                           tkv_error *error);

#endif
