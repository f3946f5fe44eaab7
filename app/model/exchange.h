/* Rows on their way between the host, where the layers of a model run, and the device that has its
 * cache. On back ends that run whole models there is none of this. */
#ifndef TKV_MODEL_EXCHANGE_H
#define TKV_MODEL_EXCHANGE_H

#include "model/model.h"
#include "turbokv.h"

/* Memory of the device for the rows of a batch. */
typedef struct tkv_exchange tkv_exchange;

/* For batches of up to n_batch tokens. `context` must outlive it. */
tkv_status tkv_exchange_create(const tkv_model_config *config, tkv_context *context, int n_batch,
                               tkv_exchange **exchange, tkv_error *error);
void tkv_exchange_free(tkv_exchange *exchange);
size_t tkv_exchange_bytes(const tkv_exchange *exchange); /* of the device */

/* tkv_cache_append and tkv_attend with rows and statistics of the host, and no sinks. */
tkv_status tkv_exchange_append(tkv_exchange *exchange, tkv_cache *cache, int layer, int n_tokens,
                               const float *key, const float *value, tkv_error *error);
tkv_status tkv_exchange_attend(tkv_exchange *exchange, const tkv_cache *cache, int layer,
                               const tkv_attend_params *params, const float *query, float *attended,
                               tkv_error *error);

#endif
