#include "eval/device_codec_speed.h"
#include "base/error.h"
#include "eval/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_RUNS 7
#define N_CALLS 20 /* enqueued between two looks at the clock */
#define N_APPENDS 200
#define PATTERN_ROWS 4096 /* that differ; the chunk repeats them */

/* Memory of one measurement. */
typedef struct codec_buffers {
    uint64_t pages;
    uint64_t blocks;
    uint64_t sequence;
    uint64_t rows[2]; /* keys, values [n_tokens][n_kv_heads][head_dim] */
} codec_buffers;

typedef enum codec_call { CALL_STORE, CALL_APPEND, CALL_LOAD } codec_call;

typedef struct codec_measurement {
    tkv_device *device;
    const tkv_device_table *table;
    tkv_device_codec_shape shape;
    tkv_device_layer layer;
    codec_buffers buffers;
} codec_measurement;

static void release_buffers(codec_measurement *m)
{
    const uint64_t addresses[] = {m->buffers.pages, m->buffers.blocks, m->buffers.sequence,
                                  m->buffers.rows[0], m->buffers.rows[1]};
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        if (addresses[i]) {
            m->table->release(m->device, addresses[i]);
        }
    }
}

/* Uniform rows of unit variance: what the codes are does not matter to the time. */
static tkv_status upload_rows(codec_measurement *m, uint64_t to, uint64_t seed, tkv_error *error)
{
    const size_t row = (size_t)m->shape.head_dim;
    const size_t n_rows = (size_t)m->shape.n_tokens * (size_t)m->shape.n_kv_heads;
    float *pattern = malloc(PATTERN_ROWS * row * sizeof *pattern);
    if (!pattern) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %d rows", PATTERN_ROWS);
    }
    for (size_t i = 0; i < PATTERN_ROWS * row; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        pattern[i] = ((float)(seed >> 40) * 0x1p-23f - 1.0f) * 1.7320508f;
    }
    tkv_status status = TKV_OK;
    for (size_t at = 0; at < n_rows && status == TKV_OK; at += PATTERN_ROWS) {
        const size_t n = n_rows - at < PATTERN_ROWS ? n_rows - at : PATTERN_ROWS;
        status = m->table->upload(m->device, to + at * row * sizeof(float), pattern,
                                  n * row * sizeof(float), error);
    }
    free(pattern);
    return status;
}

static tkv_status upload_sequence(codec_measurement *m, size_t block_bytes, int n_blocks,
                                  tkv_error *error)
{
    tkv_device_block *blocks = calloc((size_t)n_blocks, sizeof *blocks);
    if (!blocks) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a table of %d pages",
                        n_blocks);
    }
    for (int i = 0; i < n_blocks; i++) {
        blocks[i] = (tkv_device_block){.pages = m->buffers.pages + (size_t)i * block_bytes,
                                       .is_exact = m->shape.type == TKV_TYPE_F16,
                                       .n_slots = TKV_PAGE_TOKENS};
    }
    const tkv_device_sequence sequence = {
        .blocks = m->buffers.blocks, .n_tokens = m->shape.n_tokens, .n_blocks = n_blocks};
    tkv_status status = m->table->upload(m->device, m->buffers.blocks, blocks,
                                         (size_t)n_blocks * sizeof *blocks, error);
    if (status == TKV_OK) {
        status =
            m->table->upload(m->device, m->buffers.sequence, &sequence, sizeof sequence, error);
    }
    free(blocks);
    return status;
}

static tkv_status create_buffers(codec_measurement *m, tkv_error *error)
{
    const int n_blocks = (m->shape.n_tokens + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS;
    const size_t block_bytes =
        2 * (size_t)m->shape.n_kv_heads * tkv_page_bytes(m->shape.type, m->shape.head_dim);
    const size_t row_bytes = (size_t)m->shape.n_tokens * (size_t)m->shape.n_kv_heads *
                             (size_t)m->shape.head_dim * sizeof(float);
    const size_t sizes[] = {(size_t)n_blocks * block_bytes,
                            (size_t)n_blocks * sizeof(tkv_device_block),
                            sizeof(tkv_device_sequence), row_bytes, row_bytes};
    uint64_t *addresses[] = {&m->buffers.pages, &m->buffers.blocks, &m->buffers.sequence,
                             &m->buffers.rows[0], &m->buffers.rows[1]};
    tkv_status status = TKV_OK;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && status == TKV_OK; i++) {
        status = m->table->allocate(m->device, sizes[i], addresses[i], error);
    }
    for (int order = 0; order < 2 && status == TKV_OK; order++) {
        status = upload_rows(m, m->buffers.rows[order], (uint64_t)order + 1, error);
    }
    return status == TKV_OK ? upload_sequence(m, block_bytes, n_blocks, error) : status;
}

