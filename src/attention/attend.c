/* Attention over a cache layer: work is cut into (KV head, tile of query rows, split of the
 * context), each computed independently with an online softmax, then the splits are merged. A row
 * is one query head of one query token; the G rows of a group share every unpacked page. */
#include "attention/attend_device.h"
#include "base/error.h"
#include "cache/cache.h"
#include "format/codec.h"
#include "kernels/sums.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TILE_ROWS 64
#define MIN_SPLIT_PAGES 4
#define ITEMS_PER_THREAD 4
/* Multiply-adds that are worth a thread: some 50 us. */
#define WORK_PER_THREAD 1000000.0
#define BUFFER_ALIGNMENT 64

/* Coded and exact blocks lie in different domains, so each kind has its own online softmax and
 * sums; the merge joins them like two splits. */
enum { STATE_CODED = 0, STATE_EXACT = 1, N_STATES = 2 };

typedef struct attend_plan {
    const tkv_cache *cache;
    const tkv_cache_layer *layer;
    const tkv_kernels *kernels;
    tkv_attend_params params;
    const float *q;
    float *out;
    int n_value_dims; /* of a row of out */
    int sum_dim;      /* of a row of sums: as wide as pages are */
    int group;        /* query heads a KV head */
    int tile_queries; /* query tokens a tile */
    int tile_rows;    /* rows a full tile */
    int n_tiles;
    int n_splits;
    int n_threads;
    float *partial_sums;     /* [n_items][N_STATES][sum_floats] */
    size_t sum_floats;       /* of a full tile */
    float *partial_stats;    /* [n_items][N_STATES][2][tile_rows]: maximum, then sum */
    tkv_attend_stats *stats; /* [n_threads] */
    uint8_t *scratch;        /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
} attend_plan;

/* The online softmax of one kind of block. */
typedef struct attend_state {
    float *maximum; /* [tile_rows] */
    float *sum;     /* [tile_rows] */
    float *sums;    /* as tkv_sum_floats says */
} attend_state;

/* Buffers of one thread. */
typedef struct attend_scratch {
    float *queries;           /* [tile_rows][padded_k] */
    void *prepared[N_STATES]; /* queries in the kernels' form */
    float *bias;              /* [tile_rows] query times the mean of the keys */
    float *scores;            /* [tile_rows][TKV_PAGE_TOKENS] */
    float *rescale;           /* [tile_rows] */
    int *first;               /* [tile_rows] */
    int *end;                 /* [tile_rows] */
    float *rows;              /* [TKV_PAGE_TOKENS][padded_k] of a layer of keys only */
    void *kernel;
} attend_scratch;

/* A tile of query rows against a range of blocks. */
typedef struct attend_work {
    int kv_head;
    int first_query;
    int n_rows;
    int begin; /* block of the layer's table */
    int end;
} attend_work;

/* No more threads than the work is worth. */
static int choose_threads(const attend_plan *plan)
{
    const int n_threads = plan->cache->context->n_threads;
    const double work = (double)plan->params.n_queries * plan->params.n_heads *
                        (plan->params.first_position + plan->params.n_queries) *
                        (plan->layer->head_dim_k + plan->n_value_dims);
    const double worth = 1.0 + work / WORK_PER_THREAD;
    return worth < n_threads ? (int)worth : n_threads;
}

/* Splits only as far as there are threads to feed: every split costs a merge. */
static int choose_splits(const attend_plan *plan)
{
    const int n_threads = plan->n_threads;
    const int n_pages =
        tkv_ceil_divide(plan->params.first_position + plan->params.n_queries, TKV_PAGE_TOKENS);
    const int n_items = plan->layer->n_kv_heads * plan->n_tiles;
    if (n_threads == 1 || n_items >= ITEMS_PER_THREAD * n_threads) {
        return 1;
    }
    const int wanted = tkv_ceil_divide(ITEMS_PER_THREAD * n_threads, n_items);
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
                          .out = out};
    plan->group = params->n_heads / plan->layer->n_kv_heads;
    plan->n_value_dims = plan->layer->head_dim_v ? plan->layer->head_dim_v : params->n_value_dims;
    plan->sum_dim = plan->layer->head_dim_v ? plan->layer->padded_v : plan->layer->padded_k;
    plan->params.window = tkv_attend_window(plan->layer, params);
    if (plan->params.scale == 0.0f) {
        plan->params.scale = 1.0f / sqrtf((float)plan->layer->head_dim_k);
    }
    const int fitting = plan->group < TILE_ROWS ? TILE_ROWS / plan->group : 1;
    plan->tile_queries = fitting < params->n_queries ? fitting : params->n_queries;
    plan->tile_rows = plan->tile_queries * plan->group;
    plan->n_tiles = tkv_ceil_divide(params->n_queries, plan->tile_queries);
    plan->n_threads = choose_threads(plan);
    plan->n_splits = choose_splits(plan);
}

