#include "eval/divergence.h"

#include "common/try.h"

#include <math.h>
#include <stdlib.h>

void tkv_divergence_free(tkv_divergence *divergence)
{
    free(divergence->kl);
    *divergence = (tkv_divergence){0};
}

/* The logarithm of the softmax's sum, and the most likely token. */
static double log_sum(const float *logits, int n, int *top)
{
    *top = 0;
    for (int i = 1; i < n; i++) {
        *top = logits[i] > logits[*top] ? i : *top;
    }
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += exp((double)logits[i] - (double)logits[*top]);
    }
    return (double)logits[*top] + log(sum);
}

/* Makes room for n more positions. */
static tkv_status reserve(tkv_divergence *divergence, size_t n, tkv_error *error)
{
    if (divergence->n + n <= divergence->capacity) {
        return TKV_OK;
    }
    const size_t capacity = 2 * divergence->capacity + n + 1024;
    double *kl = realloc(divergence->kl, capacity * sizeof *kl);
    if (!kl) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu divergences", capacity);
    }
    divergence->kl = kl;
    divergence->capacity = capacity;
    return TKV_OK;
}

tkv_status tkv_divergence_add(tkv_divergence *divergence, const float *reference,
                              const float *tested, int n_vocabulary, int32_t next_token,
                              tkv_error *error)
{
    int top_reference;
    int top_tested;
    const double log_reference = log_sum(reference, n_vocabulary, &top_reference);
    const double log_tested = log_sum(tested, n_vocabulary, &top_tested);
    double kl = 0.0;
    for (int i = 0; i < n_vocabulary; i++) {
        const double p = (double)reference[i] - log_reference;
        const double q = (double)tested[i] - log_tested;
        kl += p > -700.0 ? exp(p) * (p - q) : 0.0;
    }
    if (!isfinite(kl)) {
        return tkv_fail(error, TKV_ERR_NOT_FINITE,
                        "the divergence at scored position %zu is %g: a logit is not finite",
                        divergence->n, kl);
    }
    TKV_TRY(reserve(divergence, 1, error));
    /* Rounding can leave equal distributions a hair below zero. */
    divergence->kl[divergence->n++] = kl > 0.0 ? kl : 0.0;
    divergence->nll += log_tested - (double)tested[next_token];
    divergence->nll_reference += log_reference - (double)reference[next_token];
    divergence->n_same_top += top_reference == top_tested;
    return TKV_OK;
}

tkv_status tkv_divergence_append(tkv_divergence *divergence, const tkv_divergence *other,
                                 tkv_error *error)
{
    TKV_TRY(reserve(divergence, other->n, error));
    for (size_t i = 0; i < other->n; i++) {
        divergence->kl[divergence->n++] = other->kl[i];
    }
    divergence->nll += other->nll;
    divergence->nll_reference += other->nll_reference;
    divergence->n_same_top += other->n_same_top;
    return TKV_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

tkv_divergence_summary tkv_divergence_summarise(tkv_divergence *divergence)
{
    const size_t n = divergence->n;
    tkv_divergence_summary summary = {.n = n};
    if (n == 0) {
        return summary;
    }
    qsort(divergence->kl, n, sizeof *divergence->kl, compare_doubles);
    for (size_t i = 0; i < n; i++) {
        summary.mean_kl += divergence->kl[i] / (double)n;
    }
    summary.median_kl = divergence->kl[n / 2];
    summary.kl_999 = divergence->kl[(size_t)(0.999 * (double)(n - 1))];
    summary.max_kl = divergence->kl[n - 1];
    summary.same_top = (double)divergence->n_same_top / (double)n;
    summary.perplexity = exp(divergence->nll / (double)n);
    summary.perplexity_reference = exp(divergence->nll_reference / (double)n);
    return summary;
}
