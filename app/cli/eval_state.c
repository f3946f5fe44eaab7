#include "cli/eval_state.h"

#include "common/try.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define STATE_VERSION 2
#define CHUNK_BYTES (1 << 20)

static tkv_status hash_file(const char *path, uint64_t *hash, tkv_error *error)
{
    FILE *file = fopen(path, "rb");
    XXH3_state_t *hasher = XXH3_createState();
    char *buffer = malloc(CHUNK_BYTES);
    tkv_status status = TKV_OK;
    if (!hasher || !buffer) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to hash %s", path);
    } else if (!file) {
        status = tkv_fail(error, TKV_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    } else {
        XXH3_64bits_reset(hasher);
        for (size_t n; (n = fread(buffer, 1, CHUNK_BYTES, file)) > 0;) {
            XXH3_64bits_update(hasher, buffer, n);
        }
        *hash = XXH3_64bits_digest(hasher);
        if (ferror(file)) {
            status = tkv_fail(error, TKV_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        }
    }
    if (file) {
        fclose(file);
    }
    XXH3_freeState(hasher);
    free(buffer);
    return status;
}

static void add_hash(cJSON *json, const char *name, uint64_t hash)
{
    char text[20];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    cJSON_AddStringToObject(json, name, text);
}

/* All that the value of a step depends on beside its name. */
static tkv_status describe(const loaded_model *loaded, const eval_plan *plan, cJSON **json,
                           tkv_error *error)
{
    uint64_t model_hash = 0;
    TKV_TRY(hash_file(tkv_gguf_path(loaded->gguf), &model_hash, error));
    *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(*json, "state_version", STATE_VERSION);
    cJSON_AddStringToObject(*json, "turbokv", tkv_version());
    add_hash(*json, "model_hash", model_hash);
    add_hash(*json, "tokens_hash",
             XXH3_64bits(plan->text.tokens, plan->text.n_tokens * sizeof *plan->text.tokens));
    cJSON_AddStringToObject(*json, "kernels", tkv_context_kernels(loaded->context));
    cJSON_AddNumberToObject(*json, "context", plan->text.n_context);
    cJSON_AddStringToObject(*json, "mode", plan->mode);
    cJSON_AddNumberToObject(*json, "batch", plan->text.n_batch);
    cJSON_AddNumberToObject(*json, "effort", plan->effort);
    cJSON_AddNumberToObject(*json, "facts", plan->n_facts);
    return TKV_OK;
}

/* Reads a file that may not be there. */
static tkv_status read_state(const char *path, cJSON **json, tkv_error *error)
{
    char *text = NULL;
    size_t length = 0;
    struct stat file = {0};
    if (stat(path, &file) != 0 && errno == ENOENT) {
        return TKV_OK;
    }
    if (S_ISCHR(file.st_mode)) { /* such as /dev/full, which has no end */
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%s is a device: expected a file that steps can be kept in", path);
    }
    TKV_TRY(command_read_text(path, &text, &length, error));
    *json = cJSON_Parse(text);
    const char *found = *json ? "other JSON" : "something else";
    free(text);
    if (!*json || !cJSON_IsObject(cJSON_GetObjectItem(*json, "evaluation")) ||
        !cJSON_IsObject(cJSON_GetObjectItem(*json, "steps"))) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "%s is no saved evaluation: expected a JSON object with 'evaluation' and "
                        "'steps', found %s; name another file or remove it",
                        path, length == 0 ? "an empty file" : found);
    }
    return TKV_OK;
}

static tkv_status compare(const char *path, const cJSON *saved, const cJSON *now, tkv_error *error)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, now)
    {
        const cJSON *other = cJSON_GetObjectItem(saved, item->string);
        if (!cJSON_Compare(item, other, true)) {
            char *expected = cJSON_PrintUnformatted(item);
            char *found = other ? cJSON_PrintUnformatted(other) : NULL;
            tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                     "%s is of another evaluation: its %s is %.40s, expected %.40s; name another "
                     "file or remove it",
                     path, item->string, found ? found : "missing", expected ? expected : "?");
            free(expected);
            free(found);
            return TKV_ERR_INVALID_ARGUMENT;
        }
    }
    return TKV_OK;
}

