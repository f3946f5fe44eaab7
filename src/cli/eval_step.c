#include "cli/eval_step.h"

#include "common/error.h"

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

static tkv_status damaged(const char *name, const char *path, tkv_error *error)
{
    return tkv_fail(error, TKV_ERR_FORMAT, "%.200s: step '%.60s' is damaged; remove the file", path,
                    name);
}

/* Reads a number from `low` to `high`. */
static bool read_number(const cJSON *step, const char *name, double low, double high, double *value)
{
    const cJSON *item = cJSON_GetObjectItem(step, name);
    *value = cJSON_IsNumber(item) ? item->valuedouble : -1.0;
    return *value >= low && *value <= high;
}

/* Copies an array of divergences. */
static tkv_status read_divergences(const cJSON *array, const char *name, const char *path,
                                   tkv_divergence *divergence, tkv_error *error)
{
    const int n = cJSON_IsArray(array) ? cJSON_GetArraySize(array) : 0;
    if (n < 1) {
        return damaged(name, path, error);
    }
    divergence->kl = malloc((size_t)n * sizeof *divergence->kl);
    if (!divergence->kl) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d divergences", n);
    }
    divergence->capacity = (size_t)n;
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0.0)) {
            return damaged(name, path, error);
        }
        divergence->kl[divergence->n++] = item->valuedouble;
    }
    return TKV_OK;
}

tkv_status eval_chunk_from_json(const cJSON *step, const char *name, const char *path,
                                tkv_eval_text_result *result, tkv_error *error)
{
    tkv_divergence *d = &result->divergence;
    const tkv_status status =
        read_divergences(cJSON_GetObjectItem(step, "kl"), name, path, d, error);
    if (status != TKV_OK) {
        return status;
    }
    double same_top;
    double kv_bytes;
    double n_weights;
    double n_skipped;
    if (!read_number(step, "nll", 0.0, MAX_COUNT, &d->nll) ||
        !read_number(step, "nll_f16", 0.0, MAX_COUNT, &d->nll_reference) ||
        !read_number(step, "same_top", 0.0, (double)d->n, &same_top) ||
        !read_number(step, "kv_bytes", 1.0, MAX_COUNT, &kv_bytes) ||
        !read_number(step, "seconds", 0.0, MAX_COUNT, &result->seconds) ||
        !read_number(step, "weights", 0.0, MAX_COUNT, &n_weights) ||
        !read_number(step, "skipped", 0.0, n_weights, &n_skipped)) {
        return damaged(name, path, error);
    }
    d->n_same_top = (size_t)same_top;
    result->kv_bytes = (size_t)kv_bytes;
    result->n_weights = (int64_t)n_weights;
    result->n_skipped = (int64_t)n_skipped;
    return TKV_OK;
}

tkv_status eval_prompt_from_json(const cJSON *step, const char *name, const char *path, int n_facts,
                                 tkv_needles_result *result, tkv_error *error)
{
    const cJSON *found = cJSON_GetObjectItem(step, "found");
    double kv_bytes;
    double n_cached;
    if (!cJSON_IsArray(found) || cJSON_GetArraySize(found) != n_facts ||
        !read_number(step, "kv_bytes", 1.0, MAX_COUNT, &kv_bytes) ||
        !read_number(step, "cached", 1.0, INT32_MAX, &n_cached)) {
        return damaged(name, path, error);
    }
    for (int i = 0; i < n_facts; i++) {
        const cJSON *item = cJSON_GetArrayItem(found, i);
        if (!cJSON_IsBool(item)) {
            return damaged(name, path, error);
        }
        result->is_found[i] = cJSON_IsTrue(item);
    }
    result->kv_bytes = (size_t)kv_bytes;
    result->n_cached = (int)n_cached;
    return TKV_OK;
}
