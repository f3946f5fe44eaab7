/* Numbers in the arrays of callers. */
#include "base/half.h"
#include "store/store.h"

#include <string.h>

static float from_bfloat(uint16_t value)
{
    return tkv_bits_float((uint32_t)value << 16);
}

/* Rounded to the nearest even; NaN stays NaN. */
static uint16_t to_bfloat(float value)
{
    const uint32_t bits = tkv_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

size_t tkv_element_bytes(tkv_element element)
{
    return element == TKV_ELEMENT_F32 ? 4 : 2;
}

void tkv_elements_load(tkv_element element, const void *array, size_t at, size_t n, float *x)
{
    const uint16_t *shorts = (const uint16_t *)array + at;
    switch (element) {
    case TKV_ELEMENT_F32: memcpy(x, (const float *)array + at, n * sizeof *x); return;
    case TKV_ELEMENT_F16: tkv_halves_to_floats(n, shorts, x); return;
    case TKV_ELEMENT_BF16:
        for (size_t i = 0; i < n; i++) {
            x[i] = from_bfloat(shorts[i]);
        }
        return;
    case TKV_ELEMENT_COUNT: return;
    }
}

void tkv_elements_save(tkv_element element, void *array, size_t at, size_t n, const float *x)
{
    uint16_t *shorts = (uint16_t *)array + at;
    switch (element) {
    case TKV_ELEMENT_F32: memcpy((float *)array + at, x, n * sizeof *x); return;
    case TKV_ELEMENT_F16: tkv_floats_to_halves(n, x, shorts); return;
    case TKV_ELEMENT_BF16:
        for (size_t i = 0; i < n; i++) {
            shorts[i] = to_bfloat(x[i]);
        }
        return;
    case TKV_ELEMENT_COUNT: return;
    }
}

tkv_layout tkv_layout_of(const tkv_layout *layout, int64_t n_rows, int n_heads, int head_dim)
{
    tkv_layout full = layout ? *layout : (tkv_layout){TKV_ELEMENT_F32, 0, 0, 0};
    full.head_stride = full.head_stride ? full.head_stride : (size_t)head_dim;
    full.row_stride = full.row_stride ? full.row_stride : (size_t)n_heads * (size_t)head_dim;
    full.stream_stride = full.stream_stride ? full.stream_stride
                                            : (size_t)n_rows * (size_t)n_heads * (size_t)head_dim;
    return full;
}
