#include "eval/attention_speed.h"

#include "common/try.h"
#include "eval/clock.h"

#include <stdint.h>
#include <stdlib.h>

struct tkv_attention_work {
    tkv_attention_shape shape;
    tkv_context *context;
    tkv_cache *cache;
    size_t bytes;  /* of queries and results */
    void *queries; /* [n_queries][n_heads][head_dim] floats, where the context computes */
    void *results; /* likewise */
    float *output; /* the results on the host */
};

/* The sum of four uniform numbers: Gaussian enough, and fast, for values whose only part in the
 * matter is to be coded. */
void tkv_attention_fill(uint32_t *seed, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) {
            *seed = *seed * 1664525u + 1013904223u;
            sum += (float)(*seed >> 8) * 0x1p-24f - 0.5f;
        }
        x[i] = 1.7f * sum;
    }
}

static tkv_status fill_cache(tkv_attention_work *work, uint32_t *seed, tkv_error *error)
{
    const tkv_attention_shape *s = &work->shape;
    const size_t row = (size_t)s->n_kv_heads * (size_t)s->head_dim;
    const size_t n = 2 * TKV_PAGE_TOKENS * row;
    void *memory = NULL;
    float *rows = malloc(n * sizeof *rows);
    if (!rows) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for keys and values");
    }
    tkv_status status = tkv_memory_allocate(work->context, n * sizeof *rows, &memory, error);
    const float *keys = memory;
    for (int done = 0; done < s->n_tokens && status == TKV_OK; done += TKV_PAGE_TOKENS) {
        const int left = s->n_tokens - done;
        tkv_attention_fill(seed, n, rows);
        status = tkv_memory_upload(work->context, memory, rows, n * sizeof *rows, error);
        if (status == TKV_OK) {
            status =
                tkv_cache_append(work->cache, 0, left < TKV_PAGE_TOKENS ? left : TKV_PAGE_TOKENS,
                                 keys, keys + TKV_PAGE_TOKENS * row, error);
        }
    }
    tkv_memory_free(work->context, memory);
    free(rows);
    return status;
}

static tkv_status check_shape(const tkv_attention_shape *s, tkv_error *error)
{
    if (s->group < 1 || s->n_queries < 1 || s->n_queries > s->n_tokens) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "group %d, %d queries, %d tokens: expected a group and queries of at least "
                        "1, and no more queries than tokens",
                        s->group, s->n_queries, s->n_tokens);
    }
    return TKV_OK;
}

static tkv_status create_queries(tkv_attention_work *work, uint32_t *seed, tkv_error *error)
{
    work->output = malloc(work->bytes);
    if (!work->output) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the queries");
    }
    tkv_attention_fill(seed, work->bytes / sizeof(float), work->output);
    TKV_TRY(tkv_memory_allocate(work->context, work->bytes, &work->queries, error));
    TKV_TRY(tkv_memory_allocate(work->context, work->bytes, &work->results, error));
    return tkv_memory_upload(work->context, work->queries, work->output, work->bytes, error);
}

tkv_status tkv_attention_work_create(tkv_context *context, const tkv_attention_shape *shape,
                                     tkv_attention_work **work, tkv_error *error)
{
    *work = NULL;
    tkv_status status = check_shape(shape, error);
    if (status != TKV_OK) {
        return status;
    }
    const size_t n = (size_t)shape->n_queries * (size_t)(shape->n_kv_heads * shape->group) *
                     (size_t)shape->head_dim;
    tkv_attention_work *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the benchmark");
    }
    created->shape = *shape;
    created->context = context;
    created->bytes = n * sizeof(float);
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = shape->n_kv_heads,
                                     .head_dim_k = shape->head_dim,
                                     .head_dim_v = shape->head_dim,
                                     .max_tokens = shape->n_tokens,
                                     .types_k = &shape->type_k,
                                     .types_v = &shape->type_v};
    uint32_t seed = 1;
    status = tkv_cache_create(context, &params, &created->cache, error);
    if (status == TKV_OK) {
        status = create_queries(created, &seed, error);
    }
    if (status == TKV_OK) {
        status = fill_cache(created, &seed, error);
    }
    if (status != TKV_OK) {
        tkv_attention_work_free(created);
        return status;
    }
    *work = created;
    return TKV_OK;
}

void tkv_attention_work_free(tkv_attention_work *work)
{
    if (work) {
        tkv_cache_free(work->cache);
        tkv_memory_free(work->context, work->queries);
        tkv_memory_free(work->context, work->results);
        free(work->output);
        free(work);
    }
}

tkv_status tkv_attention_work_run(tkv_attention_work *work, double *seconds, tkv_error *error)
{
    const tkv_attention_shape *s = &work->shape;
    const tkv_attend_params params = {.n_queries = s->n_queries,
                                      .n_heads = s->n_kv_heads * s->group,
                                      .first_position = s->n_tokens - s->n_queries};
    const double start = tkv_clock();
    TKV_TRY(tkv_attend(work->cache, 0, &params, work->queries, work->results, error));
    TKV_TRY(tkv_context_wait(work->context, error));
    *seconds = tkv_clock() - start;
    return tkv_memory_download(work->context, work->output, work->results, work->bytes, error);
}

const float *tkv_attention_work_output(const tkv_attention_work *work, size_t *n)
{
    *n = work->bytes / sizeof *work->output;
    return work->output;
}

size_t tkv_attention_shape_bytes(const tkv_attention_shape *shape)
{
    const double bits = tkv_bits_per_value(shape->type_k, shape->head_dim) +
                        tkv_bits_per_value(shape->type_v, shape->head_dim);
    return (size_t)(bits / 8.0 * shape->head_dim * shape->n_kv_heads * shape->n_tokens);
}
