#include "support/reference_device.h"

#include "base/error.h"
#include "base/half.h"
#include "cache/cache.h"
#include "device/context.h"
#include "device/geometry.h"
#include "support/support.h"

#define ADDRESS_TAG ((uint64_t)1 << 63)
#define MAX_CAPTURED 100

typedef struct reference_device {
    tkv_device base;
    tkv_context *cpu;
} reference_device;

typedef enum captured_kind {
    CAPTURED_STORE,
    CAPTURED_ATTEND,
    CAPTURED_COPY,
    CAPTURED_ROWS,
    CAPTURED_JOIN
} captured_kind;

/* A call of a graph. */
typedef struct captured_call {
    tkv_device *device;
    captured_kind kind;
    tkv_attend_plan plan;
    uint64_t workspace;
    tkv_device_rows rows;
    tkv_device_join join;
    uint64_t to;
    uint64_t from;
    size_t bytes;
    tkv_device_layer layer;
    uint64_t sequences;
    int n_sequences;
    int first;
    int n_tokens;
    uint64_t k;
    uint64_t v;
} captured_call;

static size_t bytes_in_use;
static int until_failure = -1; /* -1: never */
static bool fails_once;
static bool has_failed;
static bool is_capturing;
static captured_call captured[MAX_CAPTURED];
static int n_captured;

static void *host(uint64_t address)
{
    return address ? (void *)(uintptr_t)(address ^ ADDRESS_TAG) : NULL;
}

size_t reference_device_bytes(void)
{
    return bytes_in_use;
}

void reference_device_fail(int n, bool is_once)
{
    until_failure = n;
    fails_once = is_once;
    has_failed = false;
}

bool reference_device_recover(void)
{
    until_failure = -1;
    return has_failed;
}

void reference_device_capture(void)
{
    is_capturing = true;
    n_captured = 0;
}

void reference_device_end_capture(void)
{
    is_capturing = false;
}

static tkv_status fail_if_due(const char *what, tkv_status status, tkv_error *error)
{
    const bool is_due = until_failure == 0;
    if (until_failure > 0 || (is_due && fails_once)) {
        until_failure--;
    }
    has_failed = has_failed || is_due;
    return is_due ? tkv_fail(error, status, "reference device: %s fails", what) : TKV_OK;
}

/* For calls that no graph can hold. */
static tkv_status begin(const char *what, tkv_status status, tkv_error *error)
{
    if (is_capturing) {
        return tkv_fail(error, TKV_ERR_DEVICE, "reference device: %s in a graph", what);
    }
    return fail_if_due(what, status, error);
}

static int count(char *reason, size_t size)
{
    (void)reason;
    (void)size;
    return 2;
}

static tkv_status open_device(int index, const tkv_device_setup *setup, tkv_device **device,
                              tkv_error *error)
{
    (void)index;
    (void)setup;
    const tkv_status status = fail_if_due("open", TKV_ERR_DEVICE, error);
    if (status != TKV_OK) {
        return status;
    }
    reference_device *created = allocate(sizeof *created);
    created->base.table = &reference_device_table;
    assert_int_equal(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &created->cpu, NULL),
                     TKV_OK);
    created->cpu->kernels = &tkv_kernels_scalar;
    *device = &created->base;
    return TKV_OK;
}

static void close_device(tkv_device *device)
{
    tkv_context_free(((reference_device *)device)->cpu);
    free(device);
}

static const char *description(const tkv_device *device)
{
    (void)device;
    return "the CPU's reference";
}

/* The size of an allocation is kept in front of it. As for devices, addresses are aligned to 256.
 */
enum { PREFIX = 256 };

static tkv_status allocate_memory(tkv_device *device, size_t bytes, uint64_t *address,
                                  tkv_error *error)
{
    (void)device;
    const tkv_status status = begin("allocate", TKV_ERR_OUT_OF_MEMORY, error);
    if (status != TKV_OK) {
        return status;
    }
    void *allocated = NULL;
    assert_int_equal(posix_memalign(&allocated, PREFIX, PREFIX + bytes), 0);
    uint8_t *memory = allocated;
    memset(memory, 0, PREFIX + bytes);
    memcpy(memory, &bytes, sizeof bytes);
    bytes_in_use += bytes;
    *address = (uint64_t)(uintptr_t)(memory + PREFIX) ^ ADDRESS_TAG;
    return TKV_OK;
}

