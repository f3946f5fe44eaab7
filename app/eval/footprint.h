/* What a KV cache takes beside what its tokens take in f16, counted in the same way. */
#ifndef TKV_EVAL_FOOTPRINT_H
#define TKV_EVAL_FOOTPRINT_H

#include "model/model.h"

/* Bits a value of a cache of `bytes` with n_tokens tokens; 0 if it has none. In a layer with a
 * window the values count that are kept. */
double tkv_kv_bits(const tkv_model *model, size_t bytes, int n_tokens);

/* Bytes of an f16 cache with n_tokens tokens: pages, page tables and all else that tkv_cache_bytes
 * counts, so that the two can be compared. 0 if it has none. */
size_t tkv_kv_bytes_f16(const tkv_model *model, int n_tokens);

#endif
