/* Attention over slots: work is cut into (stream, KV head, tile of query rows, split of the
 * pages), each computed independently (device/host/tile.h), then the splits are merged. */
#include "base/error.h"
#include "base/rope.h"
#include "device/host/tile.h"
#include "kernels/sums.h"
#include "store/sight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TILE_ROWS 64
#define MIN_SPLIT_PAGES 4
#define ITEMS_PER_THREAD 4
/* Multiply-adds that are worth a thread: some 50 us. */
#define WORK_PER_THREAD 1000000.0

typedef struct store_job {
    const tkv_store *store;
    const tkv_kernels *kernels;
    tkv_store_attend_params params;
    tkv_sight sight;
    const void *q;
    void *out;
    tkv_device_layer layer;
    int n_value_dims; /* of a row of out */
    int sum_dim;
    int group;
    int tile_queries;
    int tile_rows;
    int n_tiles;
    int n_splits;
    int n_threads;
    int n_turns;    /* distances of keys that were shifted, */
    int64_t *turns; /* ascending, and */
    float *angles;  /* [n_turns][n_rotated] */
    size_t sum_floats;
    float *sums;              /* [n_items][TKV_HOST_STATES][sum_floats] */
    float *stats;             /* [n_items][TKV_HOST_STATES][2][tile_rows] */
    tkv_attend_stats *counts; /* [n_threads] */
    uint8_t *scratch;         /* [n_threads][scratch_bytes], then seen, then added */
    size_t host_scratch_bytes;
    size_t scratch_bytes;
} store_job;

/* What a thread works on. */
typedef struct tile_work {
    const store_job *job;
    tkv_host_tile tile;
    int stream;
    int kv_head;
    int first_query;
    int64_t begin; /* of the stream's pages */
    int64_t end;
    uint64_t *seen;                         /* [tile_rows] */
    float *added;                           /* [tile_rows][TKV_PAGE_TOKENS] */
    bool is_prepared[TKV_HOST_STATES];      /* queries, for keys of a kind */
    int64_t prepared_turn[TKV_HOST_STATES]; /* that were shifted so far */
} tile_work;

static size_t align_up(size_t bytes)
{
    return (bytes + TKV_STORE_ALIGNMENT - 1) / TKV_STORE_ALIGNMENT * TKV_STORE_ALIGNMENT;
}

/* ---- Distances ---- */

static int compare_turns(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a;
    const int64_t y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* All distances but 0 of the pages that are seen, each once, with their angles. */
static tkv_status find_turns(store_job *job, tkv_error *error)
{
    const tkv_store_entry *entries = job->store->sides[TKV_ORDER_KEY].entries;
    const tkv_allocator *allocator = &job->store->context->allocator;
    const int64_t n_pages = job->sight.begin[job->sight.n_streams];
    size_t n_shifted = 0;
    for (int64_t i = 0; i < n_pages; i++) {
        n_shifted += entries[job->sight.pages[i]].turns != NULL;
    }
    if (n_shifted == 0) {
        return TKV_OK;
    }
    job->turns = tkv_allocate(allocator, n_shifted * TKV_PAGE_TOKENS * sizeof *job->turns);
    size_t n = 0;
    for (int64_t i = 0; job->turns && i < n_pages; i++) {
        const tkv_store_entry *entry = &entries[job->sight.pages[i]];
        for (int t = 0; entry->turns && t < TKV_PAGE_TOKENS; t++) {
            /* Neighbours are mostly alike. */
            if (entry->turns[t] && (n == 0 || job->turns[n - 1] != entry->turns[t])) {
                job->turns[n++] = entry->turns[t];
            }
        }
    }
    if (job->turns) {
        qsort(job->turns, n, sizeof *job->turns, compare_turns);
        for (size_t i = 0; i < n; i++) {
            if (job->n_turns == 0 || job->turns[job->n_turns - 1] != job->turns[i]) {
                job->turns[job->n_turns++] = job->turns[i];
            }
        }
        job->angles =
            tkv_allocate(allocator, (size_t)job->n_turns * (size_t)job->store->rope.n_rotated *
                                        sizeof *job->angles);
    }
    if (!job->turns || !job->angles) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the angles of shifted keys");
    }
    for (int i = 0; i < job->n_turns; i++) {
        tkv_rope_turns(&job->store->rope, job->turns[i],
                       job->angles + (size_t)i * (size_t)job->store->rope.n_rotated);
    }
    return TKV_OK;
}

