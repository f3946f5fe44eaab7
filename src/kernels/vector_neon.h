/* The vector operations of vector_kernels.h on ARM64's Advanced SIMD, with the dot products of
 * FEAT_DotProd if the compiler may use them. */
#ifndef TKV_KERNELS_VECTOR_NEON_H
#define TKV_KERNELS_VECTOR_NEON_H

#include "base/half.h"

#include <arm_neon.h>
#include <stdint.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

#define V_LANES 4
#define V_ROWS 4  /* rows of a product that fit the registers */
#define V_BLOCK 8 /* rows times vectors of an integer product that fit the registers */

typedef float32x4_t vfloat;
typedef uint32x4_t vint;

typedef struct vtable {
    uint8x16x4_t entries;
} vtable;

typedef struct vbytes {
    uint8x16_t entries;
} vbytes;

static inline vint v_load_int(const uint32_t *p)
{
    return vld1q_u32(p);
}

static inline void v_store_int(uint32_t *p, vint x)
{
    vst1q_u32(p, x);
}

static inline vint v_set_int(uint32_t x)
{
    return vdupq_n_u32(x);
}

/* In the vector types of the compiler, so that a constant count becomes an immediate. */
static ALWAYS_INLINE vint v_right(vint x, int n)
{
    return x >> n;
}

static ALWAYS_INLINE vint v_left(vint x, int n)
{
    return x << n;
}

static ALWAYS_INLINE vint v_right_signed(vint x, int n)
{
    return vreinterpretq_u32_s32(vreinterpretq_s32_u32(x) >> n);
}

/* To the left by n bits, or to the right by -n. */
static ALWAYS_INLINE vint v_shift(vint x, int n)
{
    return n >= 0 ? v_left(x, n) : v_right(x, -n);
}

static inline vint v_add_int(vint a, vint b)
{
    return vaddq_u32(a, b);
}

static inline vint v_sub_int(vint a, vint b)
{
    return vsubq_u32(a, b);
}

static inline vint v_xor(vint a, vint b)
{
    return veorq_u32(a, b);
}

static inline vint v_or(vint a, vint b)
{
    return vorrq_u32(a, b);
}

static inline vint v_and(vint a, vint b)
{
    return vandq_u32(a, b);
}

/* Of signed integers. */
static inline vint v_max_int(vint a, vint b)
{
    return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}

static inline vfloat v_as_float(vint x)
{
    return vreinterpretq_f32_u32(x);
}

static inline vint v_as_int(vfloat x)
{
    return vreinterpretq_u32_f32(x);
}

/* Bits of a where mask is set, of b elsewhere. */
static inline vint v_select(vint mask, vint a, vint b)
{
    return vbslq_u32(mask, a, b);
}

/* Words shifted left by k bits, those of `before` following from the right. */
static ALWAYS_INLINE vint v_funnel_left(vint now, vint before, int k)
{
    return v_or(v_left(now, k), v_right(before, 32 - k));
}

/* Entries of 8 bits. */
static inline vbytes v_byte_table(const uint8_t entries[16])
{
    return (vbytes){vld1q_u8(entries)};
}

/* Entries by the four lowest bits of each byte. */
static inline vint v_lookup_bytes(vbytes table, vint indices)
{
    const uint8x16_t low = vandq_u8(vreinterpretq_u8_u32(indices), vdupq_n_u8(15));
    return vreinterpretq_u32_u8(vqtbl1q_u8(table.entries, low));
}

/* Levels stay signed for v_dot. */
#define LEVEL_BIAS 0

static inline vint v_bias_levels(vint levels)
{
    return levels;
}

/* Halves of a number of two bytes: high * PART_BASE + low. */
#define PART_SHIFT 7
#define PART_BASE (1 << PART_SHIFT)
#define PART_LIMIT 127

/* Parts of queries and weights where the codes' error hides that of signed bytes. */
#define QUERY_PARTS 1
#define WEIGHT_PARTS 1

/* sum + the four products of levels with signed bytes. */
static inline vint v_dot(vint sum, vint levels, vint bytes)
{
    const int8x16_t a = vreinterpretq_s8_u32(levels);
    const int8x16_t b = vreinterpretq_s8_u32(bytes);
#ifdef __ARM_FEATURE_DOTPROD
    return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sum), a, b));
#else
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
    return vaddq_u32(sum, vreinterpretq_u32_s32(vpaddq_s32(low, high)));
#endif
}

#ifdef __ARM_FEATURE_MATMUL_INT8
/* Products of two rows with two lanes at a time: each operand holds two dwords of the one and two
 * of the other, a sum (row 0, lane 0), (row 0, lane 1), (row 1, lane 0), (row 1, lane 1). */
#define V_HAS_PAIRS

static inline vint v_load_pair(const uint32_t *row0, const uint32_t *row1)
{
    return vcombine_u32(vld1_u32(row0), vld1_u32(row1));
}

/* Lanes 0 and 1, or 2 and 3, of two vectors of levels. */
static inline vint v_pair_low(vint first, vint second)
{
    return vzip1q_u32(first, second);
}

static inline vint v_pair_high(vint first, vint second)
{
    return vzip2q_u32(first, second);
}

