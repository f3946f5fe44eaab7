#include "model/sampler.h"

#include "common/random.h"
#include "common/try.h"

#include <math.h>
#include <stdlib.h>

typedef struct choice {
    float logit;
    int32_t token;
    double weight;
} choice;

struct tkv_sampler {
    tkv_sampler_params params;
    int n_tokens;
    uint64_t state;
    choice *choices; /* [n_tokens] */
};

static tkv_status check_params(const tkv_sampler_params *params, int n_tokens, tkv_error *error)
{
    if (!isfinite(params->temperature)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "temperature %g: expected a finite number",
                        (double)params->temperature);
    }
    if (!isfinite(params->top_p) || !isfinite(params->min_p) || params->min_p > 1.0f) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "top-p %g, min-p %g: expected finite numbers, and min-p up to 1",
                        (double)params->top_p, (double)params->min_p);
    }
    if (n_tokens < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "a vocabulary of %d tokens", n_tokens);
    }
    return TKV_OK;
}

tkv_status tkv_sampler_create(const tkv_sampler_params *params, int n_tokens, tkv_sampler **sampler,
                              tkv_error *error)
{
    TKV_TRY(check_params(params, n_tokens, error));
    tkv_sampler *created = malloc(sizeof *created);
    choice *choices = malloc((size_t)n_tokens * sizeof *choices);
    if (!created || !choices) {
        free(created);
        free(choices);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to sample from %d tokens",
                        n_tokens);
    }
    *created = (tkv_sampler){*params, n_tokens, params->seed, choices};
    *sampler = created;
    return TKV_OK;
}

void tkv_sampler_free(tkv_sampler *sampler)
{
    if (sampler) {
        free(sampler->choices);
        free(sampler);
    }
}

static int compare_choices(const void *a, const void *b)
{
    const choice *x = a;
    const choice *y = b;
    if (x->logit != y->logit) {
        return x->logit < y->logit ? 1 : -1;
    }
    return (x->token > y->token) - (x->token < y->token);
}

static void swap_choices(choice *a, choice *b)
{
    const choice c = *a;
    *a = *b;
    *b = c;
}

/* Brings the k first choices in rank to the front (Hoare's quickselect), so that a large vocabulary
 * need not be sorted. */
static void select_first(choice *choices, int n, int k)
{
    int low = 0;
    int high = n - 1;
    while (low < high) {
        swap_choices(&choices[low + (high - low) / 2], &choices[high]);
        int store = low;
        for (int i = low; i < high; i++) {
            if (compare_choices(&choices[i], &choices[high]) < 0) {
                swap_choices(&choices[i], &choices[store++]);
            }
        }
        swap_choices(&choices[store], &choices[high]);
        if (store == k || store == k - 1) {
            return;
        }
        if (store < k) {
            low = store + 1;
        } else {
            high = store - 1;
        }
    }
}

static tkv_status fill_choices(tkv_sampler *sampler, const float *logits, tkv_error *error)
{
    bool has_finite = false;
    for (int i = 0; i < sampler->n_tokens; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY) {
            return tkv_fail(error, TKV_ERR_NOT_FINITE, "logit of token %d is %g", i,
                            (double)logits[i]);
        }
        has_finite = has_finite || isfinite(logits[i]);
        sampler->choices[i] = (choice){logits[i], i, 0.0};
    }
    return has_finite ? TKV_OK : tkv_fail(error, TKV_ERR_NOT_FINITE, "no logit is finite");
}

static int32_t most_likely(const tkv_sampler *sampler)
{
    const choice *best = &sampler->choices[0];
    for (int i = 1; i < sampler->n_tokens; i++) {
        if (sampler->choices[i].logit > best->logit) {
            best = &sampler->choices[i];
        }
    }
    return best->token;
}

/* How many of n ranked choices top-p and min-p keep; at least one. */
static int count_kept(const tkv_sampler_params *params, choice *choices, int n)
{
    double total = 0.0;
    for (int i = 0; i < n; i++) {
        choices[i].weight = exp((double)choices[i].logit - (double)choices[0].logit);
        total += choices[i].weight;
    }
    int kept = n;
    if (params->top_p < 1.0f) {
        double sum = 0.0;
        kept = 0;
        while (kept < n && (kept == 0 || sum < (double)params->top_p * total)) {
            sum += choices[kept++].weight;
        }
    }
    while (kept > 1 && choices[kept - 1].weight < (double)params->min_p) {
        kept--;
    }
    return kept;
}

tkv_status tkv_sampler_draw(tkv_sampler *sampler, const float *logits, int32_t *token,
                            tkv_error *error)
{
    const tkv_sampler_params *params = &sampler->params;
    choice *choices = sampler->choices;
    TKV_TRY(fill_choices(sampler, logits, error));
    if (params->temperature <= 0.0f) {
        *token = most_likely(sampler);
        return TKV_OK;
    }
    int n = sampler->n_tokens;
    if (params->top_k > 0 && params->top_k < n) {
        select_first(choices, n, params->top_k);
        n = params->top_k;
    }
    qsort(choices, (size_t)n, sizeof *choices, compare_choices);
    n = count_kept(params, choices, n);
    double total = 0.0;
    for (int i = 0; i < n; i++) {
        choices[i].weight = exp(((double)choices[i].logit - (double)choices[0].logit) /
                                (double)params->temperature);
        total += choices[i].weight;
    }
    double left = tkv_draw_uniform(&sampler->state) * total;
    int drawn = 0;
    while (drawn < n - 1 && left >= choices[drawn].weight) {
        left -= choices[drawn++].weight;
    }
    *token = choices[drawn].token;
    return TKV_OK;
}
