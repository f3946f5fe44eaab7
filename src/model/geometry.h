/* What a model keeps for each token, layer by layer, read from any decoder's GGUF file: also of
 * architectures that the host does not run. */
#ifndef TKV_MODEL_GEOMETRY_H
#define TKV_MODEL_GEOMETRY_H

#include "model/gguf.h"

typedef struct tkv_geometry_layer {
    int n_kv_heads; /* 0: nothing is kept (a recurrent layer, or one that reads another's) */
    int head_dim_k;
    int head_dim_v; /* 0: values are a part of the keys (multi-head latent attention) */
    int window;     /* 0: none; w: a token sees the last w tokens */
} tkv_geometry_layer;

typedef struct tkv_geometry {
    char architecture[64];
    bool is_hosted; /* src/model runs it */
    int n_layers;
    tkv_geometry_layer *layers; /* [n_layers] */
    int context_length;         /* that the model was trained for; 0: unknown */
    int vocabulary_size;        /* 0: unknown */
    uint64_t batch_width;       /* floats of buffers a token of a batch; 0: unknown */
    uint64_t file_bytes;        /* of the file that was read; 0: none */
    int n_files;                /* that the model is split into */
} tkv_geometry;

/* Reads a file's geometry. The caller frees it with tkv_geometry_free. */
tkv_status tkv_geometry_read(const tkv_gguf *gguf, tkv_geometry *geometry, tkv_error *error);

/* Equal layers. */
tkv_status tkv_geometry_uniform(int n_layers, const tkv_geometry_layer *layer,
                                tkv_geometry *geometry, tkv_error *error);

void tkv_geometry_free(tkv_geometry *geometry);

#endif
