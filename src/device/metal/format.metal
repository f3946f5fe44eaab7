// Where codes lie in pages, and which levels they mean (docs/FORMAT.md, sections 2, 5 and 6).

// Types have the numbers of the format.
enum : int {
    type_f16,
    type_turbo8,
    type_turbo4,
    type_turbo3,
    type_turbo2,
    type_trellis3,
    type_trellis2,
    type_turbo4q,
    type_turbo3q,
};

enum : int { order_key, order_value };

inline bool is_trellis(int type)
{
    return type == type_trellis3 || type == type_trellis2;
}

inline bool is_sketch(int type)
{
    return type == type_turbo4q || type == type_turbo3q;
}

// Bits a code in plane 0, 1 or 2; 0: there is no such plane.
inline int plane_bits(int type, int plane)
{
    switch (type) {
    case type_turbo8: return plane == 0 ? 8 : 0;
    case type_turbo4: return plane == 0 ? 4 : 0;
    case type_turbo3: return plane == 0 ? 2 : plane == 1 ? 1 : 0;
    case type_turbo2: return plane == 0 ? 2 : 0;
    case type_trellis3: return plane == 0 ? 2 : plane == 1 ? 1 : 0;
    case type_trellis2: return plane < 2 ? 1 : 0;
    case type_turbo4q: return plane == 0 ? 2 : 1;
    case type_turbo3q: return plane == 0 ? 2 : plane == 1 ? 1 : 0;
    default: return 0;
    }
}

inline int code_bits(int type)
{
    return plane_bits(type, 0) + plane_bits(type, 1) + plane_bits(type, 2);
}

// log2 of the levels of the codebook or trellis.
inline int level_bits(int type)
{
    switch (type) {
    case type_turbo4:
    case type_trellis3: return 4;
    case type_turbo3:
    case type_trellis2:
    case type_turbo4q: return 3;
    default: return 2;
    }
}

// Free bits of a trellis code.
inline int free_bits(int type)
{
    return type == type_trellis3 ? 2 : 1;
}

inline int side_fields(int type)
{
    return is_sketch(type) ? 2 : type == type_f16 ? 0 : 1;
}

// 32-bit words of all planes of a page.
inline int page_code_words(int type, int dim)
{
    return dim * code_bits(type) * page_tokens / 32;
}

inline uint page_bytes(int type, int dim)
{
    return type == type_f16
               ? uint(page_tokens * dim * 2)
               : uint(page_code_words(type, dim) * 4 + side_fields(type) * page_tokens * 2);
}

// Entry `index` of a sequence's page table, which the caller knows to be there.
inline tkv_device_block load_block(device const tkv_device_sequence *sequence, int index)
{
    device const tkv_device_block *from =
        at_address<const tkv_device_block>(sequence->blocks) + index;
    tkv_device_block block;
    block.pages = from->pages;
    block.is_exact = from->is_exact;
    block.n_slots = from->n_slots;
    return block;
}

// Address of a head's page in a block.
inline ulong page_address(constant tkv_device_layer &layer, tkv_device_block block, int head,
                          int order)
{
    uint key_bytes = uint(block.n_slots * layer.head_dim_k * 2);
    uint value_bytes = uint(block.n_slots * layer.head_dim_v * 2);
    if (!block.is_exact) {
        key_bytes = page_bytes(layer.type_k, layer.head_dim_k);
        value_bytes = page_bytes(layer.type_v, layer.head_dim_v);
    }
    return block.pages + ulong(head) * ulong(key_bytes + value_bytes) +
           ulong(order == order_value ? key_bytes : 0u);
}

// Side field `field` of a slot.
inline uint side_field(int type, int dim, device const uint *page, int field, int slot)
{
    device const ushort *fields =
        reinterpret_cast<device const ushort *>(page + page_code_words(type, dim));
    return fields[field * page_tokens + slot];
}

// The scale of a slot, without the start bits.
inline float slot_scale(int type, int dim, device const uint *page, int slot)
{
    const uint field = side_field(type, dim, page, 0, slot);
    return half_to_float(is_trellis(type) ? field & 0x7fffu : field) / level_unit;
}

inline uint start_bits(uint field)
{
    return (field & 31u) | (field >> 15) << 5;
}

