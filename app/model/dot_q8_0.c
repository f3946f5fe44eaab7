#include "model/dot_q8_0.h"

#include "model/half.h"

#include <stdbool.h>
#include <string.h>

#define BLOCK 32
#define BLOCK_BYTES 34 /* half scale, int8 values[32] */
#define ROWS TKV_DOT_ROWS

/* Asks for the same place of the rows after the next ones: in four short streams at a time the
 * processor does not see by itself what will be read. */
static inline void ask_ahead(const uint8_t *block, size_t row_bytes)
{
    __builtin_prefetch((const void *)((uintptr_t)block + 2 * ROWS * row_bytes));
}

/* The longest lanes that plain C can hope for. */
#define LANES 16

static void dot_portable(size_t n, const uint8_t *rows, size_t row_bytes, const float *x, float *y)
{
    for (int r = 0; r < ROWS; r++) {
        const uint8_t *block = rows + (size_t)r * row_bytes;
        float lanes[LANES] = {0};
        for (size_t i = 0; i < n; i += BLOCK, block += BLOCK_BYTES) {
            const float scale = tkv_weight_at(block);
            const int8_t *codes = (const int8_t *)block + 2;
            for (int l = 0; l < LANES; l++) {
                lanes[l] += scale * ((float)codes[l] * x[i + (size_t)l] +
                                     (float)codes[l + LANES] * x[i + (size_t)(l + LANES)]);
            }
        }
        y[r] = 0.0f;
        for (int l = 0; l < LANES; l++) {
            y[r] += lanes[l];
        }
    }
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,f16c")))

AVX2 static inline __m256 load_8(const uint8_t *codes)
{
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)codes);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

AVX2 static inline float scale_of(const uint8_t *block)
{
    uint16_t half;
    memcpy(&half, block, sizeof half);
    return _cvtsh_ss(half);
}

AVX2 static inline float sum_8(__m256 x)
{
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

AVX2 static void dot_avx2(size_t n, const uint8_t *rows, size_t row_bytes, const float *x, float *y)
{
    __m256 sums[ROWS] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                         _mm256_setzero_ps()};
    for (size_t i = 0; i < n; i += BLOCK, rows += BLOCK_BYTES) {
        const __m256 x0 = _mm256_loadu_ps(x + i);
        const __m256 x1 = _mm256_loadu_ps(x + i + 8);
        const __m256 x2 = _mm256_loadu_ps(x + i + 16);
        const __m256 x3 = _mm256_loadu_ps(x + i + 24);
        for (int r = 0; r < ROWS; r++) {
            const uint8_t *block = rows + (size_t)r * row_bytes;
            ask_ahead(block, row_bytes);
            __m256 sum = _mm256_mul_ps(load_8(block + 2), x0);
            sum = _mm256_fmadd_ps(load_8(block + 10), x1, sum);
            sum = _mm256_fmadd_ps(load_8(block + 18), x2, sum);
            sum = _mm256_fmadd_ps(load_8(block + 26), x3, sum);
            sums[r] = _mm256_fmadd_ps(_mm256_set1_ps(scale_of(block)), sum, sums[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        y[r] = sum_8(sums[r]);
    }
}

AVX512 static inline __m512 load_16(const uint8_t *codes)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)codes);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

AVX512 static void dot_avx512(size_t n, const uint8_t *rows, size_t row_bytes, const float *x,
                              float *y)
{
    __m512 sums[ROWS] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                         _mm512_setzero_ps()};
    for (size_t i = 0; i < n; i += BLOCK, rows += BLOCK_BYTES) {
        const __m512 x0 = _mm512_loadu_ps(x + i);
        const __m512 x1 = _mm512_loadu_ps(x + i + 16);
        for (int r = 0; r < ROWS; r++) {
            const uint8_t *block = rows + (size_t)r * row_bytes;
            uint16_t half;
            memcpy(&half, block, sizeof half);
            ask_ahead(block, row_bytes);
            __m512 sum = _mm512_mul_ps(load_16(block + 2), x0);
            sum = _mm512_fmadd_ps(load_16(block + 18), x1, sum);
            sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(_cvtsh_ss(half)), sum, sums[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        y[r] = _mm512_reduce_add_ps(sums[r]);
    }
}
#endif

#if defined(__x86_64__)
/* Clang 14's __builtin_cpu_supports does not know "f16c". */
static bool has_f16c(void)
{
    unsigned a;
    unsigned b;
    unsigned c = 0;
    unsigned d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

tkv_dot_q8_0 tkv_dot_q8_0_get(void)
{
#if defined(__x86_64__)
    if (has_f16c() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return __builtin_cpu_supports("avx512f") ? dot_avx512 : dot_avx2;
    }
#endif
    return dot_portable;
}