/* Copies the tile's queries in row order, turned to the positions that a segment counts. */
static void gather_queries(const attend_plan *plan, const attend_work *work,
                           const tkv_segment *segment, float *queries)
{
    const tkv_cache_layer *layer = plan->layer;
    const size_t head_dim = (size_t)layer->head_dim_k;
    const size_t padded = (size_t)layer->padded_k;
    for (int r = 0; r < work->n_rows; r++) {
        const size_t query = (size_t)(work->first_query + r / plan->group);
        const size_t head = (size_t)(work->kv_head * plan->group + r % plan->group);
        float *row = queries + (size_t)r * padded;
        memcpy(row, plan->q + (query * (size_t)plan->params.n_heads + head) * head_dim,
               head_dim * sizeof *row);
        memset(row + head_dim, 0, (padded - head_dim) * sizeof *row);
        if (segment->turns) {
            tkv_turn_key(&layer->rope, segment->turns, false, row);
        }
    }
}

/* What centring took off every coded key, as a part of the score. */
static void compute_bias(const attend_plan *plan, const attend_work *work,
                         const attend_scratch *scratch)
{
    const int padded = plan->layer->padded_k;
    const float *mean = plan->layer->mean_k + (size_t)work->kv_head * (size_t)padded;
    for (int r = 0; r < work->n_rows; r++) {
        const float *query = scratch->queries + (size_t)r * (size_t)padded;
        double sum = 0.0;
        for (int j = 0; j < padded; j++) {
            sum += (double)query[j] * (double)mean[j];
        }
        scratch->bias[r] = (float)sum;
    }
}

static bool has_centred_keys(const attend_plan *plan)
{
    return plan->layer->is_centred && plan->layer->type_k != TKV_TYPE_F16;
}

/* Brings the queries into the forms that blocks [begin, end) of a segment need. */
static void load_queries(const attend_plan *plan, const attend_work *work,
                         const tkv_segment *segment, int begin, int end,
                         const attend_scratch *scratch)
{
    const int padded = plan->layer->padded_k;
    bool needed[N_STATES] = {false, false};
    for (int b = begin; b < end; b++) {
        needed[plan->layer->blocks[b]->is_exact ? STATE_EXACT : STATE_CODED] = true;
    }
    gather_queries(plan, work, segment, scratch->queries);
    if (needed[STATE_EXACT]) {
        plan->kernels->prepare_queries(TKV_TYPE_F16, padded, work->n_rows, scratch->queries,
                                       scratch->prepared[STATE_EXACT]);
    }
    if (needed[STATE_CODED]) {
        const tkv_type type = plan->layer->type_k;
        if (has_centred_keys(plan)) {
            compute_bias(plan, work, scratch);
        }
        if (type != TKV_TYPE_F16) {
            plan->kernels->rotate(padded, work->n_rows, scratch->queries);
        }
        plan->kernels->prepare_queries(type, padded, work->n_rows, scratch->queries,
                                       scratch->prepared[STATE_CODED]);
    }
}

/* Which slots of a block each row sees: those with tokens, up to its own position and within the
 * window. Returns the number of slots up to the last one that is seen. */
static int mask_block(const attend_plan *plan, const attend_work *work, const tkv_segment *segment,
                      int block, const attend_scratch *scratch)
{
    const int index = block - segment->first_block;
    const tkv_slots slots = tkv_block_slots(segment, index);
    const int start = segment->position - segment->begin + tkv_block_place(segment->head, index);
    int n_tokens = 0;
    for (int r = 0; r < work->n_rows; r++) {
        const int end =
            plan->params.first_position + work->first_query + r / plan->group + 1 - start;
        const int first = plan->params.window ? end - plan->params.window : 0;
        scratch->first[r] = first > slots.first ? first : slots.first;
        scratch->end[r] = end < slots.end ? end : slots.end;
        n_tokens = scratch->end[r] > n_tokens ? scratch->end[r] : n_tokens;
    }
    return n_tokens;
}

