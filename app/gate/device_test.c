#include "gate/device_test.h"

#include "base/error.h"
#include "base/half.h"
#include "cache/cache.h"
#include "gate/device_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int head_dims[] = {64, 80, 96, 112, 128, 192, 256, 576};

enum {
    N_HEAD_DIMS = sizeof head_dims / sizeof *head_dims,
    MAX_DIM = 576,
    N_KV_HEADS = 2,
    GROUP = 4,
    N_HEADS = N_KV_HEADS * GROUP,
    N_SINKS = 4,
    N_TOKENS = N_SINKS + 2 * TKV_PAGE_TOKENS + 19, /* sinks, two coded blocks, an exact one */
    N_QUERIES = 21,
    SPLIT = N_SINKS + TKV_PAGE_TOKENS + 23, /* where attention is parted: within a coded block */
    MAX_ROWS = N_TOKENS * N_KV_HEADS
};

/* Of attention, relative to the norm of its output. */
static const double FLOAT_BOUND = 2e-5;

typedef struct bench {
    const tkv_device_table *table;
    tkv_device *device;
    tkv_self_test *test;
    uint64_t seed;
    float *rows[2];    /* keys, values: [N_TOKENS][N_KV_HEADS][MAX_DIM] */
    float *decoded[2]; /* as the reference decodes them, means added */
    float *found;      /* likewise, of one of them, and attention's output */
    float *means[2];   /* [N_KV_HEADS][MAX_DIM] */
    bool is_centred;   /* they are in use */
    float *queries;    /* [N_QUERIES][N_HEADS][MAX_DIM] */
    uint32_t *page;    /* the reference's; of the largest size */
    uint32_t *found_page;
    tkv_device_layer_fixture layer;
} bench;

/* SplitMix64, and its sum of four parts: nearly Gaussian. */
static float next_value(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    const int sum =
        (int)(z & 0xffff) + (int)(z >> 16 & 0xffff) + (int)(z >> 32 & 0xffff) + (int)(z >> 48);
    return (float)(sum - 131070) * 0x1p-15f;
}

static void fill(bench *b, size_t n, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = next_value(&b->seed);
    }
}

static void count(bench *b, tkv_operation kind, tkv_type type, int head_dim, bool has_passed,
                  const char *detail)
{
    tkv_operation_result *result = &b->test->results[kind][type];
    result->n_cases++;
    if (!has_passed && result->n_failed++ == 0) {
        const bool has_type = tkv_operation_has_types(kind);
        snprintf(result->reason, sizeof result->reason, "%s%s%s, head_dim %d: %s",
                 tkv_operation_name(kind), has_type ? " of " : "",
                 has_type ? tkv_type_get_info(type)->name : "", head_dim, detail);
    }
}

/* Rotates rows on the device, from `from` into b->found. */
static tkv_status rotate_there(bench *b, int head_dim, size_t n_rows, const float *from,
                               bool is_inverse, tkv_error *error)
{
    const size_t bytes = n_rows * (size_t)head_dim * sizeof(float);
    uint64_t x = 0;
    tkv_status status = b->table->allocate(b->device, bytes, &x, error);
    if (status != TKV_OK) {
        return status;
    }
    status = b->table->upload(b->device, x, from, bytes, error);
    if (status == TKV_OK) {
        status = b->table->rotate(b->device, head_dim, n_rows, x, is_inverse, error);
    }
    if (status == TKV_OK) {
        status = b->table->download(b->device, b->found, x, bytes, error);
    }
    b->table->release(b->device, x);
    return status;
}

