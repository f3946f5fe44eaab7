/* How fast this machine reads memory: the bound that benchmarks are set beside. */
#ifndef TKV_EVAL_BANDWIDTH_H
#define TKV_EVAL_BANDWIDTH_H

#include "turbokv.h"

/* Bytes a second at which n_threads read a buffer of n_bytes from end to end, each its own part;
 * the best of several passes. Fails if there is no memory. */
tkv_status tkv_read_bandwidth(int n_threads, size_t n_bytes, double *bandwidth, tkv_error *error);

#endif