/* Zeroes the weights below the threshold; returns whether any weight is left. A row's weights are
 * relative to its running maximum. */
static bool drop_small_weights(const attend_plan *plan, const attend_work *work,
                               const attend_scratch *scratch, tkv_attend_stats *stats)
{
    const float threshold = plan->params.sparse_v;
    bool is_any_left = false;
    for (int r = 0; r < work->n_rows; r++) {
        float *weights = scratch->scores + r * TKV_PAGE_TOKENS;
        for (int t = scratch->first[r]; t < scratch->end[r]; t++) {
            stats->n_weights++;
            if (weights[t] < threshold) {
                weights[t] = 0.0f;
                stats->n_skipped++;
            } else {
                is_any_left = true;
            }
        }
    }
    return is_any_left;
}

static void rescale_sums(const attend_plan *plan, const attend_work *work, const float *rescale,
                         float *sums)
{
    const size_t width = (size_t)plan->sum_dim;
    const size_t n = tkv_sum_floats(plan->layer->type_v, (int)width, work->n_rows);
    for (size_t i = 0; i < n; i++) {
        sums[i] *= rescale[i / width % (size_t)work->n_rows];
    }
}

/* A block's page, and that of the next block to be asked for in time: pages are a few KiB each and
 * far apart, too short for what the processor would find out by itself. */
static tkv_page_read read_page(const attend_plan *plan, const attend_work *work, int block,
                               tkv_page_order order, int n_tokens)
{
    tkv_block *const *blocks = plan->layer->blocks;
    const void *page = tkv_block_page(plan->layer, blocks[block], work->kv_head, order);
    const void *next = NULL;
    if (block + 1 < work->end) {
        next = tkv_block_page(plan->layer, blocks[block + 1], work->kv_head, order);
    }
    return (tkv_page_read){tkv_block_type(plan->layer, blocks[block], order),
                           tkv_layer_padded(plan->layer, order), n_tokens, page, next};
}

/* What tkv_kernels.accumulate does, with the values that are the beginnings of keys. */
static void accumulate_keys(const attend_plan *plan, const attend_work *work, int block,
                            const tkv_segment *segment, int n_tokens, const attend_scratch *scratch,
                            float *sums)
{
    const size_t width = (size_t)plan->sum_dim;
    tkv_block_decode(plan->layer, plan->layer->blocks[block], work->kv_head, TKV_ORDER_KEY, 0,
                     n_tokens, scratch->rows, width);
    for (int t = 0; segment->turns && t < n_tokens; t++) {
        tkv_turn_key(&plan->layer->rope, segment->turns, true, scratch->rows + (size_t)t * width);
    }
    rescale_sums(plan, work, scratch->rescale, sums);
    for (int r = 0; r < work->n_rows; r++) {
        float *sum = sums + (size_t)r * width;
        for (int t = scratch->first[r]; t < scratch->end[r]; t++) {
            const float weight = scratch->scores[r * TKV_PAGE_TOKENS + t];
            const float *row = scratch->rows + (size_t)t * width;
            for (int j = 0; j < plan->n_value_dims; j++) {
                sum[j] += weight * row[j];
            }
        }
    }
}

