/* How long kernels take, beside a copy of the bytes that they must move. Encoding, decoding, scores
 * and sums go through pages of a memory beyond the caches, as long contexts do; the rest works on
 * rows that have just been made, in the first-level cache. */
#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "check/speed.h"
#include "kernels/sums.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, ROTATED_ROWS = 16 };
#define ARENA_BYTES ((size_t)64 << 20)
#define CACHE_BYTES ((size_t)16 << 10)

/* What calls work on, whatever the operation. */
typedef struct workbench {
    uint8_t *arena; /* ARENA_BYTES: pages, and where they are encoded and decoded their rows */
    float *rows;    /* [TKV_PAGE_TOKENS][TKV_MAX_HEAD_DIM] */
    float *scores;  /* [TKV_CHECK_GROUP][TKV_PAGE_TOKENS], also weights */
    float *sums;    /* as tkv_sum_floats says, of the largest size */
    uint8_t *prepared;
    uint8_t *scratch;
    size_t prepared_bytes;
    size_t scratch_bytes;
    double memory_speed; /* bytes a second, read and written, of copies within the arena */
    double cache_speed;  /* likewise within a first-level cache */
} workbench;

/* An operation of one shape. */
typedef struct timed_case {
    tkv_operation operation;
    tkv_type type;
    int head_dim;
    tkv_effort effort;
    size_t page_bytes;
    size_t row_bytes; /* of the floats that lie before a page */
    size_t step;      /* from one page to the next */
    int n_pages;
    double bytes; /* that a call must read and write */
    bool is_in_cache;
} timed_case;

