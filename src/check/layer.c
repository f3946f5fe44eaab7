/* Sequences in a device's memory with a copy on the host. */
#include "base/half.h"
#include "base/random.h"
#include "check/trial.h"
#include "device/geometry.h"

#include <inttypes.h>

int tkv_trial_head_dim(const tkv_device_layer *layer, int order)
{
    return order == TKV_ORDER_KEY ? layer->head_dim_k : layer->head_dim_v;
}

static tkv_type type_of_order(const tkv_device_layer *layer, int order)
{
    return order == TKV_ORDER_KEY ? (tkv_type)layer->type_k : (tkv_type)layer->type_v;
}

tkv_type tkv_trial_type(const tkv_device_layer *layer, const tkv_trial_block *block, int order)
{
    return block->entry.is_exact ? TKV_TYPE_F16 : type_of_order(layer, order);
}

size_t tkv_trial_page_bytes(const tkv_device_layer *layer, const tkv_trial_block *block, int order)
{
    const int n_slots = block->entry.is_exact ? block->entry.n_slots : TKV_PAGE_TOKENS;
    return tkv_stored_page_bytes((int)tkv_trial_type(layer, block, order),
                                 tkv_trial_head_dim(layer, order), n_slots);
}

uint8_t *tkv_trial_page(const tkv_device_layer *layer, const tkv_trial_block *block, int head,
                        int order)
{
    return block->pages + tkv_page_offset(head, order == TKV_ORDER_VALUE,
                                          tkv_trial_page_bytes(layer, block, TKV_ORDER_KEY),
                                          tkv_trial_page_bytes(layer, block, TKV_ORDER_VALUE));
}

static float *make_rows(tkv_trial *trial, uint64_t *seed, int n_rows, int head_dim, int n_kinds)
{
    float *x = tkv_trial_host(trial, (size_t)n_rows * (size_t)head_dim * sizeof *x);
    if (x) {
        tkv_check_rows(seed, n_rows, head_dim, (size_t)head_dim, n_kinds, x);
    }
    return x;
}

static void create_block(tkv_trial_layer *l, int index, uint64_t *seed, tkv_trial_block *block)
{
    const tkv_device_layer *layer = &l->params->layer;
    const int n_tokens =
        tkv_block_place(layer->n_sinks, index + 1) - tkv_block_place(layer->n_sinks, index);
    const bool is_sink = index < tkv_head_blocks(layer->n_sinks);
    const bool is_all_exact = layer->type_k == TKV_TYPE_F16 && layer->type_v == TKV_TYPE_F16;
    block->entry.is_exact =
        is_sink || is_all_exact || tkv_random_below(seed, 4) < l->params->exact_share;
    block->entry.n_slots = tkv_ceil_divide(n_tokens, TKV_EXACT_ROWS) * TKV_EXACT_ROWS;
    block->bytes =
        (size_t)layer->n_kv_heads * (tkv_trial_page_bytes(layer, block, TKV_ORDER_KEY) +
                                     tkv_trial_page_bytes(layer, block, TKV_ORDER_VALUE));
    /* Whatever slots held before, what lies beside the ones that are written must stay. */
    block->pages = tkv_trial_host(l->trial, block->bytes);
    for (size_t i = 0; block->pages && i < block->bytes; i++) {
        block->pages[i] = (uint8_t)tkv_random_bits(seed);
    }
    block->entry.pages = tkv_trial_put(l->trial, block->pages, block->bytes);
}

static void create_rows(tkv_trial_layer *l, int n_tokens, uint64_t *seed,
                        tkv_trial_sequence *sequence)
{
    const tkv_layer_case *c = l->params;
    for (int order = 0; order < 2; order++) {
        const int head_dim = tkv_trial_head_dim(&c->layer, order);
        const int n_kinds =
            order == TKV_ORDER_VALUE && c->n_value_kinds ? c->n_value_kinds : c->n_kinds;
        sequence->rows[order] =
            make_rows(l->trial, seed, n_tokens * c->layer.n_kv_heads, head_dim, n_kinds);
        if (c->is_centred) {
            uint64_t *address = order ? &sequence->entry.mean_v : &sequence->entry.mean_k;
            const size_t bytes = (size_t)(c->layer.n_kv_heads * head_dim) * sizeof(float);
            sequence->means[order] = make_rows(l->trial, seed, c->layer.n_kv_heads, head_dim, 1);
            *address = tkv_trial_put(l->trial, sequence->means[order], bytes);
        }
    }
}

