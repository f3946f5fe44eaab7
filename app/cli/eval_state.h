/* What an evaluation has measured so far, in a JSON file: a description of what was evaluated, and
 * steps by name. The file is replaced as a whole, so that it is never half written. */
#ifndef TKV_CLI_EVAL_STATE_H
#define TKV_CLI_EVAL_STATE_H

#include "cli/eval.h"
#include "cli/file_lock.h"

typedef struct eval_state {
    char *path; /* NULL: nothing is kept */
    file_lock lock;
    cJSON *json;
    cJSON *steps;
} eval_state;

/* Opens the plan's state file or begins a new one. A file of another model, text or setting is an
 * error that names what differs; so is one that is no such file, or that another process uses. The
 * caller frees it with eval_state_free, also after an error. */
tkv_status eval_state_open(const loaded_model *loaded, const eval_plan *plan, eval_state *state,
                           tkv_error *error);
void eval_state_free(eval_state *state);

/* A step, or NULL. */
const cJSON *eval_state_find(const eval_state *state, const char *name);

/* Takes over `step` and writes the file. */
tkv_status eval_state_add(eval_state *state, const char *name, cJSON *step, tkv_error *error);

#endif
