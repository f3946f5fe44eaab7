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
#ifndef TKV_DEVICE_CUDA_BASE_UNPACK_CUH
#define TKV_DEVICE_CUDA_BASE_UNPACK_CUH

#include "device/cuda/base/bits.cuh"
#include "device/cuda/base/levels.cuh"
#include "device/cuda/base/trellis.cuh"

namespace tkv_cuda
{

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
    uint32_t half[type_traits<Type>::n_tables][2];
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

template <int Type, int N>
TKV_HOST_DEVICE constexpr level_tables<Type> tables_of(const level_list<N> &list)
{
    if constexpr (N == 16) {
        return split_levels<Type>(list);
    } else {
        static_assert(N <= 8, "tables of 16 levels at most");
        return {{{pack_levels(list, 0), pack_levels(list, 4)}}, ~0u};
    }
}

/* For the selectors of a whole group, or of half 0 of one. */
template <int Type> TKV_HOST_DEVICE constexpr level_tables<Type> make_level_tables()
{
    if constexpr (type_traits<Type>::is_bytes) {
        return {}; /* codes are levels */
    } else {
        return tables_of<Type>(levels_of_type<Type>());
    }
}

/* For those of half i: in half 1 of trellis3 the bits of code and path are the other way round. */
template <int Type> TKV_HOST_DEVICE constexpr level_tables<Type> make_half_tables(int i)
{
    if constexpr (type_traits<Type>::is_trellis && type_traits<Type>::free_bits == 2) {
        constexpr level_list<16> list = levels_of_type<Type>();
        level_list<16> swapped = {};
        for (int c = 0; c < 16; c++) {
            swapped.level[c] = list.level[i ? 4 * (c & 3) + (c >> 2) : c];
        }
        return tables_of<Type>(swapped);
    } else {
        return make_level_tables<Type>();
    }
}

constexpr uint32_t nibble_low_bits = 0x33333333u;
constexpr uint32_t nibble_bit_2 = 0x44444444u;
constexpr uint32_t even_bits = 0x55555555u;

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
    using traits = type_traits<Type>;
    if constexpr (traits::bits0 == 4 && traits::n_planes == 1) {
        for (int r = 0; r < 4; r++) {
            selectors[r] = words[r];
        }
    } else if constexpr (traits::bits0 == 2 && traits::n_planes == 1) {
        for (int r = 0; r < 4; r++) {
            selectors[r] = words[r / 2] >> (2 * (r & 1)) & nibble_low_bits;
        }
    } else if constexpr (traits::is_trellis && traits::free_bits == 2) {
        selectors[0] = merge_bits(nibble_low_bits, pairs.even, words[0] << 2);
        selectors[1] = merge_bits(nibble_low_bits, pairs.odd, words[0]);
        selectors[2] = merge_bits(nibble_low_bits, pairs.even >> 2, words[1] << 2);
        selectors[3] = merge_bits(nibble_low_bits, pairs.odd >> 2, words[1]);
    } else {
        static_assert(traits::level_bits == 3 && traits::bits1 == 1, "two bits and a third");
        uint32_t low[4];
        if constexpr (traits::is_trellis) {
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
        const uint32_t high = words[traits::is_trellis ? 0 : 2];
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
    using traits = type_traits<Type>;
    if constexpr (traits::bits0 == 4 && traits::n_planes == 1) {
        selectors[0] = words[0];
        selectors[1] = words[1];
    } else if constexpr (traits::bits0 == 2 && traits::n_planes == 1) {
        selectors[0] = words[0] & nibble_low_bits;
        selectors[1] = words[0] >> 2 & nibble_low_bits;
    } else if constexpr (traits::is_trellis && traits::free_bits == 2) {
        selectors[0] = merge_bits(share.mask, pairs.even, words[0] * share.factor);
        selectors[1] = merge_bits(share.mask, pairs.odd, words[0] >> share.shift);
    } else {
        static_assert(traits::level_bits == 3 && traits::bits1 == 1, "two bits and a third");
        uint32_t low[2];
        uint32_t high;
        if constexpr (traits::is_trellis) {
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

/* A whole group: quads[table][2 * r + half]. */
template <int Type>
TKV_HOST_DEVICE void unpack_group(const level_tables<Type> &tables, const uint32_t *words,
                                  trellis_pairs pairs,
                                  uint32_t quads[type_traits<Type>::n_tables][8])
{
    if constexpr (type_traits<Type>::is_bytes) {
        for (int k = 0; k < 8; k++) {
            quads[0][k] = words[k];
        }
    } else {
        uint32_t selectors[4];
        group_selectors<Type>(words, pairs, selectors);
        for (int r = 0; r < 4; r++) {
            for (int table = 0; table < type_traits<Type>::n_tables; table++) {
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
                                 uint32_t quads[type_traits<Type>::n_tables][4])
{
    if constexpr (type_traits<Type>::is_bytes) {
        for (int k = 0; k < 4; k++) {
            quads[0][k] = words[k];
        }
    } else {
        uint32_t selectors[2];
        half_selectors<Type>(words, pairs, share, selectors);
        for (int s = 0; s < 2; s++) {
            for (int table = 0; table < type_traits<Type>::n_tables; table++) {
                look_up_quads<Type>(tables, table, selectors[s], &quads[table][2 * s]);
            }
        }
    }
}

/* Four levels of a table of 16, its words: both halves of the table are looked into with three bits
 * of each nibble, and the fourth, alone in `top`, says which one counts. */
TKV_HOST_DEVICE uint32_t look_up_16(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3,
                                    uint32_t low_bits, uint32_t top)
{
    const uint32_t low = permute_bytes(w0, w1, low_bits);
    const uint32_t high = permute_bytes(w2, w3, low_bits);
    const uint32_t mask = permute_bytes(0x0000ff00u, 0u, top);
    return (low & ~mask) | (high & mask);
}

/* A whole group as levels, where they are stored and no product adds two tables: levels[2 * r +
 * half].
 */
template <int Type>
TKV_HOST_DEVICE void unpack_levels(const uint32_t *words, trellis_pairs pairs, uint32_t levels[8])
{
    using traits = type_traits<Type>;
    if constexpr (traits::n_tables == 1) {
        uint32_t quads[1][8];
        constexpr level_tables<Type> tables = make_level_tables<Type>();
        unpack_group<Type>(tables, words, pairs, quads);
        for (int k = 0; k < 8; k++) {
            levels[k] = quads[0][k];
        }
    } else {
        constexpr level_list<16> list = levels_of_type<Type>();
        constexpr uint32_t w0 = pack_levels(list, 0), w1 = pack_levels(list, 4);
        constexpr uint32_t w2 = pack_levels(list, 8), w3 = pack_levels(list, 12);
        uint32_t selectors[4];
        group_selectors<Type>(words, pairs, selectors);
        for (int r = 0; r < 4; r++) {
            const uint32_t low_bits = selectors[r] & 0x77777777u;
            const uint32_t top = selectors[r] >> 3 & 0x11111111u;
            levels[2 * r] = look_up_16(w0, w1, w2, w3, low_bits, top);
            levels[2 * r + 1] = look_up_16(w0, w1, w2, w3, high_half(low_bits), top >> 16);
        }
    }
}

/* Which code of its group byte n of quad `quad` of a whole group is. */
template <int Type> TKV_HOST_DEVICE constexpr int code_of_quad(int quad, int n)
{
    return type_traits<Type>::is_bytes ? 4 * quad + n : 16 * (quad & 1) + 4 * n + (quad >> 1);
}

/* The same of half group i. */
template <int Type> TKV_HOST_DEVICE constexpr int code_of_half_quad(int i, int quad, int n)
{
    return code_of_quad<Type>(4 * i + quad, n);
}

} /* namespace tkv_cuda */

#endif
