#include "eval/bandwidth.h"

#include "common/error.h"
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

tkv_status tkv_read_bandwidth(int n_threads, size_t n_bytes, double *bandwidth, tkv_error *error)
{
    const size_t part = n_bytes / sizeof(uint64_t) / (size_t)(n_threads > 0 ? n_threads : 1);
    uint64_t *words = malloc(part * (size_t)n_threads * sizeof *words);
    if (n_threads < 1 || part == 0 || !words) {
        free(words);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                        "no memory to measure the bandwidth with %zu bytes and %d threads", n_bytes,
                        n_threads);
    }
    memset(words, 1, part * (size_t)n_threads * sizeof *words);
    double best = 0.0;
    uint64_t total = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        uint64_t sum = 0;
        const double start = tkv_clock();
#pragma omp parallel for num_threads(n_threads) reduction(+ : sum) schedule(static, 1)
        for (int t = 0; t < n_threads; t++) {
            sum += read_part(words + (size_t)t * part, part);
        }
        const double seconds = tkv_clock() - start;
        const double speed = (double)(part * (size_t)n_threads * sizeof *words) / seconds;
        best = speed > best ? speed : best;
        total += sum;
    }
    free(words);
    /* The sum is used, so that no compiler leaves the reading out. */
    if (total == 0) {
        return tkv_fail(error, TKV_ERR_DEVICE, "memory does not hold what was written to it");
    }
    *bandwidth = best;
    return TKV_OK;
}
