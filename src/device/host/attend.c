/* Attention on the host: items of work (plan.c) on the device's threads, then their merge. */
#include "base/error.h"
#include "device/host/host.h"
#include "kernels/sums.h"

#include <limits.h>
#include <math.h>
#include <string.h>

/* The attention of one sequence. */
typedef struct attend_job {
    const tkv_host_device *device;
    const tkv_kernels *kernels;
    tkv_host_plan plan;
    tkv_device_attend params;
    tkv_host_layer layer;
    const tkv_device_sequence *sequence;
    const tkv_device_block *blocks;
    int first_position; /* of query 0 */
    int end;            /* no token is at this position or behind */
    bool has_centred_keys;
    const float *sinks;
    const float *q; /* [n_queries][n_heads][head_dim_k] */
    float *out;
    float *log_sums; /* or NULL */
    uint8_t *workspace;
} attend_job;

/* The online softmax of one kind of block. */
typedef struct attend_state {
    float *maximum; /* [tile_rows] */
    float *sum;     /* [tile_rows] */
    float *sums;    /* as tkv_sum_floats says */
} attend_state;

/* A tile of query rows against a range of blocks. */
typedef struct attend_work {
    int kv_head;
    int first_query;
    int n_rows;
    int begin; /* block of the sequence */
    int end;
} attend_work;

static attend_state state_of_item(const attend_job *job, size_t item, int kind)
{
    const size_t rows = (size_t)job->plan.tile_rows;
    const size_t index = item * TKV_HOST_STATES + (size_t)kind;
    float *maximum = (float *)(job->workspace + job->plan.stats_at) + index * 2 * rows;
    return (attend_state){maximum, maximum + rows,
                          (float *)job->workspace + index * job->plan.sum_floats};
}

static tkv_attend_stats *counts_of_thread(const attend_job *job, int thread)
{
    return (tkv_attend_stats *)(job->workspace + job->plan.thread_counts_at) + thread;
}

/* Copies the tile's queries in row order. */
static void gather_queries(const attend_job *job, const attend_work *work, float *queries)
{
    const int group = job->plan.group;
    const size_t head_dim = (size_t)job->params.layer.head_dim_k;
    for (int r = 0; r < work->n_rows; r++) {
        const size_t query = (size_t)(work->first_query + r / group);
        const size_t head = (size_t)(work->kv_head * group + r % group);
        memcpy(queries + (size_t)r * head_dim,
               job->q + (query * (size_t)job->params.n_heads + head) * head_dim,
               head_dim * sizeof *queries);
    }
}

/* What centring took off every coded key, as a part of the score. */
static void compute_bias(const attend_job *job, const attend_work *work,
                         const tkv_host_scratch *scratch)
{
    const size_t head_dim = (size_t)job->params.layer.head_dim_k;
    const float *means = tkv_host_pointer(job->sequence->mean_k);
    const float *mean = means + (size_t)work->kv_head * head_dim;
    for (int r = 0; r < work->n_rows; r++) {
        const float *query = scratch->queries + (size_t)r * head_dim;
        double sum = 0.0;
        for (size_t j = 0; j < head_dim; j++) {
            sum += (double)query[j] * (double)mean[j];
        }
        scratch->bias[r] = (float)sum;
    }
}

/* Brings the queries into the forms that the blocks need. */
static void load_queries(const attend_job *job, const attend_work *work,
                         const tkv_host_scratch *scratch)
{
    const int head_dim = job->params.layer.head_dim_k;
    bool needed[TKV_HOST_STATES] = {false, false};
    for (int b = work->begin; b < work->end; b++) {
        needed[job->blocks[b].is_exact ? TKV_HOST_EXACT : TKV_HOST_CODED] = true;
    }
    gather_queries(job, work, scratch->queries);
    if (needed[TKV_HOST_EXACT]) {
        job->kernels->prepare_queries(TKV_TYPE_F16, head_dim, work->n_rows, scratch->queries,
                                      scratch->prepared[TKV_HOST_EXACT]);
    }
    if (needed[TKV_HOST_CODED]) {
        const tkv_type type = (tkv_type)job->params.layer.type_k;
        if (job->has_centred_keys) {
            compute_bias(job, work, scratch);
        }
        if (type != TKV_TYPE_F16) {
            job->kernels->rotate(head_dim, work->n_rows, scratch->queries);
        }
        job->kernels->prepare_queries(type, head_dim, work->n_rows, scratch->queries,
                                      scratch->prepared[TKV_HOST_CODED]);
    }
}

