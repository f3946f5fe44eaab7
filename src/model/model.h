/* A decoder model in memory: its shape, read from the metadata of a GGUF file, and its weights,
 * which stay where the file is mapped. A model is never written to after loading, so any number of
 * sessions may share it. */
#ifndef TKV_MODEL_MODEL_H
#define TKV_MODEL_MODEL_H

#include "model/gguf.h"
#include "model/rope.h"
#include "turbokv.h"

typedef struct tkv_model_config {
    const char *architecture; /* "llama", "qwen2" or "qwen3"; static storage */
    int n_layers;
    int embedding_length;
    int feed_forward_length;
    int n_heads;
    int n_kv_heads;
    int head_dim_k; /* of queries and keys */
    int head_dim_v;
    int vocabulary_size;
    int context_length; /* that the model was trained for; longer is allowed, but degrades */
    int sliding_window; /* 0: none; w: a token sees the last w tokens, itself included */
    float rms_epsilon;
    tkv_rope_pairing rope_pairing;
    int rope_dim; /* leading coordinates of a head that RoPE turns; the others pass */
    float rope_freq_base;
    float rope_linear_factor;    /* positions are divided by it; 1: no scaling */
    float rope_attention_factor; /* turned coordinates are multiplied by it; 1 almost always */
} tkv_model_config;

typedef struct tkv_model tkv_model;

/* Reads the shape and finds and checks every weight. The model refers to the file's data: gguf
 * must outlive it. The caller frees the model with tkv_model_free. Errors: TKV_ERR_UNSUPPORTED for
 * architectures, mixtures of experts and RoPE scalings that this host does not have,
 * TKV_ERR_FORMAT for missing or wrong metadata and for tensors whose shape is not what the metadata
 * promises, TKV_ERR_OUT_OF_MEMORY. */
tkv_status tkv_model_create(const tkv_gguf *gguf, tkv_model **model, tkv_error *error);
void tkv_model_free(tkv_model *model);

/* Lives as long as the model. */
const tkv_model_config *tkv_model_get_config(const tkv_model *model);

/* Number of weights (elements of all tensors that the model uses) and their bytes in the file. */
uint64_t tkv_model_parameters(const tkv_model *model);
uint64_t tkv_model_weight_bytes(const tkv_model *model);

#endif