static tkv_status enqueue(const codec_measurement *m, codec_call call, tkv_error *error)
{
    const uint64_t *rows = m->buffers.rows;
    switch (call) {
    case CALL_STORE:
        return m->table->store(m->device, &m->layer, m->buffers.sequence, 1, 0, m->shape.n_tokens,
                               rows[0], rows[1], error);
    case CALL_APPEND:
        return m->table->store(m->device, &m->layer, m->buffers.sequence, 1, -1, 1, rows[0],
                               rows[1], error);
    default:
        return m->table->load(m->device, &m->layer, m->buffers.sequence, 0, m->shape.n_tokens,
                              rows[0], rows[1], error);
    }
}

/* Seconds a call, the best of several runs after one that does not count. */
static tkv_status time_calls(const codec_measurement *m, codec_call call, int n_calls,
                             double *seconds, tkv_error *error)
{
    *seconds = INFINITY;
    for (int run = 0; run <= N_RUNS; run++) {
        const double begin = tkv_clock();
        tkv_status status = TKV_OK;
        for (int i = 0; i < n_calls && status == TKV_OK; i++) {
            status = enqueue(m, call, error);
        }
        if (status == TKV_OK) {
            status = m->table->wait(m->device, error);
        }
        if (status != TKV_OK) {
            return status;
        }
        *seconds = run > 0 ? fmin(*seconds, (tkv_clock() - begin) / n_calls) : *seconds;
    }
    return TKV_OK;
}

tkv_status tkv_device_codec_speed_measure(tkv_device *device, const tkv_device_codec_shape *shape,
                                          tkv_device_codec_speed *speed, tkv_error *error)
{
    codec_measurement m = {.device = device,
                           .table = device->table,
                           .shape = *shape,
                           .layer = {.type_k = (int32_t)shape->type,
                                     .type_v = (int32_t)shape->type,
                                     .n_kv_heads = shape->n_kv_heads,
                                     .head_dim_k = shape->head_dim,
                                     .head_dim_v = shape->head_dim,
                                     .effort = (int32_t)shape->effort}};
    speed->n_rows = 2.0 * shape->n_tokens * shape->n_kv_heads;
    speed->n_bytes = speed->n_rows * ((double)shape->head_dim * sizeof(float) +
                                      (double)tkv_row_bytes(shape->type, shape->head_dim));
    tkv_status status = create_buffers(&m, error);
    if (status == TKV_OK) {
        status = time_calls(&m, CALL_STORE, N_CALLS, &speed->store_seconds, error);
    }
    if (status == TKV_OK) {
        status = time_calls(&m, CALL_APPEND, N_APPENDS, &speed->append_seconds, error);
    }
    if (status == TKV_OK) {
        status = time_calls(&m, CALL_LOAD, N_CALLS, &speed->load_seconds, error);
    }
    release_buffers(&m);
    return status;
}

tkv_status tkv_device_copy_bandwidth(tkv_device *device, size_t n_bytes, double *bandwidth,
                                     tkv_error *error)
{
    uint64_t from = 0;
    uint64_t to = 0;
    tkv_status status = device->table->allocate(device, n_bytes, &from, error);
    if (status == TKV_OK) {
        status = device->table->allocate(device, n_bytes, &to, error);
    }
    *bandwidth = 0.0;
    for (int run = 0; run <= N_RUNS && status == TKV_OK; run++) {
        const double begin = tkv_clock();
        for (int i = 0; i < N_CALLS && status == TKV_OK; i++) {
            status = device->table->copy(device, to, from, n_bytes, error);
        }
        if (status == TKV_OK) {
            status = device->table->wait(device, error);
        }
        const double seconds = (tkv_clock() - begin) / N_CALLS;
        *bandwidth = run > 0 ? fmax(*bandwidth, 2.0 * (double)n_bytes / seconds) : 0.0;
    }
    if (from) {
        device->table->release(device, from);
    }
    if (to) {
        device->table->release(device, to);
    }
    return status;
}
