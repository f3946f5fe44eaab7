/* Rows of a cache on their way between the caller and the pages: there padded to whole steps, and
 * keys turned to the positions that their segment counts. */
#include "cache/rows.h"
#include "base/error.h"
#include "cache/publish.h"
#include "cache/segment.h"

/* Tokens that are downloaded at a time: bounds the memory for their rows. */
#define TOKENS_A_CALL (16 * TKV_PAGE_TOKENS)

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
    TKV_TRY(tkv_context_workspace(
        layer->context, use, n * (size_t)(layer->padded_k + layer->padded_v), &rows->k, error));
    rows->v = rows->k + n * (size_t)layer->padded_k;
    return TKV_OK;
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

/* The caller's rows as the pages want them: the same ones, or in a workspace, which *padded names.
 */
static tkv_status prepare_rows(const tkv_cache_layer *layer, int n_tokens, row_pair *rows,
                               row_pair *padded, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const int segment = layer->n_segments - 1;
    const size_t n = (size_t)n_tokens * (size_t)layer->n_kv_heads;
    tkv_device_rows k = tkv_describe_rows(layer, segment, TKV_ORDER_KEY, n, false);
    tkv_device_rows v = tkv_describe_rows(layer, segment, TKV_ORDER_VALUE, n, false);
    if (!tkv_rows_differ(&k) && !tkv_rows_differ(&v)) {
        return TKV_OK;
    }
    TKV_TRY(place_rows(layer, TKV_WORKSPACE_PADDED, n_tokens, padded, error));
    if (tkv_rows_differ(&k)) {
        k.from = rows->k;
        k.to = rows->k = padded->k;
        TKV_TRY(device->table->move_rows(device, &k, error));
    }
    if (tkv_rows_differ(&v)) {
        v.from = rows->v;
        v.to = rows->v = padded->v;
        TKV_TRY(device->table->move_rows(device, &v, error));
    }
    return TKV_OK;
}

tkv_status tkv_layer_store(const tkv_cache_layer *layer, int n_tokens, const float *k,
                           const float *v, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const tkv_device_layer described = tkv_describe_layer(layer, tkv_last_segment(layer));
    row_pair rows = {address_of(k), address_of(v)};
    row_pair padded = {0, 0};
    tkv_status status = prepare_rows(layer, n_tokens, &rows, &padded, error);
    if (status == TKV_OK) {
        /* Counted from the end, so that a captured store writes what is reserved when it is
         * replayed. */
        status = device->table->store(device, &described, layer->descriptor, 1, -1, n_tokens,
                                      rows.k, rows.v, error);
    }
    tkv_context_give_back(layer->context, padded.k);
    return status;
}

/* Rows of one order of a segment, as wide as pages are, into the caller's. */
static tkv_status finish_rows(tkv_device *device, tkv_device_rows *rows, uint64_t from, uint64_t to,
                              tkv_error *error)
{
    rows->from = from;
    rows->to = to;
    return from == to || !to ? TKV_OK : device->table->move_rows(device, rows, error);
}

/* Tokens of one segment, from a place on, into rows as wide as pages where these differ from the
 * caller's: `padded`. */
static tkv_status load_segment(const tkv_cache_layer *layer, int s, int place, int n_tokens,
                               const row_pair *to, const row_pair *padded, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const tkv_device_layer described = tkv_describe_layer(layer, &layer->segments[s]);
    const size_t n = (size_t)n_tokens * (size_t)layer->n_kv_heads;
    tkv_device_rows of_k = tkv_describe_rows(layer, s, TKV_ORDER_KEY, n, true);
    tkv_device_rows of_v = tkv_describe_rows(layer, s, TKV_ORDER_VALUE, n, true);
    const uint64_t k = to->k && tkv_rows_differ(&of_k) ? padded->k : to->k;
    const uint64_t v = to->v && tkv_rows_differ(&of_v) ? padded->v : to->v;
    TKV_TRY(device->table->load(device, &described, tkv_segment_descriptor(layer, s), place,
                                n_tokens, k, v, error));
    TKV_TRY(finish_rows(device, &of_k, k, to->k, error));
    return finish_rows(device, &of_v, v, to->v, error);
}

