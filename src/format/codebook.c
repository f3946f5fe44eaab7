#include "format/codec.h"

#include <stddef.h>

#define CODEBOOK(bits)                                                                             \
    static const int8_t levels##bits[] = TKV_CODEBOOK_LEVELS_##bits;                               \
    static const float thresholds##bits[] = TKV_CODEBOOK_THRESHOLDS_##bits;                        \
    static const tkv_codebook codebook##bits = {1 << bits, levels##bits, thresholds##bits};        \
    _Static_assert(sizeof levels##bits == 1 << bits, "levels of so many bits");

TKV_CODEBOOKS(CODEBOOK)

/* There is one for each type that needs it. */
#define BIT(bits) | 1 << bits
#define CHECK_TYPE(id, name, number, kind, plane0, plane1, plane2, level_bits, ...)                \
    _Static_assert((TKV_CODE_##kind != TKV_CODE_CODEBOOK && TKV_CODE_##kind != TKV_CODE_SKETCH) || \
                       ((0 TKV_CODEBOOKS(BIT)) >> level_bits & 1),                                 \
                   "the codebook of " name);
TKV_TYPES(CHECK_TYPE)

#define CASE(bits)                                                                                 \
    case bits: return &codebook##bits;

const tkv_codebook *tkv_codebook_get(int bits)
{
    switch (bits) {
        TKV_CODEBOOKS(CASE)
    }
    return NULL;
}
