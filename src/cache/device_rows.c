/* Rows of a cache in a device's memory: from the caller to the pages, back, and from exact pages to
 * coded ones. */
#include "cache/device_rows.h"
#include "base/error.h"
#include "cache/block.h"
#include "cache/publish.h"
#include "cache/segment.h"

#include <stdlib.h>

/* Blocks that are coded at a time: bounds the memory for their rows. */
#define BLOCKS_A_CALL 16

/* A descriptor and what aligns the entries behind it. */
#define DESCRIPTOR_ROOM 64

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

static float *pointer_to(uint64_t address)
{
    return (float *)(uintptr_t)address;
}

/* Keys and values of tokens somewhere in the device's memory. */
typedef struct row_pair {
    uint64_t k;
    uint64_t v;
} row_pair;

static tkv_status place_rows(const tkv_cache_layer *layer, tkv_workspace_use use, int n_tokens,
                             row_pair *rows, tkv_error *error)
{
    const size_t n = (size_t)n_tokens * (size_t)layer->n_kv_heads * sizeof(float);
    const tkv_status status = tkv_context_workspace(
        layer->context, use, n * (size_t)(layer->padded_k + layer->padded_v), &rows->k, error);
    rows->v = rows->k + n * (size_t)layer->padded_k;
    return status;
}

tkv_device_rows tkv_describe_rows(const tkv_cache_layer *layer, int segment, tkv_page_order order,
                                  size_t n_rows, bool is_back)
{
    const bool is_key = order == TKV_ORDER_KEY;
    const int own = tkv_layer_head_dim(layer, order);
    const int padded = tkv_layer_padded(layer, order);
    return (tkv_device_rows){.n_rows = n_rows,
                             .from_width = is_back ? padded : own,
                             .to_width = is_back ? own : padded,
                             .turns = is_key ? tkv_segment_turns(layer, segment) : 0,
                             .n_pairs = layer->rope.n_rotated / 2,
                             .is_interleaved = layer->rope.is_interleaved,
                             .is_back = is_back};
}

bool tkv_rows_differ(const tkv_device_rows *rows)
{
    return rows->from_width != rows->to_width || rows->turns;
}

/* The caller's rows as the pages want them: the same ones, or in a workspace. */
static tkv_status prepare_rows(const tkv_cache_layer *layer, int n_tokens, row_pair *rows,
                               tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const int segment = layer->n_segments - 1;
    const size_t n = (size_t)n_tokens * (size_t)layer->n_kv_heads;
    tkv_device_rows k = tkv_describe_rows(layer, segment, TKV_ORDER_KEY, n, false);
    tkv_device_rows v = tkv_describe_rows(layer, segment, TKV_ORDER_VALUE, n, false);
    if (!tkv_rows_differ(&k) && !tkv_rows_differ(&v)) {
        return TKV_OK;
    }
    row_pair padded;
    tkv_status status = place_rows(layer, TKV_WORKSPACE_PADDED, n_tokens, &padded, error);
    if (status == TKV_OK && tkv_rows_differ(&k)) {
        k.from = rows->k;
        k.to = rows->k = padded.k;
        status = device->table->move_rows(device, &k, error);
    }
    if (status == TKV_OK && tkv_rows_differ(&v)) {
        v.from = rows->v;
        v.to = rows->v = padded.v;
        status = device->table->move_rows(device, &v, error);
    }
    return status;
}

tkv_status tkv_layer_store_on_device(const tkv_cache_layer *layer, int n_tokens, const float *k,
                                     const float *v, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const tkv_device_layer described = tkv_describe_layer(layer, tkv_last_segment(layer));
    row_pair rows = {address_of(k), address_of(v)};
    const tkv_status status = prepare_rows(layer, n_tokens, &rows, error);
    /* Counted from the end, so that a captured store writes what is reserved when it is replayed.
     */
    return status == TKV_OK ? device->table->store(device, &described, layer->descriptor, 1, -1,
                                                   n_tokens, rows.k, rows.v, error)
                            : status;
}

/* Rows of one order of a segment, as wide as pages are, into the caller's. */
static tkv_status finish_rows(tkv_device *device, tkv_device_rows *rows, uint64_t from, uint64_t to,
                              tkv_error *error)
{
    rows->from = from;
    rows->to = to;
    return from == to || !to ? TKV_OK : device->table->move_rows(device, rows, error);
}

