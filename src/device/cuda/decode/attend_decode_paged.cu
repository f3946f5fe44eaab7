/* Decode attention of keys and values of one type. */
#include "device/cuda/decode/attend_decode_instance.cuh"

namespace tkv_cuda
{
namespace
{

template <int Type> decode_kernel find_same_type(int head_dim, int n_rows)
{
    switch (head_dim) {
    case 64: return n_rows <= 4 ? describe<Type, Type, 64, 1>() : describe<Type, Type, 64, 2>();
    case 128: return n_rows <= 4 ? describe<Type, Type, 128, 1>() : describe<Type, Type, 128, 2>();
    case 256: return describe<Type, Type, 256, 1>();
    default: return {};
    }
}

} /* namespace */

decode_kernel find_paged_kernel(const tkv_device_layer &layer, int n_rows)
{
    const int d = layer.head_dim_k;
    if (layer.type_k != layer.type_v || d != layer.head_dim_v) {
        return {};
    }
    switch (layer.type_k) {
    case TKV_TYPE_TURBO8: return find_same_type<TKV_TYPE_TURBO8>(d, n_rows);
    case TKV_TYPE_TURBO4: return find_same_type<TKV_TYPE_TURBO4>(d, n_rows);
    case TKV_TYPE_TURBO3: return find_same_type<TKV_TYPE_TURBO3>(d, n_rows);
    case TKV_TYPE_TURBO2: return find_same_type<TKV_TYPE_TURBO2>(d, n_rows);
    case TKV_TYPE_TRELLIS3: return find_same_type<TKV_TYPE_TRELLIS3>(d, n_rows);
    case TKV_TYPE_TRELLIS2: return find_same_type<TKV_TYPE_TRELLIS2>(d, n_rows);
    default: return {};
    }
}

} /* namespace tkv_cuda */
