/* Context shift: tokens in the middle are dropped and the later ones move down. Nothing is coded
 * again: what is behind the gap becomes a segment whose keys are ahead of the caller's positions.
 */
#include "base/allocate.h"
#include "base/assert.h"
#include "base/error.h"
#include "base/rope.h"
#include "cache/consistent.h"

#include <string.h>

static bool are_equal(const tkv_rope *a, const tkv_rope *b)
{
    return a->is_interleaved == b->is_interleaved && a->n_rotated == b->n_rotated &&
           memcmp(a->frequencies, b->frequencies,
                  (size_t)a->n_rotated / 2 * sizeof *a->frequencies) == 0;
}

/* What keys were turned by once they can be turned back only by the same. */
static tkv_status check_layer_rope(const tkv_cache *cache, int index, const tkv_rope *rope,
                                   tkv_error *error)
{
    const tkv_cache_layer *layer = &cache->layers[index];
    if (!rope || layer->has_own_rope) {
        return TKV_OK;
    }
    const tkv_status status = tkv_check_rope(rope, layer->head_dim_k, error);
    if (status == TKV_OK && rope->n_rotated > 0 && layer->rope.frequencies &&
        !are_equal(rope, &layer->rope)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "shift of layer %d by another RoPE: expected the one that the cache was "
                        "created with or shifted by before",
                        index);
    }
    return status;
}

static tkv_status check_shift(const tkv_cache *cache, int first, int n_drop, const tkv_rope *rope,
                              tkv_error *error)
{
    if (!cache || first < 0 || n_drop < 1) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "shift by %d tokens at %d: expected a cache, a position and at least one "
                        "token",
                        n_drop, first);
    }
    if (cache->n_reserved > 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "shift while %d tokens are reserved: expected a commit first",
                        cache->n_reserved);
    }
    tkv_status status = TKV_OK;
    for (int i = 0; i < cache->n_layers && status == TKV_OK; i++) {
        const int length = cache->layers[i].n_tokens;
        status = check_layer_rope(cache, i, rope, error);
        if (status == TKV_OK && (first > length || n_drop > length - first)) {
            status = tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                              "shift drops %d tokens from position %d on, but layer %d holds %d",
                              n_drop, first, i, length);
        }
    }
    return status;
}

/* Layers that do not know their rope yet learn it; one of their own may be that keys do not turn.
 */
static tkv_status take_ropes(tkv_cache *cache, const tkv_rope *rope, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int i = 0; rope && i < cache->n_layers && status == TKV_OK; i++) {
        if (!cache->layers[i].rope.frequencies && !cache->layers[i].has_own_rope) {
            status = tkv_layer_take_rope(&cache->layers[i], rope, error);
        }
    }
    return status;
}

static void free_views(const tkv_context *context, tkv_cache_layer *views, int n)
{
    for (int i = 0; i < n; i++) {
        tkv_layer_free_tables(&views[i]);
    }
    tkv_release(&context->allocator, views);
}

static void swap_layers(tkv_cache *cache, tkv_cache_layer *views)
{
    for (int i = 0; i < cache->n_layers; i++) {
        const tkv_cache_layer layer = cache->layers[i];
        cache->layers[i] = views[i];
        views[i] = layer;
    }
}

/* Everything is written beside what is in force, which the descriptors then end. */
static tkv_status publish_views(tkv_cache *cache, tkv_cache_layer *views, tkv_error *error)
{
    const tkv_allocator *allocator = &cache->context->allocator;
    tkv_layer_tables *old = tkv_allocate_zeroed(allocator, (size_t)cache->n_layers * sizeof *old);
    int n_renewed = 0;
    tkv_status status = old ? TKV_OK
                            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to shift %d layers",
                                       cache->n_layers);
    while (status == TKV_OK && n_renewed < cache->n_layers) {
        status = tkv_layer_renew(&views[n_renewed], &old[n_renewed], error);
        n_renewed += status == TKV_OK;
    }
    swap_layers(cache, views);
    if (status == TKV_OK) {
        status = tkv_cache_publish_descriptors(cache, 0, error);
    }
    if (status != TKV_OK) {
        swap_layers(cache, views);
    }
    for (int i = 0; i < n_renewed; i++) {
        if (status == TKV_OK) {
            tkv_release_tables(cache->context->device, &old[i]);
        } else {
            tkv_layer_free_published(&views[i]);
        }
    }
    tkv_release(allocator, old);
    return status;
}

tkv_status tkv_cache_shift(tkv_cache *cache, int first, int n_drop, const tkv_rope *rope,
                           tkv_error *error)
{
    tkv_status status = check_shift(cache, first, n_drop, rope, error);
    if (status == TKV_OK) {
        status = take_ropes(cache, rope, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    tkv_cache_layer *views =
        tkv_allocate(&cache->context->allocator, (size_t)cache->n_layers * sizeof *views);
    if (!views) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to shift %d layers",
                        cache->n_layers);
    }
    int n_made = 0;
    while (n_made < cache->n_layers && status == TKV_OK) {
        const bool is_turned = rope || cache->layers[n_made].has_own_rope;
        status = tkv_layer_without(&cache->layers[n_made], first, n_drop, is_turned, &views[n_made],
                                   error);
        n_made += status == TKV_OK;
    }
    if (status == TKV_OK) {
        status = publish_views(cache, views, error);
    }
    free_views(cache->context, views, n_made);
    if (status == TKV_OK) {
        cache->generation++;
        for (int i = 0; i < cache->n_layers; i++) {
            tkv_layer_thaw(&cache->layers[i]);
            tkv_layer_shorten(&cache->layers[i]);
        }
    }
    tkv_assert(tkv_cache_is_consistent(cache));
    return status;
}