/* Tokens of one segment, from a place on. */
static tkv_status load_segment(const tkv_cache_layer *layer, int s, int place, int n_tokens,
                               uint64_t k, uint64_t v, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const tkv_device_layer described = tkv_describe_layer(layer, &layer->segments[s]);
    const size_t n = (size_t)n_tokens * (size_t)layer->n_kv_heads;
    tkv_device_rows of_k = tkv_describe_rows(layer, s, TKV_ORDER_KEY, n, true);
    tkv_device_rows of_v = tkv_describe_rows(layer, s, TKV_ORDER_VALUE, n, true);
    row_pair to = {k, v};
    row_pair padded = {0, 0};
    tkv_status status = TKV_OK;
    if (tkv_rows_differ(&of_k) || tkv_rows_differ(&of_v)) {
        status = place_rows(layer, TKV_WORKSPACE_PADDED, n_tokens, &padded, error);
        to.k = k && tkv_rows_differ(&of_k) ? padded.k : k;
        to.v = v && tkv_rows_differ(&of_v) ? padded.v : v;
    }
    if (status == TKV_OK) {
        status = device->table->load(device, &described, tkv_segment_descriptor(layer, s), place,
                                     n_tokens, to.k, to.v, error);
    }
    if (status == TKV_OK) {
        status = finish_rows(device, &of_k, to.k, k, error);
    }
    return status == TKV_OK ? finish_rows(device, &of_v, to.v, v, error) : status;
}

tkv_status tkv_layer_load_on_device(const tkv_cache_layer *layer, int first, int n_tokens, float *k,
                                    float *v, tkv_error *error)
{
    const size_t heads = (size_t)layer->n_kv_heads * sizeof(float);
    tkv_status status = TKV_OK;
    for (int done = 0; done < n_tokens && status == TKV_OK;) {
        const tkv_segment *segment = tkv_segment_of(layer, first + done);
        const int skipped = first + done - segment->position;
        const int left = tkv_segment_tokens(segment) - skipped;
        const int n = n_tokens - done < left ? n_tokens - done : left;
        const size_t before = (size_t)done * heads;
        status = load_segment(layer, (int)(segment - layer->segments), segment->begin + skipped, n,
                              k ? address_of(k) + before * (size_t)layer->head_dim_k : 0,
                              v ? address_of(v) + before * (size_t)layer->head_dim_v : 0, error);
        done += n;
    }
    return status;
}

tkv_status tkv_layer_download(const tkv_cache_layer *layer, int first, int n_tokens, float *k,
                              float *v, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const size_t width_k = (size_t)layer->n_kv_heads * (size_t)layer->head_dim_k;
    const size_t width_v = (size_t)layer->n_kv_heads * (size_t)layer->head_dim_v;
    for (int done = 0; done < n_tokens;) {
        const int most = BLOCKS_A_CALL * TKV_PAGE_TOKENS;
        const int n = n_tokens - done < most ? n_tokens - done : most;
        row_pair rows;
        tkv_status status = place_rows(layer, TKV_WORKSPACE_ROWS, n, &rows, error);
        if (status == TKV_OK) {
            status = tkv_layer_load_on_device(layer, first + done, n, k ? pointer_to(rows.k) : NULL,
                                              v ? pointer_to(rows.v) : NULL, error);
        }
        if (status == TKV_OK && k) {
            status = device->table->download(device, k + (size_t)done * width_k, rows.k,
                                             (size_t)n * width_k * sizeof *k, error);
        }
        if (status == TKV_OK && v) {
            status = device->table->download(device, v + (size_t)done * width_v, rows.v,
                                             (size_t)n * width_v * sizeof *v, error);
        }
        if (status != TKV_OK) {
            return status;
        }
        done += n;
    }
    return TKV_OK;
}

/* Memory of one step of coding: rows, and a page table of its own. */
typedef struct code_buffers {
    row_pair rows;
    uint64_t sequence; /* tkv_device_sequence */
    uint64_t entries;  /* tkv_device_block [BLOCKS_A_CALL] */
} code_buffers;

static tkv_status place_code_buffers(const tkv_cache_layer *layer, code_buffers *buffers)
{
    const size_t rows = (size_t)BLOCKS_A_CALL * TKV_PAGE_TOKENS * (size_t)layer->n_kv_heads;
    const size_t k_bytes = rows * (size_t)layer->padded_k * sizeof(float);
    const size_t v_bytes = rows * (size_t)layer->padded_v * sizeof(float);
    const size_t bytes =
        k_bytes + v_bytes + DESCRIPTOR_ROOM + BLOCKS_A_CALL * sizeof(tkv_device_block);
    const tkv_status status =
        tkv_context_workspace(layer->context, TKV_WORKSPACE_ROWS, bytes, &buffers->rows.k, NULL);
    buffers->rows.v = buffers->rows.k + k_bytes;
    buffers->sequence = buffers->rows.v + v_bytes;
    buffers->entries = buffers->sequence + DESCRIPTOR_ROOM;
    return status;
}

