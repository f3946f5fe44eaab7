/* What happens to tokens as they age: means are estimated from the first tokens and frozen, and
 * exact blocks are coded when they have left the recent window. */
#include "cache/cache.h"

#include <stdlib.h>

#define CHUNK_ROWS 16

/* A mean is used if it holds this share of the rows' energy; smaller ones are mostly chance. */
#define MIN_MEAN_SHARE 0.1

static bool has_coded_type(const tkv_cache_layer *layer)
{
    return layer->type_k != TKV_TYPE_F16 || layer->type_v != TKV_TYPE_F16;
}

/* What a mean is made of. */
typedef struct row_sum {
    double sum[TKV_MAX_HEAD_DIM];
    double energy; /* squared norms */
} row_sum;

/* Rows that were read from a device: [centre_tokens][n_kv_heads][head_dim] of keys and values. */
typedef struct downloaded_rows {
    float *rows[2]; /* by tkv_page_order */
} downloaded_rows;

static void add_rows(int head_dim, int n_rows, const float *rows, size_t stride, row_sum *total)
{
    for (int i = 0; i < n_rows; i++) {
        for (int j = 0; j < head_dim; j++) {
            const double value = (double)rows[(size_t)i * stride + (size_t)j];
            total->sum[j] += value;
            total->energy += value * value;
        }
    }
}

/* Adds the first n_rows rows of a page. */
static void add_page(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                     int kv_head, tkv_page_order order, int n_rows, row_sum *total)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    float rows[CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < n_rows; done += CHUNK_ROWS) {
        const int n = n_rows - done < CHUNK_ROWS ? n_rows - done : CHUNK_ROWS;
        tkv_block_load(cache, layer, block, kv_head, order, done, n, rows, (size_t)head_dim);
        add_rows(head_dim, n, rows, (size_t)head_dim, total);
    }
}

static void add_pages(const tkv_cache *cache, const tkv_cache_layer *layer, int kv_head,
                      tkv_page_order order, row_sum *total)
{
    for (int done = 0; done < cache->centre_tokens; done += TKV_PAGE_TOKENS) {
        const int left = cache->centre_tokens - done;
        tkv_block *block = layer->blocks[tkv_block_of(cache, cache->n_sinks + done)];
        add_page(cache, layer, block, kv_head, order,
                 left < TKV_PAGE_TOKENS ? left : TKV_PAGE_TOKENS, total);
    }
}

/* The mean over the first centre_tokens positions after the sinks, all still exact; zero if it is
 * too small to be worth it. */
static void estimate_mean(const tkv_cache *cache, const tkv_cache_layer *layer,
                          const downloaded_rows *downloaded, int kv_head, tkv_page_order order,
                          float *mean)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    row_sum total = {{0}, 0.0};
    double mean_energy = 0.0;
    if (downloaded) {
        add_rows(head_dim, cache->centre_tokens, downloaded->rows[order] + kv_head * head_dim,
                 (size_t)cache->n_kv_heads * (size_t)head_dim, &total);
    } else {
        add_pages(cache, layer, kv_head, order, &total);
    }
    for (int j = 0; j < head_dim; j++) {
        const bool lasts = order == TKV_ORDER_VALUE || cache->has_lasting_mean[j];
        total.sum[j] = lasts ? total.sum[j] : 0.0;
        mean_energy += total.sum[j] * total.sum[j] / cache->centre_tokens;
    }
    const bool is_worth_it = mean_energy > MIN_MEAN_SHARE * total.energy;
    for (int j = 0; j < head_dim; j++) {
        mean[j] = is_worth_it ? (float)(total.sum[j] / cache->centre_tokens) : 0.0f;
    }
}

/* A layer, and the block of it that is coded. */
typedef struct settle_job {
    const tkv_cache *cache;
    tkv_cache_layer *layer;
    const downloaded_rows *downloaded; /* or NULL */
    tkv_block *exact;
    tkv_block *coded;
    int n_tokens;
} settle_job;

static void freeze_head(void *argument, int head, int thread)
{
    (void)thread;
    const settle_job *job = argument;
    estimate_mean(job->cache, job->layer, job->downloaded, head, TKV_ORDER_KEY,
                  job->layer->mean_k + (size_t)head * (size_t)job->cache->head_dim_k);
    estimate_mean(job->cache, job->layer, job->downloaded, head, TKV_ORDER_VALUE,
                  job->layer->mean_v + (size_t)head * (size_t)job->cache->head_dim_v);
}

static void estimate_means(const tkv_cache *cache, tkv_cache_layer *layer,
                           const downloaded_rows *downloaded)
{
    settle_job job = {.cache = cache, .layer = layer, .downloaded = downloaded};
    tkv_threads_run(cache->context->threads, cache->context->n_threads, cache->n_kv_heads,
                    freeze_head, &job);
}

