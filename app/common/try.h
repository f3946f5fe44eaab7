/* The flow of errors: what can fail and leaves nothing behind is tried; who owns something calls a
 * function that tries, and then frees it. */
#ifndef TKV_COMMON_TRY_H
#define TKV_COMMON_TRY_H

#include "turbokv.h"

/* Returns from the function with the status of a call that failed. */
#define TKV_TRY(call)                                                                              \
    do {                                                                                           \
        const tkv_status tried = (call);                                                           \
        if (tried != TKV_OK) {                                                                     \
            return tried;                                                                          \
        }                                                                                          \
    } while (0)

#endif