static void attend_block(const attend_plan *plan, const attend_work *work,
                         const tkv_segment *segment, int index, const attend_scratch *scratch,
                         const attend_state *states, tkv_attend_stats *stats)
{
    const int kind = plan->layer->blocks[index]->is_exact ? STATE_EXACT : STATE_CODED;
    const attend_state *state = &states[kind];
    const int n_tokens = mask_block(plan, work, segment, index, scratch);
    if (n_tokens == 0) {
        return;
    }
    const tkv_page_read keys = read_page(plan, work, index, TKV_ORDER_KEY, n_tokens);
    plan->kernels->scores(&keys, work->n_rows, scratch->prepared[kind], scratch->scores,
                          scratch->kernel);
    if (kind == STATE_CODED && has_centred_keys(plan)) {
        for (int i = 0; i < work->n_rows * TKV_PAGE_TOKENS; i++) {
            scratch->scores[i] += scratch->bias[i / TKV_PAGE_TOKENS];
        }
    }
    const tkv_softmax_span span = {work->n_rows, scratch->first, scratch->end, plan->params.scale,
                                   plan->params.logit_softcap};
    plan->kernels->softmax(&span, scratch->scores, state->maximum, state->sum, scratch->rescale);
    if (plan->params.sparse_v > 0.0f && !drop_small_weights(plan, work, scratch, stats)) {
        rescale_sums(plan, work, scratch->rescale, state->sums);
        return;
    }
    if (!plan->layer->head_dim_v) {
        accumulate_keys(plan, work, index, segment, n_tokens, scratch, state->sums);
        return;
    }
    const tkv_page_read values = read_page(plan, work, index, TKV_ORDER_VALUE, n_tokens);
    plan->kernels->accumulate(&values, work->n_rows, scratch->scores, scratch->rescale, state->sums,
                              scratch->kernel);
}

static int rows_of_tile(const attend_plan *plan, int tile)
{
    const int left = plan->params.n_queries - tile * plan->tile_queries;
    return (left < plan->tile_queries ? left : plan->tile_queries) * plan->group;
}

/* The block of the layer's table that holds a position. */
static int block_at(const tkv_cache_layer *layer, int position)
{
    const tkv_segment *segment = tkv_segment_of(layer, position);
    return segment->first_block +
           tkv_block_of_place(segment->head, segment->begin + position - segment->position);
}

static attend_work work_of_item(const attend_plan *plan, int item)
{
    const int split = item % plan->n_splits;
    const int tile = item / plan->n_splits % plan->n_tiles;
    attend_work work = {.kv_head = item / plan->n_splits / plan->n_tiles,
                        .first_query = tile * plan->tile_queries,
                        .n_rows = rows_of_tile(plan, tile)};
    const int first_seen = plan->params.first_position + work.first_query;
    const tkv_segment *last = tkv_last_segment(plan->layer);
    const int last_held = last->position + tkv_segment_tokens(last) - 1;
    const int last_row = first_seen + work.n_rows / plan->group - 1;
    const int last_seen = last_row < last_held ? last_row : last_held;
    const int oldest = plan->params.window ? first_seen + 1 - plan->params.window : 0;
    const int first_held = tkv_layer_first_position(plan->layer);
    const int first_block = block_at(plan->layer, oldest > first_held ? oldest : first_held);
    const int n_blocks = block_at(plan->layer, last_seen) + 1 - first_block;
    work.begin = first_block + (int)((int64_t)n_blocks * split / plan->n_splits);
    work.end = first_block + (int)((int64_t)n_blocks * (split + 1) / plan->n_splits);
    return work;
}

static attend_state state_of_item(const attend_plan *plan, size_t item, int kind)
{
    const size_t rows = (size_t)plan->tile_rows;
    const size_t index = item * N_STATES + (size_t)kind;
    float *maximum = plan->partial_stats + index * 2 * rows;
    return (attend_state){maximum, maximum + rows, plan->partial_sums + index * plan->sum_floats};
}

static size_t align_up(size_t bytes)
{
    return (bytes + BUFFER_ALIGNMENT - 1) / BUFFER_ALIGNMENT * BUFFER_ALIGNMENT;
}

