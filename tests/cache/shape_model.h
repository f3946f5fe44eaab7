/* Layers of any shapes with Gaussian rows to put into their cache, and checks of what it makes of
 * them: rows against those given, attention against double precision on the decoded rows. */
#ifndef TKV_TESTS_CACHE_SHAPE_MODEL_H
#define TKV_TESTS_CACHE_SHAPE_MODEL_H

#include "support/support.h"

/* Whether what a context computes with is another device than the host. */
static inline bool is_on_device(const tkv_context *context)
{
    return tkv_context_device_kind(context) != TKV_DEVICE_CPU;
}

enum { MAX_TOKENS = 600, MAX_LAYERS = 8 };

/* A cache's layers and the rows that go into them. */
typedef struct model {
    tkv_context *context;
    int n_layers;
    tkv_layer_shape shapes[MAX_LAYERS];
    tkv_type types_k[MAX_LAYERS];
    tkv_type types_v[MAX_LAYERS];
    int n_sinks;
    int n_recent;
    int centre_tokens;
    float *k[MAX_LAYERS]; /* [MAX_TOKENS][n_kv_heads][head_dim_k] */
    float *v[MAX_LAYERS];
} model;

void add_layer(model *m, tkv_layer_shape shape, tkv_type type_k, tkv_type type_v);
void free_model(model *m);
tkv_cache_params params_of(const model *m);
tkv_cache *create(const model *m);

/* Appends rows [from, to) to all layers, `step` at a time. */
void append(const model *m, tkv_cache *cache, int from, int to, int step);

/* Decoded rows of tokens [first, end) of a layer, at their places among all tokens. */
typedef struct decoded {
    int first;
    int end;
    float *k;
    float *v;
} decoded;

decoded decode(const model *m, const tkv_cache *cache, int layer, int first, int end);
void free_decoded(decoded *d);

/* The last queries of a layer, `group` heads a KV head. */
void check_attention(const model *m, const tkv_cache *cache, int layer, const decoded *d, int group,
                     tkv_attend_params p);

/* Rows and attention of a layer whose tokens [first, end) are there. */
void check_layer(const model *m, const tkv_cache *cache, int layer, int first, int end);

#endif
