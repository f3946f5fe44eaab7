/* What the host and the kernels of a GPU share: plain structs of fixed-width members, the same in
 * C, CUDA C++ and Metal. Addresses are 64-bit numbers in the device's memory. */
#ifndef TKV_DEVICE_DEVICE_LAYOUT_H
#define TKV_DEVICE_DEVICE_LAYOUT_H

#include <stdint.h>

/* One entry of a sequence's page table: up to 64 consecutive tokens (geometry.h). `pages` is
 * a key page and a value page for each KV head in turn, either f16 pages of n_slots rows or coded
 * pages in the layer's types. Aligned to 64 bytes. */
typedef struct tkv_device_block {
    uint64_t pages;
    int32_t is_exact;
    int32_t n_slots;
} tkv_device_block;

/* One layer of one sequence, in the device's memory, so that a captured graph reads what the host
 * has last written. */
typedef struct tkv_device_sequence {
    uint64_t blocks;  /* tkv_device_block [n_blocks] */
    uint64_t mean_k;  /* float [n_kv_heads][head_dim_k] taken off coded keys, or 0 */
    uint64_t mean_v;  /* float [n_kv_heads][head_dim_v] taken off coded values, or 0 */
    int32_t n_tokens; /* held, those that the coming store writes included: what first = -1 and
                         first_position = -1 count back from; otherwise it may be larger */
    int32_t n_blocks;
} tkv_device_sequence;

/* What all sequences of a layer have in common; passed by value. The first ceil(n_sinks/64) blocks
 * hold the n_sinks first positions, 64 each and the last what is left; the block after them begins
 * at position n_sinks. Positions are counted as the blocks lie: the places of geometry.h. */
typedef struct tkv_device_layer {
    int32_t type_k; /* tkv_type of coded blocks */
    int32_t type_v;
    int32_t n_kv_heads;
    int32_t head_dim_k;
    int32_t head_dim_v;
    int32_t n_sinks;
    int32_t effort; /* tkv_effort of encoding */
} tkv_device_layer;

/* Attention of the same number of queries of each of n_sequences sequences. */
typedef struct tkv_device_attend {
    tkv_device_layer layer;
    int32_t n_sequences;
    int32_t max_tokens;     /* no sequence is longer; for planning only */
    int32_t n_queries;      /* of each sequence */
    int32_t n_heads;        /* query heads */
    int32_t first_position; /* of query 0; -1: the queries are the last n_queries tokens */
    int32_t window;         /* 0: none */
    float scale;            /* of the logits */
    float logit_softcap;    /* 0: none */
    float sparse_v;         /* 0: off */
    uint64_t sequences;     /* tkv_device_sequence [n_sequences] */
    uint64_t q;             /* float [n_sequences][n_queries][n_heads][head_dim_k] */
    uint64_t out;           /* float [n_sequences][n_queries][n_heads][head_dim_v] */
    uint64_t sinks;         /* float [n_heads] logits, or 0 */
    uint64_t stats;         /* tkv_attend_stats to add to, or 0 */
    int32_t n_value_dims;   /* of a layer of keys only: width of a row of out */
    int32_t reserved;
    uint64_t log_sums; /* 0, or float [n_sequences][n_queries][n_heads] to write: the logarithm of
                          the softmax's sum, by which parts of a sequence are joined */
    int32_t begin;     /* positions before it hold no token */
    int32_t end;       /* nor do those from here on; 0: all do */
} tkv_device_attend;

/* Rows that become wider or narrower, and keys that are turned by what RoPE makes of a distance. */
typedef struct tkv_device_rows {
    uint64_t from; /* float [n_rows][from_width] */
    uint64_t to;   /* float [n_rows][to_width], what is beyond from_width zero; not `from` */
    uint64_t n_rows;
    int32_t from_width;
    int32_t to_width;
    uint64_t turns; /* 0, or float [2][n_pairs]: cosines and sines */
    int32_t n_pairs;
    int32_t is_interleaved;
    int32_t is_back; /* turned by the opposite angles */
} tkv_device_rows;

/* Attention over the parts of a sequence, joined. */
typedef struct tkv_device_join {
    uint64_t parts;        /* float [n_parts][n_rows][from_width] */
    uint64_t log_sums;     /* float [n_parts][n_rows] */
    uint64_t out;          /* float [n_rows][to_width] */
    uint64_t log_sums_out; /* 0, or float [n_rows]: of all parts together */
    uint64_t n_rows;
    int32_t n_parts;
    int32_t from_width;
    int32_t to_width; /* at most from_width */
} tkv_device_join;

#endif
