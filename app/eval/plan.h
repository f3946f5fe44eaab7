/* What a context costs: bytes of the KV cache from a model's geometry, and the longest context that
 * a machine's memory holds. */
#ifndef TKV_EVAL_PLAN_H
#define TKV_EVAL_PLAN_H

#include "model/geometry.h"

/* Contexts beyond it are not looked at. */
#define TKV_PLAN_MAX_TOKENS (1 << 24)
#define TKV_PLAN_MAX_SEQUENCES 4096

typedef struct tkv_plan_params {
    const tkv_geometry *geometry;
    bool keeps_all;        /* tokens behind a sliding window are kept */
    int n_sequences;       /* each with a context of its own; 0: one */
    uint64_t memory_bytes; /* for weights, workspace, recurrent states and KV caches together */
    uint64_t weight_bytes;
    uint64_t workspace_bytes;
} tkv_plan_params;

/* Bytes that running a model takes beside weights and cache: the buffers of a batch and one row of
 * logits. 0 if the geometry does not say. */
uint64_t tkv_plan_workspace_bytes(const tkv_geometry *geometry, int n_batch);

/* Bytes that a cache holds beside its figure while a batch is read that makes its tokens n_tokens:
 * with a recent window the batch is exact. It is one sequence's. */
tkv_status tkv_plan_batch_bytes(const tkv_plan_params *params, const tkv_policy *policy,
                                int n_tokens, int n_batch, uint64_t *bytes, tkv_error *error);

/* Bytes of the recurrent states of all sequences. They do not grow with the context, and no figure
 * of the cache holds them. */
uint64_t tkv_plan_state_bytes(const tkv_plan_params *params);

/* Memory that is left for the caches; 0 if the rest does not fit. */
uint64_t tkv_plan_kv_budget(const tkv_plan_params *params);

/* Bytes of the caches of all sequences, each of n_tokens: [n_contexts] for contexts [n_contexts], a
 * curve to plot. What layers keep beside keys and values and grows with the context is counted in
 * the type of the layer's keys. Layers that a policy numbers are those that keep keys. */
tkv_status tkv_plan_series(const tkv_plan_params *params, const tkv_policy *policy, int n_contexts,
                           const int *contexts, uint64_t *bytes, tkv_error *error);

/* KV values that the model makes of n_tokens in each sequence: what bits a value are counted by. */
uint64_t tkv_plan_values(const tkv_plan_params *params, int n_tokens);

/* The longest context that fits; 0 if none does. */
tkv_status tkv_plan_longest(const tkv_plan_params *params, const tkv_policy *policy, int *n_tokens,
                            tkv_error *error);

typedef struct tkv_plan_choice {
    const char *preset; /* NULL: not one token fits */
    int n_tokens;       /* the context to run with, at most what was wanted */
    uint64_t kv_bytes;  /* of it */
} tkv_plan_choice;

/* The finest preset with which the wanted context fits; if there is none, the one that comes
 * nearest. */
tkv_status tkv_plan_choose(const tkv_plan_params *params, int wanted_tokens,
                           tkv_plan_choice *choice, tkv_error *error);

/* Bytes of memory that a process started now can take without swapping: what the machine has to
 * spare, or less where a control group on the way up to the root has less to its limit; 0 if
 * unknown. */
uint64_t tkv_machine_memory(void);

/* The same of a machine whose /proc and /sys (as Linux has them) lie under `root`. */
uint64_t tkv_available_memory(const char *root);

#endif