/* Places the buffers of one thread from `base` on; returns their size. base may be NULL. */
static size_t place_scratch(const attend_plan *plan, uint8_t *base, attend_scratch *scratch)
{
    const tkv_cache_layer *layer = plan->layer;
    const size_t rows = (size_t)plan->tile_rows;
    const int larger_dim = layer->padded_k > layer->padded_v ? layer->padded_k : layer->padded_v;
    const size_t page_floats = TKV_PAGE_TOKENS * (size_t)layer->padded_k;
    const size_t sizes[] = {
        rows * (size_t)layer->padded_k * sizeof(float),
        plan->kernels->query_bytes(layer->type_k, layer->padded_k, plan->tile_rows),
        plan->kernels->query_bytes(TKV_TYPE_F16, layer->padded_k, plan->tile_rows),
        rows * sizeof(float),
        rows * TKV_PAGE_TOKENS * sizeof(float),
        rows * sizeof(float),
        rows * sizeof(int),
        rows * sizeof(int),
        layer->head_dim_v ? 0 : page_floats * sizeof(float),
        plan->kernels->scratch_bytes(larger_dim, plan->tile_rows),
    };
    enum { N_BUFFERS = sizeof sizes / sizeof *sizes };
    size_t offsets[N_BUFFERS + 1] = {0};
    for (int i = 0; i < N_BUFFERS; i++) {
        offsets[i + 1] = offsets[i] + align_up(sizes[i]);
    }
    if (base) {
        *scratch = (attend_scratch){.queries = (float *)(base + offsets[0]),
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

static void attend_item(void *argument, int item, int thread)
{
    const attend_plan *plan = argument;
    attend_scratch scratch;
    if (tkv_context_is_stopped(plan->cache->context)) {
        return;
    }
    place_scratch(plan, plan->scratch + (size_t)thread * plan->scratch_bytes, &scratch);
    const attend_work work = work_of_item(plan, item);
    const size_t rows = (size_t)plan->tile_rows;
    attend_state states[N_STATES];
    for (int kind = 0; kind < N_STATES; kind++) {
        states[kind] = state_of_item(plan, (size_t)item, kind);
        for (size_t r = 0; r < rows; r++) {
            states[kind].maximum[r] = -INFINITY;
            states[kind].sum[r] = 0.0f;
        }
        memset(states[kind].sums, 0, plan->sum_floats * sizeof(float));
    }
    for (int s = 0; s < plan->layer->n_segments; s++) {
        const tkv_segment *segment = &plan->layer->segments[s];
        const int segment_end = segment->first_block + segment->n_blocks;
        const int begin = work.begin > segment->first_block ? work.begin : segment->first_block;
        const int end = work.end < segment_end ? work.end : segment_end;
        if (begin < end) {
            load_queries(plan, &work, segment, begin, end, &scratch);
        }
        for (int block = begin; block < end; block++) {
            attend_block(plan, &work, segment, block, &scratch, states, &plan->stats[thread]);
        }
    }
}

/* Adds the splits of one kind of block to out, the sums of one row of n_rows, relative to
 * `maximum`; returns the sum of their softmax. */
static float merge_state(const attend_plan *plan, size_t first_item, int kind, int r, int n_rows,
                         float maximum, float *out)
{
    const size_t width = (size_t)plan->sum_dim;
    const size_t n =
        kind == STATE_CODED ? tkv_sum_floats(plan->layer->type_v, (int)width, 1) : width;
    float total = 0.0f;
    for (int s = 0; s < plan->n_splits; s++) {
        const attend_state state = state_of_item(plan, first_item + (size_t)s, kind);
        if (state.sum[r] == 0.0f) {
            continue;
        }
        const float factor = expf(state.maximum[r] - maximum);
        total += factor * state.sum[r];
        for (size_t done = 0; done < n; done += width) {
            const float *sums = state.sums + done * (size_t)n_rows + (size_t)r * width;
            for (size_t j = 0; j < width; j++) {
                out[done + j] += factor * sums[j];
            }
        }
    }
    return total;
}

/* Joins the splits of one row (flash decoding), adds the learned sink to the softmax's sum, and
 * writes the output in the original domain. */
static void merge_row(const attend_plan *plan, int kv_head, int tile, int r)
{
    const int width = plan->sum_dim;
    const tkv_type type = plan->layer->type_v;
    const int n_rows = rows_of_tile(plan, tile);
    float sums[2 * TKV_MAX_HEAD_DIM] = {0};
    const size_t query = (size_t)(tile * plan->tile_queries + r / plan->group);
    const size_t head = (size_t)(kv_head * plan->group + r % plan->group);
    float *out =
        plan->out + (query * (size_t)plan->params.n_heads + head) * (size_t)plan->n_value_dims;
    const size_t first_item = (size_t)(kv_head * plan->n_tiles + tile) * (size_t)plan->n_splits;

    const float sink = plan->params.sinks ? plan->params.sinks[head] : -INFINITY;
    float maximum = sink;
    for (size_t i = 0; i < (size_t)plan->n_splits * N_STATES; i++) {
        const attend_state state = state_of_item(plan, first_item + i / N_STATES, i % N_STATES);
        maximum = fmaxf(maximum, state.maximum[r]);
    }
    float total = sink > -INFINITY ? expf(sink - maximum) : 0.0f;
    const float coded = merge_state(plan, first_item, STATE_CODED, r, n_rows, maximum, sums);
    total += coded;
    if (coded > 0.0f && type != TKV_TYPE_F16) {
        tkv_join_sums(type, width, 1, sums);
        plan->kernels->unrotate(width, 1, sums);
        for (int j = 0; plan->layer->is_centred && j < width; j++) {
            sums[j] += coded * plan->layer->mean_v[(size_t)kv_head * (size_t)width + (size_t)j];
        }
    }
    total += merge_state(plan, first_item, STATE_EXACT, r, n_rows, maximum, sums);
    for (int j = 0; j < plan->n_value_dims; j++) {
        out[j] = sums[j] / total;
    }
    if (plan->params.log_sums) {
        plan->params.log_sums[query * (size_t)plan->params.n_heads + head] = maximum + logf(total);
    }
}

/* Merges the rows of one tile of one KV head. */
static void merge_unit(void *argument, int unit, int thread)
{
    (void)thread;
    const attend_plan *plan = argument;
    const int tile = unit % plan->n_tiles;
    for (int r = 0; r < rows_of_tile(plan, tile); r++) {
        merge_row(plan, unit / plan->n_tiles, tile, r);
    }
}

static tkv_status run_plan(attend_plan *plan, tkv_error *error)
{
    tkv_threads *threads = plan->cache->context->threads;
    const int n_units = plan->layer->n_kv_heads * plan->n_tiles;
    memset(plan->stats, 0, (size_t)plan->n_threads * sizeof *plan->stats);
    tkv_threads_run(threads, plan->n_threads, n_units * plan->n_splits, attend_item, plan);
    if (tkv_context_is_stopped(plan->cache->context)) {
        return tkv_fail(error, TKV_ERR_INTERRUPTED, "attention was interrupted");
    }
    tkv_threads_run(threads, plan->n_threads, n_units, merge_unit, plan);
    for (int i = 0; plan->params.stats && i < plan->n_threads; i++) {
        plan->params.stats->n_weights += plan->stats[i].n_weights;
        plan->params.stats->n_skipped += plan->stats[i].n_skipped;
    }
    return TKV_OK;
}

tkv_status tkv_attend(const tkv_cache *cache, int layer, const tkv_attend_params *params,
                      const float *q, float *out, tkv_error *error)
{
    tkv_status status = tkv_check_attend(cache, layer, params, q, out, error);
    if (status == TKV_OK && cache->context->device) {
        return tkv_attend_on_device(cache, layer, params, q, out, error);
    }
    if (status == TKV_OK) {
        status = tkv_check_queries(&cache->layers[layer], params, q, error);
    }
    if (status != TKV_OK) {
        return status;
    }
    attend_plan plan;
    make_plan(&plan, cache, layer, params, q, out);
    const size_t n_items =
        (size_t)plan.layer->n_kv_heads * (size_t)plan.n_tiles * (size_t)plan.n_splits;
    plan.sum_floats = tkv_sum_floats(plan.layer->type_v, plan.sum_dim, plan.tile_rows);
    const size_t sums_bytes = align_up(n_items * N_STATES * plan.sum_floats * sizeof(float));
    const size_t stats_bytes =
        align_up(n_items * N_STATES * 2 * (size_t)plan.tile_rows * sizeof(float));
    const size_t thread_stats_bytes = align_up((size_t)plan.n_threads * sizeof *plan.stats);
    plan.scratch_bytes = place_scratch(&plan, NULL, NULL);
    const size_t bytes =
        sums_bytes + stats_bytes + thread_stats_bytes + (size_t)plan.n_threads * plan.scratch_bytes;
    uint8_t *buffer = aligned_alloc(BUFFER_ALIGNMENT, bytes);
    if (!buffer) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "no memory for the attention workspace (%zu bytes)", bytes);
    }
    plan.partial_sums = (float *)buffer;
    plan.partial_stats = (float *)(buffer + sums_bytes);
    plan.stats = (tkv_attend_stats *)(buffer + sums_bytes + stats_bytes);
    plan.scratch = buffer + sums_bytes + stats_bytes + thread_stats_bytes;
    status = run_plan(&plan, error);
    free(buffer);
    return status;
}
