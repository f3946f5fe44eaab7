/* Seconds of a clock that only goes forward. */
#ifndef TKV_BASE_CLOCK_H
#define TKV_BASE_CLOCK_H

#include <time.h>

static inline double tkv_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#endif