static tkv_status test_rotation(bench *b, int head_dim, tkv_error *error)
{
    const size_t n_rows = 70;
    const size_t bytes = n_rows * (size_t)head_dim * sizeof(float);
    float *expected = b->decoded[0];
    tkv_status status = TKV_OK;
    fill(b, n_rows * (size_t)head_dim, b->rows[0]);
    for (int inverse = 0; inverse < 2 && status == TKV_OK; inverse++) {
        memcpy(expected, b->rows[0], bytes);
        status = inverse ? tkv_unrotate(head_dim, n_rows, expected, error)
                         : tkv_rotate(head_dim, n_rows, expected, error);
        if (status == TKV_OK) {
            status = rotate_there(b, head_dim, n_rows, b->rows[0], inverse, error);
        }
        if (status == TKV_OK) {
            count(b, TKV_OPERATION_ROTATE, 0, head_dim, memcmp(b->found, expected, bytes) == 0,
                  inverse ? "back: other bits than the reference"
                          : "other bits than the reference");
        }
    }
    return status;
}

/* Moves rows on the device, from `from` into b->found. */
static tkv_status move_there(bench *b, tkv_device_rows *rows, const float *from, const float *turns,
                             tkv_error *error)
{
    const size_t from_bytes = rows->n_rows * (size_t)rows->from_width * sizeof(float);
    const size_t to_bytes = rows->n_rows * (size_t)rows->to_width * sizeof(float);
    const size_t turn_bytes = 2 * (size_t)rows->n_pairs * sizeof(float);
    uint64_t memory = 0;
    tkv_status status =
        b->table->allocate(b->device, turn_bytes + from_bytes + to_bytes, &memory, error);
    if (status != TKV_OK) {
        return status;
    }
    rows->turns = memory;
    rows->from = memory + turn_bytes;
    rows->to = rows->from + from_bytes;
    status = b->table->upload(b->device, rows->turns, turns, turn_bytes, error);
    if (status == TKV_OK) {
        status = b->table->upload(b->device, rows->from, from, from_bytes, error);
    }
    if (status == TKV_OK) {
        status = b->table->move_rows(b->device, rows, error);
    }
    if (status == TKV_OK) {
        status = b->table->download(b->device, b->found, rows->to, to_bytes, error);
    }
    b->table->release(b->device, memory);
    return status;
}

/* Keys of a segment behind a gap: padded and turned there, turned back and cut off. */
static tkv_status test_turning(bench *b, int head_dim, tkv_error *error)
{
    const int own = head_dim - 6;
    const tkv_rope rope = {head_dim == 80, own - own % 4, NULL};
    const int n_pairs = rope.n_rotated / 2;
    const size_t n_rows = 70;
    float turns[MAX_DIM];
    float *expected = b->decoded[0];
    for (int i = 0; i < n_pairs; i++) {
        turns[i] = cosf((float)i);
        turns[n_pairs + i] = sinf((float)i);
    }
    tkv_status status = TKV_OK;
    for (int back = 0; back < 2 && status == TKV_OK; back++) {
        tkv_device_rows rows = {.n_rows = n_rows,
                                .from_width = back ? head_dim : own,
                                .to_width = back ? own : head_dim,
                                .n_pairs = n_pairs,
                                .is_interleaved = rope.is_interleaved,
                                .is_back = back};
        const size_t from_width = (size_t)rows.from_width;
        const size_t to_width = (size_t)rows.to_width;
        fill(b, n_rows * from_width, b->rows[0]);
        for (size_t i = 0; i < n_rows; i++) {
            float row[MAX_DIM] = {0};
            memcpy(row, b->rows[0] + i * from_width, from_width * sizeof *row);
            tkv_turn_key(&rope, turns, back, row);
            memcpy(expected + i * to_width, row, to_width * sizeof *row);
        }
        status = move_there(b, &rows, b->rows[0], turns, error);
        if (status == TKV_OK) {
            count(b, TKV_OPERATION_ROTATE, 0, head_dim,
                  memcmp(b->found, expected, n_rows * to_width * sizeof *expected) == 0,
                  back ? "keys turned back: other bits than the reference"
                       : "keys turned: other bits than the reference");
        }
    }
    return status;
}

