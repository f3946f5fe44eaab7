/* Rows of a layer between the caller and the pages: padded, keys turned. */
#ifndef TKV_CACHE_ROWS_H
#define TKV_CACHE_ROWS_H

#include "cache/structs.h"

/* The way of n_rows rows of a segment to the pages or back, but for where they are; and whether it
 * changes them. */
tkv_device_rows tkv_describe_rows(const tkv_cache_layer *layer, int segment, tkv_page_order order,
                                  size_t n_rows, bool is_back);
bool tkv_rows_differ(const tkv_device_rows *rows);

/* Stores n_tokens tokens at the end, for which there are blocks: k
 * [n_tokens][n_kv_heads][head_dim_k] and v in the device's memory. */
tkv_status tkv_layer_store(const tkv_cache_layer *layer, int n_tokens, const float *k,
                           const float *v, tkv_error *error);

/* Decodes tokens into the device's memory. Either of k and v may be NULL. */
tkv_status tkv_layer_load(const tkv_cache_layer *layer, int first, int n_tokens, float *k, float *v,
                          tkv_error *error);

/* Decodes tokens into the host's memory; waits. Either of k and v may be NULL. */
tkv_status tkv_layer_download(const tkv_cache_layer *layer, int first, int n_tokens, float *k,
                              float *v, tkv_error *error);

#endif
