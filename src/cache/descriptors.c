/* The descriptors of a cache's layers in a device's memory. */
#include "cache/cache.h"

/* Descriptors that are written at a time. */
#define DESCRIPTORS_A_CALL 128

tkv_status tkv_cache_create_descriptors(tkv_cache *cache, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    const size_t bytes = (size_t)cache->n_layers * sizeof(tkv_device_sequence);
    const tkv_status status = device->table->allocate(device, bytes, &cache->descriptors, error);
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        cache->layers[i].descriptor =
            cache->descriptors + (uint64_t)i * sizeof(tkv_device_sequence);
    }
    return status;
}

void tkv_cache_free_descriptors(tkv_cache *cache)
{
    if (cache->descriptors) {
        cache->context->device->table->release(cache->context->device, cache->descriptors);
        cache->descriptors = 0;
    }
}

tkv_status tkv_cache_publish_descriptors(const tkv_cache *cache, int n_more, tkv_error *error)
{
    tkv_device *device = cache->context->device;
    tkv_device_sequence sequences[DESCRIPTORS_A_CALL];
    tkv_status status = TKV_OK;
    for (int i = 0; i < cache->n_layers;) {
        const int first = i;
        for (; i < cache->n_layers && i - first < DESCRIPTORS_A_CALL; i++) {
            const tkv_cache_layer *layer = &cache->layers[i];
            sequences[i - first] = tkv_describe_segment(layer, tkv_last_segment(layer), n_more);
        }
        if (status == TKV_OK) {
            status = device->table->upload(
                device, cache->descriptors + (uint64_t)first * sizeof *sequences, sequences,
                (size_t)(i - first) * sizeof *sequences, error);
        }
        for (int l = first; l < i; l++) {
            cache->layers[l].is_stale = status != TKV_OK;
        }
    }
    return status;
}
