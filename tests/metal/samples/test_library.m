/* The shim of Metal's standard library: library.metal's results against plain C. */
#include "samples.h"

enum { N_LANES = 32, N_BITS = 41, N_NUMBERS = 29 };

typedef struct result {
    uint32_t bits[48];
    float numbers[32];
} result;

static uint32_t value_of(uint32_t lane)
{
    return lane * 0x9e3779b9u;
}

static uint32_t rotated(uint32_t x, uint32_t n)
{
    return n % 32 == 0 ? x : x << n % 32 | x >> (32 - n % 32);
}

static uint32_t reversed(uint32_t x)
{
    uint32_t r = 0;
    for (int i = 0; i < 32; i++) {
        r |= (x >> i & 1) << (31 - i);
    }
    return r;
}

static uint32_t half_bits(float x)
{
    const _Float16 h = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}

static void fill_scalar_bits(uint32_t lane, uint32_t *r)
{
    const uint32_t x = value_of(lane);
    const uint32_t offset = lane % 24;
    r[0] = (uint32_t)__builtin_popcount(x);
    r[1] = x ? (uint32_t)__builtin_clz(x) : 32;
    r[2] = x ? (uint32_t)__builtin_ctz(x) : 32;
    r[3] = reversed(x);
    r[4] = rotated(x, lane);
    r[5] = x >> offset & 127;
    r[6] = r[5] >= 64 ? r[5] - 128 : r[5];
    r[7] = (x & ~(63u << 5)) | (lane & 63) << 5;
    r[8] = (uint32_t)((uint64_t)x * x >> 32);
    r[9] = (uint32_t)((int32_t)x < -1000 ? -1000 : (int32_t)x > 1000 ? 1000 : (int32_t)x);
    r[10] = x > UINT32_MAX / 2 ? UINT32_MAX : 2 * x;
    r[11] = x < 0x80000000u ? 0x80000000u - x : x - 0x80000000u;
    r[12] = x ^ 0x40000000u;
    r[13] = x > 0x80000000u ? 2 : 1;
    r[14] = (x > 16 ? 5 : 1) + 10 * (lane > 16 ? 5 : 2) + 100 * (x > 16 ? 5 : 3) +
            1000 * (lane > 16 ? 5 : 4);
    r[15] = lane < 2;
    r[16] = lane < 4;
    r[17] = half_bits((float)lane) | half_bits(-(float)lane) << 16;
    r[18] = lane | 1 << 8 | 2 << 16 | x << 24;
    r[19] = __builtin_bswap32(x);
    r[20] = (x & 0xffff) + 32;
    r[21] = (int16_t)x < 0;
}

static void fill_simd_bits(uint32_t lane, uint32_t *r)
{
    uint32_t sum = 0, before = 0, bits_and = ~0u, bits_or = 0, bits_xor = 0, ballot = 0;
    uint32_t largest[3] = {0};
    for (uint32_t i = 0; i < N_LANES; i++) {
        const uint32_t x = value_of(i);
        before += i < lane ? x : 0;
        sum += x;
        bits_and &= x | 1;
        bits_or |= x;
        bits_xor ^= x;
        ballot |= (uint32_t)(__builtin_popcount(x) % 2) << i;
        largest[2] = (x & 0xffff) > largest[2] ? x & 0xffff : largest[2];
    }
    const uint32_t x = value_of(lane);
    const uint32_t quad = lane & ~3u;
    const uint32_t in_quad = lane & 3;
    r[22] = value_of(31 - lane);
    r[23] = value_of(lane ^ 5);
    r[24] = value_of(lane < 3 ? lane : lane - 3);
    r[25] = value_of(lane > 28 ? lane : lane + 3);
    r[26] = value_of((lane + 29) % 32);
    r[27] = value_of((lane + 3) % 32);
    r[28] = value_of(7);
    r[29] = 1;
    r[30] = sum;
    r[31] = before;
    r[32] = before + x;
    r[33] = bits_and + bits_or + bits_xor;
    r[34] = ballot;
    r[35] = 1 + 4;
    r[36] = value_of(quad) + value_of(quad + 1) + value_of(quad + 2) + value_of(quad + 3) + quad +
            3 + quad;
    r[37] = value_of(lane ^ 3) + quad + 2;
    r[38] = value_of(in_quad < 1 ? lane : lane - 1) + value_of(in_quad > 1 ? lane : lane + 2);
    r[39] = 31 + 31 + largest[2] + 9;
    r[40] = (quad % 5 == 0 || quad % 5 > 1 ? 1u : 0u) + (quad > 3 ? 2u : 0u);
}

static float lane_real(uint32_t lane)
{
    return (float)lane * 0.37f - 4.0f;
}

