/* Sequences in a device's memory with a copy on the host, for tests of device tables. */
#ifndef TKV_TESTS_DEVICE_CASE_H
#define TKV_TESTS_DEVICE_CASE_H

#include "base/half.h"
#include "device/device.h"
#include "device/geometry.h"
#include "format/codec.h"
#include "kernels/kernels.h"
#include "support/reference_device.h"
#include "support/support.h"

#define MAX_SEQUENCES 16

/* A device under test. */
typedef struct device_under_test {
    const tkv_device_table *table;
    tkv_device *device;
    bool is_quick;      /* few and small cases: for emulations and checkers of memory */
    uint64_t workspace; /* of all calls of attend, one after the other, as a context's is */
    size_t workspace_bytes;
} device_under_test;

/* One layer of some sequences. */
typedef struct device_case {
    tkv_device_layer layer;
    int n_sequences;
    int n_tokens[MAX_SEQUENCES];
    int begin; /* positions before it, and from `end` on, hold no token; end 0: all others do */
    int end;
    bool is_centred;
    int exact_share;   /* of 4 blocks after the sinks so many are exact, chosen at random */
    int n_kinds;       /* of rows: 1: all Gaussian */
    int n_value_kinds; /* of values, if not 0 */
    uint64_t seed;
} device_case;

/* A block: its pages on the host as they should be, and on the device. */
typedef struct case_block {
    tkv_device_block entry;
    size_t bytes;
    uint8_t *pages;
} case_block;

typedef struct case_sequence {
    tkv_device_sequence entry;
    case_block *blocks;
    float *means[2]; /* keys, values: [n_kv_heads][head_dim]; NULL without centring */
    float *rows[2];  /* keys, values [n_tokens][n_kv_heads][head_dim] as appended */
} case_sequence;

typedef struct case_memory {
    const device_under_test *dut;
    const device_case *params;
    case_sequence sequences[MAX_SEQUENCES];
    uint64_t address; /* tkv_device_sequence [n_sequences] */
} case_memory;

static inline int case_head_dim(const tkv_device_layer *layer, int order)
{
    return order == TKV_ORDER_KEY ? layer->head_dim_k : layer->head_dim_v;
}

static inline tkv_type case_type(const tkv_device_layer *layer, const case_block *block, int order)
{
    return block->entry.is_exact    ? TKV_TYPE_F16
           : order == TKV_ORDER_KEY ? (tkv_type)layer->type_k
                                    : (tkv_type)layer->type_v;
}

static inline size_t case_page_bytes(const tkv_device_layer *layer, const case_block *block,
                                     int order)
{
    const int head_dim = case_head_dim(layer, order);
    const int n_slots = block->entry.is_exact ? block->entry.n_slots : TKV_PAGE_TOKENS;
    return tkv_stored_page_bytes((int)case_type(layer, block, order), head_dim, n_slots);
}

/* The page of a KV head on the host. */
static inline uint8_t *case_page(const tkv_device_layer *layer, const case_block *block, int head,
                                 int order)
{
    return block->pages + tkv_page_offset(head, order == TKV_ORDER_VALUE,
                                          case_page_bytes(layer, block, TKV_ORDER_KEY),
                                          case_page_bytes(layer, block, TKV_ORDER_VALUE));
}

static inline uint64_t device_allocate(const device_under_test *dut, size_t bytes)
{
    uint64_t address = 0;
    assert_ok(dut->table->allocate(dut->device, bytes, &address, &error));
    assert_int_equal(address % 256, 0);
    return address;
}

static inline uint64_t device_put(const device_under_test *dut, const void *from, size_t bytes)
{
    const uint64_t address = device_allocate(dut, bytes);
    assert_ok(dut->table->upload(dut->device, address, from, bytes, &error));
    return address;
}

/* One coordinate of a row: Gaussian, a spike, zero, tiny, huge, constant, on a grid, denormal, near
 * the largest float, with an outlier, nearly all in a run of coordinates of the rotated row (for
 * the trellis: the costs of which its search's metrics saturate), not finite. */
enum { KIND_ROTATED_RUN = 10, N_FINITE_KINDS = 11, N_KINDS = 12 };

