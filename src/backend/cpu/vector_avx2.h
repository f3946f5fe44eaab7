/* The vector operations of vector_kernels.h on AVX2 with FMA and F16C. */
#ifndef TKV_BACKEND_CPU_VECTOR_AVX2_H
#define TKV_BACKEND_CPU_VECTOR_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define V_LANES 8
#define V_ROWS 2 /* rows of a product that fit the registers */

typedef __m256 vfloat;
typedef __m256i vint;

typedef struct vtable {
    __m256 low;
    __m256 high;
} vtable;

static inline vint v_load_int(const uint32_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

static inline vint v_set_int(uint32_t x)
{
    return _mm256_set1_epi32((int)x);
}

static inline vint v_right(vint x, int n)
{
    return _mm256_srl_epi32(x, _mm_cvtsi32_si128(n));
}

static inline vint v_left(vint x, int n)
{
    return _mm256_sll_epi32(x, _mm_cvtsi32_si128(n));
}

static inline vint v_right_signed(vint x, int n)
{
    return _mm256_sra_epi32(x, _mm_cvtsi32_si128(n));
}

static inline vint v_xor(vint a, vint b)
{
    return _mm256_xor_si256(a, b);
}

static inline vint v_or(vint a, vint b)
{
    return _mm256_or_si256(a, b);
}

/* Bits of a where mask is set, of b elsewhere. */
static inline vint v_select(vint mask, vint a, vint b)
{
    return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}

static inline vtable v_table(const float entries[16])
{
    return (vtable){_mm256_loadu_ps(entries), _mm256_loadu_ps(entries + 8)};
}

/* Entry by the four lowest bits of each index: the blend looks at the sign bit. */
static inline vfloat v_lookup(vtable table, vint index)
{
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index),
                            _mm256_permutevar8x32_ps(table.high, index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

static inline vfloat v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline vfloat v_load_half(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline void v_store(float *p, vfloat x)
{
    _mm256_storeu_ps(p, x);
}

static inline vfloat v_set(float x)
{
    return _mm256_set1_ps(x);
}

static inline vfloat v_add(vfloat a, vfloat b)
{
    return _mm256_add_ps(a, b);
}

static inline vfloat v_sub(vfloat a, vfloat b)
{
    return _mm256_sub_ps(a, b);
}

static inline vfloat v_mul(vfloat a, vfloat b)
{
    return _mm256_mul_ps(a, b);
}

static inline vfloat v_div(vfloat a, vfloat b)
{
    return _mm256_div_ps(a, b);
}

static inline vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vfloat v_max(vfloat a, vfloat b)
{
    return _mm256_max_ps(a, b);
}

static inline vfloat v_min(vfloat a, vfloat b)
{
    return _mm256_min_ps(a, b);
}

static inline vfloat v_from_int(vint x)
{
    return _mm256_cvtepi32_ps(x);
}

/* Nearest integer. */
static inline vint v_to_int(vfloat x)
{
    return _mm256_cvtps_epi32(x);
}

/* 2^n for n from -126 to 127. */
static inline vfloat v_power_of_two(vint n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

static inline float v_sum(vfloat x)
{
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

static inline float v_maximum(vfloat x)
{
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}

#endif
