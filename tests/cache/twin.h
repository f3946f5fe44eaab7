/* The same cache on the CPU and on a device: the reference one or what TKV_TEST_DEVICE names. */
#ifndef TKV_TESTS_CACHE_TWIN_H
#define TKV_TESTS_CACHE_TWIN_H

#include "support/support.h"

enum { N_LAYERS = 2, N_KV_HEADS = 2, N_HEADS = 4, DIM_K = 48, DIM_V = 32, MAX_TOKENS = 400 };
enum { CPU, DEVICE, N_PLACES };
enum { MAX_APPEND = 150, K_ROW = N_KV_HEADS * DIM_K, V_ROW = N_KV_HEADS * DIM_V };

typedef struct twin {
    tkv_context *contexts[N_PLACES];
    tkv_cache *caches[N_PLACES];
    float *k[N_PLACES]; /* [MAX_TOKENS][N_KV_HEADS][DIM_K], where the context computes */
    float *v[N_PLACES];
    float *out[N_PLACES];     /* for reading and attending */
    float *results[N_PLACES]; /* [MAX_TOKENS][K_ROW + V_ROW] on the host */
    uint64_t seed;
} twin;

twin *create_twin(uint64_t seed, const tkv_cache_params *params);

/* Also checks that the device holds nothing any more. */
void free_twin(twin *t);

/* types: [2 * N_LAYERS], which the parameters point to. */
tkv_cache_params random_params(uint64_t *seed, tkv_type *types);

/* Copies `bytes` of t->out to t->results. */
void download(const twin *t, int place, size_t bytes);

/* To the bit. */
void assert_same_layer(const twin *t, int layer);
void assert_same_content(const twin *t);

/* The first values of t->results. A device that is not the reference sums in its own order, and
 * rounds; so does the reference where it joins segments. */
void assert_same_output(const twin *t, size_t n_values);

/* The device's cache tells the memory that it takes there. */
void assert_bytes(const twin *t);

/* Appends rows [from, from + n) to all layers of a cache at that place. */
tkv_status append_to(const twin *t, int place, tkv_cache *cache, int from, int n, tkv_error *error);

/* Appends n rows to both. */
void append(twin *t, int n);

/* Forks both somewhere and appends to the forks, which take the caches' place or are freed. */
void fork_and_write(twin *t, bool keeps_fork);

/* Drops some tokens somewhere. */
void shift(twin *t);

/* Any of the above, truncation, clearing or attention, on both. */
void do_something(twin *t);

#endif