static inline float case_value(int kind, float gauss, bool is_spike)
{
    switch (kind) {
    case 1: return is_spike ? 7.0f : 0.0f;
    case 2: return 0.0f;
    case 3: return gauss * 1e-13f;
    case 4: return gauss * 1e30f;
    case 5: return 1.0f;
    case 6: return rintf(4.0f * gauss) / 4.0f;
    case 7: return gauss * 1e-42f;
    case 8: return gauss < 0.0f ? -3e38f : 3e38f;
    case 9: return is_spike ? 1000.0f * gauss : gauss;
    case 11: return is_spike ? (gauss < 0.0f ? NAN : INFINITY) : gauss;
    default: return gauss;
    }
}

/* Signs alternate at random within the run. */
static inline void case_rotated_run(uint64_t *seed, int head_dim, float *x)
{
    const int length = 5 + random_below(seed, 12);
    const int first = random_below(seed, head_dim - length + 1);
    for (int j = 0; j < head_dim; j++) {
        const float size = j >= first && j < first + length ? 7.0f : 0.01f;
        x[j] = random_below(seed, 2) ? size : -size;
    }
    tkv_unrotate_row(head_dim, x);
}

static inline float *case_rows(uint64_t *seed, int n_rows, int head_dim, int n_kinds)
{
    float *x = allocate((size_t)n_rows * (size_t)head_dim * sizeof *x);
    for (int i = 0; i < n_rows; i++) {
        const int kind = n_kinds > 1 ? random_below(seed, n_kinds) : 0;
        for (int j = 0; j < head_dim; j++) {
            x[(size_t)i * (size_t)head_dim + (size_t)j] =
                case_value(kind, random_gauss(seed), j == i % head_dim);
        }
        if (kind == KIND_ROTATED_RUN) {
            case_rotated_run(seed, head_dim, x + (size_t)i * (size_t)head_dim);
        }
    }
    return x;
}

static inline void case_create_block(case_memory *memory, int index, uint64_t *seed,
                                     case_block *block)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const int n_tokens =
        tkv_block_place(layer->n_sinks, index + 1) - tkv_block_place(layer->n_sinks, index);
    const bool is_sink = index < tkv_head_blocks(layer->n_sinks);
    const bool is_all_exact = layer->type_k == TKV_TYPE_F16 && layer->type_v == TKV_TYPE_F16;
    block->entry.is_exact =
        is_sink || is_all_exact || random_below(seed, 4) < memory->params->exact_share;
    block->entry.n_slots = (n_tokens + 15) / 16 * 16;
    block->bytes = (size_t)layer->n_kv_heads * (case_page_bytes(layer, block, TKV_ORDER_KEY) +
                                                case_page_bytes(layer, block, TKV_ORDER_VALUE));
    /* Whatever slots held before, what lies beside the ones that are written must stay. */
    block->pages = allocate(block->bytes);
    for (size_t i = 0; i < block->bytes; i++) {
        block->pages[i] = (uint8_t)random_bits(seed);
    }
    block->entry.pages = device_put(memory->dut, block->pages, block->bytes);
}

static inline void case_create_sequence(case_memory *memory, int n_tokens, uint64_t *seed,
                                        case_sequence *sequence)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const int n_blocks = tkv_block_of_place(layer->n_sinks, n_tokens - 1) + 1;
    tkv_device_block *table = allocate((size_t)n_blocks * sizeof *table);
    sequence->blocks = allocate((size_t)n_blocks * sizeof *sequence->blocks);
    for (int b = 0; b < n_blocks; b++) {
        case_create_block(memory, b, seed, &sequence->blocks[b]);
        table[b] = sequence->blocks[b].entry;
    }
    sequence->entry.blocks = device_put(memory->dut, table, (size_t)n_blocks * sizeof *table);
    sequence->entry.n_tokens = n_tokens;
    sequence->entry.n_blocks = n_blocks;
    free(table);
    for (int order = 0; order < 2; order++) {
        const int head_dim = case_head_dim(layer, order);
        const int n_kinds = order == TKV_ORDER_VALUE && memory->params->n_value_kinds
                                ? memory->params->n_value_kinds
                                : memory->params->n_kinds;
        sequence->rows[order] = case_rows(seed, n_tokens * layer->n_kv_heads, head_dim, n_kinds);
        if (memory->params->is_centred) {
            uint64_t *address = order ? &sequence->entry.mean_v : &sequence->entry.mean_k;
            const size_t bytes = (size_t)(layer->n_kv_heads * head_dim) * sizeof(float);
            sequence->means[order] = case_rows(seed, layer->n_kv_heads, head_dim, 1);
            *address = device_put(memory->dut, sequence->means[order], bytes);
        }
    }
}