static void release(tkv_device *device, uint64_t address)
{
    (void)device;
    uint8_t *memory = (uint8_t *)host(address) - PREFIX;
    size_t bytes;
    memcpy(&bytes, memory, sizeof bytes);
    bytes_in_use -= bytes;
    free(memory);
}

static tkv_status upload(tkv_device *device, uint64_t to, const void *from, size_t bytes,
                         tkv_error *error)
{
    (void)device;
    const tkv_status status = begin("upload", TKV_ERR_DEVICE, error);
    if (status == TKV_OK) {
        memcpy(host(to), from, bytes);
    }
    return status;
}

static tkv_status download(tkv_device *device, void *to, uint64_t from, size_t bytes,
                           tkv_error *error)
{
    (void)device;
    const tkv_status status = begin("download", TKV_ERR_DEVICE, error);
    if (status == TKV_OK) {
        memcpy(to, host(from), bytes);
    }
    return status;
}

static void record(const captured_call *call)
{
    assert_true(n_captured < MAX_CAPTURED);
    captured[n_captured++] = *call;
}

static tkv_status copy(tkv_device *device, uint64_t to, uint64_t from, size_t bytes,
                       tkv_error *error)
{
    const captured_call call = {
        .device = device, .kind = CAPTURED_COPY, .to = to, .from = from, .bytes = bytes};
    const tkv_status status = fail_if_due("copy", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&call);
    } else if (status == TKV_OK) {
        memcpy(host(to), host(from), bytes);
    }
    return status;
}

static tkv_status wait_for_device(tkv_device *device, tkv_error *error)
{
    (void)device;
    return begin("wait", TKV_ERR_DEVICE, error);
}

static tkv_status rotate(tkv_device *device, int head_dim, size_t n_rows, uint64_t x,
                         bool is_inverse, tkv_error *error)
{
    (void)device;
    const tkv_status status = begin("rotate", TKV_ERR_DEVICE, error);
    if (status != TKV_OK) {
        return status;
    }
    return is_inverse ? tkv_unrotate(NULL, head_dim, n_rows, host(x), error)
                      : tkv_rotate(NULL, head_dim, n_rows, host(x), error);
}

static void move_now(const tkv_device_rows *rows)
{
    const tkv_rope rope = {rows->is_interleaved != 0, 2 * rows->n_pairs, NULL};
    const size_t from_width = (size_t)rows->from_width;
    const size_t to_width = (size_t)rows->to_width;
    for (size_t i = 0; i < rows->n_rows; i++) {
        float row[TKV_MAX_HEAD_DIM] = {0};
        memcpy(row, (const float *)host(rows->from) + i * from_width, from_width * sizeof *row);
        if (rows->turns) {
            tkv_turn_key(&rope, host(rows->turns), rows->is_back != 0, row);
        }
        memcpy((float *)host(rows->to) + i * to_width, row, to_width * sizeof *row);
    }
}

static tkv_status move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *error)
{
    const tkv_status status = fail_if_due("move_rows", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&(captured_call){.device = device, .kind = CAPTURED_ROWS, .rows = *rows});
    } else if (status == TKV_OK) {
        move_now(rows);
    }
    return status;
}

static void join_now(const tkv_device_join *join)
{
    const float *parts = host(join->parts);
    const float *log_sums = host(join->log_sums);
    float *out = host(join->out);
    float *sums_out = host(join->log_sums_out);
    for (size_t i = 0; i < join->n_rows; i++) {
        double maximum = -INFINITY;
        double sum = 0.0;
        for (size_t p = 0; p < (size_t)join->n_parts; p++) {
            maximum = fmax(maximum, (double)log_sums[p * join->n_rows + i]);
        }
        for (size_t p = 0; p < (size_t)join->n_parts; p++) {
            sum += exp((double)log_sums[p * join->n_rows + i] - maximum);
        }
        for (int j = 0; j < join->to_width; j++) {
            double value = 0.0;
            for (size_t p = 0; p < (size_t)join->n_parts; p++) {
                const double weight = exp((double)log_sums[p * join->n_rows + i] - maximum) / sum;
                const size_t row = (p * join->n_rows + i) * (size_t)join->from_width;
                value += weight != 0.0 ? weight * (double)parts[row + (size_t)j] : 0.0;
            }
            out[i * (size_t)join->to_width + (size_t)j] = (float)value;
        }
        if (sums_out) {
            sums_out[i] = (float)(maximum + log(sum));
        }
    }
}