static size_t align(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void place_pages(timed_case *c, bool has_rows)
{
    c->page_bytes = tkv_page_bytes(c->type, c->head_dim);
    c->row_bytes = has_rows ? (size_t)TKV_PAGE_TOKENS * (size_t)c->head_dim * sizeof(float) : 0;
    c->step = align(c->page_bytes) + c->row_bytes;
    c->n_pages = (int)(ARENA_BYTES / c->step);
    c->bytes = (double)(c->page_bytes + c->row_bytes);
}

static timed_case make_case(const tkv_check *check, tkv_operation operation, tkv_type type,
                            int head_dim)
{
    timed_case c = {.operation = operation,
                    .type = type,
                    .head_dim = head_dim,
                    .effort = check->params->effort};
    const double row = (double)head_dim * sizeof(float);
    switch (operation) {
    case TKV_OPERATION_ROTATE:
    case TKV_OPERATION_UNROTATE:
        c.is_in_cache = true;
        c.bytes = 2.0 * ROTATED_ROWS * row;
        break;
    case TKV_OPERATION_SOFTMAX:
        c.is_in_cache = true;
        c.bytes = 2.0 * TKV_CHECK_GROUP * TKV_PAGE_TOKENS * sizeof(float);
        break;
    case TKV_OPERATION_PREPARE_QUERIES:
        c.is_in_cache = true;
        c.bytes = 2.0 * TKV_CHECK_GROUP * row;
        break;
    case TKV_OPERATION_ENCODE:
    case TKV_OPERATION_DECODE: place_pages(&c, true); break;
    case TKV_OPERATION_SCORES:
    case TKV_OPERATION_ACCUMULATE: place_pages(&c, false); break;
    case TKV_OPERATION_MOVE_ROWS: /* of devices */
    case TKV_OPERATION_JOIN:
    case TKV_OPERATION_STORE:
    case TKV_OPERATION_LOAD:
    case TKV_OPERATION_ATTEND:
    case TKV_OPERATION_COUNT: break;
    }
    return c;
}

/* One encoded page, and its rows, over and over. */
static void fill_arena(const workbench *w, const timed_case *c)
{
    uint64_t seed = 1;
    const bool is_value = c->operation == TKV_OPERATION_ACCUMULATE;
    const tkv_page_span span = {c->type,         is_value ? TKV_ORDER_VALUE : TKV_ORDER_KEY,
                                c->head_dim,     0,
                                TKV_PAGE_TOKENS, TKV_EFFORT_FAST};
    const size_t n = (size_t)TKV_PAGE_TOKENS * (size_t)c->head_dim;
    tkv_random_fill(&seed, n, w->rows);
    memcpy(w->arena, w->rows, c->row_bytes);
    tkv_kernels_scalar.encode(&span, w->rows, (size_t)c->head_dim, w->arena + c->row_bytes);
    for (int i = 1; i < c->n_pages; i++) {
        memcpy(w->arena + (size_t)i * c->step, w->arena, c->step);
    }
}

static void fill_small(const workbench *w, const timed_case *c)
{
    uint64_t seed = 2;
    tkv_random_fill(&seed, (size_t)TKV_PAGE_TOKENS * (size_t)c->head_dim, w->rows);
    for (int i = 0; i < TKV_CHECK_GROUP * TKV_PAGE_TOKENS; i++) {
        w->scores[i] = (float)tkv_random_uniform(&seed);
    }
    memset(w->sums, 0,
           tkv_sum_floats(c->type == TKV_TYPE_COUNT ? TKV_TYPE_F16 : c->type, c->head_dim,
                          TKV_CHECK_GROUP) *
               sizeof *w->sums);
}

static void call_softmax(const workbench *w, const tkv_kernels *kernels)
{
    static const int first[TKV_CHECK_GROUP] = {0};
    static const int end[TKV_CHECK_GROUP] = {TKV_PAGE_TOKENS, TKV_PAGE_TOKENS, TKV_PAGE_TOKENS,
                                             TKV_PAGE_TOKENS};
    float maximum[TKV_CHECK_GROUP];
    float sum[TKV_CHECK_GROUP];
    float rescale[TKV_CHECK_GROUP];
    for (int r = 0; r < TKV_CHECK_GROUP; r++) {
        maximum[r] = -INFINITY;
        sum[r] = 0.0f;
    }
    const tkv_softmax_span span = {TKV_CHECK_GROUP, first, end, 1.0f, 0.0f};
    kernels->softmax(&span, w->scores, maximum, sum, rescale);
}

/* Call number `index`. */
static void call(const workbench *w, const tkv_kernels *kernels, const timed_case *c, int index)
{
    static const float rescale[TKV_CHECK_GROUP] = {0.5f, 0.5f, 0.5f, 0.5f};
    uint8_t *rows = w->arena + (size_t)(c->n_pages ? index % c->n_pages : 0) * c->step;
    uint8_t *page = rows + c->row_bytes;
    const uint8_t *next = w->arena + (size_t)(c->n_pages ? (index + 1) % c->n_pages : 0) * c->step;
    const tkv_page_span span = {c->type, TKV_ORDER_KEY, c->head_dim, 0, TKV_PAGE_TOKENS, c->effort};
    const tkv_page_read read = {c->type, c->head_dim, TKV_PAGE_TOKENS, page, next};
    switch (c->operation) {
    case TKV_OPERATION_ROTATE: kernels->rotate(c->head_dim, ROTATED_ROWS, w->rows); break;
    case TKV_OPERATION_UNROTATE: kernels->unrotate(c->head_dim, ROTATED_ROWS, w->rows); break;
    case TKV_OPERATION_SOFTMAX: call_softmax(w, kernels); break;
    case TKV_OPERATION_ENCODE:
        kernels->encode(&span, (const float *)rows, (size_t)c->head_dim, page);
        break;
    case TKV_OPERATION_DECODE:
        kernels->decode(&span, page, (float *)rows, (size_t)c->head_dim);
        break;
    case TKV_OPERATION_PREPARE_QUERIES:
        kernels->prepare_queries(c->type, c->head_dim, TKV_CHECK_GROUP, w->rows, w->prepared);
        break;
    case TKV_OPERATION_SCORES:
        kernels->scores(&read, TKV_CHECK_GROUP, w->prepared, w->scores, w->scratch);
        break;
    case TKV_OPERATION_ACCUMULATE:
        kernels->accumulate(&read, TKV_CHECK_GROUP, w->scores, rescale, w->sums, w->scratch);
        break;
    case TKV_OPERATION_MOVE_ROWS: /* of devices */
    case TKV_OPERATION_JOIN:
    case TKV_OPERATION_STORE:
    case TKV_OPERATION_LOAD:
    case TKV_OPERATION_ATTEND:
    case TKV_OPERATION_COUNT: break;
    }
}

/* Seconds of each of n calls. */
static double time_calls(const workbench *w, const tkv_kernels *kernels, const timed_case *c, int n)
{
    if (c->operation == TKV_OPERATION_SCORES) { /* each table has a form of its own */
        kernels->prepare_queries(c->type, c->head_dim, TKV_CHECK_GROUP, w->rows, w->prepared);
    }
    const double start = tkv_seconds();
    for (int i = 0; i < n; i++) {
        call(w, kernels, c, i);
    }
    return (tkv_seconds() - start) / n;
}

/* Queries are prepared rightly if scores are right. */
static void check_case(tkv_check *check, const tkv_kernels *kernels, const timed_case *c,
                       tkv_verdict *v)
{
    const tkv_operation checked =
        c->operation == TKV_OPERATION_PREPARE_QUERIES ? TKV_OPERATION_SCORES : c->operation;
    const tkv_check_params params = {.mode = TKV_CHECK_ANSWERS, .operations = 1u << checked};
    tkv_check inner = {
        .params = &params, .report = tkv_verdict_note, .user = v, .error = check->error};
    *v = (tkv_verdict){.error = 0.0};
    tkv_check_shape(&inner, kernels, c->operation, c->type, c->head_dim);
    check->status = inner.status;
}

static void tell(tkv_check *check, const workbench *w, const timed_case *c, const tkv_verdict *v,
                 const char *kernels, double seconds)
{
    const double speed = c->is_in_cache ? w->cache_speed : w->memory_speed;
    tkv_check_tell_time(
        check, v,
        (tkv_check_result){.operation = c->operation,
                           .kernels = kernels,
                           .type = c->type,
                           .head_dim = c->head_dim,
                           .seconds = seconds,
                           .bytes = c->bytes,
                           .limit = c->is_in_cache ? TKV_LIMIT_CACHE : TKV_LIMIT_MEMORY,
                           .limit_seconds = c->bytes / speed});
}

/* Checks each table, then times them in turns. */
static void time_case(tkv_check *check, const workbench *w, const tkv_kernels *const *tables,
                      int n_tables, const timed_case *c)
{
    double seconds[TKV_CHECK_MAX_TABLES][TKV_CHECK_TURNS];
    tkv_verdict verdicts[TKV_CHECK_MAX_TABLES];
    int n_calls[TKV_CHECK_MAX_TABLES];
    fill_small(w, c);
    if (!c->is_in_cache) {
        fill_arena(w, c);
    }
    for (int i = 0; i < n_tables && tkv_check_is_on(check); i++) {
        check_case(check, tables[i], c, &verdicts[i]);
        n_calls[i] = tkv_check_calls(check->params, time_calls(w, tables[i], c, 1));
    }
    for (int k = 0; k < TKV_CHECK_TURNS * n_tables && tkv_check_is_on(check); k++) {
        const int i = k % n_tables;
        seconds[i][k / n_tables] = time_calls(w, tables[i], c, n_calls[i]);
    }
    for (int i = 0; i < n_tables && tkv_check_is_on(check); i++) {
        tell(check, w, c, &verdicts[i], tables[i]->name, tkv_check_median(seconds[i]));
    }
}

static void time_operation(tkv_check *check, const workbench *w, const tkv_kernels *const *tables,
                           int n_tables, tkv_operation operation)
{
    const bool has_types = tkv_operation_has_types(operation);
    const bool has_dims = operation != TKV_OPERATION_SOFTMAX;
    for (int d = 0; tkv_check_timed_dim(check->params, d) > 0 && (has_dims || d == 0); d++) {
        const int head_dim = tkv_check_timed_dim(check->params, d);
        for (int i = 0; tkv_check_timed_type(check->params, i) < TKV_TYPE_COUNT; i++) {
            const tkv_type type =
                has_types ? tkv_check_timed_type(check->params, i) : TKV_TYPE_COUNT;
            const timed_case c = make_case(check, operation, type, has_dims ? head_dim : 0);
            if (has_types || i == 0) {
                time_case(check, w, tables, n_tables, &c);
            }
        }
    }
}

static void free_workbench(workbench *w)
{
    free(w->arena);
    free(w->rows);
    free(w->scores);
    free(w->sums);
    free(w->prepared);
    free(w->scratch);
}

/* The largest that any table needs for any shape that is timed. */
static void measure_buffers(const tkv_check *check, const tkv_kernels *const *tables, int n_tables,
                            workbench *w)
{
    for (int d = 0; tkv_check_timed_dim(check->params, d) > 0; d++) {
        const int head_dim = tkv_check_timed_dim(check->params, d);
        for (int i = 0; i < n_tables * TKV_TYPE_COUNT; i++) {
            const tkv_kernels *k = tables[i / TKV_TYPE_COUNT];
            const size_t prepared =
                k->query_bytes((tkv_type)(i % TKV_TYPE_COUNT), head_dim, TKV_CHECK_GROUP);
            const size_t scratch = k->scratch_bytes(head_dim, TKV_CHECK_GROUP);
            w->prepared_bytes = prepared > w->prepared_bytes ? prepared : w->prepared_bytes;
            w->scratch_bytes = scratch > w->scratch_bytes ? scratch : w->scratch_bytes;
        }
    }
}

static void create_workbench(tkv_check *check, const tkv_kernels *const *tables, int n_tables,
                             workbench *w)
{
    const size_t row = TKV_MAX_HEAD_DIM * sizeof(float);
    measure_buffers(check, tables, n_tables, w);
    w->arena = aligned_alloc(ALIGNMENT, ARENA_BYTES);
    w->rows = aligned_alloc(ALIGNMENT, TKV_PAGE_TOKENS * row);
    w->scores = aligned_alloc(ALIGNMENT, TKV_CHECK_GROUP * TKV_PAGE_TOKENS * sizeof(float));
    w->sums = aligned_alloc(ALIGNMENT, 2 * TKV_CHECK_GROUP * row);
    w->prepared = aligned_alloc(ALIGNMENT, align(w->prepared_bytes));
    w->scratch = aligned_alloc(ALIGNMENT, align(w->scratch_bytes));
    if (!w->arena || !w->rows || !w->scores || !w->sums || !w->prepared || !w->scratch) {
        check->status = tkv_fail(check->error, TKV_ERR_OUT_OF_MEMORY,
                                 "no memory to time kernels (%zu bytes)", ARENA_BYTES);
        return;
    }
    memset(w->arena, 1, ARENA_BYTES);
    w->memory_speed = tkv_check_copy_speed(w->arena, ARENA_BYTES);
    w->cache_speed = tkv_check_copy_speed(w->arena, CACHE_BYTES);
}

void tkv_check_speed(tkv_check *check, const tkv_kernels *const *tables, int n_tables)
{
    workbench w = {.arena = NULL};
    create_workbench(check, tables, n_tables, &w);
    for (int i = 0; i < TKV_OPERATION_COUNT; i++) {
        const tkv_operation operation = (tkv_operation)i;
        const bool is_of_kernels =
            operation != TKV_OPERATION_MOVE_ROWS && operation != TKV_OPERATION_JOIN &&
            operation != TKV_OPERATION_STORE && operation != TKV_OPERATION_LOAD &&
            operation != TKV_OPERATION_ATTEND;
        if (is_of_kernels && tkv_check_wants(check, operation) && tkv_check_is_on(check)) {
            time_operation(check, &w, tables, n_tables, operation);
        }
    }
    free_workbench(&w);
}
