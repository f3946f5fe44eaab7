/* The steps of an evaluation: one chunk of the text, or one needle prompt, with one policy. Each is
 * taken from the state file or measured and put there. */
#include "cli/eval_state.h"
#include "cli/eval_step.h"
#include "cli/progress.h"
#include "common/try.h"
#include "eval/footprint.h"
#include "eval/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEP_NAME (EVAL_POLICY_TEXT + 64)
#define NEEDLE_SEED 20261124u

/* Logits of the f16 model may take one part in so many of the machine's memory. */
#define REFERENCE_SHARE 4

static const tkv_policy exact_policy = {.type_k = TKV_TYPE_F16, .type_v = TKV_TYPE_F16};

typedef struct measurement {
    const loaded_model *loaded;
    const eval_plan *plan;
    eval_results *results;
    eval_state state;
    progress bar;
    double work_done; /* in tokens through the model */
    double work_total;
    double step_work; /* of the step under way */
} measurement;

static bool show_progress(void *user, int64_t n_done, int64_t n_total)
{
    measurement *m = user;
    progress_update(&m->bar, m->work_done + m->step_work * (double)n_done / (double)n_total,
                    m->work_total);
    return !command_is_interrupted();
}

static double bits_per_value(const measurement *m, size_t kv_bytes, int n_tokens)
{
    return tkv_kv_bits(m->loaded->model, kv_bytes, n_tokens);
}

/* ---- Divergence on text -------------------------------------------------------------------- */

static void name_chunk(const measurement *m, int policy, int chunk, char name[STEP_NAME])
{
    snprintf(name, STEP_NAME, "text|%s|%d", m->plan->policies.text[policy], chunk);
}

static tkv_status merge_chunk(measurement *m, int policy, const tkv_eval_text_result *chunk,
                              tkv_error *error)
{
    tkv_eval_text_result *total = &m->results->text[policy];
    const tkv_status status = tkv_divergence_append(&total->divergence, &chunk->divergence, error);
    total->kv_bytes = chunk->kv_bytes;
    total->seconds += chunk->seconds;
    total->n_weights += chunk->n_weights;
    total->n_skipped += chunk->n_skipped;
    m->results->text_bits[policy] = bits_per_value(m, chunk->kv_bytes, m->plan->text.n_context);
    return status;
}

/* Merges the saved steps of a chunk and lists the policies that lack it. */
static tkv_status load_chunk(measurement *m, int chunk, int missing[EVAL_MAX_POLICIES],
                             int *n_missing, tkv_error *error)
{
    tkv_status status = TKV_OK;
    *n_missing = 0;
    for (int i = 0; i < m->plan->policies.n && status == TKV_OK; i++) {
        char name[STEP_NAME];
        name_chunk(m, i, chunk, name);
        const cJSON *step = eval_state_find(&m->state, name);
        if (!step) {
            missing[(*n_missing)++] = i;
            continue;
        }
        tkv_eval_text_result result = {0};
        status = eval_chunk_from_json(step, name, m->plan->state_path, &result, error);
        if (status == TKV_OK) {
            status = merge_chunk(m, i, &result, error);
            m->results->n_resumed++;
        }
        tkv_divergence_free(&result.divergence);
    }
    return status;
}

/* A chunk under way with the policies that lack it. */
typedef struct chunk_work {
    measurement *m;
    int chunk;
    int n_missing;
    int missing[EVAL_MAX_POLICIES];
    tkv_eval_text_result results[EVAL_MAX_POLICIES]; /* [n_missing] */
} chunk_work;

/* A policy has passed the chunk: that is kept at once. */
static tkv_status keep_policy(void *user, int i, tkv_error *error)
{
    chunk_work *work = user;
    char name[STEP_NAME];
    name_chunk(work->m, work->missing[i], work->chunk, name);
    TKV_TRY(merge_chunk(work->m, work->missing[i], &work->results[i], error));
    return eval_state_add(&work->m->state, name, eval_chunk_to_json(&work->results[i]), error);
}