/* Which slots of a block each row sees: those with tokens, up to its own position and within the
 * window. Returns the number of slots up to the last one that is seen. */
static int mask_block(const attend_job *job, const attend_work *work, int block,
                      const tkv_host_scratch *scratch)
{
    const int head = job->params.layer.n_sinks;
    const tkv_slots slots = tkv_slots_of_places(head, block, job->params.begin, job->end);
    const int first_query = job->first_position + work->first_query - tkv_block_place(head, block);
    int n_tokens = 0;
    for (int r = 0; r < work->n_rows; r++) {
        const int end = first_query + r / job->plan.group + 1;
        const int first = job->params.window ? end - job->params.window : 0;
        scratch->first[r] = first > slots.first ? first : slots.first;
        scratch->end[r] = end < slots.end ? end : slots.end;
        n_tokens = scratch->end[r] > n_tokens ? scratch->end[r] : n_tokens;
    }
    return n_tokens;
}

/* Zeroes the weights below the threshold; returns whether any weight is left. A row's weights are
 * relative to its running maximum. */
static bool drop_small_weights(const attend_job *job, const attend_work *work,
                               const tkv_host_scratch *scratch, tkv_attend_stats *counts)
{
    const float threshold = job->params.sparse_v;
    bool is_any_left = false;
    for (int r = 0; r < work->n_rows; r++) {
        float *weights = scratch->scores + r * TKV_PAGE_TOKENS;
        for (int t = scratch->first[r]; t < scratch->end[r]; t++) {
            counts->n_weights++;
            if (weights[t] < threshold) {
                weights[t] = 0.0f;
                counts->n_skipped++;
            } else {
                is_any_left = true;
            }
        }
    }
    return is_any_left;
}

static void rescale_sums(const attend_job *job, const attend_work *work, const float *rescale,
                         float *sums)
{
    const size_t width = (size_t)job->plan.sum_dim;
    const size_t n = tkv_sum_floats((tkv_type)job->params.layer.type_v, (int)width, work->n_rows);
    for (size_t i = 0; i < n; i++) {
        sums[i] *= rescale[i / width % (size_t)work->n_rows];
    }
}

/* A block's page, and that of the next block to be asked for in time: pages are a few KiB each and
 * far apart, too short for what the processor would find out by itself. */
static tkv_page_read read_page(const attend_job *job, const attend_work *work, int block,
                               tkv_page_order order, int n_tokens)
{
    const tkv_device_block *own = &job->blocks[block];
    const bool has_next = block + 1 < work->end;
    return (tkv_page_read){
        tkv_host_page_type(&job->layer, own, order), tkv_host_head_dim(&job->layer, order),
        n_tokens, tkv_host_page(&job->layer, own, work->kv_head, order),
        has_next ? tkv_host_page(&job->layer, own + 1, work->kv_head, order) : NULL};
}

