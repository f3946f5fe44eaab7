/* The vector operations of vector_kernels.h on AVX-512 (F, BW, DQ, VL). */
#ifndef TKV_BACKEND_CPU_VECTOR_AVX512_H
#define TKV_BACKEND_CPU_VECTOR_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define V_LANES 16
#define V_ROWS 4 /* rows of a product that fit the registers */

typedef __m512 vfloat;
typedef __m512i vint;

typedef struct vtable {
    __m512 entries;
} vtable;

static inline vint v_load_int(const uint32_t *p)
{
    return _mm512_loadu_si512(p);
}

static inline vint v_set_int(uint32_t x)
{
    return _mm512_set1_epi32((int)x);
}

static inline vint v_right(vint x, int n)
{
    return _mm512_srl_epi32(x, _mm_cvtsi32_si128(n));
}

static inline vint v_left(vint x, int n)
{
    return _mm512_sll_epi32(x, _mm_cvtsi32_si128(n));
}

static inline vint v_right_signed(vint x, int n)
{
    return _mm512_sra_epi32(x, _mm_cvtsi32_si128(n));
}

static inline vint v_xor(vint a, vint b)
{
    return _mm512_xor_si512(a, b);
}

static inline vint v_or(vint a, vint b)
{
    return _mm512_or_si512(a, b);
}

/* Bits of a where mask is set, of b elsewhere. */
static inline vint v_select(vint mask, vint a, vint b)
{
    return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

static inline vtable v_table(const float entries[16])
{
    return (vtable){_mm512_loadu_ps(entries)};
}

/* Entry by the four lowest bits of each index. */
static inline vfloat v_lookup(vtable table, vint index)
{
    return _mm512_permutexvar_ps(index, table.entries);
}

static inline vfloat v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline vfloat v_load_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline void v_store(float *p, vfloat x)
{
    _mm512_storeu_ps(p, x);
}

static inline vfloat v_set(float x)
{
    return _mm512_set1_ps(x);
}

static inline vfloat v_add(vfloat a, vfloat b)
{
    return _mm512_add_ps(a, b);
}

static inline vfloat v_sub(vfloat a, vfloat b)
{
    return _mm512_sub_ps(a, b);
}

static inline vfloat v_mul(vfloat a, vfloat b)
{
    return _mm512_mul_ps(a, b);
}

static inline vfloat v_div(vfloat a, vfloat b)
{
    return _mm512_div_ps(a, b);
}

static inline vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vfloat v_max(vfloat a, vfloat b)
{
    return _mm512_max_ps(a, b);
}

static inline vfloat v_min(vfloat a, vfloat b)
{
    return _mm512_min_ps(a, b);
}

static inline vfloat v_from_int(vint x)
{
    return _mm512_cvtepi32_ps(x);
}

/* Nearest integer. */
static inline vint v_to_int(vfloat x)
{
    return _mm512_cvtps_epi32(x);
}

/* 2^n for n from -126 to 127. */
static inline vfloat v_power_of_two(vint n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

static inline float v_sum(vfloat x)
{
    return _mm512_reduce_add_ps(x);
}

static inline float v_maximum(vfloat x)
{
    return _mm512_reduce_max_ps(x);
}

#endif
