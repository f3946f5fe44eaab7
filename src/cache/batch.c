/* One layer of several sequences at a time. */
#include "base/allocate.h"
#include "base/error.h"
#include "cache/cache.h"

#include <string.h>

static bool are_alike(const tkv_cache *a, const tkv_cache *b, int layer)
{
    const tkv_cache_layer *x = &a->layers[layer];
    const tkv_cache_layer *y = &b->layers[layer];
    return a->context == b->context && a->n_layers == b->n_layers &&
           x->n_kv_heads == y->n_kv_heads && x->head_dim_k == y->head_dim_k &&
           x->head_dim_v == y->head_dim_v && x->window == y->window && x->head == y->head &&
           x->type_k == y->type_k && x->type_v == y->type_v && a->n_reserved == b->n_reserved &&
           (a->n_reserved == 0 || a->max_length == b->max_length);
}

bool tkv_is_plain_batch(const tkv_cache *const *caches, int n_caches, int layer)
{
    for (int i = 0; i < n_caches; i++) {
        const tkv_cache_layer *own = &caches[i]->layers[layer];
        const tkv_segment *last = tkv_last_segment(own);
        if (last && (own->n_segments > 1 || last->begin || last->position || last->turns)) {
            return false;
        }
    }
    return true;
}

tkv_status tkv_check_batch(const tkv_cache *const *caches, int n_caches, int layer,
                           tkv_error *error)
{
    if (!caches || n_caches < 1 || !caches[0] || layer < 0 || layer >= caches[0]->n_layers) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "layer %d of a batch of %d caches: expected caches and a layer of theirs",
                        layer, n_caches);
    }
    for (int i = 1; i < n_caches; i++) {
        if (!caches[i] || !are_alike(caches[0], caches[i], layer)) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "cache %d of a batch is not like the first: expected the same context, "
                            "shape, types, sinks and reservation",
                            i);
        }
    }
    return TKV_OK;
}

/* Copies descriptors side by side. */
static tkv_status gather(tkv_device *device, uint64_t to, const uint64_t *from, int n,
                         tkv_error *error)
{
    const size_t bytes = sizeof(tkv_device_sequence);
    if (device->table->gather) {
        return device->table->gather(device, to, from, n, error);
    }
    for (int i = 0; i < n; i++) {
        TKV_TRY(device->table->copy(device, to + (uint64_t)i * bytes, from[i], bytes, error));
    }
    return TKV_OK;
}

/* Their addresses, what they say being up to date. */
static tkv_status find_descriptors(const tkv_cache *const *caches, int n_caches, int layer,
                                   uint64_t *from, tkv_error *error)
{
    for (int i = 0; i < n_caches; i++) {
        tkv_cache_layer *own = &caches[i]->layers[layer];
        from[i] = own->descriptor;
        if (own->is_stale) {
            TKV_TRY(tkv_layer_publish(own, own->n_blocks, 0, error));
        }
    }
    return TKV_OK;
}

tkv_status tkv_gather_sequences(const tkv_cache *const *caches, int n_caches, int layer,
                                uint64_t *sequences, tkv_error *error)
{
    if (n_caches == 1) { /* lies side by side as it is */
        return find_descriptors(caches, n_caches, layer, sequences, error);
    }
    tkv_context *context = caches[0]->context;
    const size_t bytes = (size_t)n_caches * sizeof(tkv_device_sequence);
    uint64_t *from = tkv_allocate(&context->allocator, (size_t)n_caches * sizeof *from);
    uint64_t to = 0;
    tkv_status status =
        from ? find_descriptors(caches, n_caches, layer, from, error)
             : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a batch of %d", n_caches);
    if (status == TKV_OK) {
        status = tkv_context_workspace(context, TKV_WORKSPACE_SEQUENCES, bytes, &to, error);
    }
    if (status == TKV_OK) {
        status = gather(context->device, to, from, n_caches, error);
    }
    tkv_release(&context->allocator, from);
    if (status != TKV_OK) {
        tkv_context_give_back(context, to);
        return status;
    }
    *sequences = to;
    return TKV_OK;
}

void tkv_give_back_sequences(tkv_context *context, int n_caches, uint64_t sequences)
{
    if (n_caches > 1) {
        tkv_context_give_back(context, sequences);
    }
}

static tkv_status append_one_by_one(tkv_cache *const *caches, int n_caches, int layer, int n_tokens,
                                    const float *k, const float *v, tkv_error *error)
{
    const tkv_cache_layer *first = &caches[0]->layers[layer];
    const size_t rows = (size_t)n_tokens * (size_t)first->n_kv_heads;
    tkv_status status = TKV_OK;
    for (int i = 0; status == TKV_OK && i < n_caches; i++) {
        status = tkv_cache_append(
            caches[i], layer, n_tokens, k ? k + (size_t)i * rows * (size_t)first->head_dim_k : NULL,
            v ? v + (size_t)i * rows * (size_t)first->head_dim_v : NULL, error);
    }
    return status;
}

tkv_status tkv_cache_append_batch(tkv_cache *const *caches, int n_caches, int layer, int n_tokens,
                                  const float *k, const float *v, tkv_error *error)
{
    const tkv_cache *const *batch = (const tkv_cache *const *)caches;
    tkv_status status = tkv_check_batch(batch, n_caches, layer, error);
    if (status == TKV_OK && (!k || !v || n_tokens < 0)) {
        status =
            tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                     "append of %d tokens to a batch: expected at least 0, and k and v", n_tokens);
    }
    if (status != TKV_OK) {
        return status;
    }
    const tkv_cache *cache = caches[0];
    const tkv_device_rows of_k =
        tkv_describe_rows(&cache->layers[layer], 0, TKV_ORDER_KEY, 0, false);
    const tkv_device_rows of_v =
        tkv_describe_rows(&cache->layers[layer], 0, TKV_ORDER_VALUE, 0, false);
    if (cache->n_reserved == 0 || !tkv_is_plain_batch(batch, n_caches, layer) ||
        tkv_rows_differ(&of_k) || tkv_rows_differ(&of_v)) {
        return append_one_by_one(caches, n_caches, layer, n_tokens, k, v, error);
    }
    if (n_tokens != cache->n_reserved) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "append of %d tokens where %d are reserved", n_tokens, cache->n_reserved);
    }
    const tkv_device_layer described =
        tkv_describe_layer(&cache->layers[layer], tkv_last_segment(&cache->layers[layer]));
    tkv_device *device = cache->context->device;
    uint64_t sequences = 0;
    TKV_TRY(tkv_gather_sequences(batch, n_caches, layer, &sequences, error));
    status = device->table->store(device, &described, sequences, n_caches, -1, n_tokens,
                                  (uint64_t)(uintptr_t)k, (uint64_t)(uintptr_t)v, error);
    tkv_give_back_sequences(cache->context, n_caches, sequences);
    return status;
}
