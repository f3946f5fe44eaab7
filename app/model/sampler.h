/* Choosing the next token from logits. */
#ifndef TKV_MODEL_SAMPLER_H
#define TKV_MODEL_SAMPLER_H

#include "turbokv.h"

typedef struct tkv_sampler_params {
    float temperature; /* 0 or less: greedy */
    int top_k;         /* keep the k most likely tokens; 0 or less: all */
    float top_p;       /* keep the most likely tokens up to this probability; 1 or more: all */
    /* Drop tokens below this share of the most likely one's probability; 0 or less: none. */
    float min_p;
    uint64_t seed;
} tkv_sampler_params;

typedef struct tkv_sampler tkv_sampler;

/* For a vocabulary of n_tokens. The caller frees the sampler with tkv_sampler_free. */
tkv_status tkv_sampler_create(const tkv_sampler_params *params, int n_tokens, tkv_sampler **sampler,
                              tkv_error *error);
void tkv_sampler_free(tkv_sampler *sampler);

/* Draws from logits [n_tokens]: top-k, then top-p, then min-p, all on the probabilities at
 * temperature 1, then the draw at the temperature. Equal logits are ranked by token. The same seed
 * and logits give the same tokens everywhere. NaN or a lack of any finite logit is an error. */
tkv_status tkv_sampler_draw(tkv_sampler *sampler, const float *logits, int32_t *token,
                            tkv_error *error);

#endif
