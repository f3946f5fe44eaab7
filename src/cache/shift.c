/* Context shift: tokens in the middle are dropped and the later ones move down. Their keys carry
 * the rotation of their old position, so they are decoded, turned back by the distance and coded
 * again. */
#include "cache/cache.h"
#include "common/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Turns one key by `distance` positions (RoFormer, Su et al., arXiv 2104.09864, section 3.2.2). */
static void turn_key(const tkv_rope *rope, const float *cosines, const float *sines, float *key)
{
    const int n_pairs = rope->n_rotated / 2;
    for (int i = 0; i < n_pairs; i++) {
        float *a = rope->is_interleaved ? key + 2 * i : key + i;
        float *b = rope->is_interleaved ? key + 2 * i + 1 : key + i + n_pairs;
        const float x = *a;
        const float y = *b;
        *a = x * cosines[i] - y * sines[i];
        *b = x * sines[i] + y * cosines[i];
    }
}

tkv_status tkv_check_rope(const tkv_rope *rope, int head_dim, tkv_error *error)
{
    if (rope && (!rope->frequencies || rope->n_rotated < 0 || rope->n_rotated % 2 != 0 ||
                 rope->n_rotated > head_dim)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "RoPE over %d coordinates: expected frequencies and an even number up to "
                        "%d",
                        rope->n_rotated, head_dim);
    }
    return TKV_OK;
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
    const tkv_status status = tkv_check_rope(rope, cache->head_dim_k, error);
    if (status != TKV_OK) {
        return status;
    }
    for (int i = 0; i < cache->n_layers; i++) {
        const int length = cache->layers[i].n_tokens;
        if (first > length || n_drop > length - first) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "shift drops tokens %d to %d, but layer %d holds %d", first,
                            first + n_drop - 1, i, length);
        }
    }
    return TKV_OK;
}

/* Buffers of a shift. */
typedef struct shift_buffers {
    float *k;       /* [TKV_PAGE_TOKENS][n_kv_heads][head_dim_k] */
    float *v;       /* [TKV_PAGE_TOKENS][n_kv_heads][head_dim_v] */
    float *cosines; /* [n_rotated / 2] */
    float *sines;
} shift_buffers;

static bool allocate_buffers(const tkv_cache *cache, shift_buffers *buffers)
{
    const size_t rows = (size_t)TKV_PAGE_TOKENS * (size_t)cache->n_kv_heads;
    buffers->k = malloc(rows * (size_t)cache->head_dim_k * sizeof(float));
    buffers->v = malloc(rows * (size_t)cache->head_dim_v * sizeof(float));
    buffers->cosines = malloc((size_t)cache->head_dim_k * sizeof(float));
    buffers->sines = malloc((size_t)cache->head_dim_k * sizeof(float));
    return buffers->k && buffers->v && buffers->cosines && buffers->sines;
}

static void free_buffers(shift_buffers *buffers)
{
    free(buffers->k);
    free(buffers->v);
    free(buffers->cosines);
    free(buffers->sines);
}

/* Keys are turned by the host: a context shift is rare, and so the result is the same to the bit.
 */
static tkv_status read_tokens(const tkv_cache *cache, int layer, int first, int n_tokens,
                              const shift_buffers *buffers, tkv_error *error)
{
    if (cache->context->device) {
        return tkv_layer_download(cache, &cache->layers[layer], first, n_tokens, buffers->k,
                                  buffers->v, error);
    }
    return tkv_cache_read(cache, layer, first, n_tokens, buffers->k, buffers->v, error);
}

static tkv_status append_tokens(const tkv_cache *cache, tkv_cache_layer *layer, int n_tokens,
                                const shift_buffers *buffers, tkv_error *error)
{
    if (cache->context->device) {
        return tkv_layer_append_from_host(cache, layer, n_tokens, buffers->k, buffers->v, error);
    }
    return tkv_layer_append(cache, layer, n_tokens, buffers->k, buffers->v, error);
}

/* Builds `moved` from the tokens of a layer without [first, first + n_drop). */
static tkv_status move_layer(const tkv_cache *cache, int index, int first, int n_drop,
                             const tkv_rope *rope, const shift_buffers *buffers,
                             tkv_cache_layer *moved, tkv_error *error)
{
    const tkv_cache_layer *layer = &cache->layers[index];
    tkv_status status = tkv_layer_share(cache, layer, first, moved, error);
    /* The means stay even if nothing is kept before the gap: later tokens are coded with them. */
    if (status == TKV_OK && layer->is_centred && !moved->is_centred) {
        tkv_layer_take_means(cache, layer, moved);
        status = tkv_layer_publish_means(cache, moved, error);
    }
    for (int at = first + n_drop; status == TKV_OK && at < layer->n_tokens;) {
        const int left = layer->n_tokens - at;
        const int n = left < TKV_PAGE_TOKENS ? left : TKV_PAGE_TOKENS;
        status = read_tokens(cache, index, at, n, buffers, error);
        for (int i = 0; rope && i < n * cache->n_kv_heads; i++) {
            turn_key(rope, buffers->cosines, buffers->sines,
                     buffers->k + (size_t)i * (size_t)cache->head_dim_k);
        }
        if (status == TKV_OK) {
            status = append_tokens(cache, moved, n, buffers, error);
        }
        at += n;
    }
    return status;
}

static void swap_layers(tkv_cache *a, tkv_cache *b)
{
    tkv_cache_layer *layers = a->layers;
    a->layers = b->layers;
    b->layers = layers;
    for (int i = 0; i < a->n_layers; i++) {
        /* Captured graphs know a cache by the place of its descriptors: they stay. */
        const uint64_t descriptor = a->layers[i].descriptor;
        a->layers[i].descriptor = b->layers[i].descriptor;
        b->layers[i].descriptor = descriptor;
    }
}

static tkv_status exchange_layers(tkv_cache *cache, tkv_cache *moved, tkv_error *error)
{
    swap_layers(cache, moved);
    const tkv_status status = tkv_cache_publish_descriptors(cache, 0, error);
    if (status != TKV_OK) {
        swap_layers(cache, moved);
    }
    return status;
}

tkv_status tkv_cache_shift(tkv_cache *cache, int first, int n_drop, const tkv_rope *rope,
                           tkv_error *error)
{
    tkv_status status = check_shift(cache, first, n_drop, rope, error);
    if (status != TKV_OK) {
        return status;
    }
    shift_buffers buffers = {0};
    tkv_cache *moved = NULL;
    status = tkv_cache_fork(cache, 0, &moved, error);
    if (status != TKV_OK) {
        return status;
    }
    if (!allocate_buffers(cache, &buffers)) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to shift the context");
    }
    for (int i = 0; status == TKV_OK && rope && i < rope->n_rotated / 2; i++) {
        const double angle = -(double)n_drop * (double)rope->frequencies[i];
        buffers.cosines[i] = (float)cos(angle);
        buffers.sines[i] = (float)sin(angle);
    }
    for (int i = 0; status == TKV_OK && i < cache->n_layers; i++) {
        status = move_layer(cache, i, first, n_drop, rope, &buffers, &moved->layers[i], error);
    }
    if (status == TKV_OK) {
        status = exchange_layers(cache, moved, error);
    }
    tkv_cache_free(moved);
    free_buffers(&buffers);
    return status;
}
