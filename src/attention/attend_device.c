/* Attention over caches in a device's memory: one call of its table for each segment, whose keys
 * have positions of their own, and the parts joined. */
#include "attention/attend_device.h"
#include "base/error.h"

#include <math.h>
#include <stdlib.h>

static uint64_t address_of(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

/* What is asked of one or several sequences, and the rows of queries and outputs in all. */
typedef struct attend_call {
    const tkv_cache *cache;
    const tkv_cache_layer *layer;
    const tkv_attend_params *params;
    int n_sequences;
    size_t n_rows;
    uint64_t q;
    uint64_t out;
} attend_call;

static attend_call make_call(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                             int n_sequences, const float *q, float *out)
{
    return (attend_call){.cache = cache,
                         .layer = &cache->layers[layer],
                         .params = params,
                         .n_sequences = n_sequences,
                         .n_rows = (size_t)n_sequences * (size_t)params->n_queries *
                                   (size_t)params->n_heads,
                         .q = address_of(q),
                         .out = address_of(out)};
}

/* One segment, but for where its queries and outputs are. */
static tkv_device_attend describe(const attend_call *call, int s)
{
    const tkv_cache_layer *layer = call->layer;
    const tkv_attend_params *params = call->params;
    const tkv_segment *segment = layer->n_segments ? &layer->segments[s] : NULL;
    const bool is_last = s + 1 >= layer->n_segments;
    return (tkv_device_attend){
        .layer = tkv_describe_layer(layer, segment),
        .n_sequences = call->n_sequences,
        .n_queries = params->n_queries,
        .n_heads = params->n_heads,
        .window = tkv_attend_window(layer, params),
        .scale = params->scale != 0.0f ? params->scale : 1.0f / sqrtf((float)layer->head_dim_k),
        .logit_softcap = params->logit_softcap,
        .sparse_v = params->sparse_v,
        .q = call->q,
        .out = call->out,
        .sinks = is_last ? address_of(params->sinks) : 0, /* in the sum once */
        .stats = address_of(params->stats),
        .log_sums = address_of(params->log_sums),
        .begin = segment ? segment->begin : 0,
        .end = is_last ? 0 : segment->end,
    };
}

static tkv_status check_reserved(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                 int first_position, tkv_error *error)
{
    const int length = cache->layers[layer].n_tokens;
    if (cache->n_reserved > 0 &&
        (first_position != length || params->n_queries != cache->n_reserved)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d queries from position %d: expected those of the %d tokens that are "
                        "reserved from position %d on",
                        params->n_queries, first_position, cache->n_reserved, length);
    }
    return TKV_OK;
}

static tkv_status run(tkv_context *context, const tkv_device_attend *attend, tkv_error *error)
{
    tkv_device *device = context->device;
    tkv_attend_plan plan;
    uint64_t workspace = 0;
    tkv_status status = device->table->plan(device, attend, &plan, error);
    if (status == TKV_OK) {
        status = tkv_context_workspace(context, TKV_WORKSPACE_ATTEND, plan.workspace_bytes,
                                       &workspace, error);
    }
    return status == TKV_OK ? device->table->attend(device, &plan, workspace, error) : status;
}

/* Queries before a segment's first token. */
static int queries_before(const attend_call *call, int s)
{
    const int n = call->layer->segments[s].position - call->params->first_position;
    return call->cache->n_reserved > 0 || n < 0 ? 0 : n;
}

