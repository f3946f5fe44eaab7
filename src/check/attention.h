/* One question to a layer, and its answer by definition. */
#ifndef TKV_CHECK_ATTENTION_H
#define TKV_CHECK_ATTENTION_H

#include "check/trial.h"

/* What is asked of a case's sequences. */
typedef struct tkv_attention_case {
    tkv_layer_case data;
    int group;     /* query heads a KV head */
    int n_queries; /* the last tokens of each sequence, or from first_position on */
    int first_position;
    int max_tokens; /* 0: the longest sequence */
    int window;
    float scale;
    float logit_softcap;
    float sparse_v;
    bool has_sinks;
    bool has_stats;
    bool has_log_sums;
    int split; /* 0, or positions before it and from it on are attended to in two calls, and the
                  parts joined */
} tkv_attention_case;

/* Asks it of a layer that has been made of its data and filled. */
void tkv_check_attention(tkv_trial_layer *layer, const tkv_attention_case *attention);

#endif
