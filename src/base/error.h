/* What callers hand over, checked alike everywhere. */
#ifndef TKV_BASE_ERROR_H
#define TKV_BASE_ERROR_H

#include "turbokv.h"

/* Whether the end of a caller's struct is zeros, as turbokv.h asks; `what` names the struct. */
tkv_status tkv_check_reserved(size_t n, const uint64_t *reserved, const char *what,
                              tkv_error *error);

#endif