static const float *angles_of(const store_job *job, int64_t turn)
{
    const int64_t *at =
        bsearch(&turn, job->turns, (size_t)job->n_turns, sizeof turn, compare_turns);
    return job->angles + (size_t)(at - job->turns) * (size_t)job->store->rope.n_rotated;
}

/* ---- One tile ---- */

/* The tile's queries in row order, turned back by what their keys were shifted. */
static void gather_queries(const tile_work *work, int64_t turn)
{
    const store_job *job = work->job;
    const tkv_store_side *side = &job->store->sides[TKV_ORDER_KEY];
    const tkv_layout *layout = &job->params.q;
    for (int r = 0; r < work->tile.n_rows; r++) {
        float *row = work->tile.scratch.queries + (size_t)r * (size_t)side->padded_dim;
        const size_t at =
            (size_t)work->stream * layout->stream_stride +
            (size_t)(work->first_query + r / job->group) * layout->row_stride +
            (size_t)(work->kv_head * job->group + r % job->group) * layout->head_stride;
        tkv_elements_load(layout->element, job->q, at, (size_t)side->head_dim, row);
        memset(row + side->head_dim, 0, (size_t)(side->padded_dim - side->head_dim) * sizeof *row);
        if (turn) {
            tkv_turn_key(&job->store->rope, angles_of(job, turn), true, row);
        }
    }
}

static void prepare_queries(tile_work *work, int key_kind, int64_t turn)
{
    if (!work->is_prepared[key_kind] || work->prepared_turn[key_kind] != turn) {
        gather_queries(work, turn);
        tkv_host_prepare(&work->tile, key_kind);
        work->is_prepared[key_kind] = true;
        work->prepared_turn[key_kind] = turn;
    }
}

/* A page of a kind, or NULL. */
static const void *page_of(const tile_work *work, tkv_page_order order, int kind, int64_t index)
{
    const store_job *job = work->job;
    const tkv_store_side *side = &job->store->sides[order];
    const tkv_sight *sight = &job->sight;
    const tkv_store_page *page =
        side->entries[sight->pages[sight->begin[work->stream] + index]].page;
    if (kind == TKV_HOST_EXACT) {
        return page->exact ? (const void *)tkv_store_exact(side, page, work->kv_head) : NULL;
    }
    return page->coded ? (const void *)tkv_store_coded(side, page, work->kv_head) : NULL;
}

static tkv_page_read read_of(const tile_work *work, tkv_page_order order, int kind, int64_t index,
                             int n_tokens)
{
    const tkv_store_side *side = &work->job->store->sides[order];
    return (tkv_page_read){kind == TKV_HOST_EXACT ? TKV_TYPE_F16 : side->type, side->padded_dim,
                           n_tokens, page_of(work, order, kind, index),
                           index + 1 < work->end ? page_of(work, order, kind, index + 1) : NULL};
}

/* What rows see of the slots `among` of a page. Returns the number of slots up to the last one that
 * is seen. */
static int see_page(const tile_work *work, int64_t index, uint64_t among, tkv_host_mask *mask)
{
    const store_job *job = work->job;
    const tkv_sight *sight = &job->sight;
    const tkv_host_scratch *scratch = &work->tile.scratch;
    int n_tokens = 0;
    bool is_span = true;
    bool has_added = false;
    for (int r = 0; r < work->tile.n_rows; r++) {
        const int64_t at =
            tkv_sight_at(sight, work->stream, work->first_query + r / job->group, index);
        const uint64_t seen = sight->bits[at] & among;
        const int first = seen ? __builtin_ctzll(seen) : 0;
        const int end = seen ? TKV_PAGE_TOKENS - __builtin_clzll(seen) : 0;
        work->seen[r] = seen;
        scratch->first[r] = first;
        scratch->end[r] = end;
        n_tokens = end > n_tokens ? end : n_tokens;
        is_span = is_span && seen == tkv_slot_bits(first, end - first);
        has_added = has_added || (sight->has_added && seen && sight->has_added[at]);
    }
    *mask =
        (tkv_host_mask){is_span && !has_added ? NULL : work->seen, has_added ? work->added : NULL};
    return n_tokens;
}

