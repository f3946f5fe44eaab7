/* Shapes of public models as their files state them, and what a token of them costs. */
#ifndef TESTS_EVAL_MODEL_SHAPES_H
#define TESTS_EVAL_MODEL_SHAPES_H

#include "gguf_file.h"

/* Layers that keep as many values of each token; rows are rounded up to 16 coordinates. */
typedef struct shape_term {
    int n_layers;
    int n_values;
    int window; /* 0: none */
} shape_term;

typedef struct model_shape {
    const char *name;
    const char *architecture;
    int n_layers;
    int embedding_length;
    int n_heads;
    int n_kv_heads;
    int head_dim_k; /* 0: not stated */
    int head_dim_v; /* 0: not stated */
    int context_length;
    void (*add)(gguf_file *file); /* what else the file states; or NULL */
    shape_term terms[3];
} model_shape;

extern const model_shape model_shapes[];
extern const int n_model_shapes;

void model_shape_read(const model_shape *shape, tkv_geometry *geometry);

/* f16 bytes of the context that the model was trained for, pages behind windows dropped. */
uint64_t model_shape_f16_bytes(const model_shape *shape);

#endif
