/* Attention over the segments of a layer, one plan of the device each, and the parts joined. */
#include "attention/attention.h"
#include "base/allocate.h"
#include "base/error.h"

#include <math.h>

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
    TKV_TRY(device->table->plan(device, attend, &plan, error));
    TKV_TRY(tkv_context_workspace(context, TKV_WORKSPACE_ATTEND, plan.workspace_bytes, &workspace,
                                  error));
    const tkv_status status = device->table->attend(device, &plan, workspace, error);
    tkv_context_give_back(context, workspace);
    return status;
}

/* The way of outputs from what the device writes to the caller: values are as wide as pages; those
 * of a layer of keys only are the beginnings of keys, and need be whole only to be turned back. */
static tkv_device_rows describe_outputs(const attend_call *call, int s)
{
    const tkv_cache_layer *layer = call->layer;
    if (layer->head_dim_v) {
        return tkv_describe_rows(layer, s, TKV_ORDER_VALUE, call->n_rows, true);
    }
    tkv_device_rows rows = tkv_describe_rows(layer, s, TKV_ORDER_KEY, call->n_rows, true);
    rows.to_width = call->params->n_value_dims;
    rows.from_width = rows.turns ? rows.from_width : rows.to_width;
    return rows;
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
    if (n_rows == 0) {
        return TKV_OK;
    }
    const tkv_allocator *allocator = &call->cache->context->allocator;
    float *nothing = tkv_allocate(allocator, n_rows * sizeof *nothing);
    if (!nothing) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu rows of queries", n_rows);
    }
    for (size_t i = 0; i < n_rows; i++) {
        nothing[i] = -INFINITY;
    }
    const tkv_status status =
        device->table->upload(device, attend->log_sums, nothing, n_rows * sizeof *nothing, error);
    tkv_release(allocator, nothing);
    attend->n_queries -= n;
    attend->first_position += n;
    attend->q += n_rows * (size_t)call->layer->padded_k * sizeof(float);
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

static tkv_device_rows describe_queries(const attend_call *call, int s)
{
    return tkv_describe_rows(call->layer, s, TKV_ORDER_KEY, call->n_rows, false);
}

/* The queries of a segment as its keys are: the caller's, or padded and turned in `workspace`. */
static tkv_status prepare_queries(const attend_call *call, int s, uint64_t workspace, uint64_t *q,
                                  tkv_error *error)
{
    tkv_device *device = call->cache->context->device;
    tkv_device_rows rows = describe_queries(call, s);
    *q = call->q;
    if (!tkv_rows_differ(&rows)) {
        return TKV_OK;
    }
    rows.from = call->q;
    rows.to = *q = workspace;
    return device->table->move_rows(device, &rows, error);
}

/* Attends, the rows of outputs going to `to` as `outputs` says. */
static tkv_status run_to(const attend_call *call, tkv_device_attend *attend,
                         const tkv_device_rows *outputs, uint64_t to, tkv_error *error)
{
    tkv_context *context = call->cache->context;
    tkv_device_rows rows = *outputs;
    attend->n_value_dims = rows.from_width;
    attend->out = rows.to = to;
    if (!tkv_rows_differ(&rows)) {
        return run(context, attend, error);
    }
    TKV_TRY(tkv_context_workspace(context, TKV_WORKSPACE_OUTPUTS,
                                  rows.n_rows * (size_t)rows.from_width * sizeof(float), &rows.from,
                                  error));
    attend->out = rows.from;
    tkv_status status = run(context, attend, error);
    if (status == TKV_OK) {
        status = context->device->table->move_rows(context->device, &rows, error);
    }
    tkv_context_give_back(context, rows.from);
    return status;
}

/* The last segment, whose outputs need not be joined. */
static tkv_status run_alone(const attend_call *call, tkv_device_attend *attend, tkv_error *error)
{
    tkv_context *context = call->cache->context;
    const int last = call->layer->n_segments - 1;
    const tkv_device_rows queries = describe_queries(call, last);
    const tkv_device_rows outputs = describe_outputs(call, last);
    uint64_t moved = 0;
    if (tkv_rows_differ(&queries)) {
        TKV_TRY(tkv_context_workspace(context, TKV_WORKSPACE_QUERIES,
                                      call->n_rows * (size_t)queries.to_width * sizeof(float),
                                      &moved, error));
    }
    tkv_status status = prepare_queries(call, last, moved, &attend->q, error);
    if (status == TKV_OK) {
        status = run_to(call, attend, &outputs, call->out, error);
    }
    tkv_context_give_back(context, moved);
    return status;
}

