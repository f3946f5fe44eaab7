#include "base/half.h"

#include "turbokv.h"

void tkv_floats_to_halves(size_t n, const float *x, uint16_t *halves)
{
    for (size_t i = 0; i < n; i++) {
        halves[i] = tkv_float_to_finite_half(x[i]);
    }
}

void tkv_halves_to_floats(size_t n, const uint16_t *halves, float *x)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = tkv_half_to_float(halves[i]);
    }
}
