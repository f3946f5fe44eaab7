/* Rows of tokens into their pages. */
#include "device/host/host.h"

static void store_page(const tkv_host_tokens *tokens, const tkv_host_span *span, float *x,
                       size_t stride)
{
    tkv_host_encode(tokens->device, &tokens->layer, span, x, stride);
}

tkv_status tkv_host_store(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                          int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                          tkv_error *error)
{
    (void)error;
    const tkv_host_tokens tokens = {.device = tkv_host_of(device),
                                    .layer = tkv_host_layer_of(layer),
                                    .sequences = tkv_host_pointer(sequences),
                                    .n_sequences = n_sequences,
                                    .first = first,
                                    .n_tokens = n_tokens,
                                    .x = {tkv_host_pointer(k), tkv_host_pointer(v)}};
    tkv_host_for_pages(&tokens, store_page);
    return TKV_OK;
}
