/* The forward pass of a decoder model: tokens to logits, keys and values to the cache. */
#ifndef TKV_MODEL_TRANSFORMER_H
#define TKV_MODEL_TRANSFORMER_H

#include "model/model.h"
#include "turbokv.h"

/* The buffers that a batch needs: one allocation, whose size depends on n_batch only. And the
 * context whose threads work on it, which it does not own. */
typedef struct tkv_workspace tkv_workspace;
struct tkv_exchange;

tkv_status tkv_workspace_create(const tkv_model *model, int n_batch, const tkv_context *context,
                                tkv_workspace **workspace, tkv_error *error);
void tkv_workspace_free(tkv_workspace *workspace);

/* From now on the cache is on a device, to which `exchange` leads; the workspace frees it. */
void tkv_workspace_set_exchange(tkv_workspace *workspace, struct tkv_exchange *exchange);
size_t tkv_workspace_bytes(const tkv_workspace *workspace);

typedef struct tkv_batch {
    const int32_t *tokens;   /* [n_tokens], each below vocabulary_size */
    int n_tokens;            /* 1 to the workspace's n_batch */
    int first_position;      /* of token 0: the tokens that every layer of the cache holds */
    int n_logits;            /* logits of the last n_logits tokens are wanted; 0 to n_tokens */
    float *logits;           /* [n_logits][vocabulary_size] */
    float sparse_v;          /* as in tkv_attend_params */
    tkv_attend_stats *stats; /* of sparse_v */
} tkv_batch;

/* Appends the batch to every layer of the cache and computes its logits. On an error the layers of
 * the cache may differ in length: the caller truncates them to first_position. TKV_ERR_INTERRUPTED
 * is one, if the context says so meanwhile. */
tkv_status tkv_forward(const tkv_model *model, tkv_cache *cache, tkv_workspace *workspace,
                       const tkv_batch *batch, tkv_error *error);

#endif
