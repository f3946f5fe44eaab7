/* How keys carry positions. */
#ifndef TKV_CACHE_ROPE_H
#define TKV_CACHE_ROPE_H

#include "turbokv.h"

/* Cosines, then sines, of `turn` positions; NULL without memory. The caller frees them. */
float *tkv_make_turns(const tkv_allocator *allocator, const tkv_rope *rope, int64_t turn);

/* Checks a description of RoPE; NULL is right. */
tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error);

#endif
