/* How long operations of a device take, beside a copy within its memory: calls are enqueued one
 * after the other, then one wait. */
#include "base/clock.h"
#include "base/random.h"
#include "check/speed.h"
#include "check/trial.h"
#include "device/geometry.h"

#include <math.h>

enum { DEFAULT_KV_HEADS = 8, DEFAULT_TOKENS = 8192, PATTERN_ROWS = 4096 };
#define COPY_BYTES ((size_t)256 << 20)

/* A layer of one sequence of one type, all of its blocks alike, rows of its tokens and a query. */
typedef struct timed_layer {
    tkv_trial *trial;
    tkv_device_layer layer;
    int n_tokens;
    uint64_t sequence;
    uint64_t rows[2]; /* [n_tokens][n_kv_heads][head_dim] */
    tkv_attend_plan plan;
    uint64_t workspace;
} timed_layer;

/* Rows: what the codes are does not matter to the time. */
static uint64_t put_rows(tkv_trial *trial, int n_rows, int head_dim, uint64_t seed)
{
    const size_t row = (size_t)head_dim * sizeof(float);
    const int n_pattern = n_rows < PATTERN_ROWS ? n_rows : PATTERN_ROWS;
    const uint64_t address = tkv_trial_allocate(trial, (size_t)n_rows * row);
    float *pattern = tkv_trial_host(trial, (size_t)n_pattern * row);
    if (pattern) {
        tkv_random_fill(&seed, (size_t)n_pattern * (size_t)head_dim, pattern);
    }
    for (int at = 0; tkv_trial_is_on(trial) && at < n_rows; at += n_pattern) {
        const int n = n_rows - at < n_pattern ? n_rows - at : n_pattern;
        tkv_trial_note(trial, trial->table->upload(trial->device, address + (size_t)at * row,
                                                   pattern, (size_t)n * row, trial->check->error));
    }
    return address;
}

static void put_sequence(timed_layer *t)
{
    tkv_trial *trial = t->trial;
    const int type = t->layer.type_k;
    const int n_blocks = tkv_ceil_divide(t->n_tokens, TKV_PAGE_TOKENS);
    const size_t bytes =
        2 * (size_t)t->layer.n_kv_heads * tkv_page_bytes((tkv_type)type, t->layer.head_dim_k);
    const uint64_t pages = tkv_trial_allocate(trial, (size_t)n_blocks * bytes);
    tkv_device_block *blocks = tkv_trial_host(trial, (size_t)n_blocks * sizeof *blocks);
    for (int i = 0; blocks && i < n_blocks; i++) {
        blocks[i] = (tkv_device_block){.pages = pages + (size_t)i * bytes,
                                       .is_exact = type == TKV_TYPE_F16,
                                       .n_slots = TKV_PAGE_TOKENS};
    }
    const tkv_device_sequence sequence = {
        .blocks = tkv_trial_put(trial, blocks, (size_t)n_blocks * sizeof *blocks),
        .n_tokens = t->n_tokens,
        .n_blocks = n_blocks};
    t->sequence = tkv_trial_put(trial, &sequence, sizeof sequence);
}

/* One query of each head. */
static void plan_attention(timed_layer *t)
{
    tkv_trial *trial = t->trial;
    const int n_heads = t->layer.n_kv_heads * TKV_CHECK_GROUP;
    const int head_dim = t->layer.head_dim_k;
    const tkv_device_attend params = {
        .layer = t->layer,
        .n_sequences = 1,
        .max_tokens = t->n_tokens,
        .n_queries = 1,
        .n_heads = n_heads,
        .first_position = -1,
        .scale = 1.0f / sqrtf((float)head_dim),
        .sequences = t->sequence,
        .q = put_rows(trial, n_heads, head_dim, 3),
        .out = tkv_trial_allocate(trial, (size_t)(n_heads * head_dim) * sizeof(float))};
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial,
                       trial->table->plan(trial->device, &params, &t->plan, trial->check->error));
    }
    if (tkv_trial_is_on(trial) && t->plan.workspace_bytes > 0) {
        t->workspace = tkv_trial_allocate(trial, t->plan.workspace_bytes);
    }
}

