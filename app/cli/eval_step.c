#include "cli/eval_step.h"

#include "common/try.h"
#include "gate/json_number.h"

#include <float.h>
#include <stdlib.h>

#define MAX_COUNT 0x1p53 /* whole numbers up to it are exact in JSON */

cJSON *eval_chunk_to_json(const tkv_eval_text_result *result)
{
    const tkv_divergence *d = &result->divergence;
    cJSON *step = cJSON_CreateObject();
    cJSON_AddItemToObject(step, "kl", cJSON_CreateDoubleArray(d->kl, (int)d->n));
    cJSON_AddNumberToObject(step, "nll", d->nll);
    cJSON_AddNumberToObject(step, "nll_f16", d->nll_reference);
    cJSON_AddNumberToObject(step, "same_top", (double)d->n_same_top);
    cJSON_AddNumberToObject(step, "kv_bytes", (double)result->kv_bytes);
    cJSON_AddNumberToObject(step, "seconds", result->seconds);
    cJSON_AddNumberToObject(step, "weights", (double)result->n_weights);
    cJSON_AddNumberToObject(step, "skipped", (double)result->n_skipped);
    return step;
}

cJSON *eval_prompt_to_json(const tkv_needles_result *result, int n_facts)
{
    cJSON *step = cJSON_CreateObject();
    cJSON *found = cJSON_AddArrayToObject(step, "found");
    for (int i = 0; i < n_facts; i++) {
        cJSON_AddItemToArray(found, cJSON_CreateBool(result->is_found[i]));
    }
    cJSON_AddNumberToObject(step, "kv_bytes", (double)result->kv_bytes);
    cJSON_AddNumberToObject(step, "cached", result->n_cached);
    return step;
}

static tkv_status damaged(const char *name, const char *path, const char *reason, tkv_error *error)
{
    return tkv_fail(error, TKV_ERR_FORMAT,
                    "%.200s: step '%.60s' is damaged: %.160s; remove the file", path, name, reason);
}

/* Copies an array of divergences. */
static tkv_status read_divergences(const cJSON *array, const char *name, const char *path,
                                   tkv_divergence *divergence, tkv_error *error)
{
    const int n = cJSON_IsArray(array) ? cJSON_GetArraySize(array) : 0;
    if (n < 1) {
        return damaged(name, path, "'kl' is missing: expected an array of numbers", error);
    }
    divergence->kl = malloc((size_t)n * sizeof *divergence->kl);
    if (!divergence->kl) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d divergences", n);
    }
    divergence->capacity = (size_t)n;
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0.0 && item->valuedouble <= DBL_MAX)) {
            return damaged(name, path, "'kl': expected finite numbers of at least 0", error);
        }
        divergence->kl[divergence->n++] = item->valuedouble;
    }
    return TKV_OK;
}

/* Reads the numbers of a chunk; its divergences are there. */
static tkv_status read_chunk_numbers(const cJSON *step, tkv_eval_text_result *result,
                                     tkv_error *error)
{
    tkv_divergence *d = &result->divergence;
    double same_top = 0.0;
    double kv_bytes = 0.0;
    double n_weights = 0.0;
    double n_skipped = 0.0;
    const struct {
        const char *name;
        double low;
        double high;
        double *number;
    } fields[] = {{"nll", 0.0, MAX_COUNT, &d->nll},
                  {"nll_f16", 0.0, MAX_COUNT, &d->nll_reference},
                  {"same_top", 0.0, (double)d->n, &same_top},
                  {"kv_bytes", 1.0, MAX_COUNT, &kv_bytes},
                  {"seconds", 0.0, MAX_COUNT, &result->seconds},
                  {"weights", 0.0, MAX_COUNT, &n_weights}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        TKV_TRY(tkv_json_number(step, fields[i].name, fields[i].low, fields[i].high,
                                fields[i].number, error));
    }
    TKV_TRY(tkv_json_number(step, "skipped", 0.0, n_weights, &n_skipped, error));
    d->n_same_top = (size_t)same_top;
    result->kv_bytes = (size_t)kv_bytes;
    result->n_weights = (int64_t)n_weights;
    result->n_skipped = (int64_t)n_skipped;
    return TKV_OK;
}

tkv_status eval_chunk_from_json(const cJSON *step, const char *name, const char *path,
                                tkv_eval_text_result *result, tkv_error *error)
{
    tkv_error reason;
    tkv_status status =
        read_divergences(cJSON_GetObjectItem(step, "kl"), name, path, &result->divergence, error);
    if (status != TKV_OK) {
        return status;
    }
    status = read_chunk_numbers(step, result, &reason);
    return status == TKV_OK ? TKV_OK : damaged(name, path, reason.message, error);
}

tkv_status eval_prompt_from_json(const cJSON *step, const char *name, const char *path, int n_facts,
                                 tkv_needles_result *result, tkv_error *error)
{
    const cJSON *found = cJSON_GetObjectItem(step, "found");
    double kv_bytes = 0.0;
    tkv_error reason;
    if (!cJSON_IsArray(found) || cJSON_GetArraySize(found) != n_facts) {
        return damaged(name, path, "'found': expected a truth value for each fact", error);
    }
    if (tkv_json_number(step, "kv_bytes", 1.0, MAX_COUNT, &kv_bytes, &reason) != TKV_OK ||
        tkv_json_count(step, "cached", 1, INT32_MAX, &result->n_cached, &reason) != TKV_OK) {
        return damaged(name, path, reason.message, error);
    }
    for (int i = 0; i < n_facts; i++) {
        const cJSON *item = cJSON_GetArrayItem(found, i);
        if (!cJSON_IsBool(item)) {
            return damaged(name, path, "'found': expected truth values", error);
        }
        result->is_found[i] = cJSON_IsTrue(item);
    }
    result->kv_bytes = (size_t)kv_bytes;
    return TKV_OK;
}
