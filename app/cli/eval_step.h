/* Steps of an evaluation as JSON, for the state file. What is read there may have been damaged:
 * `name` and `path`, of the step and its file, are for the message. */
#ifndef TKV_CLI_EVAL_STEP_H
#define TKV_CLI_EVAL_STEP_H

#include "eval/needles.h"
#include "eval/text.h"

#include <cjson/cJSON.h>

/* NULL if memory ran out. */
cJSON *eval_chunk_to_json(const tkv_eval_text_result *result);
cJSON *eval_prompt_to_json(const tkv_needles_result *result, int n_facts);

/* `result` is zero-initialised; the caller frees result->divergence, also after an error. */
tkv_status eval_chunk_from_json(const cJSON *step, const char *name, const char *path,
                                tkv_eval_text_result *result, tkv_error *error);

tkv_status eval_prompt_from_json(const cJSON *step, const char *name, const char *path, int n_facts,
                                 tkv_needles_result *result, tkv_error *error);

#endif
