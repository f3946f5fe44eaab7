/* Attention over a cache layer: work is cut into (KV head, tile of query rows, split of the
 * context), each computed independently with an online softmax, then the splits are merged. A row
 * is one query head of one query token; the G rows of a group share every unpacked page. */
#include "backend/kernels.h"
#include "cache/cache.h"
#include "codec/codec.h"
#include "common/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#define TILE_ROWS 64
#define MIN_SPLIT_PAGES 4
#define ITEMS_PER_THREAD 4
#define BUFFER_ALIGNMENT 64

typedef struct attend_plan {
    const tkv_cache *cache;
    const tkv_cache_layer *layer;
    const tkv_kernels *kernels;
    tkv_attend_params params;
    const float *q;
    float *out;
    int group;        /* query heads a KV head */
    int tile_queries; /* query tokens a tile */
    int tile_rows;    /* rows a full tile */
    int n_tiles;
    int n_splits;
    float *partial_sums;  /* [n_items][tile_rows][head_dim_v] */
    float *partial_stats; /* [n_items][2][tile_rows]: maximum, then sum */
} attend_plan;

/* Buffers of one thread. */
typedef struct attend_scratch {
    float *queries; /* [tile_rows][head_dim_k] */
    void *prepared;
    float *scores;  /* [tile_rows][TKV_PAGE_TOKENS] */
    float *rescale; /* [tile_rows] */
    int *first;     /* [tile_rows] */
    int *end;       /* [tile_rows] */
    void *kernel;
} attend_scratch;

static tkv_status check_params(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                               const float *q, const float *out, tkv_error *error)
{
    if (!cache || !params || !q || !out) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "cache, params, q or out is NULL");
    }
    if (layer < 0 || layer >= cache->n_layers) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "layer %d: expected 0 to %d", layer,
                        cache->n_layers - 1);
    }
    if (params->n_heads < 1 || params->n_heads % cache->n_kv_heads != 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "n_heads %d: expected a multiple of the %d KV heads", params->n_heads,
                        cache->n_kv_heads);
    }
    const int length = cache->layers[layer].n_tokens;
    if (params->n_queries < 1 || params->first_position < 0 ||
        params->first_position > length - params->n_queries) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "%d queries from position %d: expected at least one, all within the %d "
                        "tokens of layer %d",
                        params->n_queries, params->first_position, length, layer);
    }
    if (params->window < 0 || !(params->logit_softcap >= 0.0f) ||
        !isfinite(params->logit_softcap) || !isfinite(params->scale)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "window %d, logit_softcap %g, scale %g: expected a window and a softcap of "
                        "at least 0 and finite numbers",
                        params->window, (double)params->logit_softcap, (double)params->scale);
    }
    return TKV_OK;
}

static tkv_status check_finite(const tkv_cache *cache, const tkv_attend_params *params,
                               const float *q, tkv_error *error)
{
    const size_t row = (size_t)params->n_heads * (size_t)cache->head_dim_k;
    const size_t n = (size_t)params->n_queries * row;
    const size_t at = tkv_find_non_finite(n, q);
    if (at < n) {
        return tkv_fail(error, TKV_ERR_NOT_FINITE,
                        "q of query %zu, head %zu, coordinate %zu is %g: expected finite values",
                        at / row, at % row / (size_t)cache->head_dim_k,
                        at % (size_t)cache->head_dim_k, (double)q[at]);
    }
    for (int h = 0; params->sinks && h < params->n_heads; h++) {
        if (isnan(params->sinks[h]) || params->sinks[h] == INFINITY) {
            return tkv_fail(error, TKV_ERR_NOT_FINITE,
                            "sink of head %d is %g: expected a number below infinity", h,
                            (double)params->sinks[h]);
        }
    }
    return TKV_OK;
}

static int ceil_divide(int a, int b)
{
    return (a + b - 1) / b;
}

