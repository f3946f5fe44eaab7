/* Attention over a cache whose pages are in a device's memory. */
#ifndef TKV_ATTENTION_ATTEND_DEVICE_H
#define TKV_ATTENTION_ATTEND_DEVICE_H

#include "cache/cache.h"

/* tkv_attend with parameters that have been checked; q and out are addresses on the device. */
tkv_status tkv_attend_on_device(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                const float *q, float *out, tkv_error *error);

/* tkv_attend_batch likewise. */
tkv_status tkv_attend_batch_on_device(const tkv_cache *const *caches, int n_caches, int layer,
                                      const tkv_attend_params *params, const float *q, float *out,
                                      tkv_error *error);

/* The window of a call: the layer's unless it names one. */
static inline int tkv_attend_window(const tkv_cache_layer *layer, const tkv_attend_params *params)
{
    return params->window ? params->window : layer->window;
}

/* The arguments of tkv_attend that do not depend on where it runs. */
tkv_status tkv_check_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                            const float *q, const float *out, tkv_error *error);

/* That the queries and learned sinks are finite. */
tkv_status tkv_check_queries(const tkv_cache_layer *layer, const tkv_attend_params *params,
                             const float *q, tkv_error *error);

#endif
