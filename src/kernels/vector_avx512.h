/* The vector operations of vector_kernels.h on AVX-512 (F, BW, DQ, VL, VNNI,
 * VBMI, VBMI2: Ice Lake, Zen 4 and later; older ones take the AVX2 kernels). */
#ifndef TKV_KERNELS_VECTOR_AVX512_H
#define TKV_KERNELS_VECTOR_AVX512_H

#include "base/half.h"

#include <immintrin.h>
#include <stdint.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

#define V_LANES 16
#define V_ROWS 4  /* rows of a product that fit the registers */
#define V_BLOCK 8 /* rows times vectors of an integer product that fit the registers */

typedef __m512 vfloat;
typedef __m512i vint;

typedef struct vtable {
    __m512 entries;
} vtable;

typedef struct vbytes {
    __m512i entries;
} vbytes;

static inline vint v_load_int(const uint32_t *p)
{
    return _mm512_loadu_si512(p);
}

static inline void v_store_int(uint32_t *p, vint x)
{
    _mm512_storeu_si512(p, x);
}

static inline vint v_set_int(uint32_t x)
{
    return _mm512_set1_epi32((int)x);
}

/* In the vector types of the compiler, so that a constant count becomes an immediate. */
static ALWAYS_INLINE vint v_right(vint x, int n)
{
    return (vint)((__v16su)x >> n);
}

static ALWAYS_INLINE vint v_left(vint x, int n)
{
    return (vint)((__v16su)x << n);
}

static ALWAYS_INLINE vint v_right_signed(vint x, int n)
{
    return (vint)((__v16si)x >> n);
}

/* To the left by n bits, or to the right by -n. */
static ALWAYS_INLINE vint v_shift(vint x, int n)
{
    return n >= 0 ? v_left(x, n) : v_right(x, -n);
}

static inline vint v_add_int(vint a, vint b)
{
    return _mm512_add_epi32(a, b);
}

static inline vint v_sub_int(vint a, vint b)
{
    return _mm512_sub_epi32(a, b);
}

static inline vint v_xor(vint a, vint b)
{
    return _mm512_xor_si512(a, b);
}

static inline vint v_or(vint a, vint b)
{
    return _mm512_or_si512(a, b);
}

static inline vint v_and(vint a, vint b)
{
    return _mm512_and_si512(a, b);
}

/* Of signed integers. */
static inline vint v_max_int(vint a, vint b)
{
    return _mm512_max_epi32(a, b);
}

static inline vfloat v_as_float(vint x)
{
    return _mm512_castsi512_ps(x);
}

static inline vint v_as_int(vfloat x)
{
    return _mm512_castps_si512(x);
}

/* Bits of a where mask is set, of b elsewhere. */
static inline vint v_select(vint mask, vint a, vint b)
{
    return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

/* Words shifted left by k bits, those of `before` following from the right. */
static ALWAYS_INLINE vint v_funnel_left(vint now, vint before, int k)
{
    return _mm512_shldv_epi32(now, before, _mm512_set1_epi32(k));
}

/* Entries of 8 bits; four copies, since the lookup goes by six bits. */
static inline vbytes v_byte_table(const uint8_t entries[16])
{
    return (vbytes){
        _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)entries))};
}

/* Entries by the four lowest bits of each byte. */
static inline vint v_lookup_bytes(vbytes table, vint indices)
{
    return _mm512_permutexvar_epi8(indices, table.entries);
}

/* What is added to levels to make them unsigned, for v_dot. */
#define LEVEL_BIAS 128

/* Of signed bytes. */
static inline vint v_bias_levels(vint levels)
{
    return _mm512_xor_si512(levels, _mm512_set1_epi8((char)LEVEL_BIAS));
}

/* Halves of a number of two bytes: high * PART_BASE + low. */
#define PART_SHIFT 7
#define PART_BASE (1 << PART_SHIFT)
#define PART_LIMIT 127

/* Parts of queries and weights where the codes' error hides that of signed bytes. */
#define QUERY_PARTS 1
#define WEIGHT_PARTS 1

/* sum + the four products of unsigned levels with signed bytes. */
static inline vint v_dot(vint sum, vint levels, vint bytes)
{
    return _mm512_dpbusd_epi32(sum, levels, bytes);
}

/* Bit `bit` of 32 fields. */
static inline uint32_t v_test_bit(const uint16_t *fields, int bit)
{
    return _mm512_test_epi16_mask(_mm512_loadu_si512(fields), _mm512_set1_epi16((short)(1 << bit)));
}

static inline int32_t v_sum_int(vint x)
{
    return _mm512_reduce_add_epi32(x);
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

static inline vfloat v_sqrt(vfloat x)
{
    return _mm512_sqrt_ps(x);
}

static inline vfloat v_negate(vfloat x)
{
    return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
}

/* n + (a > b ? amount : 0). */
static inline vint v_add_if_greater(vint n, vfloat a, vfloat b, uint32_t amount)
{
    return _mm512_mask_add_epi32(n, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), n,
                                 _mm512_set1_epi32((int)amount));
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

static inline float v_minimum(vfloat x)
{
    return _mm512_reduce_min_ps(x);
}

/* V_LANES halves as tkv_float_to_finite_half. */
static inline void v_store_finite_half(uint16_t *p, vfloat x)
{
    const vfloat limit = _mm512_set1_ps(TKV_HALF_MAX);
    const vfloat size = _mm512_abs_ps(x);
    if (_mm512_cmp_ps_mask(size, _mm512_set1_ps(3.4028235e38f), _CMP_LE_OQ) != 0xffff) {
        float values[V_LANES];
        _mm512_storeu_ps(values, x);
        for (int i = 0; i < V_LANES; i++) {
            p[i] = tkv_float_to_finite_half(values[i]);
        }
        return;
    }
    const vfloat clamped = _mm512_min_ps(_mm512_max_ps(x, v_negate(limit)), limit);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(clamped, _MM_FROUND_TO_NEAREST_INT));
}

/* Transposes a block of V_LANES vectors: pairs, then fours, then quarters of vectors. */
static inline void v_transpose(vfloat block[V_LANES])
{
    vfloat pairs[V_LANES];
    vfloat fours[V_LANES];
    for (int i = 0; i < V_LANES; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(block[i], block[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(block[i], block[i + 1]);
    }
    for (int i = 0; i < V_LANES; i += 4) {
        for (int k = 0; k < 2; k++) {
            const __m512d low = _mm512_castps_pd(pairs[i + k]);
            const __m512d high = _mm512_castps_pd(pairs[i + 2 + k]);
            fours[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            fours[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int i = 0; i < 4; i++) {
        const vfloat a = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
        const vfloat b = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xdd);
        const vfloat c = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
        const vfloat d = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xdd);
        block[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        block[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        block[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        block[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

#endif
