#include "model/exchange.h"

#include "common/try.h"

#include <stdlib.h>
#include <string.h>

/* Widths are floats a token. The buffers are the device's: the host must not touch them. */
struct tkv_exchange {
    tkv_context *context;
    size_t bytes;
    void *memory; /* all buffers below */
    size_t key_width;
    size_t value_width;
    size_t query_width;
    size_t attended_width;
    float *key;
    float *value;
    float *query;
    float *attended;
    tkv_attend_stats *stats;
};

tkv_status tkv_exchange_create(const tkv_model_config *config, tkv_context *context, int n_batch,
                               tkv_exchange **exchange, tkv_error *error)
{
    tkv_exchange *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a session");
    }
    created->context = context;
    created->key_width = (size_t)config->n_kv_heads * (size_t)config->head_dim_k;
    created->value_width = (size_t)config->n_kv_heads * (size_t)config->head_dim_v;
    created->query_width = (size_t)config->n_heads * (size_t)config->head_dim_k;
    created->attended_width = (size_t)config->n_heads * (size_t)config->head_dim_v;
    const size_t n = (size_t)n_batch;
    const size_t width =
        created->key_width + created->value_width + created->query_width + created->attended_width;
    created->bytes = sizeof *created->stats + n * width * sizeof(float);
    const tkv_status status = tkv_memory_allocate(context, created->bytes, &created->memory, error);
    if (status != TKV_OK) {
        free(created);
        return status;
    }
    created->stats = created->memory;
    created->key = (float *)(created->stats + 1);
    created->value = created->key + n * created->key_width;
    created->query = created->value + n * created->value_width;
    created->attended = created->query + n * created->query_width;
    *exchange = created;
    return TKV_OK;
}

void tkv_exchange_free(tkv_exchange *exchange)
{
    if (exchange) {
        tkv_memory_free(exchange->context, exchange->memory);
        free(exchange);
    }
}

size_t tkv_exchange_bytes(const tkv_exchange *exchange)
{
    return exchange->bytes;
}

tkv_status tkv_exchange_append(tkv_exchange *exchange, tkv_cache *cache, int layer, int n_tokens,
                               const float *key, const float *value, tkv_error *error)
{
    const size_t n = (size_t)n_tokens * sizeof(float);
    TKV_TRY(
        tkv_memory_upload(exchange->context, exchange->key, key, n * exchange->key_width, error));
    TKV_TRY(tkv_memory_upload(exchange->context, exchange->value, value, n * exchange->value_width,
                              error));
    return tkv_cache_append(cache, layer, n_tokens, exchange->key, exchange->value, error);
}

/* The device adds to counters of its own, which begin at zero. */
static tkv_status add_stats(const tkv_exchange *exchange, tkv_attend_stats *stats, tkv_error *error)
{
    tkv_attend_stats counted;
    TKV_TRY(
        tkv_memory_download(exchange->context, &counted, exchange->stats, sizeof counted, error));
    stats->n_weights += counted.n_weights;
    stats->n_skipped += counted.n_skipped;
    return TKV_OK;
}

tkv_status tkv_exchange_attend(tkv_exchange *exchange, const tkv_cache *cache, int layer,
                               const tkv_attend_params *params, const float *query, float *attended,
                               tkv_error *error)
{
    tkv_context *context = exchange->context;
    const size_t n = (size_t)params->n_queries * sizeof(float);
    const tkv_attend_stats zero = {0, 0};
    tkv_attend_params on_device = *params;
    on_device.stats = params->stats ? exchange->stats : NULL;
    TKV_TRY(tkv_memory_upload(context, exchange->query, query, n * exchange->query_width, error));
    if (params->stats) {
        TKV_TRY(tkv_memory_upload(context, exchange->stats, &zero, sizeof zero, error));
    }
    TKV_TRY(tkv_attend(cache, layer, &on_device, exchange->query, exchange->attended, error));
    TKV_TRY(tkv_memory_download(context, attended, exchange->attended, n * exchange->attended_width,
                                error));
    return params->stats ? add_stats(exchange, params->stats, error) : TKV_OK;
}
