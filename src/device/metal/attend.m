/* Planning and launching attention. */
#include "device/geometry.h"
#include "device/metal/metal_device.h"

#include <math.h>
#include <string.h>

#define THREADS (TKV_METAL_LANES * TKV_METAL_SIMDGROUPS)
#define BUFFER_ALIGNMENT 256

/* Up to so many query rows a KV head a simdgroup unpacks pages in registers; more go to the kernel
 * with matrices. */
#define MAX_DECODE_ROWS 8
#define MAX_PREFILL_ROWS 32

/* Registers that the sums of a simdgroup may take: rows times registers of a row, and tiles. */
#define MAX_DECODE_REGISTERS 64
#define MAX_PREFILL_TILES 32

/* What every GPU of the families has. */
#define MAX_THREADGROUP_BYTES 32768

/* Enough items to fill the largest GPU of the families; splits of fewer pages cost more to merge
 * than they gain. */
#define WANTED_DECODE_ITEMS 1024
#define WANTED_PREFILL_ITEMS 128
#define MIN_SPLIT_PAGES 2

_Static_assert(sizeof(tkv_device_attend) == 128, "shared with the kernels");
_Static_assert(sizeof(tkv_metal_attend) == 208, "shared with the kernels");

/* A plan's own part. */
typedef struct attend_plan {
    tkv_metal_attend params; /* buffers by their place in the workspace */
    bool is_decode;
    int n_units;
    size_t workspace_bytes;
} attend_plan;

_Static_assert(sizeof(attend_plan) <= sizeof(((tkv_attend_plan *)0)->own), "room for a plan");

static bool is_sketch(int32_t type)
{
    return tkv_type_kind(type) == TKV_CODE_SKETCH;
}

/* Threadgroup memory of the decode kernel for a tile of rows (attend_decode.metal, decode_memory).
 */
static size_t decode_memory_bytes(int32_t type_k, int32_t type_v, int head_dim_k, int rows)
{
    const size_t queries = (size_t)rows * (size_t)head_dim_k * (is_sketch(type_k) ? 2 : 1);
    const size_t weights =
        (size_t)rows * TKV_PAGE_TOKENS * TKV_METAL_SIMDGROUPS * (is_sketch(type_v) ? 2 : 1);
    return (queries + weights) * sizeof(float);
}

static bool fits(const attend_plan *plan, int rows)
{
    const tkv_device_layer *layer = &plan->params.attend.layer;
    const int registers = rows * tkv_ceil_divide(layer->head_dim_v, TKV_METAL_LANES) *
                          (is_sketch(layer->type_v) ? 2 : 1);
    if (!plan->is_decode) {
        return rows <= MAX_PREFILL_ROWS && registers <= 8 * MAX_PREFILL_TILES;
    }
    return rows <= MAX_DECODE_ROWS && registers <= MAX_DECODE_REGISTERS &&
           decode_memory_bytes(layer->type_k, layer->type_v, layer->head_dim_k, rows) <=
               MAX_THREADGROUP_BYTES;
}

/* Query rows that a simdgroup or threadgroup takes at a time: a power of two. */
static int choose_tile_rows(const attend_plan *plan)
{
    int rows = plan->is_decode ? 1 : 8;
    while (rows < plan->params.n_rows && fits(plan, 2 * rows)) {
        rows *= 2;
    }
    return rows;
}

static int choose_splits(const attend_plan *plan)
{
    const tkv_device_attend *attend = &plan->params.attend;
    const int seen = attend->window > 0 && attend->window < attend->max_tokens - attend->n_queries
                         ? attend->window + attend->n_queries
                         : attend->max_tokens;
    const int n_pages = tkv_ceil_divide(seen, TKV_PAGE_TOKENS);
    const int n_items = plan->n_units * plan->params.n_tiles;
    const int wanted =
        tkv_ceil_divide(plan->is_decode ? WANTED_DECODE_ITEMS : WANTED_PREFILL_ITEMS, n_items);
    const int possible = n_pages / MIN_SPLIT_PAGES;
    return possible < 1 ? 1 : wanted < possible ? wanted : possible;
}

