/* What holds of a cache between calls: for assertions. */
#ifndef TKV_CACHE_CONSISTENT_H
#define TKV_CACHE_CONSISTENT_H

#include "cache/cache.h"

bool tkv_layer_is_consistent(const tkv_cache_layer *layer);

/* All of its layers; a cache with a reservation has blocks without tokens. */
bool tkv_cache_is_consistent(const tkv_cache *cache);

#endif
