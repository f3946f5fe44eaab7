/* From the words of coded pages to levels, four signed bytes a register: operands of the integer
 * tensor cores. Works on the host too, where a test holds it against the reference.
 *
 * docs/FORMAT.md section 6 in short: 32 codes lie in w words a plane, code 4n + r in nibble n, and
 * (r, w) choose the word and the bits within the nibble. So four shifts and masks make of a group's
 * words four registers of nibbles, selector(r), whose nibble n is the whole code 4n + r: exactly
 * what the byte-permute instruction wants to look up four levels at once. What comes out is
 *
 *     quad (r, half) = levels of the codes r + 4n, n = 4*half .. 4*half+3
 *
 * A lane takes a whole group (8 quads) or, where 4 lanes share 2 groups, the half of it with r = 2i
 * and 2i+1 (4 quads). In turbo8 quad (s, half) is simply word 2s + half. The order in which codes
 * come does not matter to a product as long as both factors have the same. */
#ifndef TKV_DEVICE_CUDA_DECODE_UNPACK_CUH
#define TKV_DEVICE_CUDA_DECODE_UNPACK_CUH

#include "format/constants.h"
#include "turbokv.h"

#include <cstdint>

namespace tkv_cuda
{

#define TKV_HOST_DEVICE __host__ __device__ __forceinline__

/* The instructions that have no C operator, with a fallback for the host. */

TKV_HOST_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector)
{
#ifdef __CUDA_ARCH__
    uint32_t result; /* __byte_perm would mask bit 3 of the selectors */
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
#else
    const uint64_t table = (uint64_t)high << 32 | low;
    uint32_t result = 0;
    for (int k = 0; k < 4; k++) {
        const uint32_t nibble = selector >> (4 * k) & 15u;
        uint32_t byte = (uint32_t)(table >> (8 * (nibble & 7u))) & 255u;
        if (nibble & 8u) {
            byte = byte & 128u ? 255u : 0u;
        }
        result |= byte << (8 * k);
    }
    return result;
#endif
}

/* x >> 16 by a product of halves and bytes: it runs beside the shifts and permutations, whose unit
 * is what the unpacking waits for. */
TKV_HOST_DEVICE uint32_t high_half(uint32_t x)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(0x100), "r"(0));
    return result;
#else
    return x >> 16;
#endif
}

/* sum + (x & 0xffff), likewise. */
TKV_HOST_DEVICE uint32_t add_low_half(uint32_t sum, uint32_t x)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(1), "r"(sum));
    return result;
#else
    return sum + (x & 0xffffu);
#endif
}

/* `word` shifted left by n (1 to 31), filled up from the top of `before`. */
TKV_HOST_DEVICE uint32_t shift_in(uint32_t before, uint32_t word, int n)
{
#ifdef __CUDA_ARCH__
    return __funnelshift_l(before, word, n);
#else
    return word << n | before >> (32 - n);
#endif
}

/* What a type's pages are made of, as templates need it. */
template <int Type> struct coding;

template <int Bits0, int Bits1, int Tables, bool IsTrellis> struct coding_base {
    static constexpr int n_planes = Bits1 ? 2 : 1;
    static constexpr int bits0 = Bits0; /* of plane 0, per code */
    static constexpr int bits1 = Bits1;
    static constexpr int bits = Bits0 + Bits1;
    /* A table of 16 levels is two of 8: a quad is then the sum of two registers, less one (below).
     */
    static constexpr int n_tables = Tables;
    static constexpr bool is_trellis = IsTrellis;
    static constexpr bool is_bytes = Bits0 == 8;
};

template <> struct coding<TKV_TYPE_TURBO8> : coding_base<8, 0, 1, false> {
};
template <> struct coding<TKV_TYPE_TURBO4> : coding_base<4, 0, 2, false> {
};
template <> struct coding<TKV_TYPE_TURBO3> : coding_base<2, 1, 1, false> {
};
template <> struct coding<TKV_TYPE_TURBO2> : coding_base<2, 0, 1, false> {
};
template <> struct coding<TKV_TYPE_TRELLIS3> : coding_base<2, 1, 2, true> {
};
template <> struct coding<TKV_TYPE_TRELLIS2> : coding_base<1, 1, 1, true> {
};

template <int N> struct level_list {
    int level[N];
};

template <int N>
TKV_HOST_DEVICE constexpr uint32_t pack_levels(const level_list<N> &list, int first)
{
    uint32_t word = 0;
    for (int k = 0; k < 4; k++) {
        word |= ((uint32_t)list.level[first + k] & 255u) << (8 * k);
    }
    return word;
}