/* Encodes one page of a block with the reference, into b->page, and decodes it. */
static void make_page(bench *b, int block, int head, tkv_page_order order, int head_dim)
{
    const tkv_device_layer *layer = &b->layer.layer;
    const bool is_exact = b->layer.blocks[block].is_exact;
    const int start = tkv_device_layer_start(&b->layer, block);
    const int n_rows = tkv_device_layer_rows(&b->layer, block);
    const size_t stride = (size_t)N_KV_HEADS * (size_t)head_dim;
    const size_t offset = (size_t)start * stride + (size_t)head * (size_t)head_dim;
    const float *mean =
        is_exact || !b->is_centred ? NULL : b->means[order] + (size_t)head * (size_t)head_dim;
    const tkv_type coded = (tkv_type)(order == TKV_ORDER_KEY ? layer->type_k : layer->type_v);
    const tkv_page_span span = {is_exact ? TKV_TYPE_F16 : coded, order, head_dim, 0, n_rows,
                                (tkv_effort)layer->effort};
    float *rows = b->found;
    for (int i = 0; i < n_rows; i++) {
        for (int j = 0; j < head_dim; j++) {
            const float x = b->rows[order][offset + (size_t)i * stride + (size_t)j];
            /* Rows wait as f16 for their mean. */
            rows[i * head_dim + j] =
                mean ? tkv_half_to_float(tkv_float_to_finite_half(x)) - mean[j] : x;
        }
    }
    memset(b->page, 0, tkv_device_layer_page_bytes(&b->layer, block, order));
    tkv_kernels_scalar.encode(&span, rows, (size_t)head_dim, b->page);
    float *decoded = b->decoded[order] + offset;
    tkv_kernels_scalar.decode(&span, b->page, decoded, stride);
    for (int i = 0; mean && i < n_rows; i++) {
        for (int j = 0; j < head_dim; j++) {
            decoded[(size_t)i * stride + (size_t)j] += mean[j];
        }
    }
}

static tkv_status test_pages(bench *b, tkv_type type, int head_dim, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int block = 0; block < b->layer.n_blocks; block++) {
        uint64_t at = b->layer.blocks[block].pages;
        for (int page = 0; page < 2 * N_KV_HEADS && status == TKV_OK; page++) {
            const tkv_page_order order = page % 2 ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
            const size_t bytes = tkv_device_layer_page_bytes(&b->layer, block, order);
            make_page(b, block, page / 2, order, head_dim);
            status = b->table->download(b->device, b->found_page, at, bytes, error);
            if (status == TKV_OK) {
                count(b, TKV_OPERATION_STORE, b->layer.blocks[block].is_exact ? TKV_TYPE_F16 : type,
                      head_dim, memcmp(b->page, b->found_page, bytes) == 0,
                      "other bits than the reference");
            }
            at += bytes;
        }
    }
    return status;
}

static tkv_status test_loading(bench *b, tkv_type type, int head_dim, const uint64_t rows[2],
                               tkv_error *error)
{
    const size_t bytes = (size_t)MAX_ROWS * (size_t)head_dim * sizeof(float);
    tkv_status status = b->table->load(b->device, &b->layer.layer, b->layer.sequence, 0, N_TOKENS,
                                       rows[0], rows[1], error);
    for (int order = 0; order < 2 && status == TKV_OK; order++) {
        status = b->table->download(b->device, b->found, rows[order], bytes, error);
        if (status == TKV_OK) {
            count(b, TKV_OPERATION_LOAD, type, head_dim,
                  memcmp(b->found, b->decoded[order], bytes) == 0, "other bits than the reference");
        }
    }
    return status;
}