static void create_sequence(tkv_trial_layer *l, int n_tokens, uint64_t *seed,
                            tkv_trial_sequence *sequence)
{
    const int n_blocks = tkv_block_of_place(l->params->layer.n_sinks, n_tokens - 1) + 1;
    tkv_device_block *table = tkv_trial_host(l->trial, (size_t)n_blocks * sizeof *table);
    sequence->blocks = tkv_trial_host(l->trial, (size_t)n_blocks * sizeof *sequence->blocks);
    for (int b = 0; tkv_trial_is_on(l->trial) && b < n_blocks; b++) {
        create_block(l, b, seed, &sequence->blocks[b]);
        table[b] = sequence->blocks[b].entry;
    }
    sequence->entry.blocks = tkv_trial_put(l->trial, table, (size_t)n_blocks * sizeof *table);
    sequence->entry.n_tokens = n_tokens;
    sequence->entry.n_blocks = n_blocks;
    create_rows(l, n_tokens, seed, sequence);
}

void tkv_trial_create_layer(tkv_trial *trial, const tkv_layer_case *params, tkv_trial_layer *layer)
{
    tkv_device_sequence entries[TKV_TRIAL_SEQUENCES];
    uint64_t seed = params->seed;
    *layer = (tkv_trial_layer){.trial = trial, .params = params};
    for (int i = 0; i < params->n_sequences; i++) {
        create_sequence(layer, params->n_tokens[i], &seed, &layer->sequences[i]);
        entries[i] = layer->sequences[i].entry;
    }
    layer->address = tkv_trial_put(trial, entries, (size_t)params->n_sequences * sizeof *entries);
}

/* The mean that is taken off the rows of a page, or NULL. */
static const float *mean_of(const tkv_trial_layer *l, int sequence, const tkv_trial_block *block,
                            int head, int order)
{
    const tkv_device_layer *layer = &l->params->layer;
    const float *means = l->sequences[sequence].means[order];
    return means && tkv_trial_type(layer, block, order) != TKV_TYPE_F16
               ? means + head * tkv_trial_head_dim(layer, order)
               : NULL;
}

/* The slot of a token in its block. */
static tkv_page_span place_row(const tkv_device_layer *layer, const tkv_trial_block *block,
                               int token, int order)
{
    const int index = tkv_block_of_place(layer->n_sinks, token);
    return (tkv_page_span){tkv_trial_type(layer, block, order),
                           (tkv_page_order)order,
                           tkv_trial_head_dim(layer, order),
                           token - tkv_block_place(layer->n_sinks, index),
                           1,
                           (tkv_effort)layer->effort};
}

void tkv_trial_store_row(tkv_trial_layer *l, int sequence, int token, int head, int order)
{
    const tkv_device_layer *layer = &l->params->layer;
    const tkv_trial_sequence *s = &l->sequences[sequence];
    const tkv_trial_block *block = &s->blocks[tkv_block_of_place(layer->n_sinks, token)];
    const tkv_page_span span = place_row(layer, block, token, order);
    const size_t head_dim = (size_t)span.head_dim;
    const float *mean = mean_of(l, sequence, block, head, order);
    const float *row = s->rows[order] + (size_t)(token * layer->n_kv_heads + head) * head_dim;
    float x[TKV_MAX_HEAD_DIM];
    for (size_t j = 0; j < head_dim; j++) {
        /* Rows wait as f16 for their mean. */
        x[j] = mean ? tkv_half_to_float(tkv_float_to_finite_half(row[j])) - mean[j] : row[j];
    }
    l->trial->kernels->encode(&span, x, head_dim, tkv_trial_page(layer, block, head, order));
}

/* Fills all slots of a block with rows, also such as are not finite where these can get in: of what
 * tokens that have been dropped have left behind, nothing may matter. */