/* What tkv_kernels.accumulate does, with the values that are the beginnings of keys. */
static void accumulate_keys(const attend_job *job, const attend_work *work, int block, int n_tokens,
                            const tkv_host_scratch *scratch, float *sums)
{
    const size_t width = (size_t)job->plan.sum_dim;
    const tkv_host_span span = {job->sequence, &job->blocks[block], work->kv_head, TKV_ORDER_KEY, 0,
                                n_tokens};
    tkv_host_decode(job->device, &job->layer, &span, scratch->rows, width);
    rescale_sums(job, work, scratch->rescale, sums);
    for (int r = 0; r < work->n_rows; r++) {
        float *sum = sums + (size_t)r * width;
        for (int t = scratch->first[r]; t < scratch->end[r]; t++) {
            const float weight = scratch->scores[r * TKV_PAGE_TOKENS + t];
            const float *row = scratch->rows + (size_t)t * width;
            for (int j = 0; j < job->plan.n_value_dims; j++) {
                sum[j] += weight * row[j];
            }
        }
    }
}

static void attend_block(const attend_job *job, const attend_work *work, int block,
                         const tkv_host_scratch *scratch, const attend_state *states,
                         tkv_attend_stats *counts)
{
    const int kind = job->blocks[block].is_exact ? TKV_HOST_EXACT : TKV_HOST_CODED;
    const attend_state *state = &states[kind];
    const int n_tokens = mask_block(job, work, block, scratch);
    if (n_tokens == 0) {
        return;
    }
    const tkv_page_read keys = read_page(job, work, block, TKV_ORDER_KEY, n_tokens);
    job->kernels->scores(&keys, work->n_rows, scratch->prepared[kind], scratch->scores,
                         scratch->kernel);
    if (kind == TKV_HOST_CODED && job->has_centred_keys) {
        for (int i = 0; i < work->n_rows * TKV_PAGE_TOKENS; i++) {
            scratch->scores[i] += scratch->bias[i / TKV_PAGE_TOKENS];
        }
    }
    const tkv_softmax_span span = {work->n_rows, scratch->first, scratch->end, job->params.scale,
                                   job->params.logit_softcap};
    job->kernels->softmax(&span, scratch->scores, state->maximum, state->sum, scratch->rescale);
    if (job->params.sparse_v > 0.0f && !drop_small_weights(job, work, scratch, counts)) {
        rescale_sums(job, work, scratch->rescale, state->sums);
        return;
    }
    if (!job->params.layer.head_dim_v) {
        accumulate_keys(job, work, block, n_tokens, scratch, state->sums);
        return;
    }
    const tkv_page_read values = read_page(job, work, block, TKV_ORDER_VALUE, n_tokens);
    job->kernels->accumulate(&values, work->n_rows, scratch->scores, scratch->rescale, state->sums,
                             scratch->kernel);
}

static int rows_of_tile(const attend_job *job, int tile)
{
    const int left = job->params.n_queries - tile * job->plan.tile_queries;
    return (left < job->plan.tile_queries ? left : job->plan.tile_queries) * job->plan.group;
}

static attend_work work_of_item(const attend_job *job, int item)
{
    const tkv_host_plan *plan = &job->plan;
    const int head = job->params.layer.n_sinks;
    const int split = item % plan->n_splits;
    const int tile = item / plan->n_splits % plan->n_tiles;
    attend_work work = {.kv_head = item / plan->n_splits / plan->n_tiles,
                        .first_query = tile * plan->tile_queries,
                        .n_rows = rows_of_tile(job, tile)};
    const int first_query = job->first_position + work.first_query;
    const int last_query = first_query + work.n_rows / plan->group - 1;
    const int last_seen = last_query < job->end ? last_query : job->end - 1;
    const int oldest = job->params.window ? first_query + 1 - job->params.window : 0;
    const int first_seen = oldest > job->params.begin ? oldest : job->params.begin;
    if (first_seen > last_seen) {
        return work; /* no block */
    }
    const int first_block = tkv_block_of_place(head, first_seen);
    const int n_blocks = tkv_block_of_place(head, last_seen) + 1 - first_block;
    work.begin = first_block + (int)((int64_t)n_blocks * split / plan->n_splits);
    work.end = first_block + (int)((int64_t)n_blocks * (split + 1) / plan->n_splits);
    return work;
}

