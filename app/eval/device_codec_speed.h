/* How fast a context that keeps pages in a device's memory stores and loads the rows of a layer. */
#ifndef TKV_EVAL_DEVICE_CODEC_SPEED_H
#define TKV_EVAL_DEVICE_CODEC_SPEED_H

#include "turbokv.h"

/* Bytes a second, read and written, of a copy within the memory where the context computes; the
 * best of several. */
tkv_status tkv_device_copy_bandwidth(tkv_context *context, size_t n_bytes, double *bandwidth,
                                     tkv_error *error);

typedef struct tkv_device_codec_shape {
    tkv_type type; /* of keys and values */
    int head_dim;
    int n_kv_heads;
    int n_tokens; /* of a chunk */
} tkv_device_codec_shape;

typedef struct tkv_device_codec_speed {
    double store_seconds;  /* a chunk, keys and values; the best of several runs */
    double load_seconds;   /* likewise */
    double append_seconds; /* one token */
    double n_rows;         /* of a chunk */
    double n_bytes;        /* that a chunk's floats and codes take together */
} tkv_device_codec_speed;

/* On a context on a device. */
tkv_status tkv_device_codec_speed_measure(tkv_context *context, const tkv_device_codec_shape *shape,
                                          tkv_device_codec_speed *speed, tkv_error *error);

#endif
