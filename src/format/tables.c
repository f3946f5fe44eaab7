/* What bridges take from the format: tables and codes apart. */
#include "base/error.h"
#include "format/codec.h"

#include <string.h>

const tkv_codebook *tkv_type_codebook(tkv_type type)
{
    if ((unsigned)type >= (unsigned)TKV_TYPE_COUNT) {
        return NULL;
    }
    const tkv_code_kind kind = tkv_type_kind(type);
    return kind == TKV_CODE_CODEBOOK || kind == TKV_CODE_SKETCH
               ? tkv_codebook_get(tkv_type_level_bits(type))
               : NULL;
}

const uint32_t *tkv_rotation_sign_words(int round)
{
    return round == 0 || round == 1 ? tkv_rotation_signs[round] : NULL;
}

tkv_status tkv_unpack_codes(tkv_type type, int head_dim, size_t n_rows, const void *rows,
                            uint8_t *codes, uint16_t *sides, tkv_error *error)
{
    if (!rows || !codes || !sides) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "rows, codes or sides is NULL");
    }
    TKV_TRY(tkv_check_head_dim(type, head_dim, error));
    if (tkv_type_n_planes(type) == 0) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "rows of type %s have no codes",
                        tkv_type_get_info(type)->name);
    }
    const int padded = tkv_padded_dim(head_dim);
    const size_t n_fields = (size_t)tkv_type_side_fields(type);
    const uint8_t *record = rows;
    for (size_t i = 0; i < n_rows; i++, record += tkv_row_bytes(type, head_dim)) {
        tkv_row_codes row;
        tkv_unpack_row(type, padded, record, &row);
        memcpy(codes + i * (size_t)padded, row.codes, (size_t)padded);
        memcpy(sides + i * n_fields, row.side, n_fields * sizeof *sides);
    }
    return TKV_OK;
}