static tkv_status join_parts(tkv_device *device, const tkv_device_join *join, tkv_error *error)
{
    const tkv_status status = fail_if_due("join", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&(captured_call){.device = device, .kind = CAPTURED_JOIN, .join = *join});
    } else if (status == TKV_OK) {
        join_now(join);
    }
    return status;
}

/* A row of one head of a token: where it lies and how. */
typedef struct row_place {
    tkv_page_span span;
    void *page;
    const float *mean; /* or NULL */
} row_place;

static size_t page_bytes(const tkv_device_block *block, tkv_type type, int head_dim)
{
    return block->is_exact ? tkv_stored_page_bytes(TKV_TYPE_F16, head_dim, block->n_slots)
                           : tkv_stored_page_bytes((int)type, head_dim, TKV_PAGE_TOKENS);
}

static row_place place_row(const tkv_device_layer *layer, const tkv_device_sequence *sequence,
                           int token, int head, tkv_page_order order)
{
    const bool is_key = order == TKV_ORDER_KEY;
    const int index = tkv_block_of_place(layer->n_sinks, token);
    const int slot = token - tkv_block_place(layer->n_sinks, index);
    assert_true(token >= 0 && token < sequence->n_tokens && index < sequence->n_blocks);
    const tkv_device_block *block = (const tkv_device_block *)host(sequence->blocks) + index;
    const size_t k_bytes = page_bytes(block, (tkv_type)layer->type_k, layer->head_dim_k);
    const size_t v_bytes = page_bytes(block, (tkv_type)layer->type_v, layer->head_dim_v);
    const int head_dim = is_key ? layer->head_dim_k : layer->head_dim_v;
    const tkv_type type =
        block->is_exact ? TKV_TYPE_F16 : (tkv_type)(is_key ? layer->type_k : layer->type_v);
    const uint64_t means = is_key ? sequence->mean_k : sequence->mean_v;
    const bool is_centred = means && type != TKV_TYPE_F16;
    return (row_place){{type, order, head_dim, slot, 1, (tkv_effort)layer->effort},
                       (uint8_t *)host(block->pages) +
                           tkv_page_offset(head, !is_key, k_bytes, v_bytes),
                       is_centred ? (const float *)host(means) + head * head_dim : NULL};
}

static void store_row(const row_place *place, const float *x)
{
    float row[TKV_MAX_HEAD_DIM];
    for (int j = 0; j < place->span.head_dim; j++) {
        row[j] =
            place->mean ? tkv_half_to_float(tkv_float_to_finite_half(x[j])) - place->mean[j] : x[j];
    }
    tkv_kernels_scalar.encode(&place->span, row, (size_t)place->span.head_dim, place->page);
}

static void load_row(const row_place *place, float *x)
{
    tkv_kernels_scalar.decode(&place->span, place->page, x, (size_t)place->span.head_dim);
    for (int j = 0; place->mean && j < place->span.head_dim; j++) {
        x[j] += place->mean[j];
    }
}

static void store_now(const captured_call *call)
{
    const tkv_device_layer *layer = &call->layer;
    const tkv_device_sequence *sequences = host(call->sequences);
    const float *k = host(call->k);
    const float *v = host(call->v);
    for (int s = 0; s < call->n_sequences; s++) {
        const int first = call->first < 0 ? sequences[s].n_tokens - call->n_tokens : call->first;
        for (int i = 0; i < call->n_tokens * layer->n_kv_heads; i++) {
            const int token = first + i / layer->n_kv_heads;
            const int head = i % layer->n_kv_heads;
            const row_place key = place_row(layer, &sequences[s], token, head, TKV_ORDER_KEY);
            const row_place value = place_row(layer, &sequences[s], token, head, TKV_ORDER_VALUE);
            store_row(&key, k);
            store_row(&value, v);
            k += layer->head_dim_k;
            v += layer->head_dim_v;
        }
    }
}

