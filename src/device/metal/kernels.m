/* Copies, rotation, and rows into and out of pages. */
#include "base/error.h"
#include "device/metal/metal_device.h"

#define THREADS (TKV_METAL_LANES * TKV_METAL_SIMDGROUPS)
#define COPY_ITEMS ((size_t)1 << 30) /* of one kernel */

_Static_assert(sizeof(tkv_metal_copy_items) == 24, "shared with the kernels");
_Static_assert(sizeof(tkv_metal_rotate) == 16, "shared with the kernels");
_Static_assert(sizeof(tkv_metal_rows) == 80, "shared with the kernels");
_Static_assert(sizeof(tkv_device_block) == 16, "shared with the kernels");
_Static_assert(sizeof(tkv_device_sequence) == 32, "shared with the kernels");
_Static_assert(sizeof(tkv_device_layer) == 28, "shared with the kernels");

static size_t ceil_divide(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

tkv_status tkv_metal_copy(tkv_device *base, uint64_t to, uint64_t from, size_t bytes,
                          tkv_error *error)
{
    const size_t item_bytes = (to | from | bytes) % 4 == 0 ? 4 : 1;
    tkv_status status = TKV_OK;
    for (size_t done = 0; status == TKV_OK && done < bytes; done += COPY_ITEMS * item_bytes) {
        const size_t left = (bytes - done) / item_bytes;
        const tkv_metal_copy_items params = {to + done, from + done,
                                             left < COPY_ITEMS ? left : COPY_ITEMS};
        const tkv_metal_launch launch = {.kernel = "tkv_copy",
                                         .constants.values[TKV_METAL_VARIANT] = (int32_t)item_bytes,
                                         .threadgroups =
                                             MTLSizeMake(ceil_divide(params.n, THREADS), 1, 1),
                                         .threads = THREADS,
                                         .params = &params,
                                         .params_bytes = sizeof params};
        status = tkv_metal_dispatch(tkv_metal_of(base), &launch, error);
    }
    return status;
}

tkv_status tkv_metal_rotate_rows(tkv_device *base, int head_dim, size_t n_rows, uint64_t x,
                                 bool is_inverse, tkv_error *error)
{
    if (n_rows == 0 || n_rows > UINT32_MAX) {
        return n_rows == 0
                   ? TKV_OK
                   : tkv_fail(error, TKV_ERR_UNSUPPORTED, "%zu rows to rotate: expected at most %u",
                              n_rows, UINT32_MAX);
    }
    const tkv_metal_rotate params = {x, (uint32_t)n_rows, 0};
    const tkv_metal_launch launch = {
        .kernel = "tkv_rotate_rows",
        .constants.values = {[TKV_METAL_KEY_DIM] = head_dim, [TKV_METAL_VARIANT] = is_inverse},
        .threadgroups = MTLSizeMake(ceil_divide(n_rows, TKV_METAL_SIMDGROUPS), 1, 1),
        .threads = THREADS,
        .params = &params,
        .params_bytes = sizeof params};
    return tkv_metal_dispatch(tkv_metal_of(base), &launch, error);
}

static tkv_metal_rows rows_of_side(const tkv_device_layer *layer, tkv_page_order order,
                                   uint64_t sequences, int n_sequences, int first, int n_tokens,
                                   uint64_t x)
{
    return (tkv_metal_rows){.sequences = sequences,
                            .x = x,
                            .layer = *layer,
                            .order = order,
                            .n_sequences = n_sequences,
                            .first_token = first,
                            .n_tokens = n_tokens};
}

/* A launch with a simdgroup for every row. */
static tkv_metal_launch launch_rows(const char *kernel, const tkv_metal_rows *params,
                                    int simdgroups)
{
    const bool is_value = params->order == TKV_ORDER_VALUE;
    const size_t n_rows =
        (size_t)params->n_sequences * (size_t)params->n_tokens * (size_t)params->layer.n_kv_heads;
    return (tkv_metal_launch){
        .kernel = kernel,
        .constants.values = {[TKV_METAL_KEY_TYPE] =
                                 is_value ? params->layer.type_v : params->layer.type_k,
                             [TKV_METAL_KEY_DIM] =
                                 is_value ? params->layer.head_dim_v : params->layer.head_dim_k},
        .threadgroups = MTLSizeMake(ceil_divide(n_rows, (size_t)simdgroups), 1, 1),
        .threads = (NSUInteger)(TKV_METAL_LANES * simdgroups),
        .params = params,
        .params_bytes = sizeof *params};
}

/* Makes room for the codes of n_rows rows between the kernels that find and that pack them. */
static tkv_status reserve_scratch(tkv_metal_device *device, tkv_metal_rows *params, int head_dim,
                                  tkv_error *error)
{
    const size_t n_rows =
        (size_t)params->n_sequences * (size_t)params->n_tokens * (size_t)params->layer.n_kv_heads;
    const size_t code_bytes = n_rows * (size_t)head_dim;
    const size_t bytes = code_bytes + n_rows * 2 * sizeof(uint16_t);
    if (bytes > device->scratch_bytes) {
        uint64_t grown = 0;
        const tkv_status status = tkv_metal_allocate(&device->base, bytes, &grown, error);
        if (status != TKV_OK) {
            return status;
        }
        tkv_metal_release(&device->base, device->scratch);
        device->scratch = grown;
        device->scratch_bytes = bytes;
    }
    params->codes = device->scratch;
    params->side = device->scratch + code_bytes;
    return TKV_OK;
}

static tkv_status encode_rows(tkv_metal_device *device, const tkv_metal_rows *params,
                              tkv_error *error)
{
    const int32_t type =
        params->order == TKV_ORDER_VALUE ? params->layer.type_v : params->layer.type_k;
    const bool is_trellis = tkv_type_kind(type) == TKV_CODE_TRELLIS;
    tkv_metal_launch launch =
        launch_rows(is_trellis ? "tkv_encode_trellis_rows" : "tkv_encode_rows", params,
                    is_trellis ? 1 : TKV_METAL_SIMDGROUPS);
    if (is_trellis) {
        launch.constants.values[TKV_METAL_VARIANT] = params->layer.effort;
        launch.threadgroup_bytes =
            (NSUInteger)(TKV_METAL_LANES * launch.constants.values[TKV_METAL_KEY_DIM]);
    }
    return tkv_metal_dispatch(device, &launch, error);
}

static tkv_status pack_words(tkv_metal_device *device, const tkv_metal_rows *params,
                             tkv_error *error)
{
    tkv_metal_launch launch = launch_rows("tkv_pack_words", params, TKV_METAL_SIMDGROUPS);
    const int32_t *values = launch.constants.values;
    const size_t n_words =
        tkv_page_bytes((tkv_type)values[TKV_METAL_KEY_TYPE], values[TKV_METAL_KEY_DIM]) / 4;
    launch.threadgroups =
        MTLSizeMake(ceil_divide(n_words, THREADS),
                    (NSUInteger)params->n_blocks * (NSUInteger)params->layer.n_kv_heads,
                    (NSUInteger)params->n_sequences);
    return tkv_metal_dispatch(device, &launch, error);
}

/* Blocks that n consecutive tokens may touch: one more where they begin within one, another where
 * the sinks end within one. */
static int most_blocks(int n_tokens)
{
    return n_tokens / TKV_PAGE_TOKENS + 3;
}

static tkv_status store_side(tkv_metal_device *device, tkv_metal_rows *params, tkv_error *error)
{
    const bool is_value = params->order == TKV_ORDER_VALUE;
    const int32_t type = is_value ? params->layer.type_v : params->layer.type_k;
    const int32_t head_dim = is_value ? params->layer.head_dim_v : params->layer.head_dim_k;
    tkv_status status = reserve_scratch(device, params, head_dim, error);
    if (status == TKV_OK) {
        params->n_blocks = most_blocks(params->n_tokens);
        status = encode_rows(device, params, error);
    }
    if (status == TKV_OK && type != TKV_TYPE_F16) {
        status = pack_words(device, params, error);
    }
    return status;
}

tkv_status tkv_metal_store(tkv_device *base, const tkv_device_layer *layer, uint64_t sequences,
                           int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                           tkv_error *error)
{
    if (n_sequences == 0 || n_tokens == 0) {
        return TKV_OK;
    }
    tkv_metal_device *device = tkv_metal_of(base);
    tkv_metal_rows keys =
        rows_of_side(layer, TKV_ORDER_KEY, sequences, n_sequences, first, n_tokens, k);
    tkv_metal_rows values =
        rows_of_side(layer, TKV_ORDER_VALUE, sequences, n_sequences, first, n_tokens, v);
    const tkv_status status = store_side(device, &keys, error);
    return status == TKV_OK ? store_side(device, &values, error) : status;
}

static tkv_status load_side(tkv_metal_device *device, const tkv_metal_rows *params, bool is_half,
                            tkv_error *error)
{
    if (params->x == 0 || params->n_tokens == 0) {
        return TKV_OK;
    }
    tkv_metal_launch launch = launch_rows("tkv_decode_rows", params, TKV_METAL_SIMDGROUPS);
    launch.constants.values[TKV_METAL_WIDE_TABLE] = device->has_wide_table;
    launch.constants.values[TKV_METAL_VARIANT] = is_half;
    return tkv_metal_dispatch(device, &launch, error);
}

static tkv_status load_rows(tkv_device *base, const tkv_device_layer *layer, uint64_t sequence,
                            int first, int n_tokens, uint64_t k, uint64_t v, bool is_half,
                            tkv_error *error)
{
    tkv_metal_device *device = tkv_metal_of(base);
    const tkv_metal_rows keys = rows_of_side(layer, TKV_ORDER_KEY, sequence, 1, first, n_tokens, k);
    const tkv_metal_rows values =
        rows_of_side(layer, TKV_ORDER_VALUE, sequence, 1, first, n_tokens, v);
    const tkv_status status = load_side(device, &keys, is_half, error);
    return status == TKV_OK ? load_side(device, &values, is_half, error) : status;
}

tkv_status tkv_metal_load(tkv_device *base, const tkv_device_layer *layer, uint64_t sequence,
                          int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error)
{
    return load_rows(base, layer, sequence, first, n_tokens, k, v, false, error);
}

tkv_status tkv_metal_load_half(tkv_device *base, const tkv_device_layer *layer, uint64_t sequence,
                               int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error)
{
    return load_rows(base, layer, sequence, first, n_tokens, k, v, true, error);
}