static void call(timed_layer *t, tkv_operation operation)
{
    tkv_trial *trial = t->trial;
    const tkv_device_table *table = trial->table;
    tkv_error *error = trial->check->error;
    const size_t n_rows = (size_t)t->n_tokens * (size_t)t->layer.n_kv_heads;
    switch (operation) {
    case TKV_OPERATION_ROTATE:
    case TKV_OPERATION_UNROTATE:
        tkv_trial_note(trial, table->rotate(trial->device, t->layer.head_dim_k, n_rows, t->rows[0],
                                            operation == TKV_OPERATION_UNROTATE, error));
        break;
    case TKV_OPERATION_STORE:
        tkv_trial_note(trial, table->store(trial->device, &t->layer, t->sequence, 1, 0, t->n_tokens,
                                           t->rows[0], t->rows[1], error));
        break;
    case TKV_OPERATION_LOAD:
        tkv_trial_note(trial, table->load(trial->device, &t->layer, t->sequence, 0, t->n_tokens,
                                          t->rows[0], t->rows[1], error));
        break;
    case TKV_OPERATION_ATTEND:
        tkv_trial_note(trial, table->attend(trial->device, &t->plan, t->workspace, error));
        break;
    case TKV_OPERATION_MOVE_ROWS: /* not timed */
    case TKV_OPERATION_JOIN:
    case TKV_OPERATION_SOFTMAX: /* of kernels */
    case TKV_OPERATION_ENCODE:
    case TKV_OPERATION_DECODE:
    case TKV_OPERATION_PREPARE_QUERIES:
    case TKV_OPERATION_SCORES:
    case TKV_OPERATION_ACCUMULATE:
    case TKV_OPERATION_COUNT: break;
    }
}

/* Seconds of each of n calls and their part of the wait. */
static double time_calls(timed_layer *t, tkv_operation operation, int n)
{
    tkv_trial *trial = t->trial;
    const double start = tkv_seconds();
    for (int i = 0; tkv_trial_is_on(trial) && i < n; i++) {
        call(t, operation);
    }
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial, trial->table->wait(trial->device, trial->check->error));
    }
    return (tkv_seconds() - start) / n;
}

/* Bytes that a call reads and writes at least. */
static double bytes_of(const timed_layer *t, tkv_operation operation)
{
    const double n_rows = (double)t->n_tokens * t->layer.n_kv_heads;
    const double floats = n_rows * t->layer.head_dim_k * sizeof(float);
    const double codes =
        2.0 * n_rows * (double)tkv_row_bytes((tkv_type)t->layer.type_k, t->layer.head_dim_k);
    return operation == TKV_OPERATION_ATTEND ? codes
           : operation == TKV_OPERATION_STORE || operation == TKV_OPERATION_LOAD
               ? codes + 2.0 * floats
               : 2.0 * floats;
}

/* Bytes a second, read and written, of a copy within the device's memory. */
static double measure_copy(tkv_trial *trial)
{
    double best = 0.0;
    const uint64_t from = tkv_trial_allocate(trial, COPY_BYTES);
    const uint64_t to = tkv_trial_allocate(trial, COPY_BYTES);
    for (int run = 0; tkv_trial_is_on(trial) && run <= TKV_CHECK_TURNS; run++) {
        enum { N_COPIES = 8 };
        const double start = tkv_seconds();
        for (int i = 0; tkv_trial_is_on(trial) && i < N_COPIES; i++) {
            tkv_trial_note(trial, trial->table->copy(trial->device, to, from, COPY_BYTES,
                                                     trial->check->error));
        }
        if (tkv_trial_is_on(trial)) {
            tkv_trial_note(trial, trial->table->wait(trial->device, trial->check->error));
        }
        const double seconds = tkv_seconds() - start;
        best = run > 0 ? fmax(best, 2.0 * N_COPIES * (double)COPY_BYTES / seconds) : 0.0;
    }
    tkv_trial_end(trial);
    return best;
}