static tkv_status store(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                        int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                        tkv_error *error)
{
    const captured_call call = {.device = device,
                                .layer = *layer,
                                .sequences = sequences,
                                .n_sequences = n_sequences,
                                .first = first,
                                .n_tokens = n_tokens,
                                .k = k,
                                .v = v};
    const tkv_status status = fail_if_due("store", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&call);
    } else if (status == TKV_OK) {
        store_now(&call);
    }
    return status;
}

static tkv_status load(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                       int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error)
{
    (void)device;
    const tkv_status status = begin("load", TKV_ERR_DEVICE, error);
    float *rows_k = host(k);
    float *rows_v = host(v);
    for (int i = 0; status == TKV_OK && i < n_tokens * layer->n_kv_heads; i++) {
        const int token = first + i / layer->n_kv_heads;
        const int head = i % layer->n_kv_heads;
        if (rows_k) {
            const row_place place = place_row(layer, host(sequence), token, head, TKV_ORDER_KEY);
            load_row(&place, rows_k + (size_t)i * (size_t)layer->head_dim_k);
        }
        if (rows_v) {
            const row_place place = place_row(layer, host(sequence), token, head, TKV_ORDER_VALUE);
            load_row(&place, rows_v + (size_t)i * (size_t)layer->head_dim_v);
        }
    }
    return status;
}

/* Grows with what it may depend on, and no more. */
static tkv_status plan_attend(tkv_device *device, const tkv_device_attend *params,
                              tkv_attend_plan *plan, tkv_error *error)
{
    (void)device;
    (void)error;
    *plan = (tkv_attend_plan){.params = *params};
    plan->workspace_bytes = (size_t)params->n_sequences * (size_t)params->n_queries *
                            (size_t)params->n_heads *
                            (size_t)(params->max_tokens / TKV_PAGE_TOKENS + 1) * sizeof(float);
    return TKV_OK;
}

/* Zeroes the slots of a block that lie before a segment's first token: whatever they hold, a device
 * does not look at them. */
static void clear_slots(const tkv_cache_layer *layer, const tkv_segment *segment, int index)
{
    const float zeros[TKV_MAX_HEAD_DIM] = {0};
    tkv_block *block = layer->blocks[index];
    const int first = tkv_block_slots(segment, index).first;
    for (int slot = 0; slot < first && slot < block->n_slots; slot++) {
        for (int i = 0; i < 2 * layer->n_kv_heads; i++) {
            const tkv_page_order order = i % 2 ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
            const tkv_page_span span = {tkv_block_type(layer, block, order),
                                        order,
                                        tkv_layer_padded(layer, order),
                                        slot,
                                        1,
                                        TKV_EFFORT_FAST};
            tkv_kernels_scalar.encode(&span, zeros, (size_t)span.head_dim,
                                      tkv_block_page(layer, block, i / 2, order));
        }
    }
}

/* A cache of the CPU with the pages of a sequence's first n_tokens positions from `begin` on, whose
 * first token there has position 0. */
static tkv_cache *copy_cache(tkv_context *cpu, const tkv_device_attend *p,
                             const tkv_device_sequence *sequence, int n_tokens)
{
    const tkv_device_layer *layer = &p->layer;
    const tkv_type types[2] = {(tkv_type)layer->type_k, (tkv_type)layer->type_v};
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = layer->n_kv_heads,
                                     .head_dim_k = layer->head_dim_k,
                                     .head_dim_v = layer->head_dim_v,
                                     .max_tokens = n_tokens + 1,
                                     .types_k = types,
                                     .types_v = types + 1};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(cpu, &params, &cache, &error));
    tkv_cache_layer *copied = &cache->layers[0];
    const size_t heads = (size_t)layer->n_kv_heads;
    if (sequence->mean_k) {
        copied->is_centred = true;
        copied->mean_k =
            allocate(heads * (size_t)(layer->head_dim_k + layer->head_dim_v) * sizeof(float));
        copied->mean_v = copied->mean_k + heads * (size_t)layer->head_dim_k;
        memcpy(copied->mean_k, host(sequence->mean_k),
               heads * (size_t)layer->head_dim_k * sizeof(float));
        memcpy(copied->mean_v, host(sequence->mean_v),
               heads * (size_t)layer->head_dim_v * sizeof(float));
    }
    const int n_blocks = tkv_block_of_place(layer->n_sinks, n_tokens - 1) + 1;
    assert_true(n_tokens <= sequence->n_tokens && n_blocks <= sequence->n_blocks);
    assert_ok(tkv_layer_reserve(copied, n_blocks, &error));
    assert_ok(tkv_layer_reserve_segments(copied, 1, &error));
    copied->segments[copied->n_segments++] = (tkv_segment){
        .begin = p->begin, .end = n_tokens, .head = layer->n_sinks, .n_blocks = n_blocks};
    const tkv_device_block *blocks = host(sequence->blocks);
    for (int b = 0; b < n_blocks; b++) {
        assert_ok(tkv_block_create(copied, blocks[b].is_exact != 0, blocks[b].n_slots,
                                   &copied->blocks[b], &error));
        memcpy((uint8_t *)copied->blocks[b] + TKV_BLOCK_HEADER, host(blocks[b].pages),
               tkv_block_bytes(copied, copied->blocks[b]) - TKV_BLOCK_HEADER);
        copied->n_blocks++;
        clear_slots(copied, &copied->segments[0], b);
    }
    return cache;
}