/* Memory for the parts: outputs and log-sums, and queries that need to be moved. */
typedef struct part_buffers {
    uint64_t outputs;  /* float [n_parts][n_rows][width] */
    uint64_t log_sums; /* float [n_parts][n_rows] */
    uint64_t queries;  /* float [n_parts][n_rows][padded_k] */
    int width;
} part_buffers;

/* One of the parts. */
static tkv_status run_part(const attend_call *call, int s, size_t part, const part_buffers *buffers,
                           tkv_error *error)
{
    const size_t row_bytes = (size_t)buffers->width * sizeof(float);
    const size_t query_bytes = call->n_rows * (size_t)call->layer->padded_k * sizeof(float);
    const size_t n_left_out = (size_t)queries_before(call, s) * (size_t)call->params->n_heads;
    tkv_device_attend attend = describe(call, s);
    tkv_device_rows outputs = describe_outputs(call, s);
    place_queries(call, s, &attend);
    outputs.n_rows -= n_left_out;
    if (call->layer->head_dim_v) {
        outputs.to_width = buffers->width; /* the join makes them narrower */
    }
    attend.log_sums = buffers->log_sums + part * call->n_rows * sizeof(float);
    TKV_TRY(prepare_queries(call, s, buffers->queries + part * query_bytes, &attend.q, error));
    TKV_TRY(leave_out(call, queries_before(call, s), &attend, error));
    return run_to(call, &attend, &outputs,
                  buffers->outputs + (part * call->n_rows + n_left_out) * row_bytes, error);
}

static tkv_status run_and_join(const attend_call *call, int n_parts, const part_buffers *buffers,
                               tkv_error *error)
{
    tkv_device *device = call->cache->context->device;
    size_t part = 0;
    for (int s = 0; s < call->layer->n_segments; s++) {
        if (is_seen(call, s)) {
            TKV_TRY(run_part(call, s, part++, buffers, error));
        }
    }
    const tkv_device_join join = {.parts = buffers->outputs,
                                  .log_sums = buffers->log_sums,
                                  .out = call->out,
                                  .log_sums_out = address_of(call->params->log_sums),
                                  .n_rows = call->n_rows,
                                  .n_parts = n_parts,
                                  .from_width = buffers->width,
                                  .to_width = tkv_value_dims(call->layer, call->params)};
    return device->table->join(device, &join, error);
}

/* All segments that are seen. */
static tkv_status run_parts(const attend_call *call, int n_parts, tkv_error *error)
{
    tkv_context *context = call->cache->context;
    const tkv_cache_layer *layer = call->layer;
    const size_t n_rows = (size_t)n_parts * call->n_rows;
    part_buffers buffers = {.width =
                                layer->head_dim_v ? layer->padded_v : call->params->n_value_dims};
    const size_t output_bytes = n_rows * (size_t)buffers.width * sizeof(float);
    TKV_TRY(tkv_context_workspace(context, TKV_WORKSPACE_PARTS,
                                  output_bytes + n_rows * sizeof(float), &buffers.outputs, error));
    buffers.log_sums = buffers.outputs + output_bytes;
    tkv_status status = tkv_context_workspace(context, TKV_WORKSPACE_QUERIES,
                                              n_rows * (size_t)layer->padded_k * sizeof(float),
                                              &buffers.queries, error);
    if (status == TKV_OK) {
        status = run_and_join(call, n_parts, &buffers, error);
    }
    tkv_context_give_back(context, buffers.queries);
    tkv_context_give_back(context, buffers.outputs);
    return status;
}

tkv_status tkv_attend_parts(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                            const float *q, float *out, tkv_error *error)
{
    TKV_TRY(check_reserved(cache, layer, params, params->first_position, error));
    if (cache->n_reserved == 0) {
        TKV_TRY(tkv_layer_refresh(&cache->layers[layer], error));
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

tkv_status tkv_attend_plain_batch(const tkv_cache *const *caches, int n_caches, int layer,
                                  const tkv_attend_params *params, const float *q, float *out,
                                  tkv_error *error)
{
    const attend_call call = make_call(caches[0], layer, params, n_caches, q, out);
    tkv_device_attend attend = describe(&call, 0);
    attend.first_position = -1;
    for (int i = 0; i < n_caches; i++) {
        const int length = caches[i]->layers[layer].n_tokens + caches[i]->n_reserved;
        TKV_TRY(check_reserved(caches[i], layer, params, length - params->n_queries, error));
        const int planned = caches[i]->n_reserved > 0 ? caches[i]->max_length : length;
        attend.max_tokens = planned > attend.max_tokens ? planned : attend.max_tokens;
    }
    TKV_TRY(tkv_gather_sequences(caches, n_caches, layer, &attend.sequences, error));
    const tkv_status status = run_alone(&call, &attend, error);
    tkv_give_back_sequences(call.cache->context, n_caches, attend.sequences);
    return status;
}
