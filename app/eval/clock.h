/* Seconds of a clock that only goes forward, and their order. */
#ifndef TKV_EVAL_CLOCK_H
#define TKV_EVAL_CLOCK_H

#include <stdlib.h>
#include <time.h>

static inline double tkv_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline int tkv_compare_seconds(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The shortest first. */
static inline void tkv_sort_seconds(int n, double *seconds)
{
    qsort(seconds, (size_t)n, sizeof *seconds, tkv_compare_seconds);
}

#endif
