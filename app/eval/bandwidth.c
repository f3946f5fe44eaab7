#include "eval/bandwidth.h"

#include "common/try.h"
#include "eval/clock.h"

#include <math.h>
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

/* Seconds of the fastest pass; 0 if memory does not hold what was written to it: the sums are used,
 * so that no compiler leaves the reading out. */
static double fastest_pass(const tkv_context *context, int n_threads, reading *work)
{
    double best = INFINITY;
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = tkv_clock();
        tkv_context_run(context, n_threads, n_threads, read_item, work);
        best = fmin(best, tkv_clock() - start);
    }
    uint64_t total = 0;
    for (int i = 0; i < n_threads; i++) {
        total |= work->sums[i];
    }
    return total ? best : 0.0;
}

tkv_status tkv_read_bandwidth(int n_threads, size_t n_bytes, double *bandwidth, tkv_error *error)
{
    tkv_context *context = NULL;
    TKV_TRY(tkv_context_create(&(tkv_context_params){.n_threads = n_threads}, &context, error));
    n_threads = tkv_context_threads(context);
    const size_t part = n_bytes / sizeof(uint64_t) / (size_t)n_threads;
    const size_t bytes = part * (size_t)n_threads * sizeof(uint64_t);
    uint64_t *words = malloc(bytes);
    uint64_t *sums = calloc((size_t)n_threads, sizeof *sums);
    tkv_status status = TKV_OK;
    if (part == 0 || !words || !sums) {
        status = tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                          "no memory to measure the bandwidth with %zu bytes and %d threads",
                          n_bytes, n_threads);
    } else {
        memset(words, 1, bytes);
        const double seconds = fastest_pass(context, n_threads, &(reading){words, part, sums});
        *bandwidth = (double)bytes / seconds;
        if (seconds == 0.0) {
            status = tkv_fail(error, TKV_ERR_DEVICE, "memory does not hold what was written to it");
        }
    }
    tkv_context_free(context);
    free(words);
    free(sums);
    return status;
}
