/* Tokens out of their pages. */
#include "device/host/host.h"

static void load_page(const tkv_host_tokens *tokens, const tkv_host_span *span, float *x,
                      size_t stride)
{
    if (x) {
        tkv_host_decode(tokens->device, &tokens->layer, span, x, stride);
    }
}

tkv_status tkv_host_load(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                         int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error)
{
    (void)error;
    const tkv_host_tokens tokens = {.device = tkv_host_of(device),
                                    .layer = tkv_host_layer_of(layer),
                                    .sequences = tkv_host_pointer(sequence),
                                    .n_sequences = 1,
                                    .first = first,
                                    .n_tokens = n_tokens,
                                    .x = {tkv_host_pointer(k), tkv_host_pointer(v)}};
    tkv_host_for_pages(&tokens, load_page);
    return TKV_OK;
}
