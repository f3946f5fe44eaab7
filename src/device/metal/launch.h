/* What the host tells the Metal kernels beyond device_layout.h: one struct for each kernel, passed
 * by value in buffer 0. Members have fixed widths and lie at multiples of their size, 64-bit ones
 * first, so that C and Metal agree; the sizes are asserted on both sides. */
#ifndef TKV_DEVICE_METAL_LAUNCH_H
#define TKV_DEVICE_METAL_LAUNCH_H

#include "device/device_layout.h"

/* Indices of the function constants (common.metal says what they mean). */
#define TKV_METAL_KEY_TYPE 0
#define TKV_METAL_KEY_DIM 1
#define TKV_METAL_VALUE_TYPE 2
#define TKV_METAL_VALUE_DIM 3
#define TKV_METAL_TILE_ROWS 4
#define TKV_METAL_WIDE_TABLE 5
#define TKV_METAL_EXACT 6
#define TKV_METAL_VARIANT 7

#define TKV_METAL_LANES 32
#define TKV_METAL_SIMDGROUPS 4 /* of a threadgroup, unless the kernel says otherwise */

/* A copy of n items from one address to another. */
typedef struct tkv_metal_copy_items {
    uint64_t to;
    uint64_t from;
    uint64_t n;
} tkv_metal_copy_items;

/* Rotation of rows in place. */
typedef struct tkv_metal_rotate {
    uint64_t x; /* float [n_rows][head_dim] */
    uint32_t n_rows;
    uint32_t reserved;
} tkv_metal_rotate;

/* Rows of one side (keys or values) into or out of the pages of sequences. */
typedef struct tkv_metal_rows {
    uint64_t sequences; /* tkv_device_sequence [n_sequences] */
    uint64_t x;         /* float (or half) [n_sequences][n_tokens][n_kv_heads][head_dim] */
    uint64_t codes;     /* store: uint8_t [n_sequences * n_tokens * n_kv_heads][head_dim] */
    uint64_t side;      /* store: uint16_t [n_sequences * n_tokens * n_kv_heads][2] */
    tkv_device_layer layer;
    int32_t order; /* tkv_page_order */
    int32_t n_sequences;
    int32_t first_token; /* -1: the last n_tokens of each sequence */
    int32_t n_tokens;
    int32_t n_blocks; /* store: how many blocks the tokens of one sequence may touch */
} tkv_metal_rows;

/* All kernels of one attention. A unit is a KV head of a sequence; its rows are its query heads of
 * all queries, query by query. They are cut into tiles of tile_rows, the context into splits. */
typedef struct tkv_metal_attend {
    tkv_device_attend attend;
    uint64_t q_exact;  /* float [n_units][padded_rows][head_dim_k] */
    uint64_t q_coded;  /* the same, rotated */
    uint64_t q_sketch; /* the same, sketched; 0 if the key type has none */
    uint64_t bias;     /* float [n_units][padded_rows]: what centring took off each score */
    uint64_t stats;    /* float [n_items][tile_rows][4]: maximum, sum, weights seen and skipped */
    uint64_t sums;     /* float [n_items][tile_rows][sum_floats] */
    int32_t group;     /* query heads of a KV head */
    int32_t n_rows;    /* of a unit: group * n_queries */
    int32_t padded_rows;
    int32_t tile_rows;
    int32_t n_tiles;
    int32_t n_splits;
    int32_t sum_floats; /* head_dim_v, or twice that for the sketch of the value type */
    int32_t reserved;
} tkv_metal_attend;

#endif