/* Splits only as far as there are threads to feed: every split costs a merge. */
static int choose_splits(const attend_plan *plan)
{
    const int n_threads = plan->cache->context->n_threads;
    const int n_pages =
        ceil_divide(plan->params.first_position + plan->params.n_queries, TKV_PAGE_TOKENS);
    const int n_items = plan->cache->n_kv_heads * plan->n_tiles;
    if (n_threads == 1 || n_items >= ITEMS_PER_THREAD * n_threads) {
        return 1;
    }
    const int wanted = ceil_divide(ITEMS_PER_THREAD * n_threads, n_items);
    const int possible = n_pages / MIN_SPLIT_PAGES;
    return possible < 1 ? 1 : wanted < possible ? wanted : possible;
}

static void make_plan(attend_plan *plan, const tkv_cache *cache, int layer,
                      const tkv_attend_params *params, const float *q, float *out)
{
    *plan = (attend_plan){.cache = cache,
                          .layer = &cache->layers[layer],
                          .kernels = cache->context->kernels,
                          .params = *params,
                          .q = q,
                          .out = out,
                          .group = params->n_heads / cache->n_kv_heads};
    if (plan->params.scale == 0.0f) {
        plan->params.scale = 1.0f / sqrtf((float)cache->head_dim_k);
    }
    const int fitting = plan->group < TILE_ROWS ? TILE_ROWS / plan->group : 1;
    plan->tile_queries = fitting < params->n_queries ? fitting : params->n_queries;
    plan->tile_rows = plan->tile_queries * plan->group;
    plan->n_tiles = ceil_divide(params->n_queries, plan->tile_queries);
    plan->n_splits = choose_splits(plan);
}

/* Copies the tile's queries in row order, rotates them if the keys are coded, and brings them into
 * the kernel's form. */
static void load_queries(const attend_plan *plan, int kv_head, int first_query, int n_rows,
                         const attend_scratch *scratch)
{
    const int head_dim = plan->cache->head_dim_k;
    const tkv_type type = plan->layer->type_k;
    for (int r = 0; r < n_rows; r++) {
        const size_t query = (size_t)(first_query + r / plan->group);
        const size_t head = (size_t)(kv_head * plan->group + r % plan->group);
        memcpy(scratch->queries + (size_t)r * (size_t)head_dim,
               plan->q + (query * (size_t)plan->params.n_heads + head) * (size_t)head_dim,
               (size_t)head_dim * sizeof(float));
    }
    if (type != TKV_TYPE_F16) {
        plan->kernels->rotate(head_dim, n_rows, scratch->queries);
    }
    plan->kernels->prepare_queries(type, head_dim, n_rows, scratch->queries, scratch->prepared);
}

/* Which tokens of a page each row sees: up to its own position and within the window. */
static void mask_page(const attend_plan *plan, int first_query, int n_rows, int page,
                      const attend_scratch *scratch)
{
    const int page_start = page * TKV_PAGE_TOKENS;
    for (int r = 0; r < n_rows; r++) {
        const int position = plan->params.first_position + first_query + r / plan->group;
        const int end = position + 1 - page_start;
        const int first = plan->params.window ? end - plan->params.window : 0;
        scratch->first[r] = first > 0 ? first : 0;
        scratch->end[r] = end < TKV_PAGE_TOKENS ? end : TKV_PAGE_TOKENS;
    }
}

static void attend_page(const attend_plan *plan, int kv_head, int first_query, int n_rows, int page,
                        const attend_scratch *scratch, float *maximum, float *sum, float *sums)
{
    const tkv_cache_layer *layer = plan->layer;
    const int filled = layer->n_tokens - page * TKV_PAGE_TOKENS;
    const int n_tokens = filled < TKV_PAGE_TOKENS ? filled : TKV_PAGE_TOKENS;
    mask_page(plan, first_query, n_rows, page, scratch);
    plan->kernels->scores(layer->type_k, plan->cache->head_dim_k, n_rows, scratch->prepared,
                          n_tokens, tkv_cache_page(layer, page, kv_head, TKV_ORDER_KEY),
                          scratch->scores, scratch->kernel);
    const tkv_softmax_span span = {n_rows, scratch->first, scratch->end, plan->params.scale,
                                   plan->params.logit_softcap};
    plan->kernels->softmax(&span, scratch->scores, maximum, sum, scratch->rescale);
    plan->kernels->accumulate(
        layer->type_v, plan->cache->head_dim_v, n_rows, scratch->scores, scratch->rescale, n_tokens,
        tkv_cache_page(layer, page, kv_head, TKV_ORDER_VALUE), sums, scratch->kernel);
}

