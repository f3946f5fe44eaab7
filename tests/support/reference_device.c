#include "support/reference_device.h"

#include "base/error.h"
#include "device/context.h"
#include "device/geometry.h"
#include "support/support.h"

#define ADDRESS_TAG ((uint64_t)1 << 63)
#define MAX_CAPTURED 100

typedef struct reference_device {
    tkv_device base;
    tkv_device *plain;
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
    assert_int_equal(tkv_device_table_host.open(0,
                                                &(tkv_device_setup){.kernels = &tkv_kernels_scalar},
                                                &created->plain, error),
                     TKV_OK);
    *device = &created->base;
    return TKV_OK;
}

static void close_device(tkv_device *device)
{
    tkv_device_table_host.close(((reference_device *)device)->plain);
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

/* What the host's device does in plain memory, with the kernels of the reference. */
static const tkv_device_table *const plain = &tkv_device_table_host;

static tkv_device *plain_of(tkv_device *device)
{
    return ((reference_device *)device)->plain;
}

/* Plain copies of sequences and what they name. */
typedef struct plain_sequences {
    tkv_device_sequence *sequences;
    int n;
    uint8_t **pages; /* [n] or NULL: of first blocks that have lost tokens */
} plain_sequences;

static uint64_t plain_address(uint64_t address)
{
    return (uint64_t)(uintptr_t)host(address);
}

static plain_sequences copy_sequences(uint64_t address, int n)
{
    const tkv_device_sequence *tagged = host(address);
    plain_sequences copies = {allocate((size_t)n * sizeof *tagged), n,
                              allocate((size_t)n * sizeof(uint8_t *))};
    for (int s = 0; s < n; s++) {
        const tkv_device_block *tagged_blocks = host(tagged[s].blocks);
        const size_t n_blocks = (size_t)tagged[s].n_blocks;
        tkv_device_block *blocks = allocate((n_blocks + 1) * sizeof *blocks);
        for (size_t b = 0; b < n_blocks; b++) {
            blocks[b] = tagged_blocks[b];
            blocks[b].pages = plain_address(blocks[b].pages);
        }
        copies.sequences[s] = tagged[s];
        copies.sequences[s].blocks = (uint64_t)(uintptr_t)blocks;
        copies.sequences[s].mean_k = plain_address(tagged[s].mean_k);
        copies.sequences[s].mean_v = plain_address(tagged[s].mean_v);
    }
    return copies;
}

static void free_sequences(plain_sequences *copies)
{
    for (int s = 0; s < copies->n; s++) {
        free((void *)(uintptr_t)copies->sequences[s].blocks);
        free(copies->pages[s]);
    }
    free(copies->sequences);
    free(copies->pages);
}

static uint64_t sequences_address(const plain_sequences *copies)
{
    return (uint64_t)(uintptr_t)copies->sequences;
}

static void move_now(tkv_device *device, const tkv_device_rows *rows)
{
    tkv_device_rows own = *rows;
    own.from = plain_address(rows->from);
    own.to = plain_address(rows->to);
    own.turns = plain_address(rows->turns);
    assert_ok(plain->move_rows(plain_of(device), &own, &error));
}

static tkv_status move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *error)
{
    const tkv_status status = fail_if_due("move_rows", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&(captured_call){.device = device, .kind = CAPTURED_ROWS, .rows = *rows});
    } else if (status == TKV_OK) {
        move_now(device, rows);
    }
    return status;
}

static void join_now(tkv_device *device, const tkv_device_join *join)
{
    tkv_device_join own = *join;
    own.parts = plain_address(join->parts);
    own.log_sums = plain_address(join->log_sums);
    own.out = plain_address(join->out);
    own.log_sums_out = plain_address(join->log_sums_out);
    assert_ok(plain->join(plain_of(device), &own, &error));
}

static tkv_status join_parts(tkv_device *device, const tkv_device_join *join, tkv_error *error)
{
    const tkv_status status = fail_if_due("join", TKV_ERR_DEVICE, error);
    if (status == TKV_OK && is_capturing) {
        record(&(captured_call){.device = device, .kind = CAPTURED_JOIN, .join = *join});
    } else if (status == TKV_OK) {
        join_now(device, join);
    }
    return status;
}