static void leave_rows(const tkv_trial_layer *l, const tkv_trial_block *block, uint64_t *seed)
{
    const tkv_device_layer *layer = &l->params->layer;
    const int n_slots = block->entry.is_exact ? block->entry.n_slots : TKV_PAGE_TOKENS;
    const int n_kinds = l->trial->table->find_non_finite ? TKV_CHECK_FINITE_KINDS : TKV_CHECK_KINDS;
    for (int i = 0; tkv_trial_is_on(l->trial) && i < 2 * layer->n_kv_heads; i++) {
        const int order = i % 2;
        const int head_dim = tkv_trial_head_dim(layer, order);
        const tkv_page_span span = {tkv_trial_type(layer, block, order),
                                    (tkv_page_order)order,
                                    head_dim,
                                    0,
                                    n_slots,
                                    TKV_EFFORT_FAST};
        float x[TKV_MAX_HEAD_DIM];
        for (int slot = 0; slot < n_slots; slot++) {
            tkv_page_span one = span;
            one.first_slot = slot;
            one.n_rows = 1;
            tkv_check_rows(seed, 1, head_dim, (size_t)head_dim, n_kinds, x);
            l->trial->kernels->encode(&one, x, (size_t)head_dim,
                                      tkv_trial_page(layer, block, i / 2, order));
        }
    }
}

static bool holds(const tkv_layer_case *c, int position)
{
    return position >= c->begin && (c->end == 0 || position < c->end);
}

void tkv_trial_fill_layer(tkv_trial_layer *l)
{
    tkv_trial *trial = l->trial;
    const int n_kv_heads = l->params->layer.n_kv_heads;
    const bool has_left = l->trial->check->params->mode != TKV_CHECK_ANSWERS;
    uint64_t seed = l->params->seed + 7;
    for (int s = 0; tkv_trial_is_on(trial) && s < l->params->n_sequences; s++) {
        const tkv_trial_sequence *sequence = &l->sequences[s];
        for (int b = 0; has_left && b < sequence->entry.n_blocks; b++) {
            leave_rows(l, &sequence->blocks[b], &seed);
        }
        for (int i = 0; i < sequence->entry.n_tokens * n_kv_heads * 2; i++) {
            if (holds(l->params, i / 2 / n_kv_heads)) {
                tkv_trial_store_row(l, s, i / 2 / n_kv_heads, i / 2 % n_kv_heads, i % 2);
            }
        }
        for (int b = 0; tkv_trial_is_on(trial) && b < sequence->entry.n_blocks; b++) {
            const tkv_trial_block *block = &sequence->blocks[b];
            tkv_trial_note(trial,
                           trial->table->upload(trial->device, block->entry.pages, block->pages,
                                                block->bytes, trial->check->error));
        }
    }
}

void tkv_trial_load_row(const tkv_trial_layer *l, int sequence, int token, int head, int order,
                        float *x)
{
    const tkv_device_layer *layer = &l->params->layer;
    const int index = tkv_block_of_place(layer->n_sinks, token);
    const tkv_trial_block *block = &l->sequences[sequence].blocks[index];
    const tkv_page_span span = place_row(layer, block, token, order);
    const float *mean = mean_of(l, sequence, block, head, order);
    l->trial->kernels->decode(&span, tkv_trial_page(layer, block, head, order), x,
                              (size_t)span.head_dim);
    for (int j = 0; mean && j < span.head_dim; j++) {
        x[j] += mean[j];
    }
}

void tkv_trial_name(const tkv_trial_layer *l, tkv_operation operation, int order, const char *what)
{
    const tkv_layer_case *c = l->params;
    tkv_check_name(l->trial->check, operation, type_of_order(&c->layer, order),
                   tkv_trial_head_dim(&c->layer, order),
                   "%s: types %d/%d, head_dim %d/%d, %d KV heads, %d sinks, effort %d, "
                   "%d sequences of %d.. tokens, begin %d, end %d, centred %d, exact share %d, "
                   "%d kinds of rows, seed %" PRIu64,
                   what, c->layer.type_k, c->layer.type_v, c->layer.head_dim_k, c->layer.head_dim_v,
                   c->layer.n_kv_heads, c->layer.n_sinks, c->layer.effort, c->n_sequences,
                   c->n_tokens[0], c->begin, c->end, c->is_centred, c->exact_share, c->n_kinds,
                   c->seed);
}
