/* What the tests of shifts share: a cache of one layer and Gaussian rows, turned by definition. */
#ifndef TKV_TESTS_CACHE_SHIFT_ROWS_H
#define TKV_TESTS_CACHE_SHIFT_ROWS_H

#include "support/support.h"

enum { DIM = 64, N_KV_HEADS = 2, N_TOKENS = 400 };

/* RoPE by definition, in double. */
void turn(const tkv_rope *rope, int position, const float *in, float *out);

void fill_frequencies(float frequencies[DIM / 2]);

/* [n_tokens][N_KV_HEADS][DIM], freed by the caller. */
float *gauss_rows(uint64_t seed, int n_tokens);

tkv_context *create_context(void);
tkv_cache *create(tkv_context *context, tkv_type type, int sinks, int recent, int centre);

/* Appends token `index` as if it stood at `position`. */
void append(tkv_cache *cache, const tkv_rope *rope, const float *k, const float *v, int index,
            int position);

#endif
