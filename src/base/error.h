/* Filling a tkv_error. Used by every part of the project. */
#ifndef TKV_BASE_ERROR_H
#define TKV_BASE_ERROR_H

#include "turbokv.h"

/* Formats the message into *error (if not NULL) and returns `status`. */
tkv_status tkv_fail(tkv_error *error, tkv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
