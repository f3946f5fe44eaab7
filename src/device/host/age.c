/* Tokens from exact pages into coded ones. */
#include "device/host/host.h"

static void age_page(const tkv_host_tokens *tokens, const tkv_host_span *span, float *x,
                     size_t stride)
{
    (void)x;
    (void)stride;
    const tkv_device_block *exact = tkv_host_pointer(span->sequence->blocks);
    const tkv_device_block *coded = tkv_host_pointer(tokens->coded->blocks);
    const size_t width = (size_t)tkv_host_head_dim(&tokens->layer, span->order);
    const int end = span->first_slot + span->n_rows;
    float rows[TKV_HOST_CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    tkv_host_span from = *span;
    for (int slot = span->first_slot; slot < end; slot += TKV_HOST_CHUNK_ROWS) {
        from.first_slot = slot;
        from.n_rows = end - slot < TKV_HOST_CHUNK_ROWS ? end - slot : TKV_HOST_CHUNK_ROWS;
        tkv_host_span to = from;
        to.block = coded + (span->block - exact);
        tkv_host_decode(tokens->device, &tokens->layer, &from, rows, width);
        tkv_host_encode(tokens->device, &tokens->layer, &to, rows, width);
    }
}

tkv_status tkv_host_age(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                        uint64_t coded, int first, int n_tokens, tkv_error *error)
{
    (void)error;
    const tkv_host_tokens tokens = {.device = tkv_host_of(device),
                                    .layer = tkv_host_layer_of(layer),
                                    .sequences = tkv_host_pointer(sequence),
                                    .n_sequences = 1,
                                    .first = first,
                                    .n_tokens = n_tokens,
                                    .coded = tkv_host_pointer(coded)};
    tkv_host_for_pages(&tokens, age_page);
    return TKV_OK;
}
