/* State files of `turbokv eval`: refused with a message, or steps that are whole or damaged. */
#include "fuzz/fuzz.h"

#include "cli/eval_state.h"
#include "cli/eval_step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_FACTS 3

const int fuzz_runs = 1500;

/* What an evaluation is of. The model's file is only hashed: a short one. */
typedef struct fixture {
    loaded_model loaded;
    eval_plan plan;
    char model[64];
    int32_t tokens[4];
} fixture;

static void open_fixture(fixture *f)
{
    static const uint8_t no_model[24] = {'G', 'G', 'U', 'F', 3};
    tkv_error error;
    *f = (fixture){.tokens = {1, 2, 3, 4}};
    snprintf(f->model, sizeof f->model, "%s.gguf", fuzz_file());
    fuzz_write_file(f->model, no_model, sizeof no_model);
    if (tkv_gguf_open(f->model, &f->loaded.gguf, &error) != TKV_OK ||
        tkv_context_create(&(tkv_context_params){.n_threads = 1}, &f->loaded.context, &error) !=
            TKV_OK) {
        fuzz_fail("%s", error.message);
    }
    f->plan.mode = "prefill";
    f->plan.text.tokens = f->tokens;
    f->plan.text.n_tokens = 4;
    f->plan.text.n_context = 4;
    f->plan.n_facts = N_FACTS;
    f->plan.state_path = fuzz_file();
}

/* One for the whole run; its files go when the program ends. */
static fixture shared;

static void close_fixture(void)
{
    tkv_gguf_close(shared.loaded.gguf);
    tkv_context_free(shared.loaded.context);
    unlink(shared.model);
}

static const fixture *get_fixture(void)
{
    if (!shared.loaded.gguf) {
        open_fixture(&shared);
        atexit(close_fixture);
    }
    return &shared;
}

static cJSON *chunk_step(void)
{
    double kl[] = {0.25, 0.0, 1e-3, 7.0};
    const tkv_eval_text_result result = {.divergence = {.kl = kl, .n = 4, .n_same_top = 3},
                                         .kv_bytes = 1000,
                                         .seconds = 0.5,
                                         .n_weights = 100,
                                         .n_skipped = 10};
    return eval_chunk_to_json(&result);
}

size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    tkv_error error;
    eval_state state;
    const tkv_needles_result found = {{true, false, true}, 1000, 60, 0.5};
    if (index > 0) {
        return 0;
    }
    const fixture *f = get_fixture();
    unlink(fuzz_file());
    if (eval_state_open(&f->loaded, &f->plan, &state, &error) != TKV_OK ||
        eval_state_add(&state, "text|k=turbo4 v=turbo4|0", chunk_step(), &error) != TKV_OK ||
        eval_state_add(&state, "needles|f16|64|0", eval_prompt_to_json(&found, N_FACTS), &error) !=
            TKV_OK) {
        fuzz_fail("%s", error.message);
    }
    eval_state_free(&state);
    return fuzz_read_file(fuzz_file(), data);
}

/* Reads one step as both kinds. */
static void read_step(const cJSON *step)
{
    tkv_error error;
    tkv_eval_text_result chunk = {0};
    tkv_needles_result prompt = {0};
    tkv_status status = eval_chunk_from_json(step, step->string, "file", &chunk, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        const tkv_divergence_summary s = tkv_divergence_summarise(&chunk.divergence);
        if (!(s.mean_kl >= 0.0) || !(s.same_top >= 0.0 && s.same_top <= 1.0)) {
            fuzz_fail("a mean of %g, an agreement of %g", s.mean_kl, s.same_top);
        }
    }
    tkv_divergence_free(&chunk.divergence);
    status = eval_prompt_from_json(step, step->string, "file", N_FACTS, &prompt, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK && prompt.n_cached < 1) {
        fuzz_fail("%d tokens", prompt.n_cached);
    }
}

static void read_steps(const cJSON *steps)
{
    const cJSON *step;
    cJSON_ArrayForEach(step, steps)
    {
        read_step(step);
    }
}

static void read_as_file(const uint8_t *data, size_t size)
{
    const fixture *f = get_fixture();
    tkv_error error;
    eval_state state;
    fuzz_write_file(fuzz_file(), data, size);
    const tkv_status status = eval_state_open(&f->loaded, &f->plan, &state, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        read_steps(state.steps);
        if (eval_state_add(&state, "text|new|0", chunk_step(), &error) != TKV_OK ||
            !eval_state_find(&state, "text|new|0")) {
            fuzz_fail("a step is not kept");
        }
    }
    eval_state_free(&state);
}

/* Writing the file and hashing the model take far longer than reading steps: one input of 32. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size % 32 == 0) {
        read_as_file(data, size);
        return 0;
    }
    cJSON *json = cJSON_ParseWithLength((const char *)data, size);
    const cJSON *steps = cJSON_GetObjectItem(json, "steps");
    if (cJSON_IsObject(steps)) {
        read_steps(steps);
    }
    cJSON_Delete(json);
    return 0;
}