// Place of a code (0-31) of a group in a plane of `bits` bits a code.
inline int word_of_code(int bits, int code)
{
    return bits == 8 ? code >> 2 : ((code & 3) * bits) / 4;
}

inline int shift_of_code(int bits, int code)
{
    return bits == 8 ? 8 * (code & 3) : 4 * (code >> 2) + ((code & 3) * bits) % 4;
}

// A code of a slot by its coordinate; the place differs from lane to lane.
inline uint read_code(int type, int dim, int order, device const uint *page, int slot, int j)
{
    uint code = 0;
    int low_bit = 0;
    for (int plane = 0; plane < 3; plane++) {
        const int bits = plane_bits(type, plane);
        if (bits == 0) {
            break;
        }
        const int in_group = order == order_value ? slot % 32 : j % 32;
        int word = word_of_code(bits, in_group);
        int shift = shift_of_code(bits, in_group);
        if (order == order_value) {
            word = (slot / 32 * bits + word) * dim + j;
        } else if (j / 32 < dim / 32 || bits == 8) {
            word = (j / 32 * bits + word) * page_tokens + slot;
        } else if (bits == 1) {
            word = j / 32 * page_tokens + slot % 32;
            shift += 16 * (slot / 32);
        } else {
            shift += 16 * (word % 2);
            word = (j / 32 * bits + word / 2) * page_tokens + slot;
        }
        code |= ((page[word] >> shift) & ((1u << bits) - 1u)) << low_bit;
        low_bit += bits;
        page += dim * bits * page_tokens / 32;
    }
    return code;
}

// The words of 32 codes, plane by plane, and of a trellis the subset bits of each code.
struct code_group {
    uint words[8];
    uint z1;
    uint z0;
};

inline int group_words(int type)
{
    return code_bits(type);
}

// Group `group` of a slot of a key page. Half groups are brought into the form of whole ones.
inline void load_key_group(int type, int dim, device const uint *page, int group, int slot,
                           thread code_group &to)
{
    const bool is_half = group == dim / 32;
    int n = 0;
    for (int plane = 0; plane < 3; plane++) {
        const int bits = plane_bits(type, plane);
        device const uint *words = page + group * bits * page_tokens;
        for (int i = 0; i < bits; i++, n++) {
            if (!is_half) {
                to.words[n] = words[i * page_tokens + slot];
            } else if (bits == 8) {
                to.words[n] = i < 4 ? words[i * page_tokens + slot] : 0u;
            } else if (bits == 1) {
                to.words[n] = (words[slot % 32] >> (16 * (slot / 32))) & 0xffffu;
            } else {
                to.words[n] = (words[i / 2 * page_tokens + slot] >> (16 * (i % 2))) & 0xffffu;
            }
        }
        page += dim * bits * page_tokens / 32;
    }
}

// Group `group` (slots 32 * group and up) of a coordinate of a value page.
inline void load_value_group(int type, int dim, device const uint *page, int group, int j,
                             thread code_group &to)
{
    int n = 0;
    for (int plane = 0; plane < 3; plane++) {
        const int bits = plane_bits(type, plane);
        for (int i = 0; i < bits; i++, n++) {
            to.words[n] = page[(group * bits + i) * dim + j];
        }
        page += dim * bits * page_tokens / 32;
    }
}

inline uint path_word(int type, thread const code_group &group)
{
    return group.words[free_bits(type)];
}

// The path bits of 32 coordinates moved on by `by`: bit j is the path bit of coordinate j - by.
inline uint earlier_path(uint path, uint before, uint by)
{
    return path << by | before >> (32u - by);
}

// Subset bits of 32 consecutive coordinates (taps 0, 3, 6, 8 and 1, 2, 7) from their path bits and
// those of the 32 coordinates before.
inline uint subset_z1(uint path, uint before)
{
    return path ^ earlier_path(path, before, 3) ^ earlier_path(path, before, 6) ^
           earlier_path(path, before, 8);
}