static int rows_of_tile(const attend_plan *plan, int tile)
{
    const int left = plan->params.n_queries - tile * plan->tile_queries;
    return (left < plan->tile_queries ? left : plan->tile_queries) * plan->group;
}

static void attend_item(const attend_plan *plan, int item, const attend_scratch *scratch)
{
    const int split = item % plan->n_splits;
    const int tile = item / plan->n_splits % plan->n_tiles;
    const int kv_head = item / plan->n_splits / plan->n_tiles;
    const int first_query = tile * plan->tile_queries;
    const int n_rows = rows_of_tile(plan, tile);
    const int first_seen = plan->params.first_position + first_query;
    const int last_seen = first_seen + n_rows / plan->group - 1;
    const int oldest = plan->params.window ? first_seen + 1 - plan->params.window : 0;
    const int first_page = oldest > 0 ? oldest / TKV_PAGE_TOKENS : 0;
    const int n_pages = last_seen / TKV_PAGE_TOKENS + 1 - first_page;
    const int begin = first_page + (int)((int64_t)n_pages * split / plan->n_splits);
    const int end = first_page + (int)((int64_t)n_pages * (split + 1) / plan->n_splits);

    const size_t rows = (size_t)plan->tile_rows;
    float *maximum = plan->partial_stats + (size_t)item * 2 * rows;
    float *sum = maximum + rows;
    float *sums = plan->partial_sums + (size_t)item * rows * (size_t)plan->cache->head_dim_v;
    for (size_t r = 0; r < rows; r++) {
        maximum[r] = -INFINITY;
        sum[r] = 0.0f;
    }
    memset(sums, 0, rows * (size_t)plan->cache->head_dim_v * sizeof(float));
    load_queries(plan, kv_head, first_query, n_rows, scratch);
    for (int page = begin; page < end; page++) {
        attend_page(plan, kv_head, first_query, n_rows, page, scratch, maximum, sum, sums);
    }
}

/* Joins the splits of one row (flash decoding), adds the learned sink to the softmax's sum, and
 * writes the output in the original domain. */
static void merge_row(const attend_plan *plan, int kv_head, int tile, int r)
{
    const int head_dim = plan->cache->head_dim_v;
    const size_t rows = (size_t)plan->tile_rows;
    const size_t query = (size_t)(tile * plan->tile_queries + r / plan->group);
    const size_t head = (size_t)(kv_head * plan->group + r % plan->group);
    float *out = plan->out + (query * (size_t)plan->params.n_heads + head) * (size_t)head_dim;
    const size_t first_item = (size_t)(kv_head * plan->n_tiles + tile) * (size_t)plan->n_splits;

    const float sink = plan->params.sinks ? plan->params.sinks[head] : -INFINITY;
    float maximum = sink;
    for (int s = 0; s < plan->n_splits; s++) {
        maximum =
            fmaxf(maximum, plan->partial_stats[(first_item + (size_t)s) * 2 * rows + (size_t)r]);
    }
    float total = expf(sink - maximum);
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int s = 0; s < plan->n_splits; s++) {
        const size_t item = first_item + (size_t)s;
        const float *stats = plan->partial_stats + item * 2 * rows + (size_t)r;
        const float *sums = plan->partial_sums + (item * rows + (size_t)r) * (size_t)head_dim;
        const float factor = expf(stats[0] - maximum);
        total += factor * stats[rows];
        for (int j = 0; j < head_dim; j++) {
            out[j] += factor * sums[j];
        }
    }
    for (int j = 0; j < head_dim; j++) {
        out[j] /= total;
    }
    if (plan->layer->type_v != TKV_TYPE_F16) {
        plan->kernels->unrotate(head_dim, 1, out);
    }
}