static void attend_item(void *argument, int item, int thread)
{
    const attend_job *job = argument;
    tkv_host_scratch scratch;
    if (tkv_host_is_stopped(job->device)) {
        return;
    }
    tkv_host_place_scratch(
        job->kernels, &job->params.layer, job->plan.tile_rows,
        job->workspace + job->plan.scratch_at + (size_t)thread * job->plan.scratch_bytes, &scratch);
    const attend_work work = work_of_item(job, item);
    const size_t rows = (size_t)job->plan.tile_rows;
    attend_state states[TKV_HOST_STATES];
    for (int kind = 0; kind < TKV_HOST_STATES; kind++) {
        states[kind] = state_of_item(job, (size_t)item, kind);
        for (size_t r = 0; r < rows; r++) {
            states[kind].maximum[r] = -INFINITY;
            states[kind].sum[r] = 0.0f;
        }
        memset(states[kind].sums, 0, job->plan.sum_floats * sizeof(float));
    }
    if (work.begin < work.end) {
        load_queries(job, &work, &scratch);
    }
    for (int block = work.begin; block < work.end; block++) {
        attend_block(job, &work, block, &scratch, states, counts_of_thread(job, thread));
    }
}

/* Adds the splits of one kind of block to out, the sums of one row of n_rows, relative to
 * `maximum`; returns the sum of their softmax. */