static inline vint v_dot_pairs(vint sum, vint rows, vint lanes)
{
    return vreinterpretq_u32_s32(vmmlaq_s32(vreinterpretq_s32_u32(sum), vreinterpretq_s8_u32(rows),
                                            vreinterpretq_s8_u32(lanes)));
}

/* Row 0 or 1 of the sums of the four lanes. */
static inline vint v_pair_row(int row, vint low, vint high)
{
    return row ? vcombine_u32(vget_high_u32(low), vget_high_u32(high))
               : vcombine_u32(vget_low_u32(low), vget_low_u32(high));
}
#endif

/* Bit `bit` of 32 fields. */
static inline uint32_t v_test_bit(const uint16_t *fields, int bit)
{
    static const uint16_t weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t mask = vdupq_n_u16((uint16_t)(1u << bit));
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        const uint16x8_t is_set = vtstq_u16(vld1q_u16(fields + 8 * i), mask);
        bits |= (uint32_t)vaddvq_u16(vandq_u16(is_set, vld1q_u16(weights))) << (8 * i);
    }
    return bits;
}

static inline int32_t v_sum_int(vint x)
{
    return vaddvq_s32(vreinterpretq_s32_u32(x));
}

static inline vtable v_table(const float entries[16])
{
    vtable table;
    for (int i = 0; i < 4; i++) {
        table.entries.val[i] = vreinterpretq_u8_f32(vld1q_f32(entries + 4 * i));
    }
    return table;
}

/* Entry by the four lowest bits of each index: its four bytes. */
static inline vfloat v_lookup(vtable table, vint index)
{
    const uint32x4_t low = vandq_u32(index, vdupq_n_u32(15));
    const uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100), low, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table.entries, vreinterpretq_u8_u32(bytes)));
}

static inline vfloat v_load(const float *p)
{
    return vld1q_f32(p);
}

static inline vfloat v_load_half(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

static inline void v_store(float *p, vfloat x)
{
    vst1q_f32(p, x);
}

static inline vfloat v_set(float x)
{
    return vdupq_n_f32(x);
}

static inline vfloat v_add(vfloat a, vfloat b)
{
    return vaddq_f32(a, b);
}

static inline vfloat v_sub(vfloat a, vfloat b)
{
    return vsubq_f32(a, b);
}

static inline vfloat v_mul(vfloat a, vfloat b)
{
    return vmulq_f32(a, b);
}

static inline vfloat v_div(vfloat a, vfloat b)
{
    return vdivq_f32(a, b);
}

static inline vfloat v_fma(vfloat a, vfloat b, vfloat c)
{
    return vfmaq_f32(c, a, b);
}

static inline vfloat v_sqrt(vfloat x)
{
    return vsqrtq_f32(x);
}

static inline vfloat v_negate(vfloat x)
{
    return vnegq_f32(x);
}

/* n + (a > b ? amount : 0). */
static inline vint v_add_if_greater(vint n, vfloat a, vfloat b, uint32_t amount)
{
    return vaddq_u32(n, vandq_u32(vcgtq_f32(a, b), vdupq_n_u32(amount)));
}

/* Of a number and NaN, the number, as on x86 if NaN comes first. */
static inline vfloat v_max(vfloat a, vfloat b)
{
    return vmaxnmq_f32(a, b);
}

static inline vfloat v_min(vfloat a, vfloat b)
{
    return vminnmq_f32(a, b);
}

static inline vfloat v_from_int(vint x)
{
    return vcvtq_f32_s32(vreinterpretq_s32_u32(x));
}

/* Nearest integer. */
static inline vint v_to_int(vfloat x)
{
    return vreinterpretq_u32_s32(vcvtnq_s32_f32(x));
}

/* 2^n for n from -126 to 127. */
static inline vfloat v_power_of_two(vint n)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(n, vdupq_n_u32(127)), 23));
}

static inline float v_sum(vfloat x)
{
    return vaddvq_f32(x);
}

static inline float v_maximum(vfloat x)
{
    return vmaxnmvq_f32(x);
}

static inline float v_minimum(vfloat x)
{
    return vminnmvq_f32(x);
}

/* V_LANES halves as tkv_float_to_finite_half. */
static inline void v_store_finite_half(uint16_t *p, vfloat x)
{
    const uint32x4_t is_finite = vcleq_f32(vabsq_f32(x), vdupq_n_f32(3.4028235e38f));
    if (vminvq_u32(is_finite) == 0) {
        float values[V_LANES];
        vst1q_f32(values, x);
        for (int i = 0; i < V_LANES; i++) {
            p[i] = tkv_float_to_finite_half(values[i]);
        }
        return;
    }
    const vfloat limit = vdupq_n_f32(TKV_HALF_MAX);
    const vfloat clamped = vminq_f32(vmaxq_f32(x, vnegq_f32(limit)), limit);
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(clamped)));
}

/* Transposes a block of V_LANES vectors. */
static inline void v_transpose(vfloat block[V_LANES])
{
    const float32x4x2_t low = vtrnq_f32(block[0], block[1]);
    const float32x4x2_t high = vtrnq_f32(block[2], block[3]);
    for (int i = 0; i < 2; i++) {
        block[i] = vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i]));
        block[i + 2] = vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i]));
    }
}

#endif