static void store_now(const captured_call *call)
{
    plain_sequences copies = copy_sequences(call->sequences, call->n_sequences);
    assert_ok(plain->store(plain_of(call->device), &call->layer, sequences_address(&copies),
                           call->n_sequences, call->first, call->n_tokens, plain_address(call->k),
                           plain_address(call->v), &error));
    free_sequences(&copies);
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
    const tkv_status status = begin("load", TKV_ERR_DEVICE, error);
    if (status == TKV_OK) {
        plain_sequences copies = copy_sequences(sequence, 1);
        assert_int_equal(plain->load(plain_of(device), layer, sequences_address(&copies), first,
                                     n_tokens, plain_address(k), plain_address(v), error),
                         TKV_OK);
        free_sequences(&copies);
    }
    return status;
}

static tkv_status plan_attend(tkv_device *device, const tkv_device_attend *params,
                              tkv_attend_plan *planned, tkv_error *error)
{
    assert_int_equal(plain->plan(plain_of(device), params, planned, error), TKV_OK);
    /* Grows with what it may depend on, and no more. */
    planned->workspace_bytes += (size_t)params->max_tokens / TKV_PAGE_TOKENS * sizeof(float);
    return TKV_OK;
}

/* Zeroes the slots of a sequence's block that lie before its first token: whatever they hold, a
 * device does not look at them. */
static void clear_slots(const tkv_device_attend *p, plain_sequences *copies, int sequence)
{
    const tkv_device_layer *layer = &p->layer;
    const float zeros[TKV_MAX_HEAD_DIM] = {0};
    const int index = tkv_block_of_place(layer->n_sinks, p->begin);
    const int n_slots = p->begin - tkv_block_place(layer->n_sinks, index);
    tkv_device_block *block =
        (tkv_device_block *)(uintptr_t)copies->sequences[sequence].blocks + index;
    const tkv_type types[2] = {block->is_exact ? TKV_TYPE_F16 : (tkv_type)layer->type_k,
                               block->is_exact ? TKV_TYPE_F16 : (tkv_type)layer->type_v};
    const int dims[2] = {layer->head_dim_k, layer->head_dim_v};
    const int rows = block->is_exact ? block->n_slots : TKV_PAGE_TOKENS;
    const size_t bytes[2] = {tkv_stored_page_bytes((int)types[0], dims[0], rows),
                             tkv_stored_page_bytes((int)types[1], dims[1], rows)};
    const size_t all = (size_t)layer->n_kv_heads * (bytes[0] + bytes[1]);
    uint8_t *pages = copies->pages[sequence] = allocate(all);
    memcpy(pages, (void *)(uintptr_t)block->pages, all);
    block->pages = (uint64_t)(uintptr_t)pages;
    for (int i = 0; i < 2 * layer->n_kv_heads * n_slots; i++) {
        const int order = i % 2;
        const int head = i / 2 % layer->n_kv_heads;
        const tkv_page_span span = {
            types[order],   (tkv_page_order)order, dims[order], i / 2 / layer->n_kv_heads, 1,
            TKV_EFFORT_FAST};
        tkv_kernels_scalar.encode(
            &span, zeros, (size_t)dims[order],
            pages + tkv_page_offset(head, order == TKV_ORDER_VALUE, bytes[0], bytes[1]));
    }
}

static void attend_now(tkv_device *device, const tkv_attend_plan *planned, uint64_t workspace)
{
    const tkv_device_attend *p = &planned->params;
    plain_sequences copies = copy_sequences(p->sequences, p->n_sequences);
    tkv_attend_plan own = *planned;
    own.params.sequences = sequences_address(&copies);
    own.params.q = plain_address(p->q);
    own.params.out = plain_address(p->out);
    own.params.sinks = plain_address(p->sinks);
    own.params.stats = plain_address(p->stats);
    own.params.log_sums = plain_address(p->log_sums);
    for (int s = 0; s < p->n_sequences; s++) {
        const int first =
            p->first_position < 0 ? copies.sequences[s].n_tokens - p->n_queries : p->first_position;
        const int end = p->end && p->end < first + p->n_queries ? p->end : first + p->n_queries;
        assert_true(end <= p->max_tokens && end <= copies.sequences[s].n_tokens);
        assert_true(tkv_block_of_place(p->layer.n_sinks, end - 1) < copies.sequences[s].n_blocks);
    }
    for (int s = 0; p->begin > 0 && s < p->n_sequences; s++) {
        clear_slots(p, &copies, s);
    }
    memset(host(workspace), 0xff, planned->workspace_bytes);
    assert_ok(plain->attend(plain_of(device), &own, plain_address(workspace), &error));
    free_sequences(&copies);
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
        case CAPTURED_ROWS: move_now(call->device, &call->rows); break;
        case CAPTURED_JOIN: join_now(call->device, &call->join); break;
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
