// What all kernels share: function constants, addresses, conversions, sums over rows.
//
// A row of head_dim coordinates lies in the registers of one simdgroup: coordinate j in lane j %
// 32, register j / 32. If head_dim is no multiple of 32, lanes 16 to 31 have no coordinate in the
// last register and hold zero there. Loops over registers and rows have function constants as
// bounds, so that they unroll and the arrays become registers when a pipeline is made.

// The format prescribes every rounding, so products may not be fused into sums.
#pragma clang fp contract(off)

static_assert(sizeof(tkv_device_block) == 16, "shared with the host");
static_assert(sizeof(tkv_device_sequence) == 32, "shared with the host");
static_assert(sizeof(tkv_device_layer) == 28, "shared with the host");
static_assert(sizeof(tkv_device_attend) == 128, "shared with the host");
static_assert(sizeof(tkv_device_rows) == 56, "shared with the host");
static_assert(sizeof(tkv_device_join) == 56, "shared with the host");
static_assert(sizeof(tkv_metal_copy_items) == 24, "shared with the host");
static_assert(sizeof(tkv_metal_rotate) == 16, "shared with the host");
static_assert(sizeof(tkv_metal_rows) == 80, "shared with the host");
static_assert(sizeof(tkv_metal_attend) == 208, "shared with the host");

// Kernels that work on one side (keys or values) take its type and head_dim from the key's.
constant int key_type [[function_constant(TKV_METAL_KEY_TYPE)]];
constant int key_dim [[function_constant(TKV_METAL_KEY_DIM)]];
constant int value_type [[function_constant(TKV_METAL_VALUE_TYPE)]];
constant int value_dim [[function_constant(TKV_METAL_VALUE_DIM)]];
constant int tile_rows [[function_constant(TKV_METAL_TILE_ROWS)]];   // query rows at a time
constant int wide_table [[function_constant(TKV_METAL_WIDE_TABLE)]]; // levels by table lookup
constant int exact_blocks [[function_constant(TKV_METAL_EXACT)]];    // attend to exact blocks only
constant int variant [[function_constant(TKV_METAL_VARIANT)]];       // said at each kernel

// Numbers that bound arrays and loops are enumerators: constants in every dialect.
enum : int {
    page_tokens = TKV_PAGE_TOKENS,
    max_registers = TKV_MAX_HEAD_DIM / TKV_METAL_LANES, // of a row
};

constant float half_max = 65504.0f;
constant float level_unit = TKV_LEVEL_UNIT;

template <typename T> inline device T *at_address(ulong address)
{
    return reinterpret_cast<device T *>(address);
}

// IEEE binary16 <-> binary32 by integers: GPUs may flush float denormals.
inline float half_to_float(uint bits)
{
    const uint magnitude = bits & 0x7fffu;
    const uint sign = (bits & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) {
        return as_type<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    if (magnitude < 0x400u) { // a denormal is so many times 2^-24
        return as_type<float>(sign | as_type<uint>(float(magnitude) * 5.9604644775390625e-8f));
    }
    return as_type<float>(sign | ((magnitude << 13) + 0x38000000u));
}

// To nearest, ties to even.
inline uint float_to_half(float value)
{
    const uint bits = as_type<uint>(value);
    const uint sign = (bits >> 16) & 0x8000u;
    const uint magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u;
    }
    if (magnitude >= 0x477ff000u) { // 65520 and up round to infinity
        return sign | 0x7c00u;
    }
    if (magnitude < 0x38800000u) { // below 2^-14: the sum's last bit is the half's last bit
        const float sum = as_type<float>(magnitude) + 0.5f;
        return sign | (as_type<uint>(sum) - 0x3f000000u);
    }
    const uint rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return sign | ((rounded - 0x38000000u) >> 13);
}

// As f16 rows store values: finite ones that would round to infinity become the largest half.
inline uint float_to_finite_half(float value)
{
    const uint rounded = float_to_half(value);
    const bool is_overflow =
        (rounded & 0x7fffu) == 0x7c00u && (as_type<uint>(value) & 0x7fffffffu) < 0x7f800000u;
    return is_overflow ? rounded - 1u : rounded;
}

inline int registers_of(int dim)
{
    return tkv_ceil_divide(dim, TKV_METAL_LANES);
}

// Sum of one value a coordinate in the order that the format prescribes: sixteen lanes add every
// sixteenth value, then lanes 8, 4, 2, 1 apart are added. Both halves of the simdgroup do it.
inline float sum16(int dim, thread const float *values, uint lane)
{
    float sum = 0.0f;
    for (int i = 0; i < registers_of(dim); i++) {
        const float other = simd_shuffle_xor(values[i], ushort(16));
        const float low = lane < 16 ? values[i] : other;
        const float high = lane < 16 ? other : values[i];
        sum = i == 0 ? low : sum + low;
        sum = 32 * i + 16 < dim ? sum + high : sum;
    }
    for (ushort apart = 8; apart > 0; apart /= 2) {
        sum = sum + simd_shuffle_xor(sum, apart);
    }
    return sum;
}

inline float dot16(int dim, thread const float *a, thread const float *b, uint lane)
{
    float products[max_registers];
    for (int i = 0; i < registers_of(dim); i++) {
        products[i] = a[i] * b[i];
    }
    return sum16(dim, products, lane);
}

// Copies in the order of the other kernels. Variant: bytes of an item, 1 or 4.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_copy(constant tkv_metal_copy_items &p [[buffer(0)]], uint i [[thread_position_in_grid]])
{
    if (ulong(i) >= p.n) {
        return;
    }
    if (variant == 4) {
        at_address<uint>(p.to)[i] = at_address<const uint>(p.from)[i];
    } else {
        at_address<uchar>(p.to)[i] = at_address<const uchar>(p.from)[i];
    }
}