static tkv_status measure_missing(chunk_work *work, tkv_error *error)
{
    measurement *m = work->m;
    tkv_policy policies[EVAL_MAX_POLICIES];
    for (int i = 0; i < work->n_missing; i++) {
        policies[i] = m->plan->policies.policy[work->missing[i]];
    }
    tkv_eval_text_params params = m->plan->text;
    const size_t offset = (size_t)work->chunk * (size_t)params.n_context;
    params.tokens += offset;
    params.n_tokens -= offset;
    params.n_chunks = 1;
    params.policies = policies;
    params.n_policies = work->n_missing;
    params.max_reference_bytes = (size_t)(tkv_machine_memory() / REFERENCE_SHARE);
    params.measured = keep_policy;
    params.measured_user = work;
    params.progress = show_progress;
    params.progress_user = m;
    m->step_work = (double)(work->n_missing + 1) * params.n_context;
    const tkv_status status =
        tkv_eval_text(m->loaded->model, m->loaded->context, &params, work->results, error);
    m->work_done += m->step_work;
    m->results->was_interrupted = command_is_interrupted();
    return status;
}

static tkv_status measure_chunk(measurement *m, int chunk, tkv_error *error)
{
    chunk_work *work = calloc(1, sizeof *work);
    if (!work) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for chunk %d", chunk + 1);
    }
    work->m = m;
    work->chunk = chunk;
    tkv_status status = load_chunk(m, chunk, work->missing, &work->n_missing, error);
    if (status == TKV_OK && work->n_missing > 0) {
        status = measure_missing(work, error);
    }
    for (int i = 0; i < work->n_missing; i++) {
        tkv_divergence_free(&work->results[i].divergence);
    }
    if (status == TKV_OK && work->n_missing > 0 && !m->results->was_interrupted) {
        char label[64];
        snprintf(label, sizeof label, "chunk %d of %d", chunk + 1, m->plan->text.n_chunks);
        progress_line(&m->bar, label, m->work_done, m->work_total);
    }
    free(work);
    return status;
}

/* ---- Needles ------------------------------------------------------------------------------- */

/* Policy -1 is f16. */
static void name_prompt(const measurement *m, int policy, int length, int prompt,
                        char name[STEP_NAME])
{
    snprintf(name, STEP_NAME, "needles|%s|%d|%d",
             policy < 0 ? "f16" : m->plan->policies.text[policy], length, prompt);
}

static void count_prompt(measurement *m, int policy, int length_index,
                         const tkv_needles_result *result)
{
    needle_counts *counts = policy < 0 ? &m->results->needles_f16 : &m->results->needles[policy];
    for (int i = 0; i < m->plan->n_facts; i++) {
        counts->n_found[length_index][i] += result->is_found[i];
    }
    counts->bits_per_value[length_index] = bits_per_value(m, result->kv_bytes, result->n_cached);
}

/* Policy -1 is f16. */
static const tkv_policy *policy_at(const measurement *m, int policy)
{
    return policy < 0 ? &exact_policy : &m->plan->policies.policy[policy];
}

static tkv_needles_params needle_params(const measurement *m, int length_index, int prompt)
{
    return (tkv_needles_params){.filler = m->plan->text.tokens,
                                .n_filler = m->plan->text.n_tokens,
                                .length = m->plan->lengths[length_index],
                                .n_facts = m->plan->n_facts,
                                .n_batch = m->plan->text.n_batch,
                                .seed = NEEDLE_SEED + (uint64_t)prompt};
}

/* Lengths and policies that do not go together are found before anything is measured. */
static tkv_status check_needles(const measurement *m, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int i = 0; m->plan->has_needles && i < m->plan->n_lengths; i++) {
        const tkv_needles_params params = needle_params(m, i, 0);
        for (int policy = -1; policy < m->plan->policies.n && status == TKV_OK; policy++) {
            status = tkv_needles_check(m->loaded->model, m->loaded->tokenizer, m->loaded->context,
                                       &params, policy_at(m, policy), error);
        }
    }
    return status;
}

static tkv_status measure_prompt(measurement *m, int policy, int length_index, int prompt,
                                 tkv_error *error)
{
    const int length = m->plan->lengths[length_index];
    char name[STEP_NAME];
    tkv_needles_result result = {0};
    name_prompt(m, policy, length, prompt, name);
    const cJSON *step = eval_state_find(&m->state, name);
    if (step) {
        TKV_TRY(eval_prompt_from_json(step, name, m->plan->state_path, m->plan->n_facts, &result,
                                      error));
        m->results->n_resumed++;
    } else {
        const tkv_needles_params params = needle_params(m, length_index, prompt);
        m->step_work = length;
        TKV_TRY(tkv_needles_ask(m->loaded->model, m->loaded->tokenizer, m->loaded->context, &params,
                                policy_at(m, policy), &result, error));
        m->work_done += length;
        TKV_TRY(
            eval_state_add(&m->state, name, eval_prompt_to_json(&result, m->plan->n_facts), error));
    }
    count_prompt(m, policy, length_index, &result);
    m->results->was_interrupted = !show_progress(m, 0, 1);
    return TKV_OK;
}