static float merge_state(const attend_job *job, size_t first_item, int kind, int r, int n_rows,
                         float maximum, float *out)
{
    const size_t width = (size_t)job->plan.sum_dim;
    const tkv_type type = (tkv_type)job->params.layer.type_v;
    const size_t n = kind == TKV_HOST_CODED ? tkv_sum_floats(type, (int)width, 1) : width;
    float total = 0.0f;
    for (int s = 0; s < job->plan.n_splits; s++) {
        const attend_state state = state_of_item(job, first_item + (size_t)s, kind);
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

/* The sums over coded values in the original domain, the mean added as often as it was taken off:
 * `coded` is the sum of their weights. */
static void finish_coded(const attend_job *job, int kv_head, float coded, float *sums)
{
    const int width = job->plan.sum_dim;
    const tkv_type type = (tkv_type)job->params.layer.type_v;
    const float *means = tkv_host_pointer(job->sequence->mean_v);
    if (coded == 0.0f || type == TKV_TYPE_F16) {
        return;
    }
    tkv_join_sums(type, width, 1, sums);
    job->kernels->unrotate(width, 1, sums);
    for (int j = 0; means && j < width; j++) {
        sums[j] += coded * means[(size_t)kv_head * (size_t)width + (size_t)j];
    }
}

/* Joins the splits of one row (flash decoding), adds the learned sink to the softmax's sum, and
 * writes the output in the original domain. Of a row that sees nothing that is 0. */
static void merge_row(const attend_job *job, int kv_head, int tile, int r)
{
    const tkv_host_plan *plan = &job->plan;
    const int n_rows = rows_of_tile(job, tile);
    float sums[2 * TKV_MAX_HEAD_DIM] = {0};
    const size_t query = (size_t)(tile * plan->tile_queries + r / plan->group);
    const size_t head = (size_t)(kv_head * plan->group + r % plan->group);
    const size_t row = query * (size_t)job->params.n_heads + head;
    const size_t first_item = (size_t)(kv_head * plan->n_tiles + tile) * (size_t)plan->n_splits;

    const float sink = job->sinks ? job->sinks[head] : -INFINITY;
    float maximum = sink;
    for (size_t i = 0; i < (size_t)plan->n_splits * TKV_HOST_STATES; i++) {
        const attend_state state =
            state_of_item(job, first_item + i / TKV_HOST_STATES, i % TKV_HOST_STATES);
        maximum = fmaxf(maximum, state.maximum[r]);
    }
    float total = sink > -INFINITY ? expf(sink - maximum) : 0.0f;
    const float coded = merge_state(job, first_item, TKV_HOST_CODED, r, n_rows, maximum, sums);
    finish_coded(job, kv_head, coded, sums);
    total += coded + merge_state(job, first_item, TKV_HOST_EXACT, r, n_rows, maximum, sums);
    float *out = job->out + row * (size_t)plan->n_value_dims;
    for (int j = 0; j < plan->n_value_dims; j++) {
        out[j] = total > 0.0f ? sums[j] / total : 0.0f;
    }
    if (job->log_sums) {
        job->log_sums[row] = maximum + logf(total);
    }
}

/* Merges the rows of one tile of one KV head. */
static void merge_unit(void *argument, int unit, int thread)
{
    (void)thread;
    const attend_job *job = argument;
    const int tile = unit % job->plan.n_tiles;
    for (int r = 0; r < rows_of_tile(job, tile); r++) {
        merge_row(job, unit / job->plan.n_tiles, tile, r);
    }
}

static tkv_status run_job(attend_job *job, tkv_error *error)
{
    const tkv_host_plan *plan = &job->plan;
    tkv_threads *threads = job->device->setup.threads;
    tkv_attend_stats *stats = tkv_host_pointer(job->params.stats);
    const int n_units = job->params.layer.n_kv_heads * plan->n_tiles;
    memset(counts_of_thread(job, 0), 0, (size_t)plan->n_threads * sizeof *stats);
    tkv_threads_run(threads, plan->n_threads, n_units * plan->n_splits, attend_item, job);
    if (tkv_host_is_stopped(job->device)) {
        return tkv_fail(error, TKV_ERR_INTERRUPTED, "attention was interrupted");
    }
    tkv_threads_run(threads, plan->n_threads, n_units, merge_unit, job);
    for (int i = 0; stats && i < plan->n_threads; i++) {
        stats->n_weights += counts_of_thread(job, i)->n_weights;
        stats->n_skipped += counts_of_thread(job, i)->n_skipped;
    }
    return TKV_OK;
}

/* What is the same for all sequences. */
static attend_job make_job(const tkv_host_device *device, const tkv_attend_plan *plan,
                           uint64_t workspace)
{
    const tkv_device_attend *params = &plan->params;
    attend_job job = {.device = device,
                      .kernels = device->setup.kernels,
                      .params = *params,
                      .layer = tkv_host_layer_of(&params->layer),
                      .end = params->end ? params->end : INT_MAX,
                      .sinks = tkv_host_pointer(params->sinks),
                      .workspace = tkv_host_pointer(workspace)};
    memcpy(&job.plan, plan->own, sizeof job.plan);
    return job;
}

tkv_status tkv_host_attend(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                           tkv_error *error)
{
    const tkv_device_attend *params = &plan->params;
    const tkv_device_sequence *sequences = tkv_host_pointer(params->sequences);
    const size_t n_rows = (size_t)params->n_queries * (size_t)params->n_heads;
    const float *q = tkv_host_pointer(params->q);
    float *out = tkv_host_pointer(params->out);
    float *log_sums = tkv_host_pointer(params->log_sums);
    attend_job job = make_job(tkv_host_of(device), plan, workspace);
    for (size_t s = 0; s < (size_t)params->n_sequences; s++) {
        job.sequence = &sequences[s];
        job.blocks = tkv_host_pointer(job.sequence->blocks);
        job.first_position = params->first_position < 0 ? job.sequence->n_tokens - params->n_queries
                                                        : params->first_position;
        job.has_centred_keys =
            job.sequence->mean_k && (tkv_type)params->layer.type_k != TKV_TYPE_F16;
        job.q = q + s * n_rows * (size_t)params->layer.head_dim_k;
        job.out = out + s * n_rows * (size_t)job.plan.n_value_dims;
        job.log_sums = log_sums ? log_sums + s * n_rows : NULL;
        TKV_TRY(run_job(&job, error));
    }
    return TKV_OK;
}