/* Bytes for permute_bytes to look into: low and high half of 8 entries.
 *
 * permute_bytes has 8 entries; where bit 3 of the selector is set it gives the sign of the entry
 * instead, 0 or -1. So a table L of 16 levels splits into two of 8, one read with the index c, the
 * other with its complement, which has bit 3 where c has it not:
 *     lower(c) = c < 8 ? A(c)           : sign of A(c - 8)
 *     upper(c) = c < 8 ? sign of B(c+8) : B(c)
 * A and B are L less 1 where the sign that their level meets is 0, so that L = lower + upper + 1
 * for every code. Both registers go through the tensor core; the sum of the other factor, which the
 * + 1 stands for, is added once. */
template <int Type> struct level_tables {
    uint32_t half[coding<Type>::n_tables][2];
    uint32_t minus_one; /* where the compiler can't see that a product with it is a complement */
};

template <int Type>
TKV_HOST_DEVICE constexpr level_tables<Type> split_levels(const level_list<16> &list)
{
    level_list<8> lower = {};
    level_list<8> upper = {};
    for (int c = 0; c < 8; c++) {
        lower.level[c] = list.level[c] - (list.level[c + 8] >= 0);
        upper.level[7 - c] = list.level[c + 8] - (list.level[c] >= 0);
    }
    return {{{pack_levels(lower, 0), pack_levels(lower, 4)},
             {pack_levels(upper, 0), pack_levels(upper, 4)}},
            ~0u};
}

/* For the selectors of a whole group, or of half 0 of one. */
template <int Type> TKV_HOST_DEVICE constexpr level_tables<Type> make_level_tables()
{
    if constexpr (Type == TKV_TYPE_TURBO4) {
        return split_levels<Type>(level_list<16>{TKV_CODEBOOK_LEVELS_4});
    } else if constexpr (Type == TKV_TYPE_TRELLIS3) {
        return split_levels<Type>(level_list<16>{TKV_TRELLIS_LEVELS_16});
    } else if constexpr (Type == TKV_TYPE_TURBO2) {
        constexpr level_list<4> list = {TKV_CODEBOOK_LEVELS_2};
        return {{{pack_levels(list, 0), 0}}, ~0u};
    } else if constexpr (Type == TKV_TYPE_TURBO8) {
        return {};
    } else {
        constexpr level_list<8> turbo = {TKV_CODEBOOK_LEVELS_3};
        constexpr level_list<8> trellis = {TKV_TRELLIS_LEVELS_8};
        constexpr level_list<8> list = Type == TKV_TYPE_TURBO3 ? turbo : trellis;
        return {{{pack_levels(list, 0), pack_levels(list, 4)}}, ~0u};
    }
}

/* For those of half i: in half 1 of trellis3 the bits of code and path are the other way round. */
template <int Type> TKV_HOST_DEVICE constexpr level_tables<Type> make_half_tables(int i)
{
    if constexpr (Type == TKV_TYPE_TRELLIS3) {
        constexpr level_list<16> list = {TKV_TRELLIS_LEVELS_16};
        level_list<16> swapped = {};
        for (int c = 0; c < 16; c++) {
            swapped.level[c] = list.level[i ? 4 * (c & 3) + (c >> 2) : c];
        }
        return split_levels<Type>(swapped);
    } else {
        return make_level_tables<Type>();
    }
}

/* Bits where `mask` is set from a, elsewhere from b: one instruction, which the compiler would
 * otherwise rearrange into more. */
TKV_HOST_DEVICE uint32_t merge_bits(uint32_t mask, uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(result) : "r"(a), "r"(b), "r"(mask));
    return result;
#else
    return (a & mask) | (b & ~mask);
#endif
}