/* Blocks of a segment that are coded in one step. */
typedef struct code_step {
    const tkv_segment *segment;
    int first; /* of the segment */
    int n_blocks;
    int place; /* of the first token */
    int n_tokens;
    tkv_block *coded[BLOCKS_A_CALL];
} code_step;

/* Writes what the coded blocks make of the segment beside its own page table, which thus changes
 * when they are filled. Entry `first` of that table is its first. */
static tkv_status describe_coded(const tkv_cache_layer *layer, const code_step *step,
                                 const code_buffers *buffers)
{
    tkv_device *device = layer->context->device;
    tkv_device_block entries[BLOCKS_A_CALL];
    for (int i = 0; i < step->n_blocks; i++) {
        entries[i] = (tkv_device_block){step->coded[i]->pages, 0, TKV_PAGE_TOKENS};
    }
    tkv_device_sequence sequence = tkv_describe_segment(layer, step->segment, 0);
    sequence.blocks = buffers->entries - (uint64_t)step->first * sizeof *entries;
    const tkv_status status = device->table->upload(device, buffers->entries, entries,
                                                    (size_t)step->n_blocks * sizeof *entries, NULL);
    return status == TKV_OK
               ? device->table->upload(device, buffers->sequence, &sequence, sizeof sequence, NULL)
               : status;
}

/* Fills the coded blocks with the rows of the exact ones. */
static tkv_status fill_coded(const tkv_cache_layer *layer, const code_step *step)
{
    tkv_device *device = layer->context->device;
    const tkv_device_layer described = tkv_describe_layer(layer, step->segment);
    const uint64_t own = tkv_segment_descriptor(layer, (int)(step->segment - layer->segments));
    code_buffers buffers;
    tkv_status status = place_code_buffers(layer, &buffers);
    if (status == TKV_OK) {
        status = describe_coded(layer, step, &buffers);
    }
    if (status == TKV_OK) {
        status = device->table->load(device, &described, own, step->place, step->n_tokens,
                                     buffers.rows.k, buffers.rows.v, NULL);
    }
    if (status == TKV_OK) {
        status = device->table->store(device, &described, buffers.sequence, 1, step->place,
                                      step->n_tokens, buffers.rows.k, buffers.rows.v, NULL);
    }
    return status;
}

/* Codes the blocks of a step, all of them or, on failure, none. */
static void code_blocks(tkv_cache_layer *layer, code_step *step)
{
    const tkv_segment *segment = step->segment;
    const int at = segment->first_block + step->first;
    const int end = tkv_block_place(segment->head, step->first + step->n_blocks);
    step->place =
        tkv_block_place(segment->head, step->first) + tkv_block_slots(segment, step->first).first;
    step->n_tokens = (end < segment->end ? end : segment->end) - step->place;
    tkv_block *exact[BLOCKS_A_CALL];
    tkv_status status = fill_coded(layer, step);
    for (int i = 0; i < step->n_blocks; i++) {
        exact[i] = layer->blocks[at + i];
        layer->blocks[at + i] = step->coded[i];
    }
    if (status == TKV_OK) {
        status = tkv_layer_publish_blocks(layer, at, at + step->n_blocks, NULL);
    }
    for (int i = 0; i < step->n_blocks; i++) {
        layer->blocks[at + i] = status == TKV_OK ? step->coded[i] : exact[i];
        tkv_block_release(status == TKV_OK ? exact[i] : step->coded[i]);
    }
}

tkv_status tkv_layer_fill_on_device(tkv_cache_layer *layer, const tkv_segment *segment,
                                    tkv_block *coded)
{
    const tkv_slots slots = tkv_block_slots(segment, 0);
    const code_step step = {.segment = segment,
                            .n_blocks = 1,
                            .place = slots.first,
                            .n_tokens = slots.end - slots.first,
                            .coded = {coded}};
    return fill_coded(layer, &step);
}

void tkv_layer_code_on_device(tkv_cache_layer *layer, const tkv_segment *segment, int first,
                              int end)
{
    while (first < end) {
        code_step step = {.segment = segment, .first = first};
        while (step.n_blocks < BLOCKS_A_CALL && first + step.n_blocks < end &&
               tkv_block_create(layer, false, TKV_PAGE_TOKENS, &step.coded[step.n_blocks], NULL) ==
                   TKV_OK) {
            step.n_blocks++;
        }
        if (step.n_blocks == 0) {
            return;
        }
        code_blocks(layer, &step);
        first += step.n_blocks;
    }
}
