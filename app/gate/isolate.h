/* Work in a process of its own, so that what it may do to the process (an illegal instruction, a
 * driver that hangs) is a result and not the end. */
#ifndef TKV_GATE_ISOLATE_H
#define TKV_GATE_ISOLATE_H

#include "turbokv.h"

/* Fills `result`, which holds no pointers. */
typedef tkv_status (*tkv_isolated_work)(void *argument, void *result, tkv_error *error);

/* Runs the work in a child process and brings back its result of n_bytes and its error. To be
 * called before this process has started threads. TKV_ERR_DEVICE if the child died or was not done
 * after timeout_seconds. */
tkv_status tkv_isolate(tkv_isolated_work work, void *argument, void *result, size_t n_bytes,
                       int timeout_seconds, tkv_error *error);

#endif