/* What the mask adds to the logits of each row. */
static void load_added(const tile_work *work, int64_t index)
{
    const store_job *job = work->job;
    const int64_t page = job->sight.pages[job->sight.begin[work->stream] + index];
    for (int r = 0; r < work->tile.n_rows; r++) {
        float *row = work->added + r * TKV_PAGE_TOKENS;
        tkv_mask_numbers(&job->params, work->stream, work->first_query + r / job->group, page, row);
        if (job->params.mask_slopes) {
            const float slope =
                job->params.mask_slopes[work->kv_head * job->group + r % job->group];
            for (int t = 0; t < TKV_PAGE_TOKENS; t++) {
                row[t] *= slope;
            }
        }
    }
}

/* Values that are the beginnings of keys. */
static void decode_keys(const tile_work *work, int kind, int64_t index, int64_t turn, int n_tokens)
{
    const store_job *job = work->job;
    const tkv_store_side *side = &job->store->sides[TKV_ORDER_KEY];
    const size_t width = (size_t)side->padded_dim;
    const tkv_page_span span = {kind == TKV_HOST_EXACT ? TKV_TYPE_F16 : side->type,
                                TKV_ORDER_KEY,
                                side->padded_dim,
                                0,
                                n_tokens,
                                TKV_EFFORT_DEFAULT};
    float *rows = work->tile.scratch.rows;
    job->kernels->decode(&span, page_of(work, TKV_ORDER_KEY, kind, index), rows, width);
    for (int t = 0; turn && t < n_tokens; t++) {
        tkv_turn_key(&job->store->rope, angles_of(job, turn), false, rows + (size_t)t * width);
    }
}

/* Slots of a page whose keys are of one kind and one distance, and whose values are of one kind. */
static void attend_slots(tile_work *work, int64_t index, uint64_t among, int key_kind,
                         int value_kind, int64_t turn)
{
    const bool has_values = work->job->store->n_sides > 1;
    tkv_host_mask mask;
    const int n_tokens = see_page(work, index, among, &mask);
    if (n_tokens == 0) {
        return;
    }
    prepare_queries(work, key_kind, turn);
    if (mask.added) {
        load_added(work, index);
    }
    const tkv_page_read keys = read_of(work, TKV_ORDER_KEY, key_kind, index, n_tokens);
    tkv_page_read values;
    if (has_values) {
        values = read_of(work, TKV_ORDER_VALUE, value_kind, index, n_tokens);
    } else {
        decode_keys(work, key_kind, index, turn, n_tokens);
    }
    tkv_host_attend_page(&work->tile, &keys, key_kind, has_values ? &values : NULL, value_kind,
                         NULL, &mask);
}

static void attend_distances(tile_work *work, int64_t index, uint64_t among, int key_kind,
                             int value_kind)
{
    const tkv_sight *sight = &work->job->sight;
    const int64_t page = sight->pages[sight->begin[work->stream] + index];
    const int64_t *turns = work->job->store->sides[TKV_ORDER_KEY].entries[page].turns;
    if (!turns) {
        attend_slots(work, index, among, key_kind, value_kind, 0);
        return;
    }
    while (among) {
        const int64_t turn = turns[__builtin_ctzll(among)];
        uint64_t same = 0;
        for (uint64_t left = among; left; left &= left - 1) {
            const int t = __builtin_ctzll(left);
            same |= turns[t] == turn ? (uint64_t)1 << t : 0;
        }
        attend_slots(work, index, same, key_kind, value_kind, turn);
        among &= ~same;
    }
}

