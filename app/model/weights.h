/* The inside of a model, for the forward pass. */
#ifndef TKV_MODEL_WEIGHTS_H
#define TKV_MODEL_WEIGHTS_H

#include "model/model.h"

/* y = W x + b. */
typedef struct tkv_linear {
    const tkv_gguf_tensor *weight; /* [n_out][n_in], in the file's type */
    float *bias;                   /* [n_out], or NULL */
} tkv_linear;

typedef struct tkv_layer_weights {
    int window;                 /* 0: none */
    int rope;                   /* which of the model's rope_frequencies */
    float *attention_norm;      /* [embedding_length] */
    tkv_linear query;           /* to [n_heads][head_dim_k] */
    tkv_linear key;             /* to [n_kv_heads][head_dim_k] */
    tkv_linear value;           /* to [n_kv_heads][head_dim_v] */
    float *query_norm;          /* [head_dim_k], or NULL: queries and keys are not normalised */
    float *key_norm;            /* [head_dim_k], or NULL */
    tkv_linear output;          /* from [n_heads][head_dim_v] */
    float *attention_post_norm; /* [embedding_length], or NULL */
    float *feed_forward_norm;
    tkv_linear gate;
    tkv_linear up;
    tkv_linear down;
    float *feed_forward_post_norm; /* [embedding_length], or NULL */
} tkv_layer_weights;

/* Norms and biases are the model's own float copies; matrices stay in the file. */
struct tkv_model {
    tkv_model_config config;
    const tkv_gguf_tensor *token_embedding; /* [vocabulary_size][embedding_length] */
    tkv_layer_weights *layers;              /* [n_layers] */
    float *output_norm;                     /* [embedding_length] */
    tkv_linear output;                      /* to [vocabulary_size]; may be the embedding */
    int n_ropes;                            /* 1, or 2: layers with a window have their own */
    double *rope_frequencies;               /* [n_ropes][rope_dim/2] */
};

/* One of the model's frequencies: [rope_dim/2]. */
const double *tkv_model_rope(const tkv_model *model, int rope);

#endif
