#include "base/half.h"
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

/* The nearest half by search over all of them: an independent definition. */
static uint16_t nearest_half(float value)
{
    const double size = fabs((double)value);
    uint16_t low = 0;
    uint16_t high = 0x7c00; /* stands for 65536: what is nearer to it than to 65504 is infinite */
    while (high - low > 1) {
        const uint16_t middle = (uint16_t)((low + high) / 2);
        *(half_value(middle) <= size ? &low : &high) = middle;
    }
    const double below = size - half_value(low);
    const double above = half_value(high) - size;
    const bool is_up = above < below || (above == below && (high & 1) == 0);
    return (uint16_t)((is_up ? high : low) | (signbit(value) ? 0x8000 : 0));
}

/* Every exponent and sign with fractions at the edges and at random. */
static void all_exponents_round_as_defined(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (uint32_t exponent = 0; exponent < 255; exponent++) {
        for (int i = 0; i < 400; i++) {
            const uint32_t edges[] = {0,      1,      0xfff,  0x1000,  0x1001,
                                      0x1fff, 0x2000, 0x3000, 0x7fffff};
            const uint32_t fraction =
                i < 9 ? edges[i] : (uint32_t)(random_bits(&seed) & (i % 2 ? 0x7fffff : 0x7ff000));
            const uint32_t sign = (uint32_t)(i & 1) << 31;
            const float value = tkv_bits_float(sign | exponent << 23 | fraction);
            if (tkv_float_to_half(value) != nearest_half(value)) {
                fail_msg("%a became %#x", (double)value, (unsigned)tkv_float_to_half(value));
            }
        }
    }
}

static void extremes(void **state)
{
    (void)state;
    assert_int_equal(tkv_float_to_half(65519.0f), 0x7bff);
    assert_int_equal(tkv_float_to_half(65520.0f), 0x7c00);
    assert_int_equal(tkv_float_to_half(-INFINITY), 0xfc00);
    assert_int_equal(tkv_float_to_half(NAN) & 0x7fff, TKV_HALF_NAN);
    assert_int_equal(tkv_float_to_half(tkv_bits_float(0xff800001u)), 0x8000 | TKV_HALF_NAN);
    assert_int_equal(tkv_float_to_half(1e-30f), 0);
    assert_int_equal(tkv_float_to_half(-0.0f), 0x8000);
}

/* Infinity stays infinite; what is finite stays finite. */
static void finite_values_stay_finite(void **state)
{
    (void)state;
    assert_int_equal(tkv_float_to_finite_half(1.0f), 0x3c00);
    assert_int_equal(tkv_float_to_finite_half(65519.0f), 0x7bff);
    assert_int_equal(tkv_float_to_finite_half(65520.0f), 0x7bff);
    assert_int_equal(tkv_float_to_finite_half(-3.4e38f), 0xfbff);
    assert_int_equal(tkv_float_to_finite_half(INFINITY), 0x7c00);
    assert_int_equal(tkv_float_to_finite_half(-INFINITY), 0xfc00);
    assert_int_equal(tkv_float_to_finite_half(NAN) & 0x7fff, TKV_HALF_NAN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_is_read_exactly), cmocka_unit_test(rounding_is_to_nearest_even),
        cmocka_unit_test(all_exponents_round_as_defined), cmocka_unit_test(extremes),
        cmocka_unit_test(finite_values_stay_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
