/* What happens to tokens as they age: means are estimated from the first tokens and frozen, and
 * exact blocks are coded when they have left the recent window. */
#include "cache/cache.h"

#include <string.h>

#define CHUNK_ROWS 16

/* A mean is used if it holds this share of the rows' energy; smaller ones are mostly chance. */
#define MIN_MEAN_SHARE 0.1

static bool has_coded_type(const tkv_cache_layer *layer)
{
    return layer->type_k != TKV_TYPE_F16 || layer->type_v != TKV_TYPE_F16;
}

/* Adds rows [first_slot, first_slot + n_rows) of a page to sum, in double, and their squared norms
 * to *energy. */
static void add_rows(const tkv_cache *cache, const tkv_cache_layer *layer, tkv_block *block,
                     int kv_head, tkv_page_order order, int first_slot, int n_rows, double *sum,
                     double *energy)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    float rows[CHUNK_ROWS * TKV_MAX_HEAD_DIM];
    for (int done = 0; done < n_rows; done += CHUNK_ROWS) {
        const int n = n_rows - done < CHUNK_ROWS ? n_rows - done : CHUNK_ROWS;
        tkv_block_load(cache, layer, block, kv_head, order, first_slot + done, n, rows,
                       (size_t)head_dim);
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < head_dim; j++) {
                const double value = (double)rows[i * head_dim + j];
                sum[j] += value;
                *energy += value * value;
            }
        }
    }
}

/* The mean over the first centre_tokens positions after the sinks, all still exact; zero if it is
 * too small to be worth it. */
static void estimate_mean(const tkv_cache *cache, const tkv_cache_layer *layer, int kv_head,
                          tkv_page_order order, float *mean)
{
    const int head_dim = tkv_cache_head_dim(cache, order);
    double sum[TKV_MAX_HEAD_DIM] = {0};
    double energy = 0.0;
    double mean_energy = 0.0;
    for (int done = 0; done < cache->centre_tokens; done += TKV_PAGE_TOKENS) {
        const int left = cache->centre_tokens - done;
        tkv_block *block = layer->blocks[tkv_block_of(cache, cache->n_sinks + done)];
        add_rows(cache, layer, block, kv_head, order, 0,
                 left < TKV_PAGE_TOKENS ? left : TKV_PAGE_TOKENS, sum, &energy);
    }
    for (int j = 0; j < head_dim; j++) {
        const bool lasts = order == TKV_ORDER_VALUE || cache->has_lasting_mean[j];
        sum[j] = lasts ? sum[j] : 0.0;
        mean_energy += sum[j] * sum[j] / cache->centre_tokens;
    }
    const bool is_worth_it = mean_energy > MIN_MEAN_SHARE * energy;
    for (int j = 0; j < head_dim; j++) {
        mean[j] = is_worth_it ? (float)(sum[j] / cache->centre_tokens) : 0.0f;
    }
}

/* A layer, and the block of it that is coded. */
typedef struct settle_job {
    const tkv_cache *cache;
    tkv_cache_layer *layer;
    tkv_block *exact;
    tkv_block *coded;
    int n_tokens;
} settle_job;

static void freeze_head(void *argument, int head, int thread)
{
    (void)thread;
    const settle_job *job = argument;
    estimate_mean(job->cache, job->layer, head, TKV_ORDER_KEY,
                  job->layer->mean_k + (size_t)head * (size_t)job->cache->head_dim_k);
    estimate_mean(job->cache, job->layer, head, TKV_ORDER_VALUE,
                  job->layer->mean_v + (size_t)head * (size_t)job->cache->head_dim_v);
}

static void freeze_means(const tkv_cache *cache, tkv_cache_layer *layer)
{
    settle_job job = {.cache = cache, .layer = layer};
    tkv_threads_run(cache->context->threads, cache->context->n_threads, cache->n_kv_heads,
                    freeze_head, &job);
    layer->is_centred = true;
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
    size_t bytes;
    tkv_block *coded = tkv_block_create(cache, layer, index, false, &bytes);
    if (!coded) {
        return;
    }
    const int filled = layer->n_tokens - tkv_block_start(cache, index);
    settle_job job = {cache, layer, exact, coded,
                      filled < TKV_PAGE_TOKENS ? filled : TKV_PAGE_TOKENS};
    tkv_threads_run(cache->context->threads, cache->context->n_threads, 2 * cache->n_kv_heads,
                    code_page, &job);
    layer->blocks[index] = coded;
    tkv_block_release(exact);
}

void tkv_layer_settle(const tkv_cache *cache, tkv_cache_layer *layer, int position)
{
    if (!has_coded_type(layer)) {
        return;
    }
    if (cache->centre_tokens > 0 && !layer->is_centred) {
        if (layer->n_tokens < cache->n_sinks + cache->centre_tokens) {
            return;
        }
        freeze_means(cache, layer);
    }
    for (int i = tkv_sink_blocks(cache); i < layer->n_blocks; i++) {
        const int last = tkv_block_start(cache, i) + TKV_PAGE_TOKENS - 1;
        if (cache->n_recent > 0 && last > position - cache->n_recent) {
            break;
        }
        if (layer->blocks[i]->is_exact) {
            code_block(cache, layer, i);
        }
    }
}
