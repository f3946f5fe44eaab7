/* Attention over a cache whose pages are in a device's memory. */
#ifndef TKV_ATTENTION_ATTEND_DEVICE_H
#define TKV_ATTENTION_ATTEND_DEVICE_H

#include "cache/cache.h"

/* tkv_attend with parameters that have been checked; q and out are addresses on the device. */
tkv_status tkv_attend_on_device(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                const float *q, float *out, tkv_error *error);

#endif
