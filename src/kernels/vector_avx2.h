/* The vector operations of vector_kernels.h on AVX2 with FMA and F16C. */
#ifndef TKV_KERNELS_VECTOR_AVX2_H
#define TKV_KERNELS_VECTOR_AVX2_H

#include "base/half.h"

#include <immintrin.h>
#include <stdint.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

#define V_LANES 8
#define V_ROWS 2  /* rows of a product that fit the registers */
#define V_BLOCK 4 /* rows times vectors of an integer product that fit the registers */

typedef __m256 vfloat;
typedef __m256i vint;

typedef struct vtable {
    __m256 low;
    __m256 high;
} vtable;

typedef struct vbytes {
    __m256i entries;
} vbytes;

static inline vint v_load_int(const uint32_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

static inline void v_store_int(uint32_t *p, vint x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, x);
}

static inline vint v_set_int(uint32_t x)
{
    return _mm256_set1_epi32((int)x);
}

/* In the vector types of the compiler, so that a constant count becomes an immediate. */
static ALWAYS_INLINE vint v_right(vint x, int n)
{
    return (vint)((__v8su)x >> n);
}

static ALWAYS_INLINE vint v_left(vint x, int n)
{
    return (vint)((__v8su)x << n);
}

static ALWAYS_INLINE vint v_right_signed(vint x, int n)
{
    return (vint)((__v8si)x >> n);
}

/* To the left by n bits, or to the right by -n. */
static ALWAYS_INLINE vint v_shift(vint x, int n)
{
    return n >= 0 ? v_left(x, n) : v_right(x, -n);
}

static inline vint v_add_int(vint a, vint b)
{
    return _mm256_add_epi32(a, b);
}

static inline vint v_sub_int(vint a, vint b)
{
    return _mm256_sub_epi32(a, b);
}

static inline vint v_xor(vint a, vint b)
{
    return _mm256_xor_si256(a, b);
}

static inline vint v_or(vint a, vint b)
{
    return _mm256_or_si256(a, b);
}

static inline vint v_and(vint a, vint b)
{
    return _mm256_and_si256(a, b);
}

/* Of signed integers. */
static inline vint v_max_int(vint a, vint b)
{
    return _mm256_max_epi32(a, b);
}

static inline vfloat v_as_float(vint x)
{
    return _mm256_castsi256_ps(x);
}

static inline vint v_as_int(vfloat x)
{
    return _mm256_castps_si256(x);
}

/* Bits of a where mask is set, of b elsewhere. */
static inline vint v_select(vint mask, vint a, vint b)
{
    return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}

/* Words shifted left by k bits, those of `before` following from the right. */
static ALWAYS_INLINE vint v_funnel_left(vint now, vint before, int k)
{
    return v_or(v_left(now, k), v_right(before, 32 - k));
}

/* Entries of 8 bits; one copy for each half. */
static inline vbytes v_byte_table(const uint8_t entries[16])
{
    return (vbytes){
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)entries))};
}

/* Entries by the four lowest bits of each byte. */
static inline vint v_lookup_bytes(vbytes table, vint indices)
{
    return _mm256_shuffle_epi8(table.entries, _mm256_and_si256(indices, _mm256_set1_epi8(15)));
}

/* What is added to levels to make them unsigned, for v_dot. */
#define LEVEL_BIAS 127

/* Of signed bytes. */
static inline vint v_bias_levels(vint levels)
{
    return _mm256_add_epi8(levels, _mm256_set1_epi8((char)LEVEL_BIAS));
}

/* Halves of a number of two bytes: high * PART_BASE + low. Small enough for two products with
 * levels of at most 254 to stay within 16 bits. */
#define PART_SHIFT 6
#define PART_BASE (1 << PART_SHIFT)
#define PART_LIMIT 63

/* Parts of queries and weights: in one the steps would be too coarse. */
#define QUERY_PARTS 2
#define WEIGHT_PARTS 2

/* sum + the four products of unsigned levels with signed bytes. */
static inline vint v_dot(vint sum, vint levels, vint bytes)
{
    const vint pairs = _mm256_maddubs_epi16(levels, bytes);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline __m256i fields_with_bit(const uint16_t *fields, __m256i bit)
{
    const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)fields);
    return _mm256_cmpeq_epi16(_mm256_and_si256(x, bit), bit);
}

/* Bit `bit` of 32 fields. */
static inline uint32_t v_test_bit(const uint16_t *fields, int bit)
{
    const __m256i mask = _mm256_set1_epi16((short)(1 << bit));
    const __m256i packed =
        _mm256_packs_epi16(fields_with_bit(fields, mask), fields_with_bit(fields + 16, mask));
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, 0xd8));
}

static inline int32_t v_sum_int(vint x)
{
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 1)));
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

static inline vfloat v_sqrt(vfloat x)
{
    return _mm256_sqrt_ps(x);
}

static inline vfloat v_negate(vfloat x)
{
    return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
}

/* n + (a > b ? amount : 0). */
static inline vint v_add_if_greater(vint n, vfloat a, vfloat b, uint32_t amount)
{
    const vint is_greater = _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
    return _mm256_add_epi32(n, _mm256_and_si256(is_greater, _mm256_set1_epi32((int)amount)));
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

static inline float v_minimum(vfloat x)
{
    const __m128 half = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 quarter = _mm_min_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_min_ss(quarter, _mm_movehdup_ps(quarter)));
}

/* V_LANES halves as tkv_float_to_finite_half. */
static inline void v_store_finite_half(uint16_t *p, vfloat x)
{
    const vfloat limit = _mm256_set1_ps(TKV_HALF_MAX);
    const vfloat size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const vfloat is_finite = _mm256_cmp_ps(size, _mm256_set1_ps(3.4028235e38f), _CMP_LE_OQ);
    if (_mm256_movemask_ps(is_finite) != 0xff) {
        float values[V_LANES];
        _mm256_storeu_ps(values, x);
        for (int i = 0; i < V_LANES; i++) {
            p[i] = tkv_float_to_finite_half(values[i]);
        }
        return;
    }
    const vfloat clamped = _mm256_min_ps(_mm256_max_ps(x, v_negate(limit)), limit);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(clamped, _MM_FROUND_TO_NEAREST_INT));
}

/* Transposes a block of V_LANES vectors: pairs, then fours, then halves of vectors. */
static inline void v_transpose(vfloat block[V_LANES])
{
    vfloat pairs[V_LANES];
    vfloat fours[V_LANES];
    for (int i = 0; i < V_LANES; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(block[i], block[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(block[i], block[i + 1]);
    }
    for (int i = 0; i < V_LANES; i += 4) {
        for (int k = 0; k < 2; k++) {
            const __m256d low = _mm256_castps_pd(pairs[i + k]);
            const __m256d high = _mm256_castps_pd(pairs[i + 2 + k]);
            fours[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            fours[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        }
    }
    for (int i = 0; i < 4; i++) {
        block[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        block[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

#endif