/* Writes beside the file and then takes its place: who looks finds the old or the new one, however
 * this process ends. */
static tkv_status replace_file(const char *path, const char *text, tkv_error *error)
{
    const size_t size = strlen(path) + sizeof ".new";
    char *beside = malloc(size);
    if (!beside) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to save the evaluation");
    }
    snprintf(beside, size, "%s.new", path);
    FILE *file = fopen(beside, "wb");
    bool is_written = file && fputs(text, file) >= 0 && fflush(file) == 0;
    is_written = is_written && fsync(fileno(file)) == 0;
    is_written = file && fclose(file) == 0 && is_written;
    tkv_status status = TKV_OK;
    if (!is_written || rename(beside, path) != 0) {
        status = tkv_fail(error, TKV_ERR_IO, "cannot write %s: %s", path, strerror(errno));
        unlink(beside);
    }
    free(beside);
    return status;
}

static tkv_status write_state(const eval_state *state, tkv_error *error)
{
    char *text = cJSON_PrintUnformatted(state->json);
    const tkv_status status =
        text ? replace_file(state->path, text, error)
             : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to save the evaluation");
    free(text);
    return status;
}

/* Locks the file that the path leads to, through links, for all that follows. */
static tkv_status lock_state(eval_state *state, const char *path, tkv_error *error)
{
    state->path = realpath(path, NULL);
    if (!state->path) {
        state->path = strdup(path);
    }
    return state->path ? file_lock_take(&state->lock, state->path, error)
                       : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to lock %s", path);
}

/* Takes what the file holds, or begins with what is now evaluated. */
static tkv_status fill_state(eval_state *state, cJSON **now, tkv_error *error)
{
    TKV_TRY(read_state(state->path, &state->json, error));
    if (state->json) {
        TKV_TRY(compare(state->path, cJSON_GetObjectItem(state->json, "evaluation"), *now, error));
    } else {
        state->json = cJSON_CreateObject();
        cJSON_AddItemToObject(state->json, "evaluation", *now);
        cJSON_AddObjectToObject(state->json, "steps");
        *now = NULL;
    }
    state->steps = cJSON_GetObjectItem(state->json, "steps");
    return state->steps
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the saved evaluation");
}

tkv_status eval_state_open(const loaded_model *loaded, const eval_plan *plan, eval_state *state,
                           tkv_error *error)
{
    cJSON *now = NULL;
    *state = (eval_state){.path = NULL};
    if (!plan->state_path) {
        return TKV_OK;
    }
    TKV_TRY(lock_state(state, plan->state_path, error));
    TKV_TRY(describe(loaded, plan, &now, error));
    const tkv_status status = fill_state(state, &now, error);
    cJSON_Delete(now);
    TKV_TRY(status);
    /* At once, so that a place where nothing can be written is found before anything is measured.
     */
    return write_state(state, error);
}

void eval_state_free(eval_state *state)
{
    file_lock_release(&state->lock);
    free(state->path);
    cJSON_Delete(state->json);
    *state = (eval_state){0};
}

const cJSON *eval_state_find(const eval_state *state, const char *name)
{
    return state->steps ? cJSON_GetObjectItemCaseSensitive(state->steps, name) : NULL;
}

tkv_status eval_state_add(eval_state *state, const char *name, cJSON *step, tkv_error *error)
{
    if (!state->path) {
        cJSON_Delete(step);
        return TKV_OK;
    }
    if (!step || !cJSON_AddItemToObject(state->steps, name, step)) {
        cJSON_Delete(step);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to save the evaluation");
    }
    return write_state(state, error);
}
