#include "common/half.h"
#include "support/support.h"

/* The definition, in double. */
static double half_value(uint16_t half)
{
    const int exponent = half >> 10 & 31;
    const int fraction = half & 1023;
    const double magnitude =
        exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void every_half_is_read_exactly(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x10000; half++) {
        const float value = tkv_half_to_float((uint16_t)half);
        if ((half & 0x7c00) == 0x7c00) {
            assert_true(half & 0x3ff ? isnan(value) : isinf(value));
            continue;
        }
        assert_true((double)value == half_value((uint16_t)half));
        assert_int_equal(signbit(value) != 0, half >> 15);
        assert_int_equal(tkv_float_to_half(value), half);
    }
}

/* Between two neighbouring halves, the middle goes to the even one and the rest to the nearest. */
static void rounding_is_to_nearest_even(void **state)
{
    (void)state;
    for (uint16_t half = 0; half < 0x7bff; half++) {
        const double low = half_value(half);
        const double high = half_value((uint16_t)(half + 1));
        const float middle = (float)(0.5 * (low + high));
        const uint16_t even = half & 1 ? (uint16_t)(half + 1) : half;
        assert_int_equal(tkv_float_to_half(middle), even);
        assert_int_equal(tkv_float_to_half(-middle), even | 0x8000);
        assert_int_equal(tkv_float_to_half(nextafterf(middle, 0.0f)), half);
        assert_int_equal(tkv_float_to_half(nextafterf(middle, 1e9f)), half + 1);
    }
}

static void extremes(void **state)
{
    (void)state;
    assert_int_equal(tkv_float_to_half(65519.0f), 0x7bff);
    assert_int_equal(tkv_float_to_half(65520.0f), 0x7c00);
    assert_int_equal(tkv_float_to_half(-INFINITY), 0xfc00);
    assert_int_equal(tkv_float_to_half(NAN) & 0x7fff, TKV_HALF_NAN);
    assert_int_equal(tkv_float_to_half(1e-30f), 0);
    assert_int_equal(tkv_float_to_half(-0.0f), 0x8000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_half_is_read_exactly),
                                       cmocka_unit_test(rounding_is_to_nearest_even),
                                       cmocka_unit_test(extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
