/* What callers hand over, checked alike everywhere, and errors on their way back to them. */
#ifndef TKV_BASE_ERROR_H
#define TKV_BASE_ERROR_H

#include "turbokv.h"

/* Whether the end of a caller's struct is zeros, as turbokv.h asks; `what` names the struct. */
tkv_status tkv_check_reserved(size_t n, const uint64_t *reserved, const char *what,
                              tkv_error *error);

/* Returns the status of an expression from the function around it, unless it is TKV_OK. */
#define TKV_TRY(expression)                                                                        \
    do {                                                                                           \
        const tkv_status tkv_status_of_try = (expression);                                         \
        if (tkv_status_of_try != TKV_OK) {                                                         \
            return tkv_status_of_try;                                                              \
        }                                                                                          \
    } while (0)

#endif
