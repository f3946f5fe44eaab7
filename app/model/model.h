/* A decoder model in memory: its shape, read from the metadata of a GGUF file, and its weights,
 * which stay where the file is mapped. A model is never written to after loading, so any number of
 * sessions may share it. */
#ifndef TKV_MODEL_MODEL_H
#define TKV_MODEL_MODEL_H

#include "model/gguf.h"
#include "model/rope.h"
#include "turbokv.h"

typedef enum tkv_activation { TKV_ACTIVATION_SILU, TKV_ACTIVATION_GELU } tkv_activation;

typedef struct tkv_model_config {
    const char *architecture; /* "llama", "qwen2", "qwen3" or "gemma3"; static storage */
    int n_layers;
    int embedding_length;
    int feed_forward_length;
    int n_heads;
    int n_kv_heads;
    int head_dim_k; /* of queries and keys */
    int head_dim_v;
    int vocabulary_size;
    int context_length; /* that the model was trained for; longer is allowed, but degrades */
    int sliding_window; /* 0: none; w: a token sees the last w tokens, itself included, in the
                           layers that have a window (tkv_model_window) */
    float rms_epsilon;
    float embedding_scale;     /* embeddings are multiplied by it; 1: as they are */
    float attention_scale;     /* of the logits of attention; 0: 1/sqrt(head_dim_k) */
    bool has_head_norms;       /* queries and keys are normalised before RoPE */
    bool has_post_norms;       /* what attention and feed-forward add is normalised */
    tkv_activation activation; /* of the feed-forward network's gate */
    tkv_rope_pairing rope_pairing;
    int rope_dim; /* leading coordinates of a head that RoPE turns; the others pass */
    float rope_freq_base;
    float rope_local_freq_base;  /* of the layers with a window; 0: as the others */
    float rope_linear_factor;    /* positions are divided by it; 1: no scaling. Layers with a base
                                    of their own are not scaled */
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

/* Tokens that a token of this layer sees, itself included; 0: all. */
int tkv_model_window(const tkv_model *model, int layer);

#endif