static void fill_scalar_numbers(float x, double *r)
{
    const _Float16 h = (_Float16)x;
    const _Float16 squared = h * h;
    const _Float16 sum = squared + h;
    r[0] = exp(x);
    r[1] = 3 * exp2(x);
    r[2] = 1 / sqrt(fabs(x) + 1);
    r[3] = (double)x * x + x;
    r[4] = rint(x);
    r[5] = floor(x) + 100 * ceil(x);
    r[6] = round(x) + 100 * trunc(x);
    r[7] = fmin(fmax(x, -1), 2);
    r[8] = x + (1 - x) * 0.25;
    r[9] = x + 2 + 6 + 3 * x;
    r[10] = sqrt((double)x * x + 1);
    r[11] = 2 * x;
    r[12] = (x > 0) - (x < 0) + copysign(10, x);
    r[13] = 8 * x;
    r[14] = (double)h + (double)sum;
    r[15] = (double)h + 1.5;
    r[20] = N_LANES;
    r[21] = (x >= 0) + fmin(fmax(x, 0), 1) + x - floor(x);
    r[22] = 0;
    r[24] = 2 * 2 * x + 1;
    r[25] = 2 * (x + 1 + 2) + 4;
    r[26] = log2(fabs(x) + 1) + pow(2, x);
    r[27] = fabs(x);
    r[28] = 4 + 10;
}

static void fill_simd_numbers(uint32_t lane, double *r)
{
    double sum = 0;
    double product = 1;
    for (uint32_t i = 0; i < N_LANES; i++) {
        sum += lane_real(i);
        product *= 1 + lane_real(i) * 0.001;
    }
    r[16] = sum;
    r[17] = lane_real(0) + lane_real(31);
    r[18] = product;
    r[19] = lane_real(lane ^ 1) + 2;
    r[23] = lane / 127.0;
}

static id<MTLBuffer> run(id<MTLDevice> device, const char *kernel, id<MTLBuffer> first,
                         id<MTLBuffer> second, NSUInteger n_threads)
{
    id<MTLCommandBuffer> commands = [[device newCommandQueue] commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    [encoder setComputePipelineState:sample_pipeline(device, "library.metal", kernel,
                                                     [MTLFunctionConstantValues new])];
    [encoder setBuffer:first offset:0 atIndex:0];
    [encoder setBuffer:second offset:0 atIndex:1];
    [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
            threadsPerThreadgroup:MTLSizeMake(n_threads, 1, 1)];
    [encoder endEncoding];
    sample_finish(commands);
    return first;
}

static void computes_with_integers(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> buffer = [device newBufferWithLength:N_LANES * sizeof(result) options:0];
        const result *results = run(device, "integers", buffer, nil, N_LANES).contents;
        for (uint32_t lane = 0; lane < N_LANES; lane++) {
            uint32_t expected[48] = {0};
            fill_scalar_bits(lane, expected);
            fill_simd_bits(lane, expected);
            for (int i = 0; i < N_BITS; i++) {
                if (results[lane].bits[i] != expected[i]) {
                    fail_msg("lane %u, bits[%d]: expected %#x, got %#x", lane, i, expected[i],
                             results[lane].bits[i]);
                }
            }
        }
    }
}

static void computes_with_reals(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> buffer = [device newBufferWithLength:N_LANES * sizeof(result) options:0];
        id<MTLBuffer> triples = [device newBufferWithLength:N_LANES * 12 options:0];
        const result *results = run(device, "reals", buffer, triples, N_LANES).contents;
        for (uint32_t lane = 0; lane < N_LANES; lane++) {
            double expected[32] = {0};
            fill_scalar_numbers(lane_real(lane), expected);
            fill_simd_numbers(lane, expected);
            for (int i = 0; i < N_NUMBERS; i++) {
                const double got = results[lane].numbers[i];
                /* fmin and fmax of a NaN are the other argument, in safe math only. */
                const bool is_any = i == 11 && getenv("FAKE_METAL_MATH");
                if (!is_any && !(fabs(got - expected[i]) <= 2e-5 * (1 + fabs(expected[i])))) {
                    fail_msg("lane %u, numbers[%d]: expected %g, got %g", lane, i, expected[i],
                             got);
                }
            }
            assert_float_equal(((float *)triples.contents)[3 * lane + 2], 4.0f, 0.0f);
        }
    }
}

static void multiplies_transposed_matrices(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> a = [device newBufferWithLength:64 * 2 options:0];
        id<MTLBuffer> c = [device newBufferWithLength:8 * 16 * 4 options:0];
        _Float16 *left = a.contents;
        for (int i = 0; i < 64; i++) {
            left[i] = (_Float16)(i * i % 13 - 6);
        }
        run(device, "matrices", a, c, N_LANES);
        for (int i = 0; i < 64; i++) {
            const int row = i / 8;
            const int column = i % 8;
            float expected = 1.0f + 2.0f * (float)left[i];
            for (int k = 0; k < 8; k++) {
                expected += (float)left[8 * row + k] * (float)left[8 * column + k];
            }
            assert_float_equal(((float *)c.contents)[16 * row + 8 + column], expected, 0.0f);
            assert_float_equal(((float *)c.contents)[16 * row + column], 0.0f, 0.0f);
        }
    }
}

static void updates_atomically(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> largest = [device newBufferWithLength:8 options:0];
        id<MTLBuffer> sum = [device newBufferWithLength:4 options:0];
        run(device, "atomics", largest, sum, 64);
        assert_int_equal(((uint32_t *)largest.contents)[0], 63);
        assert_int_equal(((uint32_t *)largest.contents)[1], 63);
        assert_int_equal(((int32_t *)sum.contents)[0], -128);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(computes_with_integers),
        cmocka_unit_test(computes_with_reals),
        cmocka_unit_test(multiplies_transposed_matrices),
        cmocka_unit_test(updates_atomically),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