static void time_operation(timed_layer *t, tkv_operation operation, const tkv_verdict *verdict,
                           double copy)
{
    tkv_check *check = t->trial->check;
    double seconds[TKV_CHECK_TURNS] = {0.0};
    (void)time_calls(t, operation, 1); /* the first may compile or load */
    const int n = tkv_check_calls(check->params, time_calls(t, operation, 1));
    for (int turn = 0; turn < TKV_CHECK_TURNS && tkv_trial_is_on(t->trial); turn++) {
        seconds[turn] = time_calls(t, operation, n);
    }
    if (tkv_trial_is_on(t->trial)) {
        const bool has_types = tkv_operation_has_types(operation);
        const double bytes = bytes_of(t, operation);
        tkv_check_tell_time(
            check, verdict,
            (tkv_check_result){.operation = operation,
                               .kernels = check->result.kernels,
                               .type = has_types ? (tkv_type)t->layer.type_k : TKV_TYPE_COUNT,
                               .head_dim = t->layer.head_dim_k,
                               .seconds = tkv_check_median(seconds),
                               .bytes = bytes,
                               .limit = TKV_LIMIT_MEMORY,
                               .limit_seconds = bytes / copy});
    }
}

/* A few cases of the operation on the type and size. */
static tkv_verdict check_shape(const tkv_trial *timed, tkv_operation operation, tkv_type type,
                               int head_dim)
{
    tkv_verdict verdict = {.error = 0.0};
    const tkv_check_params params = {.mode = TKV_CHECK_ANSWERS, .operations = 1u << operation};
    tkv_check check = {.params = &params,
                       .report = tkv_verdict_note,
                       .user = &verdict,
                       .error = timed->check->error};
    tkv_trial trial = {.check = &check,
                       .table = timed->table,
                       .device = timed->device,
                       .kernels = &tkv_kernels_scalar};
    if (operation == TKV_OPERATION_ATTEND) {
        tkv_check_device_attention_shape(&trial, type, head_dim);
    } else if (tkv_operation_has_types(operation)) {
        tkv_check_device_storing_shape(&trial, type, head_dim);
    } else {
        tkv_check_device_rotation_shape(&trial, head_dim);
    }
    tkv_trial_end(&trial);
    tkv_trial_forget_workspace(&trial);
    timed->check->status = check.status;
    return verdict;
}

/* All operations on one type and size: a layer is stored before it is loaded and attended to. */
static void time_layer(tkv_trial *trial, tkv_type type, int head_dim, tkv_operation operation,
                       double copy)
{
    const tkv_check_params *params = trial->check->params;
    const tkv_verdict verdict = check_shape(trial, operation, type, head_dim);
    timed_layer t = {
        .trial = trial,
        .layer = {.type_k = (int32_t)type,
                  .type_v = (int32_t)type,
                  .n_kv_heads = params->n_kv_heads > 0 ? params->n_kv_heads : DEFAULT_KV_HEADS,
                  .head_dim_k = head_dim,
                  .head_dim_v = head_dim,
                  .effort = (int32_t)params->effort},
        .n_tokens = params->n_tokens > 0 ? params->n_tokens : DEFAULT_TOKENS};
    put_sequence(&t);
    for (int order = 0; order < 2; order++) {
        t.rows[order] =
            put_rows(trial, t.n_tokens * t.layer.n_kv_heads, head_dim, (uint64_t)order + 1);
    }
    if (tkv_operation_has_types(operation) && tkv_trial_is_on(trial)) {
        call(&t, TKV_OPERATION_STORE);
    }
    if (operation == TKV_OPERATION_ATTEND) {
        plan_attention(&t);
    }
    if (tkv_trial_is_on(trial)) {
        time_operation(&t, operation, &verdict, copy);
    }
    tkv_trial_end(trial);
}

void tkv_check_device_speed(tkv_trial *trial)
{
    static const tkv_operation timed[] = {TKV_OPERATION_ROTATE, TKV_OPERATION_UNROTATE,
                                          TKV_OPERATION_STORE, TKV_OPERATION_LOAD,
                                          TKV_OPERATION_ATTEND};
    const tkv_check_params *params = trial->check->params;
    const double copy = measure_copy(trial);
    for (size_t k = 0; k < sizeof timed / sizeof *timed; k++) {
        const bool has_types = tkv_operation_has_types(timed[k]);
        for (int d = 0; tkv_check_timed_dim(params, d) > 0; d++) {
            for (int i = 0; tkv_check_timed_type(params, i) < TKV_TYPE_COUNT; i++) {
                if (tkv_check_wants(trial->check, timed[k]) && (has_types || i == 0) &&
                    tkv_trial_is_on(trial)) {
                    time_layer(trial, has_types ? tkv_check_timed_type(params, i) : TKV_TYPE_F16,
                               tkv_check_timed_dim(params, d), timed[k], copy);
                }
            }
        }
    }
}