/* One prompt with f16 and with every policy. */
static tkv_status measure_policies(measurement *m, int length_index, int prompt, tkv_error *error)
{
    const eval_plan *plan = m->plan;
    const double work_before = m->work_done;
    for (int policy = -1; policy < plan->policies.n && !m->results->was_interrupted; policy++) {
        TKV_TRY(measure_prompt(m, policy, length_index, prompt, error));
    }
    if (!m->results->was_interrupted && m->work_done > work_before) {
        char label[64];
        snprintf(label, sizeof label, "needles in %d tokens, prompt %d of %d",
                 plan->lengths[length_index], prompt + 1, plan->n_prompts);
        progress_line(&m->bar, label, m->work_done, m->work_total);
    }
    return TKV_OK;
}

static tkv_status measure_needles(measurement *m, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int length = 0; length < m->plan->n_lengths; length++) {
        for (int prompt = 0; prompt < m->plan->n_prompts; prompt++) {
            if (status == TKV_OK && !m->results->was_interrupted) {
                status = measure_policies(m, length, prompt, error);
            }
        }
    }
    return status;
}

/* ---- All of it ----------------------------------------------------------------------------- */

/* Tokens that steps not in the state file will pass through the model. */
static double count_work(const measurement *m)
{
    const eval_plan *plan = m->plan;
    char name[STEP_NAME];
    double work = 0.0;
    for (int chunk = 0; chunk < plan->text.n_chunks; chunk++) {
        int n_missing = 0;
        for (int i = 0; i < plan->policies.n; i++) {
            name_chunk(m, i, chunk, name);
            n_missing += !eval_state_find(&m->state, name);
        }
        work += n_missing ? (double)(n_missing + 1) * plan->text.n_context : 0.0;
    }
    for (int i = 0; plan->has_needles && i < plan->n_lengths; i++) {
        for (int unit = 0; unit < plan->n_prompts * (plan->policies.n + 1); unit++) {
            const int policy = unit % (plan->policies.n + 1) - 1;
            name_prompt(m, policy, plan->lengths[i], unit / (plan->policies.n + 1), name);
            work += eval_state_find(&m->state, name) ? 0.0 : plan->lengths[i];
        }
    }
    return work;
}

static tkv_status measure_all(measurement *m, tkv_error *error)
{
    const eval_results *results = m->results;
    for (int i = 0; i < m->plan->text.n_chunks && !results->was_interrupted; i++) {
        TKV_TRY(measure_chunk(m, i, error));
    }
    return m->plan->has_needles && !results->was_interrupted ? measure_needles(m, error) : TKV_OK;
}

tkv_status eval_measure(const loaded_model *loaded, eval_plan *plan, eval_results *results,
                        tkv_error *error)
{
    measurement m = {.loaded = loaded, .plan = plan, .results = results};
    TKV_TRY(check_needles(&m, error));
    tkv_status status = eval_state_open(loaded, plan, &m.state, error);
    if (status == TKV_OK) {
        m.work_total = count_work(&m);
        progress_begin(&m.bar, "eval");
        status = measure_all(&m, error);
        progress_end(&m.bar);
    }
    eval_state_free(&m.state);
    return status;
}

void eval_results_free(eval_results *results)
{
    for (int i = 0; i < EVAL_MAX_POLICIES; i++) {
        tkv_divergence_free(&results->text[i].divergence);
    }
}

double eval_recall(const eval_plan *plan, const needle_counts *counts, int length)
{
    const int first = length < 0 ? 0 : length;
    const int end = length < 0 ? plan->n_lengths : length + 1;
    int n_found = 0;
    for (int i = first; i < end; i++) {
        for (int k = 0; k < plan->n_facts; k++) {
            n_found += counts->n_found[i][k];
        }
    }
    return (double)n_found / ((double)(end - first) * plan->n_facts * plan->n_prompts);
}