/* The same rows as halves, where the back end has them. */
static tkv_status test_half_loading(bench *b, tkv_type type, int head_dim, const uint64_t rows[2],
                                    tkv_error *error)
{
    const size_t n = (size_t)MAX_ROWS * (size_t)head_dim;
    uint16_t *found = (uint16_t *)b->found;
    if (!b->table->load_half) {
        return TKV_OK;
    }
    tkv_status status = b->table->load_half(b->device, &b->layer.layer, b->layer.sequence, 0,
                                            N_TOKENS, rows[0], rows[1], error);
    for (int order = 0; order < 2 && status == TKV_OK; order++) {
        bool is_right = true;
        status = b->table->download(b->device, found, rows[order], n * sizeof *found, error);
        for (size_t i = 0; i < n && status == TKV_OK; i++) {
            is_right = is_right && found[i] == tkv_float_to_finite_half(b->decoded[order][i]);
        }
        if (status == TKV_OK) {
            count(b, TKV_OPERATION_LOAD, type, head_dim, is_right,
                  "halves: other bits than the reference");
        }
    }
    return status;
}

/* Softmax over the decoded rows that a query sees, in double. */
static void attend_by_definition(const bench *b, int head_dim, int n_seen, int head, const float *q,
                                 double *out)
{
    double weights[N_TOKENS];
    double maximum = -INFINITY;
    double total = 0.0;
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int t = 0; t < n_seen; t++) {
        const float *key = b->decoded[0] + (t * N_KV_HEADS + head / GROUP) * head_dim;
        double dot = 0.0;
        for (int j = 0; j < head_dim; j++) {
            dot += (double)q[j] * (double)key[j];
        }
        weights[t] = dot / sqrt(head_dim);
        maximum = fmax(maximum, weights[t]);
    }
    for (int t = 0; t < n_seen; t++) {
        weights[t] = exp(weights[t] - maximum);
        total += weights[t];
    }
    for (int t = 0; t < n_seen; t++) {
        const float *value = b->decoded[1] + (t * N_KV_HEADS + head / GROUP) * head_dim;
        for (int j = 0; j < head_dim; j++) {
            out[j] += weights[t] / total * (double)value[j];
        }
    }
}

/* What float arithmetic leaves, and what the table's rounding of queries and weights does to a mean
 * of values, whose norm is a fraction of theirs (as in tests/attention). */
static double attention_bound(const tkv_device_table *table, tkv_type type)
{
    const float query = tkv_device_query_rounding(table, (int)type);
    const double coded = type == TKV_TYPE_F16 ? 0.0 : (double)fmaxf(table->weight_rounding, query);
    return FLOAT_BOUND + 10.0 * fmax(coded, (double)table->exact_rounding);
}

/* Of the outputs of all rows, relative to their norm. */
static double attention_error(const bench *b, int head_dim, int n_queries, const float *out)
{
    double difference = 0.0;
    double norm = 0.0;
    for (int row = 0; row < n_queries * N_HEADS; row++) {
        double expected[MAX_DIM];
        const int n_seen = N_TOKENS - n_queries + 1 + row / N_HEADS;
        attend_by_definition(b, head_dim, n_seen, row % N_HEADS, b->queries + row * head_dim,
                             expected);
        for (int j = 0; j < head_dim; j++) {
            const double error = (double)out[row * head_dim + j] - expected[j];
            difference += error * error;
            norm += expected[j] * expected[j];
        }
    }
    return sqrt(difference / norm);
}

/* Plans and attends, in a workspace of its own. */
static tkv_status attend(bench *b, const tkv_device_attend *params, tkv_error *error)
{
    tkv_attend_plan plan;
    uint64_t workspace = 0;
    tkv_status status = b->table->plan(b->device, params, &plan, error);
    if (status == TKV_OK && plan.workspace_bytes > 0) {
        status = tkv_device_layer_buffer(&b->layer, NULL, plan.workspace_bytes, &workspace, error);
    }
    return status == TKV_OK ? b->table->attend(b->device, &plan, workspace, error) : status;
}

