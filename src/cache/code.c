/* Tokens of exact blocks into coded ones. */
#include "cache/code.h"
#include "base/error.h"
#include "cache/block.h"
#include "cache/publish.h"

/* Blocks that are coded at a time: bounds the memory for their rows. */
#define BLOCKS_A_CALL 16

/* A descriptor and what aligns the entries behind it. */
#define DESCRIPTOR_ROOM 64

/* Memory of one step of coding: rows where the device needs them, and a page table of its own. */
typedef struct code_buffers {
    uint64_t sequence; /* tkv_device_sequence */
    uint64_t entries;  /* tkv_device_block [BLOCKS_A_CALL] */
    uint64_t k;        /* rows of all blocks; device->table->age has no need of them */
    uint64_t v;
} code_buffers;

static tkv_status place_code_buffers(const tkv_cache_layer *layer, code_buffers *buffers)
{
    const bool has_rows = !layer->context->device->table->age;
    const size_t rows = (size_t)BLOCKS_A_CALL * TKV_PAGE_TOKENS * (size_t)layer->n_kv_heads;
    const size_t k_bytes = has_rows ? rows * (size_t)layer->padded_k * sizeof(float) : 0;
    const size_t v_bytes = has_rows ? rows * (size_t)layer->padded_v * sizeof(float) : 0;
    const size_t table_bytes = DESCRIPTOR_ROOM + BLOCKS_A_CALL * sizeof(tkv_device_block);
    uint64_t base = 0;
    TKV_TRY(tkv_context_workspace(layer->context, TKV_WORKSPACE_ROWS,
                                  table_bytes + k_bytes + v_bytes, &base, NULL));
    *buffers = (code_buffers){base, base + DESCRIPTOR_ROOM, base + table_bytes,
                              base + table_bytes + k_bytes};
    return TKV_OK;
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
    TKV_TRY(device->table->upload(device, buffers->entries, entries,
                                  (size_t)step->n_blocks * sizeof *entries, NULL));
    return device->table->upload(device, buffers->sequence, &sequence, sizeof sequence, NULL);
}

/* Fills the coded blocks with the rows of the exact ones. */
static tkv_status age(const tkv_cache_layer *layer, const code_step *step,
                      const code_buffers *buffers)
{
    tkv_device *device = layer->context->device;
    const tkv_device_table *table = device->table;
    const tkv_device_layer described = tkv_describe_layer(layer, step->segment);
    const uint64_t own = tkv_segment_descriptor(layer, (int)(step->segment - layer->segments));
    TKV_TRY(describe_coded(layer, step, buffers));
    if (table->age) {
        return table->age(device, &described, own, buffers->sequence, step->place, step->n_tokens,
                          NULL);
    }
    TKV_TRY(table->load(device, &described, own, step->place, step->n_tokens, buffers->k,
                        buffers->v, NULL));
    return table->store(device, &described, buffers->sequence, 1, step->place, step->n_tokens,
                        buffers->k, buffers->v, NULL);
}

static tkv_status fill_coded(const tkv_cache_layer *layer, const code_step *step)
{
    code_buffers buffers;
    TKV_TRY(place_code_buffers(layer, &buffers));
    const tkv_status status = age(layer, step, &buffers);
    tkv_context_give_back(layer->context, buffers.sequence);
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
        tkv_block_release(layer, status == TKV_OK ? exact[i] : step->coded[i]);
    }
    if (status != TKV_OK) {
        tkv_context_log(layer->context, "%d blocks are not coded for now and stay exact: %s",
                        step->n_blocks, tkv_status_name(status));
    }
}

tkv_status tkv_layer_fill(tkv_cache_layer *layer, const tkv_segment *segment, tkv_block *coded)
{
    const tkv_slots slots = tkv_block_slots(segment, 0);
    const code_step step = {.segment = segment,
                            .n_blocks = 1,
                            .place = slots.first,
                            .n_tokens = slots.end - slots.first,
                            .coded = {coded}};
    return fill_coded(layer, &step);
}

void tkv_layer_code(tkv_cache_layer *layer, const tkv_segment *segment, int first, int end)
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
