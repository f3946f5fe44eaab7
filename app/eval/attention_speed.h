/* How fast attention over a cache of a KV type is. */
#ifndef TKV_EVAL_ATTENTION_SPEED_H
#define TKV_EVAL_ATTENTION_SPEED_H

#include "turbokv.h"

typedef struct tkv_attention_shape {
    tkv_type type_k;
    tkv_type type_v;
    int head_dim;
    int n_kv_heads;
    int group;     /* query heads a KV head */
    int n_tokens;  /* of context */
    int n_queries; /* the last ones; 1: decode */
} tkv_attention_shape;

/* Bytes of keys and values of that context. */
size_t tkv_attention_shape_bytes(const tkv_attention_shape *shape);

/* Gaussian enough values for a benchmark. */
void tkv_attention_fill(uint32_t *seed, size_t n, float *x);

/* A cache of one layer with that context, and queries for it. */
typedef struct tkv_attention_work tkv_attention_work;

/* Fills a cache with Gaussian keys and values (the same ones for every type), encoded with the
 * context's effort. The caller frees it with tkv_attention_work_free; the context outlives it. */
tkv_status tkv_attention_work_create(tkv_context *context, const tkv_attention_shape *shape,
                                     tkv_attention_work **work, tkv_error *error);
void tkv_attention_work_free(tkv_attention_work *work);

/* One call of tkv_attend; *seconds receives its time, until its device has done it. */
tkv_status tkv_attention_work_run(tkv_attention_work *work, double *seconds, tkv_error *error);

/* Output of the last call: [n_queries][n_heads][head_dim], n values. */
const float *tkv_attention_work_output(const tkv_attention_work *work, size_t *n);

#endif
