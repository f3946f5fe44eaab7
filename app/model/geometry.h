/* What a model keeps for each token, layer by layer, read from any decoder's GGUF file: also of
 * architectures that the host does not run. Where a file leaves something open, what llama.cpp
 * takes for that architecture counts. */
#ifndef TKV_MODEL_GEOMETRY_H
#define TKV_MODEL_GEOMETRY_H

#include "model/gguf.h"

/* Key rows of one head that a layer keeps beside its keys and values: those of an indexer, which
 * chooses the tokens that are attended to, or one for several tokens. */
typedef struct tkv_geometry_rows {
    int width;    /* coordinates of a row; 0: there are none */
    int interval; /* tokens that a row stands for */
} tkv_geometry_rows;

typedef struct tkv_geometry_layer {
    int n_kv_heads; /* 0: nothing is kept (a recurrent layer, or one that reads another's) */
    int head_dim_k;
    int head_dim_v; /* 0: values are a part of the keys (multi-head latent attention) */
    int window;     /* 0: none; w: a token sees the last w tokens */
    tkv_geometry_rows compressed; /* keys of several tokens each, which have no window */
    tkv_geometry_rows indexer;
    uint64_t state_bytes; /* of a recurrent state, however many tokens there are; 0: none */
} tkv_geometry_layer;

typedef struct tkv_geometry {
    char architecture[64];
    bool is_hosted; /* app/model runs it */
    int n_layers;
    tkv_geometry_layer *layers; /* [n_layers] */
    int context_length;         /* that the model was trained for; 0: unknown */
    int vocabulary_size;        /* 0: unknown */
    uint64_t batch_width;       /* floats of buffers a token of a batch; 0: unknown */
    uint64_t file_bytes;        /* of the file that was read; 0: none */
    int n_files;                /* that the model is split into */
    char assumption[192];       /* what the file leaves open and nobody knows; or "" */
} tkv_geometry;

/* Reads a file's geometry. The caller frees it with tkv_geometry_free, also on failure. Of a model
 * that is split into several files, the first describes it; TKV_ERR_INVALID_ARGUMENT for others. */
tkv_status tkv_geometry_read(const tkv_gguf *gguf, tkv_geometry *geometry, tkv_error *error);

/* Equal layers. */
tkv_status tkv_geometry_uniform(int n_layers, const tkv_geometry_layer *layer,
                                tkv_geometry *geometry, tkv_error *error);

void tkv_geometry_free(tkv_geometry *geometry);

#endif
