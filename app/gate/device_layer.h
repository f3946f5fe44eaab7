/* One layer of one sequence on a device, for tests and probes. */
#ifndef TKV_GATE_DEVICE_LAYER_H
#define TKV_GATE_DEVICE_LAYER_H

#include "device/device.h"

#define TKV_DEVICE_LAYER_MAX_BLOCKS 520
#define TKV_DEVICE_LAYER_MAX_BUFFERS (TKV_DEVICE_LAYER_MAX_BLOCKS + 16)

/* The blocks are as in src/cache: the sinks, exact; then coded ones; the last is exact if it is not
 * full. Of layers of f16 all are exact. */
typedef struct tkv_device_layer_fixture {
    tkv_device *device;
    tkv_device_layer layer;
    int n_tokens;
    int n_blocks;
    tkv_device_block blocks[TKV_DEVICE_LAYER_MAX_BLOCKS];
    uint64_t sequence; /* tkv_device_sequence, on the device */
    int n_buffers;
    uint64_t buffers[TKV_DEVICE_LAYER_MAX_BUFFERS];
} tkv_device_layer_fixture;

/* Allocates pages and tables for n_tokens; means are host arrays [n_kv_heads][head_dim] or NULL.
 * The caller frees it with tkv_device_layer_free, also after an error. */
tkv_status tkv_device_layer_create(tkv_device *device, const tkv_device_layer *layer, int n_tokens,
                                   const float *mean_k, const float *mean_v,
                                   tkv_device_layer_fixture *fixture, tkv_error *error);
void tkv_device_layer_free(tkv_device_layer_fixture *fixture);

/* A buffer that is released with the fixture, filled from `from` unless that is NULL. */
tkv_status tkv_device_layer_buffer(tkv_device_layer_fixture *fixture, const void *from,
                                   size_t bytes, uint64_t *address, tkv_error *error);

/* Tokens of a block: the position of the first, and how many are there. */
int tkv_device_layer_start(const tkv_device_layer_fixture *fixture, int block);
int tkv_device_layer_rows(const tkv_device_layer_fixture *fixture, int block);

/* Bytes of a key page or a value page of a block. */
size_t tkv_device_layer_page_bytes(const tkv_device_layer_fixture *fixture, int block,
                                   tkv_page_order order);

#endif