/* Whether rows of a segment change on their way to the caller. */
static bool rows_change(const tkv_cache_layer *layer, int s)
{
    const tkv_device_rows k = tkv_describe_rows(layer, s, TKV_ORDER_KEY, 0, true);
    const tkv_device_rows v = tkv_describe_rows(layer, s, TKV_ORDER_VALUE, 0, true);
    return tkv_rows_differ(&k) || tkv_rows_differ(&v);
}

tkv_status tkv_layer_load(const tkv_cache_layer *layer, int first, int n_tokens, float *k, float *v,
                          tkv_error *error)
{
    const size_t heads = (size_t)layer->n_kv_heads * sizeof(float);
    tkv_status status = TKV_OK;
    for (int done = 0; done < n_tokens && status == TKV_OK;) {
        const tkv_segment *segment = tkv_segment_of(layer, first + done);
        const int s = (int)(segment - layer->segments);
        const int skipped = first + done - segment->position;
        const int left = tkv_segment_tokens(segment) - skipped;
        const int n = n_tokens - done < left ? n_tokens - done : left;
        const size_t before = (size_t)done * heads;
        const row_pair to = {k ? address_of(k) + before * (size_t)layer->head_dim_k : 0,
                             v ? address_of(v) + before * (size_t)layer->head_dim_v : 0};
        row_pair padded = {0, 0};
        if (rows_change(layer, s)) {
            TKV_TRY(place_rows(layer, TKV_WORKSPACE_PADDED, n, &padded, error));
        }
        status = load_segment(layer, s, segment->begin + skipped, n, &to, &padded, error);
        tkv_context_give_back(layer->context, padded.k);
        done += n;
    }
    return status;
}

/* The rows of tokens in the device's memory, and from there to the host's. */
static tkv_status download_rows(const tkv_cache_layer *layer, int first, int n_tokens,
                                const row_pair *rows, float *k, float *v, tkv_error *error)
{
    tkv_device *device = layer->context->device;
    const size_t n = (size_t)n_tokens * (size_t)layer->n_kv_heads;
    TKV_TRY(tkv_layer_load(layer, first, n_tokens, k ? pointer_to(rows->k) : NULL,
                           v ? pointer_to(rows->v) : NULL, error));
    if (k) {
        TKV_TRY(device->table->download(device, k, rows->k,
                                        n * (size_t)layer->head_dim_k * sizeof *k, error));
    }
    if (v) {
        TKV_TRY(device->table->download(device, v, rows->v,
                                        n * (size_t)layer->head_dim_v * sizeof *v, error));
    }
    return TKV_OK;
}

tkv_status tkv_layer_download(const tkv_cache_layer *layer, int first, int n_tokens, float *k,
                              float *v, tkv_error *error)
{
    const size_t width_k = (size_t)layer->n_kv_heads * (size_t)layer->head_dim_k;
    const size_t width_v = (size_t)layer->n_kv_heads * (size_t)layer->head_dim_v;
    tkv_status status = TKV_OK;
    for (int done = 0; done < n_tokens && status == TKV_OK; done += TOKENS_A_CALL) {
        const int n = n_tokens - done < TOKENS_A_CALL ? n_tokens - done : TOKENS_A_CALL;
        row_pair rows;
        TKV_TRY(place_rows(layer, TKV_WORKSPACE_ROWS, n, &rows, error));
        status = download_rows(layer, first + done, n, &rows, k ? k + (size_t)done * width_k : NULL,
                               v ? v + (size_t)done * width_v : NULL, error);
        tkv_context_give_back(layer->context, rows.k);
    }
    return status;
}
