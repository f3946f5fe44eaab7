#include "eval/bandwidth.h"

#include "base/error.h"
#include "base/threads.h"
#include "eval/clock.h"

#include <stdlib.h>
#include <string.h>

#define PASSES 7
#define LANES 32

/* Adds up a part; enough independent sums to keep the loads busy. */
static uint64_t read_part(const uint64_t *words, size_t n)
{
    uint64_t sums[LANES] = {0};
    for (size_t i = 0; i + LANES <= n; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            sums[lane] += words[i + (size_t)lane];
        }
    }
    uint64_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) {
        sum += sums[lane];
    }
    return sum;
}

typedef struct reading {
    const uint64_t *words;
    size_t part;
    uint64_t *sums; /* [n_threads] */
} reading;

static void read_item(void *argument, int item, int thread)
{
    (void)thread;
    const reading *r = argument;
    r->sums[item] += read_part(r->words + (size_t)item * r->part, r->part);
}

tkv_status tkv_read_bandwidth(int n_threads, size_t n_bytes, double *bandwidth, tkv_error *error)
{
    tkv_threads *threads = NULL;
    const size_t part = n_bytes / sizeof(uint64_t) / (size_t)(n_threads > 0 ? n_threads : 1);
    uint64_t *words = malloc(part * (size_t)n_threads * sizeof *words);
    uint64_t *sums = calloc((size_t)n_threads, sizeof *sums);
    if (n_threads < 1 || part == 0 || !words || !sums) {
        free(words);
        free(sums);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "no memory to measure the bandwidth with %zu bytes and %d threads", n_bytes,
                        n_threads);
    }
    const tkv_status status = tkv_threads_create(n_threads, &threads, error);
    if (status != TKV_OK) {
        free(words);
        free(sums);
        return status;
    }
    memset(words, 1, part * (size_t)n_threads * sizeof *words);
    reading work = {words, part, sums};
    double best = 0.0;
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = tkv_clock();
        tkv_threads_run(threads, n_threads, n_threads, read_item, &work);
        const double seconds = tkv_clock() - start;
        const double speed = (double)(part * (size_t)n_threads * sizeof *words) / seconds;
        best = speed > best ? speed : best;
    }
    uint64_t total = 0;
    for (int i = 0; i < n_threads; i++) {
        total |= sums[i];
    }
    tkv_threads_free(threads);
    free(words);
    free(sums);
    /* The sums are used, so that no compiler leaves the reading out. */
    if (total == 0) {
        return tkv_fail(error, TKV_ERR_DEVICE, "memory does not hold what was written to it");
    }
    *bandwidth = best;
    return TKV_OK;
}