/* The means of rows on a device are estimated here too, once in a layer's life, so that they are
 * the same to the bit. */
static bool estimate_device_means(const tkv_cache *cache, tkv_cache_layer *layer)
{
    const size_t rows = (size_t)cache->centre_tokens * (size_t)cache->n_kv_heads;
    downloaded_rows downloaded = {{malloc(rows * (size_t)cache->head_dim_k * sizeof(float)),
                                   malloc(rows * (size_t)cache->head_dim_v * sizeof(float))}};
    float *k = downloaded.rows[TKV_ORDER_KEY];
    float *v = downloaded.rows[TKV_ORDER_VALUE];
    const bool is_done = k && v &&
                         tkv_layer_download(cache, layer, cache->n_sinks, cache->centre_tokens, k,
                                            v, NULL) == TKV_OK;
    if (is_done) {
        estimate_means(cache, layer, &downloaded);
    }
    free(k);
    free(v);
    return is_done && tkv_layer_publish_means(cache, layer, NULL) == TKV_OK;
}

/* False if that fails for now. */
static bool freeze_means(const tkv_cache *cache, tkv_cache_layer *layer)
{
    if (cache->context->device) {
        if (!estimate_device_means(cache, layer)) {
            return false;
        }
    } else {
        estimate_means(cache, layer, NULL);
    }
    layer->is_centred = true;
    layer->is_centred =
        tkv_layer_publish(cache, layer, layer->n_blocks, layer->n_tokens, NULL) == TKV_OK;
    return layer->is_centred;
}

/* Codes the first n_tokens of one exact page. */
static void code_page(void *argument, int item, int thread)
{
    (void)thread;
    const settle_job *job = argument;
    const tkv_page_order order = item % 2 ? TKV_ORDER_VALUE : TKV_ORDER_KEY;
    const int head_dim = tkv_cache_head_dim(job->cache, order);
    float rows[CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < job->n_tokens; done += CHUNK_ROWS) {
        const int n = job->n_tokens - done < CHUNK_ROWS ? job->n_tokens - done : CHUNK_ROWS;
        tkv_block_load(job->cache, job->layer, job->exact, item / 2, order, done, n, rows,
                       (size_t)head_dim);
        tkv_block_store(job->cache, job->layer, job->coded, item / 2, order, done, n, rows,
                        (size_t)head_dim);
    }
}

static void code_block(const tkv_cache *cache, tkv_cache_layer *layer, int index)
{
    tkv_block *exact = layer->blocks[index];
    tkv_block *coded = NULL;
    if (tkv_block_create(cache, layer, index, false, &coded, NULL) != TKV_OK) {
        return;
    }
    const int filled = layer->n_tokens - tkv_block_start(cache, index);
    settle_job job = {.cache = cache,
                      .layer = layer,
                      .exact = exact,
                      .coded = coded,
                      .n_tokens = filled < TKV_PAGE_TOKENS ? filled : TKV_PAGE_TOKENS};
    tkv_threads_run(cache->context->threads, cache->context->n_threads, 2 * cache->n_kv_heads,
                    code_page, &job);
    layer->blocks[index] = coded;
    tkv_block_release(exact);
}

/* Codes the exact blocks [first, end). */
static void code_blocks(const tkv_cache *cache, tkv_cache_layer *layer, int first, int end)
{
    if (cache->context->device) {
        tkv_layer_code_on_device(cache, layer, first, end);
        return;
    }
    for (int i = first; i < end; i++) {
        code_block(cache, layer, i);
    }
}

/* One past the last block that has left the recent window of a query at `position`. */
static int end_of_old_blocks(const tkv_cache *cache, const tkv_cache_layer *layer, int position)
{
    int end = tkv_sink_blocks(cache);
    while (end < layer->n_blocks &&
           (cache->n_recent == 0 ||
            tkv_block_start(cache, end) + TKV_PAGE_TOKENS - 1 <= position - cache->n_recent)) {
        end++;
    }
    return end;
}

void tkv_layer_settle(const tkv_cache *cache, tkv_cache_layer *layer, int position)
{
    if (!has_coded_type(layer)) {
        return;
    }
    if (cache->centre_tokens > 0 && !layer->is_centred &&
        (layer->n_tokens < cache->n_sinks + cache->centre_tokens || !freeze_means(cache, layer))) {
        return;
    }
    const int end = end_of_old_blocks(cache, layer, position);
    for (int i = tkv_sink_blocks(cache); i < end;) {
        int next = i;
        while (next < end && layer->blocks[next]->is_exact) {
            next++;
        }
        code_blocks(cache, layer, i, next);
        i = next + 1;
    }
}