/* Takes n floats from the workspace. */
static uint64_t take(attend_plan *plan, size_t n)
{
    const size_t bytes =
        (n * sizeof(float) + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
    const uint64_t place = plan->workspace_bytes;
    plan->workspace_bytes += bytes;
    return place;
}

/* The buffers as places in the workspace. */
static void place_buffers(attend_plan *plan)
{
    tkv_metal_attend *params = &plan->params;
    const tkv_device_layer *layer = &params->attend.layer;
    const size_t n_rows = (size_t)plan->n_units * (size_t)params->padded_rows;
    const size_t n_query_floats = n_rows * (size_t)layer->head_dim_k;
    const size_t n_item_rows = (size_t)plan->n_units * (size_t)params->n_tiles *
                               (size_t)params->n_splits * 2 * (size_t)params->tile_rows;
    params->q_exact = take(plan, n_query_floats);
    params->q_coded = take(plan, n_query_floats);
    params->q_sketch = is_sketch(layer->type_k) ? take(plan, n_query_floats) : 0;
    params->bias = take(plan, n_rows);
    params->stats = take(plan, n_item_rows * 4);
    params->sums = take(plan, n_item_rows * (size_t)params->sum_floats);
}

static attend_plan make_plan(const tkv_device_attend *attend)
{
    attend_plan plan = {.params.attend = *attend};
    tkv_metal_attend *params = &plan.params;
    const tkv_device_layer *layer = &attend->layer;
    if (params->attend.scale == 0.0f) {
        params->attend.scale = 1.0f / sqrtf((float)layer->head_dim_k);
    }
    plan.n_units = attend->n_sequences * layer->n_kv_heads;
    params->group = attend->n_heads / layer->n_kv_heads;
    params->n_rows = params->group * attend->n_queries;
    plan.is_decode = params->n_rows <= MAX_DECODE_ROWS;
    params->tile_rows = choose_tile_rows(&plan);
    params->n_tiles = tkv_ceil_divide(params->n_rows, params->tile_rows);
    params->padded_rows = params->n_tiles * params->tile_rows;
    params->n_splits = choose_splits(&plan);
    params->sum_floats = layer->head_dim_v * (is_sketch(layer->type_v) ? 2 : 1);
    place_buffers(&plan);
    return plan;
}

tkv_status tkv_metal_plan_attend(tkv_device *device, const tkv_device_attend *params,
                                 tkv_attend_plan *plan, tkv_error *error)
{
    (void)device;
    (void)error;
    const attend_plan own = make_plan(params);
    plan->params = own.params.attend;
    plan->workspace_bytes = own.workspace_bytes;
    memcpy(plan->own, &own, sizeof own);
    return TKV_OK;
}

/* The plan with the addresses of a call. */
static attend_plan take_plan(const tkv_attend_plan *plan, uint64_t workspace)
{
    attend_plan own;
    memcpy(&own, plan->own, sizeof own);
    tkv_metal_attend *params = &own.params;
    params->attend = plan->params;
    params->q_exact += workspace;
    params->q_coded += workspace;
    params->q_sketch += is_sketch(plan->params.layer.type_k) ? workspace : 0;
    params->bias += workspace;
    params->stats += workspace;
    params->sums += workspace;
    return own;
}

/* Constants of the kernels that read pages. Exact blocks are f16 pages whatever the types. */
static tkv_metal_constants constants_of(const tkv_metal_device *device, const attend_plan *plan,
                                        bool is_exact)
{
    const tkv_device_layer *layer = &plan->params.attend.layer;
    return (tkv_metal_constants){
        .values = {[TKV_METAL_KEY_TYPE] = is_exact ? TKV_TYPE_F16 : layer->type_k,
                   [TKV_METAL_KEY_DIM] = layer->head_dim_k,
                   [TKV_METAL_VALUE_TYPE] = is_exact ? TKV_TYPE_F16 : layer->type_v,
                   [TKV_METAL_VALUE_DIM] = layer->head_dim_v,
                   [TKV_METAL_TILE_ROWS] = plan->params.tile_rows,
                   [TKV_METAL_WIDE_TABLE] = device->has_wide_table && !is_exact,
                   [TKV_METAL_EXACT] = is_exact}};
}

static tkv_status launch_blocks(tkv_metal_device *device, const attend_plan *plan, bool is_exact,
                                tkv_error *error)
{
    const tkv_metal_attend *params = &plan->params;
    const int splits = plan->is_decode ? tkv_ceil_divide(params->n_splits, TKV_METAL_SIMDGROUPS)
                                       : params->n_splits;
    tkv_metal_launch launch = {
        .kernel = plan->is_decode ? "tkv_attend_decode" : "tkv_attend_prefill",
        .constants = constants_of(device, plan, is_exact),
        .threadgroups =
            MTLSizeMake((NSUInteger)splits, (NSUInteger)params->n_tiles, (NSUInteger)plan->n_units),
        .threads = THREADS,
        .params = params,
        .params_bytes = sizeof *params};
    if (plan->is_decode) {
        const int32_t *values = launch.constants.values;
        launch.threadgroup_bytes =
            decode_memory_bytes(values[TKV_METAL_KEY_TYPE], values[TKV_METAL_VALUE_TYPE],
                                values[TKV_METAL_KEY_DIM], params->tile_rows);
    }
    return tkv_metal_dispatch(device, &launch, error);
}

/* Launches a kernel that has a simdgroup for each of n_rows rows of one side. */
static tkv_status launch_rows(tkv_metal_device *device, const attend_plan *plan, const char *kernel,
                              tkv_page_order order, size_t n_rows, tkv_error *error)
{
    const tkv_device_layer *layer = &plan->params.attend.layer;
    const bool is_value = order == TKV_ORDER_VALUE;
    tkv_metal_launch launch = {
        .kernel = kernel,
        .threadgroups =
            MTLSizeMake((n_rows + TKV_METAL_SIMDGROUPS - 1) / TKV_METAL_SIMDGROUPS, 1, 1),
        .threads = THREADS,
        .params = &plan->params,
        .params_bytes = sizeof plan->params};
    int32_t *values = launch.constants.values;
    values[is_value ? TKV_METAL_VALUE_TYPE : TKV_METAL_KEY_TYPE] =
        is_value ? layer->type_v : layer->type_k;
    values[is_value ? TKV_METAL_VALUE_DIM : TKV_METAL_KEY_DIM] =
        is_value ? layer->head_dim_v : layer->head_dim_k;
    return tkv_metal_dispatch(device, &launch, error);
}

/* One simdgroup in all. */
static tkv_status count_weights(tkv_metal_device *device, const attend_plan *plan, tkv_error *error)
{
    const tkv_metal_launch launch = {.kernel = "tkv_count_weights",
                                     .threadgroups = MTLSizeMake(1, 1, 1),
                                     .threads = TKV_METAL_LANES,
                                     .params = &plan->params,
                                     .params_bytes = sizeof plan->params};
    return tkv_metal_dispatch(device, &launch, error);
}

tkv_status tkv_metal_attend_layer(tkv_device *base, const tkv_attend_plan *planned,
                                  uint64_t workspace, tkv_error *error)
{
    tkv_metal_device *device = tkv_metal_of(base);
    const attend_plan plan = take_plan(planned, workspace);
    const size_t n_rows = (size_t)plan.n_units * (size_t)plan.params.n_rows;
    const size_t n_padded = (size_t)plan.n_units * (size_t)plan.params.padded_rows;
    tkv_status status =
        launch_rows(device, &plan, "tkv_prepare_queries", TKV_ORDER_KEY, n_padded, error);
    for (int kind = 0; status == TKV_OK && kind < 2; kind++) {
        status = launch_blocks(device, &plan, kind == 1, error);
    }
    if (status == TKV_OK) {
        status = launch_rows(device, &plan, "tkv_merge_rows", TKV_ORDER_VALUE, n_rows, error);
    }
    if (status == TKV_OK && planned->params.stats != 0) {
        status = count_weights(device, &plan, error);
    }
    return status;
}
