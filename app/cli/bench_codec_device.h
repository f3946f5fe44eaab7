/* turbokv bench codec --device: storing and loading on a device. */
#ifndef TKV_CLI_BENCH_CODEC_DEVICE_H
#define TKV_CLI_BENCH_CODEC_DEVICE_H

#include "turbokv.h"

typedef struct bench_codec_device_params {
    const tkv_type *types;
    int n_types;
    const int *head_dims;
    int n_head_dims;
    int n_rows; /* tokens of a chunk for head_dim 128; others take as many bytes */
    bool wants_json;
} bench_codec_device_params;

/* Measures the context's device and prints; returns the exit code of the command. */
int bench_codec_on_device(tkv_context *context, const bench_codec_device_params *params);

#endif