static inline void case_create(const device_under_test *dut, const device_case *params,
                               case_memory *memory)
{
    tkv_device_sequence entries[MAX_SEQUENCES];
    uint64_t seed = params->seed;
    memset(memory, 0, sizeof *memory);
    memory->dut = dut;
    memory->params = params;
    for (int i = 0; i < params->n_sequences; i++) {
        case_create_sequence(memory, params->n_tokens[i], &seed, &memory->sequences[i]);
        entries[i] = memory->sequences[i].entry;
    }
    memory->address =
        device_put(dut, entries, (size_t)params->n_sequences * sizeof(tkv_device_sequence));
}

static inline void case_free(case_memory *memory)
{
    const device_under_test *dut = memory->dut;
    for (int i = 0; i < memory->params->n_sequences; i++) {
        case_sequence *sequence = &memory->sequences[i];
        for (int b = 0; b < sequence->entry.n_blocks; b++) {
            dut->table->release(dut->device, sequence->blocks[b].entry.pages);
            free(sequence->blocks[b].pages);
        }
        dut->table->release(dut->device, sequence->entry.blocks);
        for (int order = 0; order < 2; order++) {
            if (sequence->means[order]) {
                dut->table->release(dut->device,
                                    order ? sequence->entry.mean_v : sequence->entry.mean_k);
            }
            free(sequence->means[order]);
            free(sequence->rows[order]);
        }
        free(sequence->blocks);
    }
    dut->table->release(dut->device, memory->address);
}

/* The mean that is taken off the rows of a page, or NULL. */
static inline const float *case_mean(const case_memory *memory, int sequence,
                                     const case_block *block, int head, int order)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const float *means = memory->sequences[sequence].means[order];
    return means && case_type(layer, block, order) != TKV_TYPE_F16
               ? means + head * case_head_dim(layer, order)
               : NULL;
}

/* The fastest of this machine's CPU tables, all of them equal to the reference to the bit
 * (test_kernels.c): the reference itself takes milliseconds for a trellis row. */
static inline const tkv_kernels *case_kernels(void)
{
    const tkv_kernels *kernels = NULL;
    assert_ok(tkv_kernels_select(NULL, &kernels, &error));
    return kernels;
}

/* Puts one row where the device should have put it. */
static inline void case_store_row(case_memory *memory, int sequence, int token, int head, int order)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const case_sequence *s = &memory->sequences[sequence];
    const int index = tkv_block_of_place(layer->n_sinks, token);
    const case_block *block = &s->blocks[index];
    const int head_dim = case_head_dim(layer, order);
    const float *mean = case_mean(memory, sequence, block, head, order);
    const float *row =
        s->rows[order] + (size_t)(token * layer->n_kv_heads + head) * (size_t)head_dim;
    float x[TKV_MAX_HEAD_DIM];
    const tkv_page_span span = {case_type(layer, block, order),
                                (tkv_page_order)order,
                                head_dim,
                                token - tkv_block_place(layer->n_sinks, index),
                                1,
                                (tkv_effort)layer->effort};
    for (int j = 0; j < head_dim; j++) {
        x[j] = mean ? tkv_half_to_float(tkv_float_to_finite_half(row[j])) - mean[j] : row[j];
    }
    case_kernels()->encode(&span, x, (size_t)head_dim, case_page(layer, block, head, order));
}

/* Fills all slots of a block with rows, also such as are not finite: of what tokens that have been
 * dropped have left behind, nothing may matter. */
static inline void case_leave_rows(const case_memory *memory, const case_block *block,
                                   uint64_t *seed)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const int n_slots = block->entry.is_exact ? block->entry.n_slots : TKV_PAGE_TOKENS;
    for (int i = 0; i < 2 * layer->n_kv_heads; i++) {
        const int order = i % 2;
        const int head_dim = case_head_dim(layer, order);
        const tkv_page_span span = {case_type(layer, block, order),
                                    (tkv_page_order)order,
                                    head_dim,
                                    0,
                                    n_slots,
                                    TKV_EFFORT_FAST};
        float *x = case_rows(seed, n_slots, head_dim, N_KINDS);
        case_kernels()->encode(&span, x, (size_t)head_dim, case_page(layer, block, i / 2, order));
        free(x);
    }
}

static inline bool case_holds(const device_case *c, int position)
{
    return position >= c->begin && (c->end == 0 || position < c->end);
}