static size_t align_up(size_t bytes)
{
    return (bytes + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
}

/* Places the buffers of one thread from `base` on; returns their size. base may be NULL. */
static size_t place_scratch(const attend_plan *plan, uint8_t *base, attend_scratch *scratch)
{
    const tkv_cache *cache = plan->cache;
    const size_t rows = (size_t)plan->tile_rows;
    const int larger_dim =
        cache->head_dim_k > cache->head_dim_v ? cache->head_dim_k : cache->head_dim_v;
    const size_t sizes[] = {
        rows * (size_t)cache->head_dim_k * sizeof(float),
        plan->kernels->query_bytes(plan->layer->type_k, cache->head_dim_k, plan->tile_rows),
        rows * TKV_PAGE_TOKENS * sizeof(float),
        rows * sizeof(float),
        rows * sizeof(int),
        rows * sizeof(int),
        plan->kernels->scratch_bytes(larger_dim, plan->tile_rows),
    };
    size_t offsets[8] = {0};
    for (int i = 0; i < 7; i++) {
        offsets[i + 1] = offsets[i] + align_up(sizes[i]);
    }
    if (base) {
        *scratch = (attend_scratch){(float *)(base + offsets[0]),
                                    base + offsets[1],
                                    (float *)(base + offsets[2]),
                                    (float *)(base + offsets[3]),
                                    (int *)(base + offsets[4]),
                                    (int *)(base + offsets[5]),
                                    base + offsets[6]};
    }
    return offsets[7];
}

static int thread_index(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static void run_plan(const attend_plan *plan, uint8_t *scratch_base, size_t scratch_bytes)
{
    const int n_items = plan->cache->n_kv_heads * plan->n_tiles * plan->n_splits;
    const int n_threads = plan->cache->context->n_threads;
#pragma omp parallel num_threads(n_threads) if (n_items > 1)
    {
        attend_scratch scratch;
        place_scratch(plan, scratch_base + (size_t)thread_index() * scratch_bytes, &scratch);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < n_items; item++) {
            attend_item(plan, item, &scratch);
        }
#pragma omp for
        for (int unit = 0; unit < plan->cache->n_kv_heads * plan->n_tiles; unit++) {
            const int tile = unit % plan->n_tiles;
            for (int r = 0; r < rows_of_tile(plan, tile); r++) {
                merge_row(plan, unit / plan->n_tiles, tile, r);
            }
        }
    }
}

tkv_status tkv_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                      const float *q, float *out, tkv_error *error)
{
    tkv_status status = check_params(cache, layer, params, q, out, error);
    if (status == TKV_OK) {
        status = check_finite(cache, params, q, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    attend_plan plan;
    make_plan(&plan, cache, layer, params, q, out);
    const size_t n_items = (size_t)cache->n_kv_heads * (size_t)plan.n_tiles * (size_t)plan.n_splits;
    const size_t sums_bytes =
        align_up(n_items * (size_t)plan.tile_rows * (size_t)cache->head_dim_v * sizeof(float));
    const size_t stats_bytes = align_up(n_items * 2 * (size_t)plan.tile_rows * sizeof(float));
    const size_t scratch_bytes = place_scratch(&plan, NULL, NULL);
    const size_t bytes =
        sums_bytes + stats_bytes + (size_t)cache->context->n_threads * scratch_bytes;
    uint8_t *buffer = aligned_alloc(BUFFER_ALIGNMENT, bytes);
    if (!buffer) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "no memory for the attention workspace (%zu bytes)", bytes);
    }
    plan.partial_sums = (float *)buffer;
    plan.partial_stats = (float *)(buffer + sums_bytes);
    run_plan(&plan, buffer + sums_bytes + stats_bytes, scratch_bytes);
    free(buffer);
    return TKV_OK;
}