/* Leaves out the first n queries of a part, which see nothing of it. */
static tkv_status leave_out(const attend_call *call, int n, tkv_device_attend *attend,
                            tkv_error *error)
{
    tkv_device *device = call->cache->context->device;
    const size_t n_rows = (size_t)n * (size_t)call->params->n_heads;
    float *nothing = malloc((n_rows ? n_rows : 1) * sizeof *nothing);
    if (!nothing) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu rows of queries", n_rows);
    }
    for (size_t i = 0; i < n_rows; i++) {
        nothing[i] = -INFINITY;
    }
    const tkv_status status = n_rows ? device->table->upload(device, attend->log_sums, nothing,
                                                             n_rows * sizeof *nothing, error)
                                     : TKV_OK;
    free(nothing);
    attend->n_queries -= n;
    attend->first_position += n;
    attend->q += n_rows * (size_t)call->layer->padded_k * sizeof(float);
    attend->out += n_rows * (size_t)call->layer->padded_v * sizeof(float);
    attend->log_sums += n_rows * sizeof(float);
    return status;
}

/* Where positions are: in the segment's places. */
static void place_queries(const attend_call *call, int s, tkv_device_attend *attend)
{
    const tkv_cache *cache = call->cache;
    const tkv_segment *segment = &call->layer->segments[s];
    const bool is_last = s + 1 == call->layer->n_segments;
    const int ahead = segment->begin - segment->position;
    if (cache->n_reserved == 0) {
        attend->first_position = call->params->first_position + ahead;
        attend->max_tokens = attend->first_position + call->params->n_queries;
    } else if (is_last) {
        /* What is captured must be right, and its plan the same, at every length of a replay. */
        attend->first_position = -1;
        attend->max_tokens = cache->max_length + (ahead > 0 ? ahead : 0);
    } else { /* without a window every query sees all of it */
        attend->first_position = segment->end;
        attend->max_tokens = segment->end + call->params->n_queries;
    }
    if (!is_last && attend->max_tokens > segment->end) {
        attend->max_tokens = segment->end;
    }
    attend->sequences = tkv_segment_descriptor(call->layer, s);
}

/* Whether any query sees a segment. */
static bool is_seen(const attend_call *call, int s)
{
    const tkv_segment *segment = &call->layer->segments[s];
    const int window = tkv_attend_window(call->layer, call->params);
    const int last_query = call->params->first_position + call->params->n_queries - 1;
    const int end = segment->position + tkv_segment_tokens(segment);
    return s + 1 == call->layer->n_segments || call->cache->n_reserved > 0 ||
           (segment->position <= last_query &&
            (window == 0 || end - 1 > call->params->first_position - window));
}

/* The queries of a segment: as they are, or padded and turned in a workspace of n_places. */
static tkv_status prepare_queries(const attend_call *call, int s, int place, int n_places,
                                  uint64_t *q, tkv_error *error)
{
    tkv_context *context = call->cache->context;
    const size_t bytes = call->n_rows * (size_t)call->layer->padded_k * sizeof(float);
    tkv_device_rows rows = tkv_describe_rows(call->layer, s, TKV_ORDER_KEY, call->n_rows, false);
    *q = call->q;
    if (!tkv_rows_differ(&rows)) {
        return TKV_OK;
    }
    tkv_status status =
        tkv_context_workspace(context, TKV_WORKSPACE_QUERIES, (size_t)n_places * bytes, q, error);
    *q += (uint64_t)place * bytes;
    rows.from = call->q;
    rows.to = *q;
    return status == TKV_OK ? context->device->table->move_rows(context->device, &rows, error)
                            : status;
}

/* One part whose outputs are as wide as pages are, and need not be joined. */
static tkv_status run_alone(const attend_call *call, tkv_device_attend *attend, tkv_error *error)
{
    tkv_context *context = call->cache->context;
    tkv_device_rows rows = tkv_describe_rows(call->layer, 0, TKV_ORDER_VALUE, call->n_rows, true);
    const int last = call->layer->n_segments - 1;
    tkv_status status = prepare_queries(call, last, 0, 1, &attend->q, error);
    if (status == TKV_OK && tkv_rows_differ(&rows)) {
        status = tkv_context_workspace(context, TKV_WORKSPACE_PARTS,
                                       call->n_rows * (size_t)call->layer->padded_v * sizeof(float),
                                       &attend->out, error);
        rows.from = attend->out;
        rows.to = call->out;
    }
    if (status == TKV_OK) {
        status = run(context, attend, error);
    }
    return status == TKV_OK && tkv_rows_differ(&rows)
               ? context->device->table->move_rows(context->device, &rows, error)
               : status;
}

