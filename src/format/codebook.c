#include "format/codec.h"

#include <stddef.h>

static const int8_t levels2[] = TKV_CODEBOOK_LEVELS_2;
static const float thresholds2[] = TKV_CODEBOOK_THRESHOLDS_2;
static const int8_t levels3[] = TKV_CODEBOOK_LEVELS_3;
static const float thresholds3[] = TKV_CODEBOOK_THRESHOLDS_3;
static const int8_t levels4[] = TKV_CODEBOOK_LEVELS_4;
static const float thresholds4[] = TKV_CODEBOOK_THRESHOLDS_4;

static const tkv_codebook codebooks[] = {
    {4, levels2, thresholds2}, {8, levels3, thresholds3}, {16, levels4, thresholds4}};

const tkv_codebook *tkv_codebook_get(int bits)
{
    return bits >= 2 && bits <= 4 ? &codebooks[bits - 2] : NULL;
}