static void attend_page(tile_work *work, int64_t index)
{
    const tkv_store *store = work->job->store;
    const tkv_sight *sight = &work->job->sight;
    const int64_t page = sight->pages[sight->begin[work->stream] + index];
    const uint64_t exact_k = store->sides[TKV_ORDER_KEY].entries[page].page->exact_rows;
    const uint64_t exact_v =
        store->n_sides > 1 ? store->sides[TKV_ORDER_VALUE].entries[page].page->exact_rows : 0;
    uint64_t seen = 0;
    for (int q = 0; q < work->tile.n_rows / work->job->group; q++) {
        seen |= sight->bits[tkv_sight_at(sight, work->stream, work->first_query + q, index)];
    }
    for (int kind_k = 0; kind_k < TKV_HOST_STATES; kind_k++) {
        for (int kind_v = 0; kind_v < TKV_HOST_STATES; kind_v++) {
            const uint64_t among = seen & (kind_k == TKV_HOST_EXACT ? exact_k : ~exact_k) &
                                   (kind_v == TKV_HOST_EXACT ? exact_v : ~exact_v);
            if (among) {
                attend_distances(work, index, among, kind_k, kind_v);
            }
        }
    }
}

/* ---- Items ---- */

static int rows_of_tile(const store_job *job, int tile)
{
    const int left = job->params.n_queries - tile * job->tile_queries;
    return (left < job->tile_queries ? left : job->tile_queries) * job->group;
}

static tkv_host_state state_of_item(const store_job *job, size_t item, int kind)
{
    const size_t rows = (size_t)job->tile_rows;
    const size_t index = item * TKV_HOST_STATES + (size_t)kind;
    float *maximum = job->stats + index * 2 * rows;
    return (tkv_host_state){maximum, maximum + rows, job->sums + index * job->sum_floats};
}

static tkv_host_tile make_tile(const store_job *job, int item, int tile, int thread)
{
    uint8_t *memory = job->scratch + (size_t)thread * job->scratch_bytes;
    tkv_host_tile made = {.kernels = job->kernels,
                          .type_k = (tkv_type)job->layer.type_k,
                          .type_v = (tkv_type)job->layer.type_v,
                          .head_dim_k = job->layer.head_dim_k,
                          .sum_dim = job->sum_dim,
                          .n_value_dims = job->n_value_dims,
                          .n_rows = rows_of_tile(job, tile),
                          .scale = job->params.scale,
                          .softcap = job->params.logit_softcap,
                          .sparse_v = job->params.sparse_v,
                          .counts = &job->counts[thread]};
    tkv_host_place_scratch(job->kernels, &job->layer, job->tile_rows, memory, &made.scratch);
    for (int kind = 0; kind < TKV_HOST_STATES; kind++) {
        made.states[kind] = state_of_item(job, (size_t)item, kind);
        tkv_host_start(&made.states[kind], job->tile_rows, job->sum_floats);
    }
    return made;
}

static void attend_item(void *argument, int item, int thread)
{
    const store_job *job = argument;
    if (tkv_context_is_stopped(job->store->context)) {
        return;
    }
    const int split = item % job->n_splits;
    const int tile = item / job->n_splits % job->n_tiles;
    const int unit = item / job->n_splits / job->n_tiles;
    const int stream = unit / job->store->n_kv_heads;
    const int64_t n_pages = tkv_sight_pages(&job->sight, stream);
    uint8_t *memory = job->scratch + (size_t)thread * job->scratch_bytes + job->host_scratch_bytes;
    tile_work work = {.job = job,
                      .tile = make_tile(job, item, tile, thread),
                      .stream = stream,
                      .kv_head = unit % job->store->n_kv_heads,
                      .first_query = tile * job->tile_queries,
                      .begin = n_pages * split / job->n_splits,
                      .end = n_pages * (split + 1) / job->n_splits,
                      .seen = (uint64_t *)memory,
                      .added = (float *)(memory + align_up((size_t)job->tile_rows * 8))};
    for (int64_t index = work.begin; index < work.end; index++) {
        attend_page(&work, index);
    }
}

/* Joins the splits of one row, adds the learned sink to the softmax's sum, and writes the output in
 * the original domain. */
