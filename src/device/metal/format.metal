// Where codes lie in pages, and which levels they mean (docs/FORMAT.md, sections 2, 5 and 6).

// The numbers of the types, as turbokv.h has them.
enum : int {
#define NUMBER(id, name, number, ...) TKV_TYPE_##id = number,
    TKV_TYPES(NUMBER)
#undef NUMBER
};

enum : int { order_key, order_value };

// What a type is made of: src/format/type_table.h.
inline bool is_half(int type)
{
    return tkv_type_kind(type) == TKV_CODE_HALF;
}

inline bool is_uniform(int type)
{
    return tkv_type_kind(type) == TKV_CODE_UNIFORM;
}

inline bool is_trellis(int type)
{
    return tkv_type_kind(type) == TKV_CODE_TRELLIS;
}

inline bool is_sketch(int type)
{
    return tkv_type_kind(type) == TKV_CODE_SKETCH;
}

// Free bits of a trellis code.
inline int free_bits(int type)
{
    return tkv_type_plane_bits(type, 0);
}

// What is read here: codes of at most eight bits, levels in bytes or in tables of 4, 8 or 16.
#define CHECK_TYPE(id, name, number, kind, plane0, plane1, plane2, level_bits, ...)               \
    static_assert(plane0 + plane1 + plane2 <= 8 && (TKV_CODE_##kind == TKV_CODE_UNIFORM           \
                                                        ? plane0 == 8                             \
                                                        : level_bits >= 2 && level_bits <= 4),    \
                  "codes of " name);
TKV_CODED_TYPES(CHECK_TYPE)
#undef CHECK_TYPE

// 32-bit words of all planes of a page.
inline int page_code_words(int type, int dim)
{
    return dim * tkv_type_code_bits(type) * page_tokens / 32;
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
    const int key_type = block.is_exact ? int(TKV_TYPE_F16) : layer.type_k;
    const int value_type = block.is_exact ? int(TKV_TYPE_F16) : layer.type_v;
    const int n_slots = block.is_exact ? block.n_slots : page_tokens;
    return block.pages +
           tkv_page_offset(head, order == order_value,
                           tkv_stored_page_bytes(key_type, layer.head_dim_k, n_slots),
                           tkv_stored_page_bytes(value_type, layer.head_dim_v, n_slots));
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
        const int bits = tkv_type_plane_bits(type, plane);
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

// Group `group` of a slot of a key page. Half groups are brought into the form of whole ones.
inline void load_key_group(int type, int dim, device const uint *page, int group, int slot,
                           thread code_group &to)
{
    const bool is_half = group == dim / 32;
    int n = 0;
    for (int plane = 0; plane < 3; plane++) {
        const int bits = tkv_type_plane_bits(type, plane);
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
        const int bits = tkv_type_plane_bits(type, plane);
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

#define LEVELS(bits) constant char levels_##bits[1 << bits] = TKV_CODEBOOK_LEVELS_##bits;
TKV_CODEBOOKS(LEVELS)
#undef LEVELS
#define LEVELS(bits, n) constant char trellis_levels_##n[n] = TKV_TRELLIS_LEVELS_##n;
TKV_TRELLISES(LEVELS)
#undef LEVELS

// Level `index` of a type's table, by lookup.
inline float table_level(int type, uint index)
{
#define LEVEL(bits, n) case bits: return float(trellis_levels_##n[index]);
    if (is_trellis(type)) {
        switch (tkv_type_level_bits(type)) {
            TKV_TRELLISES(LEVEL)
        }
    }
#undef LEVEL
#define LEVEL(bits) case bits: return float(levels_##bits[index]);
    switch (tkv_type_level_bits(type)) {
        TKV_CODEBOOKS(LEVEL)
    }
#undef LEVEL
    return 0.0f; // types have the tables that they name (types.c)
}

// The magnitude of number `index` of four from the one that is `first` in the upper half of the
// table: constants and selects, no memory.
inline float magnitude_of_four(int type, int first, uint index)
{
    const int upper = (1 << tkv_type_level_bits(type)) / 2 + first;
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
    const int bits = tkv_type_level_bits(type);
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
    if (is_uniform(type)) {
        return float(as_type<char>(uchar((group.words[n] >> (8 * r)) & 0xffu)));
    }
    uint index = 0;
    int low_bit = 0;
    int first_word = 0;
    const int wanted = is_trellis(type) ? free_bits(type) : tkv_type_level_bits(type);
    for (int plane = 0; plane < 2; plane++) {
        const int bits = tkv_type_plane_bits(type, plane);
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
    return group.words[tkv_type_code_bits(type) - 1];
}

inline float4 four_levels(int type, thread const code_group &group, int n)
{
    return float4(group_level(type, group, n, 0), group_level(type, group, n, 1),
                  group_level(type, group, n, 2), group_level(type, group, n, 3));
}
