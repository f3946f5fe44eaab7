#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

/* Texts from files may hold line ends and what a terminal obeys. */
static void replace_controls(char *message)
{
    for (; *message; message++) {
        const unsigned char c = (unsigned char)*message;
        *message = c < 0x20 || c == 0x7f ? '?' : *message;
    }
}

tkv_status tkv_fail(tkv_error *error, tkv_status status, const char *format, ...)
{
    if (error) {
        va_list args;
        va_start(args, format);
        error->status = status;
        vsnprintf(error->message, sizeof error->message, format, args);
        va_end(args);
        replace_controls(error->message);
    }
    return status;
}

tkv_status tkv_check_reserved(size_t n, const uint64_t *reserved, const char *what,
                              tkv_error *error)
{
    for (size_t i = 0; i < n; i++) {
        if (reserved[i]) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                            "%s has a field that version %s does not know, or was not all zeros "
                            "before it was filled in",
                            what, tkv_version());
        }
    }
    return TKV_OK;
}

const char *tkv_status_name(tkv_status status)
{
    switch (status) {
    case TKV_OK: return "ok";
    case TKV_ERR_INVALID_ARGUMENT: return "invalid argument";
    case TKV_ERR_UNSUPPORTED: return "unsupported";
    case TKV_ERR_OUT_OF_MEMORY: return "out of memory";
    case TKV_ERR_NOT_FINITE: return "not finite";
    case TKV_ERR_IO: return "input/output error";
    case TKV_ERR_FORMAT: return "bad format";
    case TKV_ERR_DEVICE: return "device error";
    case TKV_ERR_INTERRUPTED: return "interrupted";
    }
    return "unknown status";
}