static void merge_row(const store_job *job, int unit, int r)
{
    const int tile = unit % job->n_tiles;
    const int kv_head = unit / job->n_tiles % job->store->n_kv_heads;
    const int stream = unit / job->n_tiles / job->store->n_kv_heads;
    const int n_rows = rows_of_tile(job, tile);
    const size_t query = (size_t)(tile * job->tile_queries + r / job->group);
    const size_t head = (size_t)(kv_head * job->group + r % job->group);
    const size_t width = (size_t)job->sum_dim;
    const tkv_type type = (tkv_type)job->layer.type_v;
    const size_t first_item = (size_t)unit * (size_t)job->n_splits;
    float sums[2 * TKV_MAX_HEAD_DIM] = {0};

    const float sink = job->params.sinks ? job->params.sinks[head] : -INFINITY;
    float maximum = sink;
    for (size_t i = 0; i < (size_t)job->n_splits * TKV_HOST_STATES; i++) {
        const tkv_host_state state = state_of_item(job, first_item + i / 2, i % 2);
        maximum = fmaxf(maximum, state.maximum[r]);
    }
    float total = sink > -INFINITY ? expf(sink - maximum) : 0.0f;
    for (int kind = 0; kind < TKV_HOST_STATES; kind++) {
        const size_t n = kind == TKV_HOST_CODED ? tkv_sum_floats(type, job->sum_dim, 1) : width;
        float part = 0.0f;
        for (int s = 0; s < job->n_splits; s++) {
            const tkv_host_state state = state_of_item(job, first_item + (size_t)s, kind);
            part += tkv_host_merge(&state, r, n_rows, width, n, maximum, sums);
        }
        total += part;
        if (kind == TKV_HOST_CODED && part > 0.0f && type != TKV_TYPE_F16) {
            tkv_join_sums(type, job->sum_dim, 1, sums);
            job->kernels->unrotate(job->sum_dim, 1, sums);
        }
    }
    for (int j = 0; j < job->n_value_dims; j++) {
        sums[j] = total > 0.0f ? sums[j] / total : 0.0f;
    }
    const tkv_layout *layout = &job->params.out;
    tkv_elements_save(layout->element, job->out,
                      (size_t)stream * layout->stream_stride + query * layout->row_stride +
                          head * layout->head_stride,
                      (size_t)job->n_value_dims, sums);
    if (job->params.log_sums) {
        job->params.log_sums[((size_t)stream * (size_t)job->params.n_queries + query) *
                                 (size_t)job->params.n_heads +
                             head] = maximum + logf(total);
    }
}

static void merge_unit(void *argument, int unit, int thread)
{
    (void)thread;
    const store_job *job = argument;
    for (int r = 0; r < rows_of_tile(job, unit % job->n_tiles); r++) {
        merge_row(job, unit, r);
    }
}

/* ---- The plan ---- */

/* No more threads than the work is worth, and splits only as far as there are threads to feed. */
static void choose_splits(store_job *job)
{
    const tkv_context *context = job->store->context;
    const int n_streams = job->params.n_streams;
    const int64_t n_pages = job->sight.begin[n_streams];
    const int n_items = n_streams * job->store->n_kv_heads * job->n_tiles;
    const double work = (double)job->params.n_queries * job->params.n_heads *
                        (double)(n_pages * TKV_PAGE_TOKENS) *
                        (job->layer.head_dim_k + job->n_value_dims);
    const double worth = 1.0 + work / WORK_PER_THREAD;
    job->n_threads = worth < context->n_threads ? (int)worth : context->n_threads;
    job->n_splits = 1;
    if (job->n_threads > 1 && n_items < ITEMS_PER_THREAD * job->n_threads) {
        const int wanted = tkv_ceil_divide(ITEMS_PER_THREAD * job->n_threads, n_items);
        const int64_t possible = n_pages / n_streams / MIN_SPLIT_PAGES;
        job->n_splits = possible < 1 ? 1 : wanted < possible ? wanted : (int)possible;
    }
}

static void make_job(store_job *job, const tkv_store *store, const tkv_store_attend_params *params,
                     const void *q, void *out)
{
    const tkv_store_side *keys = &store->sides[TKV_ORDER_KEY];
    const tkv_store_side *values = &store->sides[TKV_ORDER_VALUE];
    const bool has_values = store->n_sides > 1;
    *job = (store_job){.store = store,
                       .kernels = store->context->kernels,
                       .params = *params,
                       .q = q,
                       .out = out,
                       .layer = {.type_k = keys->type,
                                 .type_v = has_values ? values->type : TKV_TYPE_F16,
                                 .n_kv_heads = store->n_kv_heads,
                                 .head_dim_k = keys->padded_dim,
                                 .head_dim_v = has_values ? values->padded_dim : 0},
                       .n_value_dims = has_values ? values->head_dim : params->n_value_dims,
                       .sum_dim = has_values ? values->padded_dim : keys->padded_dim,
                       .group = params->n_heads / store->n_kv_heads};
    const int fitting = job->group < TILE_ROWS ? TILE_ROWS / job->group : 1;
    job->params.q = tkv_layout_of(&params->q, params->n_queries, params->n_heads, keys->head_dim);
    job->params.out =
        tkv_layout_of(&params->out, params->n_queries, params->n_heads, job->n_value_dims);
    if (params->scale == 0.0f) {
        job->params.scale = 1.0f / sqrtf((float)keys->head_dim);
    }
    job->tile_queries = fitting < params->n_queries ? fitting : params->n_queries;
    job->tile_rows = job->tile_queries * job->group;
    job->n_tiles = tkv_ceil_divide(params->n_queries, job->tile_queries);
}