static void attend_now(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace)
{
    const tkv_device_attend *p = &plan->params;
    const size_t n_rows = (size_t)p->n_queries * (size_t)p->n_heads;
    memset(host(workspace), 0xff, plan->workspace_bytes);
    for (int s = 0; s < p->n_sequences; s++) {
        const tkv_device_sequence *sequence = (const tkv_device_sequence *)host(p->sequences) + s;
        const int first =
            p->first_position < 0 ? sequence->n_tokens - p->n_queries : p->first_position;
        const int all = first + p->n_queries;
        const int end = p->end && p->end < all ? p->end : all;
        assert_true(end <= p->max_tokens);
        tkv_cache *cache = copy_cache(((reference_device *)device)->cpu, p, sequence, end);
        const tkv_attend_params params = {
            .n_queries = p->n_queries,
            .n_heads = p->n_heads,
            .first_position = first - p->begin,
            .scale = p->scale,
            .window = p->window,
            .logit_softcap = p->logit_softcap,
            .sinks = host(p->sinks),
            .sparse_v = p->sparse_v,
            .stats = host(p->stats),
            .log_sums = p->log_sums ? (float *)host(p->log_sums) + (size_t)s * n_rows : NULL};
        cache->layers[0].n_tokens = first + p->n_queries - p->begin;
        assert_ok(tkv_attend(
            cache, 0, &params,
            (const float *)host(p->q) + (size_t)s * n_rows * (size_t)p->layer.head_dim_k,
            (float *)host(p->out) + (size_t)s * n_rows * (size_t)p->layer.head_dim_v, &error));
        tkv_cache_free(cache);
    }
}

static tkv_status attend(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                         tkv_error *error)
{
    const tkv_status status = fail_if_due("attend", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&(captured_call){
            .device = device, .kind = CAPTURED_ATTEND, .plan = *plan, .workspace = workspace});
    } else if (status == TKV_OK) {
        attend_now(device, plan, workspace);
    }
    return status;
}

void reference_device_replay(void)
{
    for (int i = 0; i < n_captured; i++) {
        const captured_call *call = &captured[i];
        switch (call->kind) {
        case CAPTURED_STORE: store_now(call); break;
        case CAPTURED_ATTEND: attend_now(call->device, &call->plan, call->workspace); break;
        case CAPTURED_COPY: memcpy(host(call->to), host(call->from), call->bytes); break;
        case CAPTURED_ROWS: move_now(&call->rows); break;
        case CAPTURED_JOIN: join_now(&call->join); break;
        }
    }
}

const tkv_device_table reference_device_table = {
    .name = "reference",
    .exact_rows = TKV_PAGE_TOKENS,
    .kind = TKV_DEVICE_OTHER,
    .count = count,
    .open = open_device,
    .close = close_device,
    .description = description,
    .allocate = allocate_memory,
    .release = release,
    .upload = upload,
    .download = download,
    .copy = copy,
    .wait = wait_for_device,
    .rotate = rotate,
    .move_rows = move_rows,
    .join = join_parts,
    .store = store,
    .load = load,
    .plan = plan_attend,
    .attend = attend,
};

tkv_context *create_reference_context(void)
{
    tkv_context *context = NULL;
    const tkv_context_params params = {.n_threads = 1};
    assert_ok(tkv_context_create_on(&reference_device_table, 0, &params, &context, &error));
    return context;
}
