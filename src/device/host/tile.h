/* Attention of a tile of query rows against pages, whatever says which pages there are and what is
 * seen of them: online softmax (Milakov and Gimelshein, arXiv 1805.02867), then the merge of parts
 * (flash decoding). A row is one query head of one query token. */
#ifndef TKV_DEVICE_HOST_TILE_H
#define TKV_DEVICE_HOST_TILE_H

#include "device/host/host.h"

/* The online softmax of one kind of values. */
typedef struct tkv_host_state {
    float *maximum; /* [rows of a full tile] */
    float *sum;     /* likewise */
    float *sums;    /* as tkv_sum_floats says */
} tkv_host_state;

typedef struct tkv_host_tile {
    const tkv_kernels *kernels;
    tkv_type type_k; /* of coded pages */
    tkv_type type_v;
    int head_dim_k;   /* as pages have it */
    int sum_dim;      /* of a row of sums */
    int n_value_dims; /* of keys only: so many coordinates are values */
    int n_rows;
    float scale;
    float softcap;
    float sparse_v;
    tkv_host_scratch scratch;
    tkv_host_state states[TKV_HOST_STATES];
    tkv_attend_stats *counts;
} tkv_host_tile;

/* What rows see of a page, beside scratch.first and scratch.end, between which that lies: by
 * `seen`, bits [n_rows], if not NULL, with `added` to the logits [n_rows][TKV_PAGE_TOKENS]. */
typedef struct tkv_host_mask {
    const uint64_t *seen;
    const float *added;
} tkv_host_mask;

/* Nothing has been seen; `sums_floats` are those of a full tile of tile_rows. */
void tkv_host_start(const tkv_host_state *state, int tile_rows, size_t sum_floats);

/* Brings scratch.queries into the form that keys of a kind need; that of coded keys rotates them in
 * place, so it comes last. */
void tkv_host_prepare(const tkv_host_tile *tile, int key_kind);

/* One page. bias: NULL, or [n_rows] to be added to the scores. values NULL: they are rows
 * [TKV_PAGE_TOKENS][sum_dim] in scratch.rows. */
void tkv_host_attend_page(const tkv_host_tile *tile, const tkv_page_read *keys, int key_kind,
                          const tkv_page_read *values, int value_kind, const float *bias,
                          const tkv_host_mask *mask);

/* Adds row r of a state of n_rows to `out`, `n` sums in steps of `width` (tkv_sum_floats of one
 * row), relative to `maximum`; returns its part of the softmax's sum. */
float tkv_host_merge(const tkv_host_state *state, int r, int n_rows, size_t width, size_t n,
                     float maximum, float *out);

#endif
