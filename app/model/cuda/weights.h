/* A model's weights in a device's memory: matrices as halves, those that take the same input in
 * one. */
#ifndef TKV_MODEL_CUDA_WEIGHTS_H
#define TKV_MODEL_CUDA_WEIGHTS_H

#include "model/weights.h"

typedef struct tkv_cuda_matrix {
    uint16_t *w; /* [n_out][n_in] halves */
    float *bias; /* [n_out], or NULL */
    int n_in;
    int n_out;
} tkv_cuda_matrix;

typedef struct tkv_cuda_layer {
    float *attention_norm;
    float *query_norm; /* or NULL */
    float *key_norm;   /* or NULL */
    float *feed_forward_norm;
    tkv_cuda_matrix heads;   /* to queries, keys, values */
    tkv_cuda_matrix output;  /* from heads */
    tkv_cuda_matrix gate_up; /* to gate, up */
    tkv_cuda_matrix down;
} tkv_cuda_layer;

typedef struct tkv_cuda_weights {
    const tkv_model *model;
    tkv_context *context;
    int n_users;
    tkv_cuda_layer *layers; /* [n_layers] */
    tkv_cuda_matrix embedding;
    tkv_cuda_matrix output; /* may have the embedding's `w` */
    float *output_norm;
    double *rope_frequencies;
} tkv_cuda_weights;

/* The weights of a model on a context's device, which all its runners there share: uploaded by the
 * first, freed when the last has given them back. */
tkv_status tkv_cuda_weights_take(const tkv_model *model, tkv_context *context,
                                 tkv_cuda_weights **weights, tkv_error *error);
void tkv_cuda_weights_give_back(tkv_cuda_weights *weights);

#endif
