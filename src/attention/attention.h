/* Attention over the layers of caches: what is asked for is checked, then each segment of a layer,
 * whose keys have positions of their own, is one plan of the device and its run, and the parts are
 * joined. */
#ifndef TKV_ATTENTION_ATTENTION_H
#define TKV_ATTENTION_ATTENTION_H

#include "cache/cache.h"

/* tkv_attend with parameters that have been checked. */
tkv_status tkv_attend_parts(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                            const float *q, float *out, tkv_error *error);

/* tkv_attend_batch likewise, of caches that are a plain batch (tkv_is_plain_batch). */
tkv_status tkv_attend_plain_batch(const tkv_cache *const *caches, int n_caches, int layer,
                                  const tkv_attend_params *params, const float *q, float *out,
                                  tkv_error *error);

/* The window of a call: the layer's unless it names one. */
static inline int tkv_attend_window(const tkv_cache_layer *layer, const tkv_attend_params *params)
{
    return params->window ? params->window : layer->window;
}

/* Width of a row of outputs. */
static inline int tkv_value_dims(const tkv_cache_layer *layer, const tkv_attend_params *params)
{
    return layer->head_dim_v ? layer->head_dim_v : params->n_value_dims;
}

/* The arguments of tkv_attend that do not depend on where it runs. */
tkv_status tkv_check_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                            const float *q, const float *out, tkv_error *error);

/* That n_queries queries and the learned sinks are finite, if the device looks. */
tkv_status tkv_check_queries(const tkv_cache_layer *layer, const tkv_attend_params *params,
                             size_t n_queries, const float *q, tkv_error *error);

#endif
