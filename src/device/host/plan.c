/* How attention on the host is cut into work, and where it keeps what it has not finished. */
#include "device/host/host.h"
#include "kernels/sums.h"

#include <math.h>
#include <string.h>

#define TILE_ROWS 64
#define MIN_SPLIT_PAGES 4
#define ITEMS_PER_THREAD 4
/* Multiply-adds that are worth a thread: some 50 us. */
#define WORK_PER_THREAD 1000000.0
#define BUFFER_ALIGNMENT 64

_Static_assert(sizeof(tkv_host_plan) <= sizeof(((tkv_attend_plan *)0)->own), "room for a plan");

static size_t align_up(size_t bytes)
{
    return (bytes + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
}

/* No more threads than the work is worth. */
static int choose_threads(const tkv_device_attend *params, int n_value_dims, int n_threads)
{
    const double work = (double)params->n_queries * params->n_heads * params->max_tokens *
                        (params->layer.head_dim_k + n_value_dims);
    const double worth = 1.0 + work / WORK_PER_THREAD;
    return worth < n_threads ? (int)worth : n_threads;
}

/* Splits only as far as there are threads to feed: every split costs a merge. */
static int choose_splits(const tkv_device_attend *params, const tkv_host_plan *plan)
{
    const int n_pages = tkv_ceil_divide(params->max_tokens, TKV_PAGE_TOKENS);
    const int n_items = params->layer.n_kv_heads * plan->n_tiles;
    if (plan->n_threads == 1 || n_items >= ITEMS_PER_THREAD * plan->n_threads) {
        return 1;
    }
    const int wanted = tkv_ceil_divide(ITEMS_PER_THREAD * plan->n_threads, n_items);
    const int possible = n_pages / MIN_SPLIT_PAGES;
    return possible < 1 ? 1 : wanted < possible ? wanted : possible;
}

size_t tkv_host_place_scratch(const tkv_kernels *kernels, const tkv_device_layer *layer,
                              int tile_rows, uint8_t *base, tkv_host_scratch *scratch)
{
    const size_t rows = (size_t)tile_rows;
    const int dim_k = layer->head_dim_k;
    const int larger_dim = dim_k > layer->head_dim_v ? dim_k : layer->head_dim_v;
    const size_t page_floats = TKV_PAGE_TOKENS * (size_t)dim_k;
    const size_t sizes[] = {
        rows * (size_t)dim_k * sizeof(float),
        kernels->query_bytes((tkv_type)layer->type_k, dim_k, tile_rows),
        kernels->query_bytes(TKV_TYPE_F16, dim_k, tile_rows),
        rows * sizeof(float),
        rows * TKV_PAGE_TOKENS * sizeof(float),
        rows * sizeof(float),
        rows * sizeof(int),
        rows * sizeof(int),
        layer->head_dim_v ? 0 : page_floats * sizeof(float),
        kernels->scratch_bytes(larger_dim, tile_rows),
    };
    enum { N_BUFFERS = sizeof sizes / sizeof *sizes };
    size_t offsets[N_BUFFERS + 1] = {0};
    for (int i = 0; i < N_BUFFERS; i++) {
        offsets[i + 1] = offsets[i] + align_up(sizes[i]);
    }
    if (base) {
        *scratch = (tkv_host_scratch){.queries = (float *)(base + offsets[0]),
                                      .prepared = {base + offsets[1], base + offsets[2]},
                                      .bias = (float *)(base + offsets[3]),
                                      .scores = (float *)(base + offsets[4]),
                                      .rescale = (float *)(base + offsets[5]),
                                      .first = (int *)(base + offsets[6]),
                                      .end = (int *)(base + offsets[7]),
                                      .rows = (float *)(base + offsets[8]),
                                      .kernel = base + offsets[9]};
    }
    return offsets[N_BUFFERS];
}

/* Sequences come one after the other, in the same buffers. */
static size_t place_buffers(const tkv_device_attend *params, const tkv_kernels *kernels,
                            tkv_host_plan *plan)
{
    const size_t n_states = (size_t)params->layer.n_kv_heads * (size_t)plan->n_tiles *
                            (size_t)plan->n_splits * TKV_HOST_STATES;
    const size_t n_threads = (size_t)plan->n_threads;
    plan->sum_floats =
        tkv_sum_floats((tkv_type)params->layer.type_v, plan->sum_dim, plan->tile_rows);
    plan->scratch_bytes =
        tkv_host_place_scratch(kernels, &params->layer, plan->tile_rows, NULL, NULL);
    plan->stats_at = align_up(n_states * plan->sum_floats * sizeof(float));
    plan->thread_counts_at =
        plan->stats_at + align_up(n_states * 2 * (size_t)plan->tile_rows * sizeof(float));
    plan->scratch_at = plan->thread_counts_at + align_up(n_threads * sizeof(tkv_attend_stats));
    return plan->scratch_at + n_threads * plan->scratch_bytes;
}

tkv_status tkv_host_plan_attend(tkv_device *device, const tkv_device_attend *params,
                                tkv_attend_plan *plan, tkv_error *error)
{
    (void)error;
    const tkv_device_setup *setup = &tkv_host_of(device)->setup;
    const tkv_device_layer *layer = &params->layer;
    const bool has_values = layer->head_dim_v > 0;
    const int group = params->n_heads / layer->n_kv_heads;
    const int fitting = group < TILE_ROWS ? TILE_ROWS / group : 1;
    tkv_host_plan own = {.group = group,
                         .tile_queries = fitting < params->n_queries ? fitting : params->n_queries,
                         .n_value_dims = has_values ? layer->head_dim_v : params->n_value_dims,
                         .sum_dim = has_values ? layer->head_dim_v : layer->head_dim_k};
    own.tile_rows = own.tile_queries * group;
    own.n_tiles = tkv_ceil_divide(params->n_queries, own.tile_queries);
    own.n_threads = choose_threads(params, own.n_value_dims, tkv_threads_count(setup->threads));
    own.n_splits = choose_splits(params, &own);
    plan->params = *params;
    if (params->scale == 0.0f) {
        plan->params.scale = 1.0f / sqrtf((float)layer->head_dim_k);
    }
    plan->workspace_bytes = place_buffers(params, setup->kernels, &own);
    plan->way = 0;
    memcpy(plan->own, &own, sizeof own);
    return TKV_OK;
}