static tkv_status run_job(store_job *job, tkv_error *error)
{
    const tkv_context *context = job->store->context;
    const int n_units = job->params.n_streams * job->store->n_kv_heads * job->n_tiles;
    memset(job->counts, 0, (size_t)job->n_threads * sizeof *job->counts);
    tkv_threads_run(context->threads, job->n_threads, n_units * job->n_splits, attend_item, job);
    if (tkv_context_is_stopped(context)) {
        return tkv_fail(error, TKV_ERR_INTERRUPTED, "attention was interrupted");
    }
    tkv_threads_run(context->threads, job->n_threads, n_units, merge_unit, job);
    for (int i = 0; job->params.stats && i < job->n_threads; i++) {
        job->params.stats->n_weights += job->counts[i].n_weights;
        job->params.stats->n_skipped += job->counts[i].n_skipped;
    }
    return TKV_OK;
}

static tkv_status attend_in_workspace(store_job *job, tkv_error *error)
{
    const size_t rows = (size_t)job->tile_rows;
    const size_t n_states = (size_t)job->params.n_streams * (size_t)job->store->n_kv_heads *
                            (size_t)job->n_tiles * (size_t)job->n_splits * TKV_HOST_STATES;
    job->sum_floats = tkv_sum_floats((tkv_type)job->layer.type_v, job->sum_dim, job->tile_rows);
    job->host_scratch_bytes =
        align_up(tkv_host_place_scratch(job->kernels, &job->layer, job->tile_rows, NULL, NULL));
    job->scratch_bytes = job->host_scratch_bytes + align_up(rows * sizeof(uint64_t)) +
                         align_up(rows * TKV_PAGE_TOKENS * sizeof(float));
    const size_t sums_bytes = align_up(n_states * job->sum_floats * sizeof(float));
    const size_t stats_bytes = align_up(n_states * 2 * rows * sizeof(float));
    const size_t counts_bytes = align_up((size_t)job->n_threads * sizeof *job->counts);
    const size_t bytes =
        sums_bytes + stats_bytes + counts_bytes + (size_t)job->n_threads * job->scratch_bytes;
    const tkv_allocator *allocator = &job->store->context->allocator;
    uint8_t *memory = tkv_allocate_aligned(allocator, bytes, TKV_STORE_ALIGNMENT);
    if (!memory) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "no memory for the attention workspace (%zu bytes)", bytes);
    }
    job->sums = (float *)memory;
    job->stats = (float *)(memory + sums_bytes);
    job->counts = (tkv_attend_stats *)(memory + sums_bytes + stats_bytes);
    job->scratch = memory + sums_bytes + stats_bytes + counts_bytes;
    const tkv_status status = run_job(job, error);
    tkv_release(allocator, memory);
    return status;
}

tkv_status tkv_store_attend(const tkv_store *store, const tkv_store_attend_params *params,
                            const void *q, void *out, tkv_error *error)
{
    const tkv_allocator *allocator = &store->context->allocator;
    store_job job;
    make_job(&job, store, params, q, out);
    tkv_status status = tkv_sight_create(store, params, &job.sight, error);
    if (status != TKV_OK) {
        return status;
    }
    status = find_turns(&job, error);
    if (status == TKV_OK) {
        choose_splits(&job);
        status = attend_in_workspace(&job, error);
    }
    tkv_release(allocator, job.turns);
    tkv_release(allocator, job.angles);
    tkv_release(allocator, job.sight.memory);
    return status;
}