inline uint subset_z0(uint path, uint before)
{
    return earlier_path(path, before, 1) ^ earlier_path(path, before, 2) ^
           earlier_path(path, before, 7);
}
static_assert(TKV_TRELLIS_TAPS_Z1 == (1u | 1u << 3 | 1u << 6 | 1u << 8), "taps of z1");
static_assert(TKV_TRELLIS_TAPS_Z0 == (1u << 1 | 1u << 2 | 1u << 7), "taps of z0");

// What came before coordinate 0: the newest of the start bits last.
inline uint path_before(uint start)
{
    return reverse_bits(start);
}

constant char levels_2[4] = TKV_CODEBOOK_LEVELS_2;
constant char levels_3[8] = TKV_CODEBOOK_LEVELS_3;
constant char levels_4[16] = TKV_CODEBOOK_LEVELS_4;
constant char trellis_levels_8[8] = TKV_TRELLIS_LEVELS_8;
constant char trellis_levels_16[16] = TKV_TRELLIS_LEVELS_16;

// Level `index` of a type's table, by lookup.
inline float table_level(int type, uint index)
{
    switch (type) {
    case type_trellis3: return float(trellis_levels_16[index]);
    case type_trellis2: return float(trellis_levels_8[index]);
    case type_turbo4: return float(levels_4[index]);
    case type_turbo3:
    case type_turbo4q: return float(levels_3[index]);
    default: return float(levels_2[index]);
    }
}

// The magnitude of number `index` of four from the one that is `first` in the upper half of the
// table: constants and selects, no memory.
inline float magnitude_of_four(int type, int first, uint index)
{
    const int upper = (1 << level_bits(type)) / 2 + first;
    const float even =
        (index & 2u) != 0 ? table_level(type, uint(upper + 2)) : table_level(type, uint(upper));
    const float odd =
        (index & 2u) != 0 ? table_level(type, uint(upper + 3)) : table_level(type, uint(upper + 1));
    return (index & 1u) != 0 ? odd : even;
}

// Level `index`: with the wide table a lookup; without it, for GPUs where a lookup that differs
// from lane to lane is slow, one of the magnitudes (tables are antisymmetric) and a sign.
inline float level_of(int type, uint index)
{
    if (wide_table != 0) {
        return table_level(type, index);
    }
    const int bits = level_bits(type);
    const uint top = 1u << (bits - 1);
    const bool is_positive = (index & top) != 0;
    const uint rank = (is_positive ? index : ~index) & (top - 1u);
    float magnitude = 0.0f;
    if (bits == 2) {
        magnitude = rank != 0 ? table_level(type, 3u) : table_level(type, 2u);
    } else if (bits == 3) {
        magnitude = magnitude_of_four(type, 0, rank);
    } else {
        magnitude =
            (rank & 4u) != 0 ? magnitude_of_four(type, 4, rank) : magnitude_of_four(type, 0, rank);
    }
    return is_positive ? magnitude : -magnitude;
}

// Level of code 4n + r of a group; r is a constant where this is inlined.
inline float group_level(int type, thread const code_group &group, int n, int r)
{
    if (type == type_turbo8) {
        return float(as_type<char>(uchar((group.words[n] >> (8 * r)) & 0xffu)));
    }
    uint index = 0;
    int low_bit = 0;
    int first_word = 0;
    const int wanted = is_trellis(type) ? free_bits(type) : level_bits(type);
    for (int plane = 0; plane < 2; plane++) {
        const int bits = plane_bits(type, plane);
        if (low_bit < wanted) {
            const uint word = group.words[first_word + r * bits / 4];
            index |= ((word >> (4 * n + r * bits % 4)) & ((1u << bits) - 1u)) << low_bit;
        }
        low_bit += bits;
        first_word += bits;
    }
    if (is_trellis(type)) {
        const int code = 4 * n + r;
        index = index << 2 | ((group.z1 >> code) & 1u) << 1 | ((group.z0 >> code) & 1u);
    }
    return level_of(type, index);
}

// Signs of the sketch of a group, one a code: bit set = negative.
inline uint group_signs(int type, thread const code_group &group)
{
    return group.words[code_bits(type) - 1];
}

inline float4 four_levels(int type, thread const code_group &group, int n)
{
    return float4(group_level(type, group, n, 0), group_level(type, group, n, 1),
                  group_level(type, group, n, 2), group_level(type, group, n, 3));
}
