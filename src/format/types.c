#include "base/error.h"
#include "format/codec.h"

#include <string.h>

/* The enum of turbokv.h, which includes nothing, says what the table says. */
#define CHECK_NUMBER(id, name, number, ...)                                                        \
    _Static_assert((int)TKV_TYPE_##id == number, "the number of " name);
_Static_assert((int)TKV_CODING_HALF == TKV_CODE_HALF &&
                   (int)TKV_CODING_UNIFORM == TKV_CODE_UNIFORM &&
                   (int)TKV_CODING_CODEBOOK == TKV_CODE_CODEBOOK &&
                   (int)TKV_CODING_TRELLIS == TKV_CODE_TRELLIS &&
                   (int)TKV_CODING_SKETCH == TKV_CODE_SKETCH,
               "the kinds of codes");
#define PLUS_ONE(...) +1
TKV_TYPES(CHECK_NUMBER)
_Static_assert((int)TKV_TYPE_COUNT == TKV_TYPES(PLUS_ONE), "a line for each type");

#define INFO(id, name, number, kind, plane0, plane1, plane2, level_bits, side_fields, rounding,    \
             nmse, description)                                                                    \
    [number] = {name,                                                                              \
                description,                                                                       \
                TKV_CODE_##kind == TKV_CODE_HALF ? 16 : plane0 + plane1 + plane2,                  \
                side_fields,                                                                       \
                nmse,                                                                              \
                (tkv_coding)TKV_CODE_##kind},
static const tkv_type_info infos[TKV_TYPE_COUNT] = {TKV_TYPES(INFO)};

static bool is_type(tkv_type type)
{
    return (unsigned)type < (unsigned)TKV_TYPE_COUNT;
}

const tkv_type_info *tkv_type_get_info(tkv_type type)
{
    return is_type(type) ? &infos[type] : NULL;
}

tkv_status tkv_type_from_name(const char *name, tkv_type *type, tkv_error *error)
{
    if (!name || !type) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "type name or result pointer is NULL");
    }
    char valid[160] = "";
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        if (strcmp(name, infos[i].name) == 0) {
            *type = (tkv_type)i;
            return TKV_OK;
        }
        if (i > 0) {
            strncat(valid, ", ", sizeof valid - strlen(valid) - 1);
        }
        strncat(valid, infos[i].name, sizeof valid - strlen(valid) - 1);
    }
    return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "unknown KV type '%.40s': expected one of %s",
                    name, valid);
}

tkv_status tkv_check_head_dim(tkv_type type, int head_dim, tkv_error *error)
{
    if (!is_type(type)) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "KV type number %d: expected 0 to %d",
                        (int)type, TKV_TYPE_COUNT - 1);
    }
    if (head_dim < TKV_MIN_HEAD_DIM || head_dim > TKV_MAX_HEAD_DIM || head_dim % 2 != 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT,
                        "head_dim %d: expected an even number from %d to %d", head_dim,
                        TKV_MIN_HEAD_DIM, TKV_MAX_HEAD_DIM);
    }
    return TKV_OK;
}

tkv_status tkv_check_padded_dim(tkv_type type, int head_dim, tkv_error *error)
{
    const tkv_status status = tkv_check_head_dim(type, head_dim, error);
    if (status == TKV_OK && head_dim % TKV_DIM_STEP != 0) {
        return tkv_fail(
            error, TKV_ERR_INVALID_ARGUMENT,
            "head_dim %d: expected a multiple of %d, to which rows are padded with zeros", head_dim,
            TKV_DIM_STEP);
    }
    return status;
}

size_t tkv_row_bytes(tkv_type type, int head_dim)
{
    if (tkv_check_head_dim(type, head_dim, NULL) != TKV_OK) {
        return 0;
    }
    return (size_t)tkv_type_row_bytes((int)type, tkv_padded_dim(head_dim));
}

size_t tkv_page_bytes(tkv_type type, int head_dim)
{
    return TKV_PAGE_TOKENS * tkv_row_bytes(type, head_dim);
}

double tkv_bits_per_value(tkv_type type, int head_dim)
{
    const size_t bytes = tkv_row_bytes(type, head_dim);
    return bytes ? 8.0 * (double)bytes / head_dim : 0.0;
}