/* All segments that are seen. */
static tkv_status run_parts(const attend_call *call, int n_parts, tkv_error *error)
{
    tkv_context *context = call->cache->context;
    const tkv_cache_layer *layer = call->layer;
    const size_t part_bytes = call->n_rows * (size_t)layer->padded_v * sizeof(float);
    const size_t sums_bytes = call->n_rows * sizeof(float);
    tkv_device_join join = {.out = call->out,
                            .log_sums_out = address_of(call->params->log_sums),
                            .n_rows = call->n_rows,
                            .n_parts = n_parts,
                            .from_width = layer->padded_v,
                            .to_width = layer->head_dim_v};
    tkv_status status =
        tkv_context_workspace(context, TKV_WORKSPACE_PARTS,
                              (size_t)n_parts * (part_bytes + sums_bytes), &join.parts, error);
    join.log_sums = join.parts + (uint64_t)n_parts * part_bytes;
    for (int s = 0, part = 0; s < layer->n_segments && status == TKV_OK; s++) {
        if (!is_seen(call, s)) {
            continue;
        }
        tkv_device_attend attend = describe(call, s);
        place_queries(call, s, &attend);
        attend.out = join.parts + (uint64_t)part * part_bytes;
        attend.log_sums = join.log_sums + (uint64_t)part * sums_bytes;
        status = prepare_queries(call, s, part, n_parts, &attend.q, error);
        if (status == TKV_OK) {
            status = leave_out(call, queries_before(call, s), &attend, error);
        }
        if (status == TKV_OK) {
            status = run(context, &attend, error);
        }
        part++;
    }
    return status == TKV_OK ? context->device->table->join(context->device, &join, error) : status;
}

tkv_status tkv_attend_on_device(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                                const float *q, float *out, tkv_error *error)
{
    tkv_status status = check_reserved(cache, layer, params, params->first_position, error);
    if (status == TKV_OK && cache->n_reserved == 0) {
        status = tkv_layer_refresh(&cache->layers[layer], error);
    }
    if (status != TKV_OK) {
        return status;
    }
    const attend_call call = make_call(cache, layer, params, 1, q, out);
    int n_parts = 0;
    for (int s = 0; s < call.layer->n_segments; s++) {
        n_parts += is_seen(&call, s);
    }
    if (n_parts > 1) {
        return run_parts(&call, n_parts, error);
    }
    const int last = call.layer->n_segments - 1;
    tkv_device_attend attend = describe(&call, last);
    place_queries(&call, last, &attend);
    return run_alone(&call, &attend, error);
}

tkv_status tkv_attend_batch_on_device(const tkv_cache *const *caches, int n_caches, int layer,
                                      const tkv_attend_params *params, const float *q, float *out,
                                      tkv_error *error)
{
    const attend_call call = make_call(caches[0], layer, params, n_caches, q, out);
    tkv_device_attend attend = describe(&call, 0);
    attend.first_position = -1;
    for (int i = 0; i < n_caches; i++) {
        const int length = caches[i]->layers[layer].n_tokens + caches[i]->n_reserved;
        const tkv_status status =
            check_reserved(caches[i], layer, params, length - params->n_queries, error);
        if (status != TKV_OK) {
            return status;
        }
        const int planned = caches[i]->n_reserved > 0 ? caches[i]->max_length : length;
        attend.max_tokens = planned > attend.max_tokens ? planned : attend.max_tokens;
    }
    const tkv_status status =
        tkv_gather_sequences(caches, n_caches, layer, &attend.sequences, error);
    return status == TKV_OK ? run_alone(&call, &attend, error) : status;
}
