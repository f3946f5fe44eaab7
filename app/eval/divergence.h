/* How far one distribution over the next token is from another. */
#ifndef TKV_EVAL_DIVERGENCE_H
#define TKV_EVAL_DIVERGENCE_H

#include "turbokv.h"

/* What was measured at the scored positions of a text. */
typedef struct tkv_divergence {
    double *kl; /* [n] Kullback-Leibler divergences from the reference, nats */
    size_t n;
    size_t capacity;
    double nll;           /* sum of -ln p(actual token), of the model under test */
    double nll_reference; /* likewise of the reference */
    size_t n_same_top;    /* positions where both find the same token most likely */
} tkv_divergence;

void tkv_divergence_free(tkv_divergence *divergence);

/* Adds one position: logits of the reference and of the model under test [n_vocabulary], and the
 * token that followed. Fails on NaN and when memory runs out; nothing is added then. */
tkv_status tkv_divergence_add(tkv_divergence *divergence, const float *reference,
                              const float *tested, int n_vocabulary, int32_t next_token,
                              tkv_error *error);

/* Adds all positions of `other`. On error nothing is added. */
tkv_status tkv_divergence_append(tkv_divergence *divergence, const tkv_divergence *other,
                                 tkv_error *error);

typedef struct tkv_divergence_summary {
    size_t n;
    double mean_kl;
    double median_kl;
    double kl_999; /* 99.9 % of positions are below */
    double max_kl;
    double same_top; /* share of positions */
    double perplexity;
    double perplexity_reference;
} tkv_divergence_summary;

/* Sorts the divergences. All zero if nothing was added. */
tkv_divergence_summary tkv_divergence_summarise(tkv_divergence *divergence);

#endif
