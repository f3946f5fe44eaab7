/* What a type is made of, from the table of types, as templates and kernels need it. */
#ifndef TKV_DEVICE_CUDA_BASE_TYPE_CUH
#define TKV_DEVICE_CUDA_BASE_TYPE_CUH

#include "format/constants.h"
#include "format/type_table.h"
#include "turbokv.h"

#include <cstdint>
#include <type_traits>

namespace tkv_cuda
{

/* Of a coded type. */
template <int Type> struct type_traits {
    static constexpr tkv_code_kind kind = tkv_type_kind(Type);
    static_assert(kind != TKV_CODE_HALF, "a coded type of the table");
    static constexpr bool is_uniform = kind == TKV_CODE_UNIFORM;
    static constexpr bool is_trellis = kind == TKV_CODE_TRELLIS;
    static constexpr bool is_sketch = kind == TKV_CODE_SKETCH;
    static constexpr int n_planes = tkv_type_n_planes(Type);
    static constexpr int bits0 = tkv_type_plane_bits(Type, 0); /* of a code in plane 0 */
    static constexpr int bits1 = tkv_type_plane_bits(Type, 1);
    static constexpr int code_bits = tkv_type_code_bits(Type);
    static constexpr int n_side_fields = tkv_type_side_fields(Type);
    /* Codes are bytes, which lie in order where others are shuffled. */
    static constexpr bool is_bytes = code_bits == 8;
    /* log2 of the levels of the codebook or trellis; a trellis code names one of a subset. */
    static constexpr int level_bits = tkv_type_level_bits(Type);
    static constexpr int free_bits = is_trellis ? level_bits - 2 : 0;
    /* Tables of 8 entries, as the byte permute has them, that the levels take: of two a quad of
     * levels is the sum, and one (unpack.cuh). */
    static constexpr int n_tables = level_bits > 3 ? 2 : 1;

    __host__ __device__ static constexpr int plane_bits(int plane)
    {
        return tkv_type_plane_bits(Type, plane);
    }

    /* Bits of a code that lie in earlier planes. */
    __host__ __device__ static constexpr int low_bit(int plane)
    {
        return tkv_type_low_bits(Type, plane);
    }
};

/* Calls f with a coded type as a constant of the compiler. Returns whether it is one. */
#pragma nv_exec_check_disable
template <typename F> __host__ __device__ __forceinline__ bool with_coded_type(int type, F f)
{
#define TKV_CALL_WITH_TYPE(id, ...)                                                                \
    case TKV_TYPE_##id: f(std::integral_constant<int, TKV_TYPE_##id>{}); return true;
    switch (type) {
        TKV_CODED_TYPES(TKV_CALL_WITH_TYPE)
    }
#undef TKV_CALL_WITH_TYPE
    return false;
}

/* Facts of a type that is known at run time: no table in memory comes of these. */
__host__ __device__ inline bool is_trellis(int type)
{
    bool is = false;
    with_coded_type(type,
                    [&](auto coded) { is = type_traits<decltype(coded)::value>::is_trellis; });
    return is;
}

__host__ __device__ inline bool is_bytes(int type)
{
    bool is = false;
    with_coded_type(type, [&](auto coded) { is = type_traits<decltype(coded)::value>::is_bytes; });
    return is;
}

/* Whether the products of bytes, decode's and prefill's, have code for a type. A kind that is not
 * named does not compile. */
__host__ __device__ constexpr bool has_byte_products(int type)
{
    switch (tkv_type_kind(type)) {
    case TKV_CODE_UNIFORM:
    case TKV_CODE_CODEBOOK:
    case TKV_CODE_TRELLIS: return true;
    case TKV_CODE_HALF:
    case TKV_CODE_SKETCH: return false;
    }
    return false;
}

} /* namespace tkv_cuda */

#endif
