/* Rows in and out of the pages of the host's device. */
#include "base/assert.h"
#include "base/half.h"
#include "device/host/host.h"

#include <string.h>

/* Rows of tokens times pages that are worth threads. */
#define MIN_PARALLEL_ROWS 512

tkv_host_layer tkv_host_layer_of(const tkv_device_layer *layer)
{
    return (tkv_host_layer){*layer,
                            {tkv_page_bytes((tkv_type)layer->type_k, layer->head_dim_k),
                             tkv_page_bytes((tkv_type)layer->type_v, layer->head_dim_v)}};
}

/* The mean that is taken off the rows of a page, or NULL. */
static const float *mean_of(const tkv_host_layer *layer, const tkv_host_span *span)
{
    const bool is_key = span->order == TKV_ORDER_KEY;
    const float *means = tkv_host_pointer(is_key ? span->sequence->mean_k : span->sequence->mean_v);
    return means && tkv_host_page_type(layer, span->block, span->order) != TKV_TYPE_F16
               ? means + (size_t)span->kv_head * (size_t)tkv_host_head_dim(layer, span->order)
               : NULL;
}

static tkv_page_span page_span(const tkv_host_layer *layer, const tkv_host_span *span)
{
    return (tkv_page_span){tkv_host_page_type(layer, span->block, span->order),
                           span->order,
                           tkv_host_head_dim(layer, span->order),
                           span->first_slot,
                           span->n_rows,
                           (tkv_effort)layer->of.effort};
}

void tkv_host_encode(const tkv_host_device *device, const tkv_host_layer *layer,
                     const tkv_host_span *span, const float *x, size_t stride)
{
    tkv_assert(span->first_slot >= 0 && span->n_rows >= 0 &&
               span->n_rows <= span->block->n_slots - span->first_slot);
    const tkv_kernels *kernels = device->setup.kernels;
    const float *mean = mean_of(layer, span);
    uint8_t *page = tkv_host_page(layer, span->block, span->kv_head, span->order);
    tkv_page_span chunk = page_span(layer, span);
    if (!mean) {
        kernels->encode(&chunk, x, stride, page);
        return;
    }
    const int head_dim = chunk.head_dim;
    float centred[TKV_HOST_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < span->n_rows; done += chunk.n_rows) {
        const int left = span->n_rows - done;
        chunk.first_slot = span->first_slot + done;
        chunk.n_rows = left < TKV_HOST_CHUNK_ROWS ? left : TKV_HOST_CHUNK_ROWS;
        for (int i = 0; i < chunk.n_rows; i++) {
            const float *row = x + (size_t)(done + i) * stride;
            for (int j = 0; j < head_dim; j++) {
                /* As if the row had waited in an exact block, so that it does not matter whether it
                 * did. */
                const float exact = tkv_half_to_float(tkv_float_to_finite_half(row[j]));
                centred[i * head_dim + j] = exact - mean[j];
            }
        }
        kernels->encode(&chunk, centred, (size_t)head_dim, page);
    }
}

void tkv_host_decode(const tkv_host_device *device, const tkv_host_layer *layer,
                     const tkv_host_span *span, float *x, size_t stride)
{
    tkv_assert(span->first_slot >= 0 && span->n_rows >= 0 &&
               span->n_rows <= span->block->n_slots - span->first_slot);
    const float *mean = mean_of(layer, span);
    const tkv_page_span rows = page_span(layer, span);
    device->setup.kernels->decode(
        &rows, tkv_host_page(layer, span->block, span->kv_head, span->order), x, stride);
    for (int i = 0; mean && i < span->n_rows; i++) {
        for (int j = 0; j < rows.head_dim; j++) {
            x[(size_t)i * stride + (size_t)j] += mean[j];
        }
    }
}

static int first_of(const tkv_host_tokens *tokens, int sequence)
{
    return tokens->first < 0 ? tokens->sequences[sequence].n_tokens - tokens->n_tokens
                             : tokens->first;
}

typedef struct pages_job {
    const tkv_host_tokens *tokens;
    tkv_host_page_work work;
    int n_blocks; /* that the tokens of a sequence lie in, at most */
} pages_job;

/* The tokens of one page. */
static void work_on_page(void *argument, int item, int thread)
{
    (void)thread;
    const pages_job *job = argument;
    const tkv_host_tokens *tokens = job->tokens;
    const tkv_host_layer *layer = &tokens->layer;
    const int n_orders = tkv_host_orders(layer);
    const int n_heads = layer->of.n_kv_heads;
    const int s = item / n_orders / n_heads / job->n_blocks;
    const tkv_device_sequence *sequence = &tokens->sequences[s];
    const int head = layer->of.n_sinks;
    const int first = first_of(tokens, s);
    const int end = first + tokens->n_tokens;
    const int index = tkv_block_of_place(head, first) + item / n_orders / n_heads % job->n_blocks;
    const tkv_slots slots = tkv_slots_of_places(head, index, first, end);
    const tkv_page_order order = item % n_orders ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
    if (slots.first == slots.end) {
        return;
    }
    const tkv_host_span span = {sequence,
                                (const tkv_device_block *)tkv_host_pointer(sequence->blocks) +
                                    index,
                                item / n_orders % n_heads,
                                order,
                                slots.first,
                                slots.end - slots.first};
    const size_t head_dim = (size_t)tkv_host_head_dim(layer, order);
    const size_t stride = (size_t)n_heads * head_dim;
    const int before = tkv_block_place(head, index) + slots.first - first;
    float *x = tokens->x[order];
    if (x) {
        x += ((size_t)s * (size_t)tokens->n_tokens + (size_t)before) * stride +
             (size_t)span.kv_head * head_dim;
    }
    job->work(tokens, &span, x, stride);
}

void tkv_host_for_pages(const tkv_host_tokens *tokens, tkv_host_page_work work)
{
    const tkv_device_setup *setup = &tokens->device->setup;
    const int head = tokens->layer.of.n_sinks;
    pages_job job = {tokens, work, 0};
    for (int s = 0; s < tokens->n_sequences; s++) {
        const int first = first_of(tokens, s);
        const int n = tkv_block_of_place(head, first + tokens->n_tokens - 1) + 1 -
                      tkv_block_of_place(head, first);
        job.n_blocks = n > job.n_blocks ? n : job.n_blocks;
    }
    const int n_items = tokens->n_sequences * job.n_blocks * tokens->layer.of.n_kv_heads *
                        tkv_host_orders(&tokens->layer);
    const bool is_much = tokens->coded || (int64_t)n_items * tokens->n_tokens >= MIN_PARALLEL_ROWS;
    tkv_threads_run(setup->threads, is_much ? tkv_threads_count(setup->threads) : 1, n_items,
                    work_on_page, &job);
}
