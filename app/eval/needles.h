/* Needle test: facts are hidden at several depths of a long text, and each is asked for at the end
 * (Kamradt, "Needle in a haystack", 2023; several facts at once as in RULER, arXiv 2404.06654). */
#ifndef TKV_EVAL_NEEDLES_H
#define TKV_EVAL_NEEDLES_H

#include "model/model.h"
#include "model/tokenizer.h"

#define TKV_NEEDLES_MAX_FACTS 32

typedef struct tkv_needles_params {
    const int32_t *filler; /* [n_filler] tokens of the text between the facts */
    size_t n_filler;
    int length;    /* tokens of the prompt, facts and question included */
    int n_facts;   /* at depths from the beginning to the end, evenly; each is asked */
    int n_batch;   /* 0: the default */
    uint64_t seed; /* chooses the facts and where in the text the filler begins */
} tkv_needles_params;

typedef struct tkv_needles_result {
    bool is_found[TKV_NEEDLES_MAX_FACTS]; /* [n_facts] the right digits, and no more */
    size_t kv_bytes;                      /* after the first answer */
    int n_cached;                         /* tokens that these bytes hold */
    double seconds;
} tkv_needles_result;

/* Share of the text before fact `index` of n_facts. */
double tkv_needles_depth(int n_facts, int index);

/* Whether such a prompt can be made, with a session of the policy for it; what follows then takes
 * long. Errors say what was expected. */
tkv_status tkv_needles_check(const tkv_model *model, const tkv_tokenizer *tokenizer,
                             tkv_context *context, const tkv_needles_params *params,
                             const tkv_policy *policy, tkv_error *error);

/* One prompt with one policy: it passes the model once, then every question is asked on a fork and
 * answered greedily. Prompts depend on params only, so policies compare on equal ones. A prompt too
 * short for its facts and a filler that is too short are errors that say what was expected. */
tkv_status tkv_needles_ask(const tkv_model *model, const tkv_tokenizer *tokenizer,
                           tkv_context *context, const tkv_needles_params *params,
                           const tkv_policy *policy, tkv_needles_result *result, tkv_error *error);

#endif
