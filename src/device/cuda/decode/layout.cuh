/* Where a coded page lies in shared memory: row after row of words as in the page, but each row
 * moved by a few words so that the lanes of a warp, which read the same place of different rows,
 * meet different banks. All of it is known at compile time.
 *
 * Lane 4g + t reads, of keys, two neighbouring slots that g chooses, in the rows of coordinate
 * group t (mod 4); of values, four neighbouring coordinates that g chooses, in the rows of token
 * group t/2, half t%2. Where there are only two groups of keys (head_dim 64), they are shared
 * likewise. */
#ifndef TKV_DEVICE_CUDA_DECODE_LAYOUT_CUH
#define TKV_DEVICE_CUDA_DECODE_LAYOUT_CUH

#include "device/cuda/base/copy.cuh"
#include "device/cuda/base/page.cuh"
#include "device/cuda/base/unpack.cuh"

namespace tkv_cuda
{

constexpr int copy_bytes = 32 * chunk_bytes; /* by a warp */
constexpr int side_bytes = page_tokens * 2;  /* one side field of a page */

/* One side (keys or values) of a page pair with codes of this type. */
template <int Type, int HeadDim, bool IsValue> struct side_layout {
    using c = type_traits<Type>;
    static constexpr bool is_shared = IsValue || HeadDim == 64; /* two groups for four lanes */
    static constexpr int n_groups = IsValue ? 2 : HeadDim / 32;
    static constexpr int row_bytes = (IsValue ? HeadDim : page_tokens) * 4;
    static_assert(c::n_side_fields == 1, "a scale and no more");
    static constexpr int page_bytes = page_tokens * tkv_type_row_bytes(Type, HeadDim);
    static constexpr int code_bytes = page_bytes - side_bytes;

    TKV_HOST_DEVICE static constexpr int plane_bits(int plane)
    {
        return c::plane_bits(plane);
    }

    TKV_HOST_DEVICE static constexpr bool is_path(int plane)
    {
        return c::is_trellis && plane == 1;
    }

    /* The lane (mod 4) that reads a row of a plane. */
    TKV_HOST_DEVICE static constexpr int lane_of_row(int bits, int row)
    {
        return !is_shared ? row / bits % 4 : bits == 1 ? 2 * row : row / (bits / 2);
    }

    /* 8-byte reads of keys touch 8 bytes in every 16 of 64, 16-byte reads of values 32 bytes. */
    TKV_HOST_DEVICE static constexpr int shift_of_lane(int t)
    {
        return IsValue ? 32 * t : 16 * (t & 1) + 64 * (t >> 1);
    }

    /* Room before the first row of a trellis' path plane, for what lies before: keys one row with
     * the start bits of all slots, values 8 words a row with those of 32 tokens. */
    TKV_HOST_DEVICE static constexpr int path_room(int plane)
    {
        return !is_path(plane) ? 0 : IsValue ? 32 : is_shared ? 320 : 304;
    }

    /* Offset of a row from the beginning of its plane's region. */
    TKV_HOST_DEVICE static constexpr int row_offset(int plane, int row)
    {
        const int bits = plane_bits(plane);
        if (IsValue && is_path(plane)) {
            return 32 + row * (row_bytes + 96);
        }
        const int cycle = is_shared ? 0 : row / bits / 4 * 128;
        return path_room(plane) + row * row_bytes + cycle + shift_of_lane(lane_of_row(bits, row));
    }

    TKV_HOST_DEVICE static constexpr int region_bytes(int plane)
    {
        return row_offset(plane, n_groups * plane_bits(plane) - 1) + row_bytes;
    }

    TKV_HOST_DEVICE static constexpr int plane_offset(int plane)
    {
        return plane == 0 ? 0 : region_bytes(0);
    }

    static constexpr int bytes = plane_offset(c::n_planes - 1) + region_bytes(c::n_planes - 1);

    /* Where byte `at` of the page goes. */
    TKV_HOST_DEVICE static constexpr int target_of(int at)
    {
        const int plane_bytes = HeadDim * page_tokens * c::bits0 / 8;
        const int plane = at < plane_bytes ? 0 : 1;
        const int within = at - plane * plane_bytes;
        return plane_offset(plane) + row_offset(plane, within / row_bytes) + within % row_bytes;
    }

    TKV_HOST_DEVICE static constexpr int row_address(int plane, int row)
    {
        return plane_offset(plane) + row_offset(plane, row);
    }
};

/* A key page and the value page behind it, and their scales. */
template <int KeyType, int ValueType, int HeadDim> struct pair_layout {
    using keys = side_layout<KeyType, HeadDim, false>;
    using values = side_layout<ValueType, HeadDim, true>;
    static constexpr int values_at = keys::bytes;
    static constexpr int key_scales_at = values_at + values::bytes;
    static constexpr int value_scales_at = key_scales_at + side_bytes;
    static constexpr int bytes = value_scales_at + side_bytes;
    static constexpr int page_bytes = keys::page_bytes + values::page_bytes; /* in memory */
    static_assert(values_at % 16 == 0 && key_scales_at % 16 == 0, "copies are 16 bytes");
};

} /* namespace tkv_cuda */

#endif
