#include "eval/device_codec_speed.h"

#include "common/try.h"
#include "eval/clock.h"

#include <math.h>
#include <stdlib.h>

#define N_RUNS 7
#define N_CALLS 20 /* enqueued between two looks at the clock */
#define N_APPENDS 200
#define PATTERN_ROWS 4096 /* that differ; the chunk repeats them */

/* A cache of one chunk and one token, and rows of the chunk. */
typedef struct codec_measurement {
    tkv_context *context;
    tkv_device_codec_shape shape;
    tkv_cache *cache;
    void *rows[2]; /* keys, values [n_tokens][n_kv_heads][head_dim] */
} codec_measurement;

static void free_measurement(codec_measurement *m)
{
    tkv_cache_free(m->cache);
    tkv_memory_free(m->context, m->rows[0]);
    tkv_memory_free(m->context, m->rows[1]);
}

static tkv_status repeat_pattern(const codec_measurement *m, const float *pattern, char *to,
                                 tkv_error *error)
{
    const size_t row = (size_t)m->shape.head_dim * sizeof *pattern;
    const size_t n_rows = (size_t)m->shape.n_tokens * (size_t)m->shape.n_kv_heads;
    for (size_t at = 0; at < n_rows; at += PATTERN_ROWS) {
        const size_t n = n_rows - at < PATTERN_ROWS ? n_rows - at : PATTERN_ROWS;
        TKV_TRY(tkv_memory_upload(m->context, to + at * row, pattern, n * row, error));
    }
    return TKV_OK;
}

/* Uniform rows of unit variance: what the codes are does not matter to the time. */
static tkv_status create_rows(codec_measurement *m, int order, tkv_error *error)
{
    const size_t row = (size_t)m->shape.head_dim;
    const size_t n_rows = (size_t)m->shape.n_tokens * (size_t)m->shape.n_kv_heads;
    uint64_t seed = (uint64_t)order + 1;
    TKV_TRY(tkv_memory_allocate(m->context, n_rows * row * sizeof(float), &m->rows[order], error));
    float *pattern = malloc(PATTERN_ROWS * row * sizeof *pattern);
    if (!pattern) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d rows", PATTERN_ROWS);
    }
    for (size_t i = 0; i < PATTERN_ROWS * row; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        pattern[i] = ((float)(seed >> 40) * 0x1p-23f - 1.0f) * 1.7320508f;
    }
    const tkv_status status = repeat_pattern(m, pattern, m->rows[order], error);
    free(pattern);
    return status;
}

static tkv_status create_cache(codec_measurement *m, tkv_error *error)
{
    const tkv_device_codec_shape *s = &m->shape;
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = s->n_kv_heads,
                                     .head_dim_k = s->head_dim,
                                     .head_dim_v = s->head_dim,
                                     .max_tokens = s->n_tokens + 1,
                                     .types_k = &s->type,
                                     .types_v = &s->type};
    return tkv_cache_create(m->context, &params, &m->cache, error);
}

/* One call that is timed: n_tokens > 0: stores so many, which are reserved; 0: loads the chunk. */
static tkv_status enqueue(const codec_measurement *m, int n_tokens, tkv_error *error)
{
    return n_tokens > 0
               ? tkv_cache_append(m->cache, 0, n_tokens, m->rows[0], m->rows[1], error)
               : tkv_cache_read(m->cache, 0, 0, m->shape.n_tokens, m->rows[0], m->rows[1], error);
}

/* Seconds a call, the best of several runs after one that does not count. */
static tkv_status time_calls(const codec_measurement *m, int n_tokens, int n_calls, double *seconds,
                             tkv_error *error)
{
    *seconds = INFINITY;
    for (int run = 0; run <= N_RUNS; run++) {
        const double begin = tkv_clock();
        for (int i = 0; i < n_calls; i++) {
            TKV_TRY(enqueue(m, n_tokens, error));
        }
        TKV_TRY(tkv_context_wait(m->context, error));
        *seconds = run > 0 ? fmin(*seconds, (tkv_clock() - begin) / n_calls) : *seconds;
    }
    return TKV_OK;
}

/* Tokens that are reserved are stored as often as is wanted. */
static tkv_status time_stores(const codec_measurement *m, int n_tokens, int n_calls,
                              double *seconds, tkv_error *error)
{
    TKV_TRY(tkv_cache_reserve(m->cache, n_tokens, 0, error));
    TKV_TRY(time_calls(m, n_tokens, n_calls, seconds, error));
    return tkv_cache_commit(m->cache, error);
}

static tkv_status measure(codec_measurement *m, tkv_device_codec_speed *speed, tkv_error *error)
{
    TKV_TRY(create_rows(m, 0, error));
    TKV_TRY(create_rows(m, 1, error));
    TKV_TRY(create_cache(m, error));
    TKV_TRY(time_stores(m, m->shape.n_tokens, N_CALLS, &speed->store_seconds, error));
    TKV_TRY(time_stores(m, 1, N_APPENDS, &speed->append_seconds, error));
    return time_calls(m, 0, N_CALLS, &speed->load_seconds, error);
}

tkv_status tkv_device_codec_speed_measure(tkv_context *context, const tkv_device_codec_shape *shape,
                                          tkv_device_codec_speed *speed, tkv_error *error)
{
    codec_measurement m = {.context = context, .shape = *shape};
    speed->n_rows = 2.0 * shape->n_tokens * shape->n_kv_heads;
    speed->n_bytes = speed->n_rows * ((double)shape->head_dim * sizeof(float) +
                                      (double)tkv_row_bytes(shape->type, shape->head_dim));
    const tkv_status status = measure(&m, speed, error);
    free_measurement(&m);
    return status;
}

static tkv_status time_copies(tkv_context *context, void *const areas[2], size_t n_bytes,
                              double *seconds, tkv_error *error)
{
    *seconds = INFINITY;
    for (int run = 0; run <= N_RUNS; run++) {
        const double begin = tkv_clock();
        for (int i = 0; i < N_CALLS; i++) {
            TKV_TRY(tkv_memory_copy(context, areas[1], areas[0], n_bytes, error));
        }
        TKV_TRY(tkv_context_wait(context, error));
        *seconds = run > 0 ? fmin(*seconds, (tkv_clock() - begin) / N_CALLS) : *seconds;
    }
    return TKV_OK;
}

tkv_status tkv_device_copy_bandwidth(tkv_context *context, size_t n_bytes, double *bandwidth,
                                     tkv_error *error)
{
    void *areas[2] = {NULL, NULL};
    double seconds = INFINITY;
    tkv_status status = tkv_memory_allocate(context, n_bytes, &areas[0], error);
    if (status == TKV_OK) {
        status = tkv_memory_allocate(context, n_bytes, &areas[1], error);
    }
    if (status == TKV_OK) {
        status = time_copies(context, areas, n_bytes, &seconds, error);
    }
    *bandwidth = 2.0 * (double)n_bytes / seconds;
    tkv_memory_free(context, areas[0]);
    tkv_memory_free(context, areas[1]);
    return status;
}