/* Attends to all tokens in one call, or to the parts before and from a position on, and joins. */
static tkv_status run_attention(bench *b, tkv_device_attend *params, bool is_parted,
                                tkv_error *error)
{
    const size_t n_rows = (size_t)(params->n_queries * params->n_heads);
    const size_t n_out = n_rows * (size_t)params->layer.head_dim_v;
    if (!is_parted) {
        return attend(b, params, error);
    }
    tkv_device_join join = {.out = params->out,
                            .n_rows = n_rows,
                            .n_parts = 2,
                            .from_width = params->layer.head_dim_v,
                            .to_width = params->layer.head_dim_v};
    tkv_status status =
        tkv_device_layer_buffer(&b->layer, NULL, 2 * n_out * sizeof(float), &join.parts, error);
    if (status == TKV_OK) {
        status = tkv_device_layer_buffer(&b->layer, NULL, 2 * n_rows * sizeof(float),
                                         &join.log_sums, error);
    }
    for (size_t i = 0; i < 2 && status == TKV_OK; i++) {
        tkv_device_attend part = *params;
        part.begin = i == 1 ? SPLIT : 0;
        part.end = i == 0 ? SPLIT : 0;
        part.out = join.parts + i * n_out * sizeof(float);
        part.log_sums = join.log_sums + i * n_rows * sizeof(float);
        status = attend(b, &part, error);
    }
    return status == TKV_OK ? b->table->join(b->device, &join, error) : status;
}

static tkv_status test_attention(bench *b, tkv_type type, int head_dim, int n_queries,
                                 bool is_parted, tkv_error *error)
{
    const size_t n = (size_t)n_queries * N_HEADS * (size_t)head_dim;
    tkv_device_attend params = {.layer = b->layer.layer,
                                .n_sequences = 1,
                                .max_tokens = N_TOKENS,
                                .n_queries = n_queries,
                                .n_heads = N_HEADS,
                                .first_position = -1,
                                .scale = 1.0f / sqrtf((float)head_dim),
                                .sequences = b->layer.sequence};
    fill(b, n, b->queries);
    tkv_status status =
        tkv_device_layer_buffer(&b->layer, b->queries, n * sizeof(float), &params.q, error);
    if (status == TKV_OK) {
        status = tkv_device_layer_buffer(&b->layer, NULL, n * sizeof(float), &params.out, error);
    }
    if (status == TKV_OK) {
        status = run_attention(b, &params, is_parted, error);
    }
    if (status == TKV_OK) {
        status = b->table->download(b->device, b->found, params.out, n * sizeof(float), error);
    }
    if (status == TKV_OK) {
        char detail[64];
        const double error_found = attention_error(b, head_dim, n_queries, b->found);
        const double bound = attention_bound(b->table, type);
        snprintf(detail, sizeof detail, "%d queries%s: error %.3g, expected %.3g", n_queries,
                 is_parted ? " to two parts" : "", error_found, bound);
        count(b, TKV_OPERATION_ATTEND, type, head_dim, error_found <= bound, detail);
    }
    return status;
}

