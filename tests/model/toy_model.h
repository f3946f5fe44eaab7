/* Small decoder models with random weights: written as GGUF files for the host, and run here by a
 * plain double-precision forward pass that recomputes everything from the tokens. */
#ifndef TESTS_MODEL_TOY_MODEL_H
#define TESTS_MODEL_TOY_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Large enough for its absence to show. */
#define TOY_RMS_EPSILON 0.125

typedef struct toy_shape {
    const char *architecture;
    int n_layers;
    int embedding_length;
    int feed_forward_length;
    int n_heads;
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v;
    int vocabulary_size;
    int rope_dim;
    float rope_freq_base;
    float rope_linear_factor;    /* 0: not written */
    float rope_attention_factor; /* 0: not written */
    int sliding_window;          /* 0: not written */
    int window_period;           /* every period-th layer has no window; 0: every layer has it */
    float rope_local_freq_base;  /* of the layers with a window; 0: not written */
    bool is_gemma;               /* post norms, GELU, scaled embeddings */
    bool has_biases;
    bool has_query_key_norms;
    bool has_output; /* else the embedding is used */
    bool has_rope_factors;
} toy_shape;

typedef struct toy_tensor {
    char name[64];
    int n_dims;
    uint64_t dims[2]; /* GGUF order: the row's length first */
    float *values;
} toy_tensor;

typedef enum toy_kind {
    TOY_INTEGER,
    TOY_NUMBER,
    TOY_TEXT,
    TOY_BOOL,
    TOY_INTEGERS,
    TOY_TEXTS,
    TOY_LIST
} toy_kind;

typedef struct toy_metadata {
    char key[64];
    toy_kind kind;
    int64_t integer; /* TOY_INTEGER, TOY_BOOL */
    double number;
    const char *text;
    int32_t integers[4]; /* TOY_INTEGERS: an array of n_integers */
    int n_integers;
    const char *const *texts; /* TOY_TEXTS: an array of n_items */
    const int32_t *list;      /* TOY_LIST: likewise */
    int n_items;
} toy_metadata;

typedef struct toy_model {
    toy_shape shape;
    size_t n_metadata;
    toy_metadata *metadata;
    size_t n_tensors;
    toy_tensor *tensors;
} toy_model;

/* Random weights; the program ends if memory runs out. */
void toy_model_init(toy_model *model, const toy_shape *shape, uint64_t seed);
void toy_model_clear(toy_model *model);

/* NULL if the model has no such tensor. */
toy_tensor *toy_model_find(const toy_model *model, const char *name);
void toy_model_remove_tensor(toy_model *model, const char *name);

/* Replaces the key or adds it. */
void toy_model_set(toy_model *model, const toy_metadata *metadata);
void toy_model_remove_key(toy_model *model, const char *key);

/* Writes the model as a GGUF file of F32 tensors. */
void toy_model_write(const toy_model *model, const char *path);

/* logits [n_tokens][vocabulary_size] of tokens at positions 0 and up. */
void toy_model_forward(const toy_model *model, const int32_t *tokens, int n_tokens, double *logits);

#endif