/* Puts all tokens where they belong, on the host, among rows that do not count, and copies the
 * pages to the device. */
static inline void case_fill(case_memory *memory)
{
    const device_under_test *dut = memory->dut;
    const int n_kv_heads = memory->params->layer.n_kv_heads;
    uint64_t seed = memory->params->seed + 7;
    for (int s = 0; s < memory->params->n_sequences; s++) {
        const case_sequence *sequence = &memory->sequences[s];
        for (int b = 0; b < sequence->entry.n_blocks; b++) {
            case_leave_rows(memory, &sequence->blocks[b], &seed);
        }
        for (int i = 0; i < sequence->entry.n_tokens * n_kv_heads * 2; i++) {
            if (case_holds(memory->params, i / 2 / n_kv_heads)) {
                case_store_row(memory, s, i / 2 / n_kv_heads, i / 2 % n_kv_heads, i % 2);
            }
        }
        for (int b = 0; b < sequence->entry.n_blocks; b++) {
            const case_block *block = &sequence->blocks[b];
            assert_ok(dut->table->upload(dut->device, block->entry.pages, block->pages,
                                         block->bytes, &error));
        }
    }
}

/* What a token decodes to, mean added: x [head_dim]. */
static inline void case_load_row(const case_memory *memory, int sequence, int token, int head,
                                 int order, float *x)
{
    const tkv_device_layer *layer = &memory->params->layer;
    const int index = tkv_block_of_place(layer->n_sinks, token);
    const case_block *block = &memory->sequences[sequence].blocks[index];
    const int head_dim = case_head_dim(layer, order);
    const float *mean = case_mean(memory, sequence, block, head, order);
    const tkv_page_span span = {case_type(layer, block, order),
                                (tkv_page_order)order,
                                head_dim,
                                token - tkv_block_place(layer->n_sinks, index),
                                1,
                                TKV_EFFORT_DEFAULT};
    case_kernels()->decode(&span, case_page(layer, block, head, order), x, (size_t)head_dim);
    for (int j = 0; mean && j < head_dim; j++) {
        x[j] += mean[j];
    }
}

#define GUARD_FLOATS 64
#define GUARD_VALUE 12345.0f

static inline void describe(const device_case *c, char *text, size_t size)
{
    snprintf(text, size,
             "types %d/%d, head_dim %d/%d, %d KV heads, %d sinks, effort %d, %d sequences of %d.. "
             "tokens, begin %d, end %d, centred %d, exact share %d, %d kinds of rows, seed %llu",
             c->layer.type_k, c->layer.type_v, c->layer.head_dim_k, c->layer.head_dim_v,
             c->layer.n_kv_heads, c->layer.n_sinks, c->layer.effort, c->n_sequences, c->n_tokens[0],
             c->begin, c->end, c->is_centred, c->exact_share, c->n_kinds,
             (unsigned long long)c->seed);
}

static inline void fail_case(const device_case *c, const char *what)
{
    char text[400];
    describe(c, text, sizeof text);
    fail_msg("%s: %s", what, text);
}

/* The tuned ones first. */
static const int case_head_dims[] = {128, 64, 256, 32,  16,  80,  1024,
                                     48,  96, 112, 192, 576, 512, 16 * 61};
enum { N_CASE_HEAD_DIMS = sizeof case_head_dims / sizeof *case_head_dims };

typedef void (*device_test)(device_under_test *dut);

static inline void on_device(const tkv_device_table *table, int index, bool is_quick,
                             device_test test)
{
    device_under_test dut = {.table = table, .is_quick = is_quick};
    assert_ok(table->open(index, NULL, &dut.device, &error));
    test(&dut);
    if (dut.workspace) {
        table->release(dut.device, dut.workspace);
    }
    table->close(dut.device);
}

/* Runs a test on every device of every table, and on the reference device, which shows that it is
 * right. */
static inline void on_every_device(device_test test)
{
    const char *quick = getenv("TKV_TEST_QUICK");
    const tkv_device_table *table;
    for (int t = 0; (table = tkv_device_tables(t)) != NULL; t++) {
        char reason[200] = "";
        const int n = table->count(reason, sizeof reason);
        if (n == 0) {
            print_message("%s: skipped, no device: %s\n", table->name, reason);
        }
        for (int i = 0; i < n; i++) {
            on_device(table, i, quick && *quick == '1', test);
        }
    }
    on_device(&reference_device_table, 0, true, test);
}

#endif