static tkv_status test_layer(bench *b, tkv_type type, int head_dim, bool is_centred,
                             tkv_error *error)
{
    const size_t n = (size_t)MAX_ROWS * (size_t)head_dim;
    const tkv_device_layer layer = {.type_k = (int32_t)type,
                                    .type_v = (int32_t)type,
                                    .n_kv_heads = N_KV_HEADS,
                                    .head_dim_k = head_dim,
                                    .head_dim_v = head_dim,
                                    .n_sinks = N_SINKS,
                                    .effort = TKV_EFFORT_DEFAULT};
    uint64_t rows[2] = {0, 0};
    for (int order = 0; order < 2; order++) {
        fill(b, n, b->rows[order]);
        fill(b, (size_t)(N_KV_HEADS * head_dim), b->means[order]);
    }
    b->is_centred = is_centred;
    tkv_status status =
        tkv_device_layer_create(b->device, &layer, N_TOKENS, is_centred ? b->means[0] : NULL,
                                is_centred ? b->means[1] : NULL, &b->layer, error);
    for (int order = 0; order < 2 && status == TKV_OK; order++) {
        status = tkv_device_layer_buffer(&b->layer, b->rows[order], n * sizeof(float), &rows[order],
                                         error);
    }
    if (status == TKV_OK) {
        status = b->table->store(b->device, &layer, b->layer.sequence, 1, 0, N_TOKENS, rows[0],
                                 rows[1], error);
    }
    if (status == TKV_OK) {
        status = test_pages(b, type, head_dim, error);
    }
    if (status == TKV_OK) {
        status = test_loading(b, type, head_dim, rows, error);
    }
    if (status == TKV_OK) {
        status = test_half_loading(b, type, head_dim, rows, error);
    }
    for (int i = 0; i < 4 && status == TKV_OK; i++) {
        status = test_attention(b, type, head_dim, i % 2 ? N_QUERIES : 1, i / 2, error);
    }
    tkv_device_layer_free(&b->layer);
    return status;
}

static tkv_status run_all(bench *b, int max_head_dim, tkv_error *error)
{
    tkv_status status = TKV_OK;
    for (int d = 0; d < N_HEAD_DIMS && head_dims[d] <= max_head_dim && status == TKV_OK; d++) {
        status = test_rotation(b, head_dims[d], error);
        if (status == TKV_OK) {
            status = test_turning(b, head_dims[d], error);
        }
        for (int type = 0; type < TKV_TYPE_COUNT && status == TKV_OK; type++) {
            status = test_layer(b, (tkv_type)type, head_dims[d],
                                type != TKV_TYPE_F16 && (d + type) % 2, error);
        }
    }
    return status;
}

static bool is_complete(const tkv_device_table *t)
{
    return t->open && t->close && t->allocate && t->release && t->upload && t->download &&
           t->copy && t->wait && t->rotate && t->move_rows && t->join && t->store && t->load &&
           t->plan && t->attend;
}

tkv_status tkv_device_test_run(const tkv_device_table *table, int index, int max_head_dim,
                               tkv_self_test *test, tkv_error *error)
{
    memset(test, 0, sizeof *test);
    test->operations = TKV_SELF_TEST_OF_DEVICE;
    if (!is_complete(table)) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED, "the table of '%s' is not complete",
                        table->name);
    }
    const size_t rows = (size_t)MAX_ROWS * MAX_DIM * sizeof(float);
    const size_t page = (size_t)TKV_PAGE_TOKENS * MAX_DIM * sizeof(float);
    const size_t queries = (size_t)N_QUERIES * N_HEADS * MAX_DIM * sizeof(float);
    const size_t means = (size_t)N_KV_HEADS * MAX_DIM * sizeof(float);
    bench *b = calloc(1, sizeof *b);
    if (!b) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the self-test");
    }
    *b = (bench){.table = table,
                 .test = test,
                 .seed = 7,
                 .rows = {malloc(rows), malloc(rows)},
                 .decoded = {malloc(rows), malloc(rows)},
                 .found = malloc(rows > queries ? rows : queries),
                 .means = {malloc(means), malloc(means)},
                 .queries = malloc(queries),
                 .page = aligned_alloc(64, page),
                 .found_page = aligned_alloc(64, page)};
    void *const buffers[] = {b->rows[0],  b->rows[1],  b->decoded[0], b->decoded[1], b->found,
                             b->means[0], b->means[1], b->queries,    b->page,       b->found_page};
    tkv_status status = TKV_OK;
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers && status == TKV_OK; i++) {
        status = buffers[i] ? TKV_OK
                            : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the self-test");
    }
    if (status == TKV_OK) {
        status = table->open(index, NULL, &b->device, error);
    }
    if (status == TKV_OK) {
        status = run_all(b, max_head_dim, error);
        table->close(b->device);
    }
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        free(buffers[i]);
    }
    free(b);
    return status;
}
