#include "base/error.h"
#include "format/codec.h"

#include <string.h>

typedef struct type_entry {
    tkv_type_info info;
    tkv_type_layout layout;
} type_entry;

/* expected_nmse: with the unbiased scale, at head_dim 128. For long rows a Lloyd-Max codebook of
 * distortion D tends to D/(1-D). */
static const type_entry types[TKV_TYPE_COUNT] = {
    [TKV_TYPE_F16] = {{"f16", "IEEE half precision, not rotated", 16, 0, 4.3e-8},
                      {TKV_CODE_HALF, 0, 0, {0}, 0}},
    [TKV_TYPE_TURBO8] = {{"turbo8", "rotated, 255 uniform levels scaled to the row", 8, 1, 4.1e-5},
                         {TKV_CODE_UNIFORM, 0, 1, {8}, 1}},
    [TKV_TYPE_TURBO4] = {{"turbo4", "rotated, 16 Lloyd-Max levels", 4, 1, 0.0092},
                         {TKV_CODE_CODEBOOK, 4, 1, {4}, 1}},
    [TKV_TYPE_TURBO3] = {{"turbo3", "rotated, 8 Lloyd-Max levels", 3, 1, 0.0347},
                         {TKV_CODE_CODEBOOK, 3, 2, {2, 1}, 1}},
    [TKV_TYPE_TURBO2] = {{"turbo2", "rotated, 4 Lloyd-Max levels", 2, 1, 0.1305},
                         {TKV_CODE_CODEBOOK, 2, 1, {2}, 1}},
    [TKV_TYPE_TRELLIS3] = {{"trellis3", "rotated, 256-state trellis code on 16 levels", 3, 1,
                            0.0208},
                           {TKV_CODE_TRELLIS, 4, 2, {2, 1}, 1}},
    [TKV_TYPE_TRELLIS2] = {{"trellis2", "rotated, 256-state trellis code on 8 levels", 2, 1,
                            0.0809},
                           {TKV_CODE_TRELLIS, 3, 2, {1, 1}, 1}},
    [TKV_TYPE_TURBO4Q] = {{"turbo4q", "turbo3 and the residual's signs (QJL); for keys", 4, 2,
                           0.0196},
                          {TKV_CODE_SKETCH, 3, 3, {2, 1, 1}, 2}},
    [TKV_TYPE_TURBO3Q] = {{"turbo3q", "turbo2 and the residual's signs (QJL); for keys", 3, 2,
                           0.0660},
                          {TKV_CODE_SKETCH, 2, 2, {2, 1}, 2}},
};

static bool is_type(tkv_type type)
{
    return (unsigned)type < (unsigned)TKV_TYPE_COUNT;
}

const tkv_type_info *tkv_type_get_info(tkv_type type)
{
    return is_type(type) ? &types[type].info : NULL;
}

const tkv_type_layout *tkv_type_get_layout(tkv_type type)
{
    return &types[type].layout;
}

tkv_status tkv_type_from_name(const char *name, tkv_type *type, tkv_error *error)
{
    if (!name || !type) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "type name or result pointer is NULL");
    }
    char valid[160] = "";
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        if (strcmp(name, types[i].info.name) == 0) {
            *type = (tkv_type)i;
            return TKV_OK;
        }
        if (i > 0) {
            strncat(valid, ", ", sizeof valid - strlen(valid) - 1);
        }
        strncat(valid, types[i].info.name, sizeof valid - strlen(valid) - 1);
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
    const tkv_type_info *info = &types[type].info;
    return (size_t)tkv_padded_dim(head_dim) * (size_t)info->code_bits / 8 +
           2 * (size_t)info->side_fields;
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