/* a & mask, likewise kept as it is. */
TKV_HOST_DEVICE uint32_t take_bits(uint32_t mask, uint32_t a)
{
#ifdef __CUDA_ARCH__
    uint32_t result;
    asm("and.b32 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(mask));
    return result;
#else
    return a & mask;
#endif
}

constexpr uint32_t nibble_low_bits = 0x33333333u;
constexpr uint32_t nibble_bit_2 = 0x44444444u;
constexpr uint32_t even_bits = 0x55555555u;

/* The two low bits of a trellis code's table index, for 32 codes a word (FORMAT.md 5.3). `u` are
 * the path bits, u<k> those of the codes k before. */
struct trellis_bits {
    uint32_t z1, z0;
};

TKV_HOST_DEVICE trellis_bits trellis_taps(uint32_t u, uint32_t u1, uint32_t u2, uint32_t u3,
                                          uint32_t u6, uint32_t u7, uint32_t u8)
{
    return {u ^ u3 ^ u6 ^ u8, u1 ^ u2 ^ u7};
}

/* Keys: the codes before are in the bits below, and in `before`, the word of the group before. */
TKV_HOST_DEVICE trellis_bits trellis_key_bits(uint32_t before, uint32_t u)
{
    return trellis_taps(u, shift_in(before, u, 1), shift_in(before, u, 2), shift_in(before, u, 3),
                        shift_in(before, u, 6), shift_in(before, u, 7), shift_in(before, u, 8));
}

/* The word before the first group of a key: the start bits of its scale field, newest on top. */
TKV_HOST_DEVICE uint32_t trellis_word_before(uint32_t field)
{
    const uint32_t start = (field & 31u) | (field >> 15 & 1u) << 5;
#ifdef __CUDA_ARCH__
    return __brev(start);
#else
    uint32_t word = 0;
    for (int k = 0; k < 6; k++) {
        word |= (start >> k & 1u) << (31 - k);
    }
    return word;
#endif
}

/* The index bits side by side: code r = 0 and 2 of each nibble in `even`, 1 and 3 in `odd`. */
struct trellis_pairs {
    uint32_t even, odd;
};

TKV_HOST_DEVICE trellis_pairs trellis_pair_up(trellis_bits z)
{
    return {merge_bits(even_bits, z.z0, z.z1 << 1), merge_bits(even_bits, z.z0 >> 1, z.z1)};
}

/* Selectors r = 0 .. 3 of a whole group from the words of its planes in order; the path words of a
 * trellis type are in `pairs` instead. */
template <int Type>
TKV_HOST_DEVICE void group_selectors(const uint32_t *words, trellis_pairs pairs,
                                     uint32_t selectors[4])
{
    if constexpr (Type == TKV_TYPE_TURBO4) {
        for (int r = 0; r < 4; r++) {
            selectors[r] = words[r];
        }
    } else if constexpr (Type == TKV_TYPE_TURBO2) {
        for (int r = 0; r < 4; r++) {
            selectors[r] = words[r / 2] >> (2 * (r & 1)) & nibble_low_bits;
        }
    } else if constexpr (Type == TKV_TYPE_TRELLIS3) {
        selectors[0] = merge_bits(nibble_low_bits, pairs.even, words[0] << 2);
        selectors[1] = merge_bits(nibble_low_bits, pairs.odd, words[0]);
        selectors[2] = merge_bits(nibble_low_bits, pairs.even >> 2, words[1] << 2);
        selectors[3] = merge_bits(nibble_low_bits, pairs.odd >> 2, words[1]);
    } else {
        uint32_t low[4];
        if constexpr (Type == TKV_TYPE_TRELLIS2) {
            low[0] = pairs.even;
            low[1] = pairs.odd;
            low[2] = pairs.even >> 2;
            low[3] = pairs.odd >> 2;
        } else {
            low[0] = words[0];
            low[1] = words[0] >> 2;
            low[2] = words[1];
            low[3] = words[1] >> 2;
        }
        /* With every other bit gone, bit 3 of the nibbles stays clear below. */
        const uint32_t high = words[Type == TKV_TYPE_TRELLIS2 ? 0 : 2];
        const uint32_t even = take_bits(even_bits, high);
        const uint32_t odd = take_bits(~even_bits, high);
        selectors[0] = merge_bits(nibble_low_bits, low[0], even << 2);
        selectors[1] = merge_bits(nibble_low_bits, low[1], odd << 1);
        selectors[2] = merge_bits(nibble_low_bits, low[2], even);
        selectors[3] = merge_bits(nibble_low_bits, low[3], odd >> 1);
    }
}

/* What half i of a group differs in. */
struct half_share {
    uint32_t mask; /* of its pairs of bits in a nibble */
    uint32_t factor;
    int shift;
};

TKV_HOST_DEVICE half_share share_of_half(int i)
{
    return {i ? ~nibble_low_bits : nibble_low_bits, i ? 1u : 4u, 2 * i};
}

/* Selectors 2i and 2i+1 from the lane's share of the group's words: of a plane of 2 or more bits
 * the i-th half of the words, of a plane of one bit its only word. */
template <int Type>
TKV_HOST_DEVICE void half_selectors(const uint32_t *words, trellis_pairs pairs,
                                    const half_share &share, uint32_t selectors[2])
{
    if constexpr (Type == TKV_TYPE_TURBO4) {
        selectors[0] = words[0];
        selectors[1] = words[1];
    } else if constexpr (Type == TKV_TYPE_TURBO2) {
        selectors[0] = words[0] & nibble_low_bits;
        selectors[1] = words[0] >> 2 & nibble_low_bits;
    } else if constexpr (Type == TKV_TYPE_TRELLIS3) {
        selectors[0] = merge_bits(share.mask, pairs.even, words[0] * share.factor);
        selectors[1] = merge_bits(share.mask, pairs.odd, words[0] >> share.shift);
    } else {
        uint32_t low[2];
        uint32_t high;
        if constexpr (Type == TKV_TYPE_TRELLIS2) {
            low[0] = pairs.even >> share.shift;
            low[1] = pairs.odd >> share.shift;
            high = words[0] * share.factor;
        } else {
            low[0] = words[0];
            low[1] = words[0] >> 2;
            high = words[1] * share.factor;
        }
        selectors[0] = (low[0] & nibble_low_bits) | (high & nibble_bit_2);
        selectors[1] = (low[1] & nibble_low_bits) | (high >> 1 & nibble_bit_2);
    }
}

/* Quads (r, 0) and (r, 1) of one selector. */
template <int Type>
TKV_HOST_DEVICE void look_up_quads(const level_tables<Type> &tables, int table, uint32_t selector,
                                   uint32_t quads[2])
{
    const uint32_t *half = tables.half[table];
    /* The complement beside the shifts, like high_half. */
    const uint32_t side = table == 0 ? selector : selector * tables.minus_one + tables.minus_one;
    quads[0] = permute_bytes(half[0], half[1], side);
    quads[1] = permute_bytes(half[0], half[1], high_half(side));
}

/* Words of the planes that a lane reads for a group or for half a group, the path word of a
 * trellis type, which comes as pairs, left out. */
template <int Type> struct lane_words {
    using c = coding<Type>;
    static constexpr int whole = c::is_trellis ? c::bits0 : c::bits;
    static constexpr int half0 = c::bits0 == 1 ? 1 : c::bits0 / 2;
    static constexpr int half = half0 + (c::is_trellis ? 0 : c::bits1);
};

/* A whole group: quads[table][2 * r + half]. */
template <int Type>
TKV_HOST_DEVICE void unpack_group(const level_tables<Type> &tables, const uint32_t *words,
                                  trellis_pairs pairs, uint32_t quads[coding<Type>::n_tables][8])
{
    if constexpr (coding<Type>::is_bytes) {
        for (int k = 0; k < 8; k++) {
            quads[0][k] = words[k];
        }
    } else {
        uint32_t selectors[4];
        group_selectors<Type>(words, pairs, selectors);
        for (int r = 0; r < 4; r++) {
            for (int table = 0; table < coding<Type>::n_tables; table++) {
                look_up_quads<Type>(tables, table, selectors[r], &quads[table][2 * r]);
            }
        }
    }
}

/* Half i of a group: quads[table][2 * s + half] with r = 2i + s; the tables are those of the half.
 */
template <int Type>
TKV_HOST_DEVICE void unpack_half(const level_tables<Type> &tables, const uint32_t *words,
                                 trellis_pairs pairs, const half_share &share,
                                 uint32_t quads[coding<Type>::n_tables][4])
{
    if constexpr (coding<Type>::is_bytes) {
        for (int k = 0; k < 4; k++) {
            quads[0][k] = words[k];
        }
    } else {
        uint32_t selectors[2];
        half_selectors<Type>(words, pairs, share, selectors);
        for (int s = 0; s < 2; s++) {
            for (int table = 0; table < coding<Type>::n_tables; table++) {
                look_up_quads<Type>(tables, table, selectors[s], &quads[table][2 * s]);
            }
        }
    }
}

/* Which code of its group byte n of quad `quad` of a whole group is. */
template <int Type> TKV_HOST_DEVICE constexpr int code_of_quad(int quad, int n)
{
    return coding<Type>::is_bytes ? 4 * quad + n : 16 * (quad & 1) + 4 * n + (quad >> 1);
}

/* The same of half group i. */
template <int Type> TKV_HOST_DEVICE constexpr int code_of_half_quad(int i, int quad, int n)
{
    return code_of_quad<Type>(4 * i + quad, n);
}

} /* namespace tkv_cuda */

#endif
