/* Decode attention of keys that have more bits than the values, as policies like to have it. What
 * is not here is left to attend_decode_any.cu. */
#include "device/cuda/decode/attend_decode_instance.cuh"

namespace tkv_cuda
{
namespace
{

template <int KeyType> decode_kernel find_value_type(int type_v)
{
    switch (type_v) {
    case TKV_TYPE_TURBO4: return describe<KeyType, TKV_TYPE_TURBO4, 128, 1>();
    case TKV_TYPE_TURBO3: return describe<KeyType, TKV_TYPE_TURBO3, 128, 1>();
    case TKV_TYPE_TURBO2: return describe<KeyType, TKV_TYPE_TURBO2, 128, 1>();
    case TKV_TYPE_TRELLIS3: return describe<KeyType, TKV_TYPE_TRELLIS3, 128, 1>();
    case TKV_TYPE_TRELLIS2: return describe<KeyType, TKV_TYPE_TRELLIS2, 128, 1>();
    default: return {};
    }
}

} /* namespace */

decode_kernel find_mixed_kernel(const tkv_device_layer &layer)
{
    if (layer.head_dim_k != 128 || layer.head_dim_v != 128) {
        return {};
    }
    switch (layer.type_k) {
    case TKV_TYPE_TURBO8: return find_value_type<TKV_TYPE_TURBO8>(layer.type_v);
    case TKV_TYPE_TURBO4: return find_value_type<TKV_TYPE_TURBO4>(layer.type_v);
    case TKV_TYPE_TRELLIS3:
        return layer.type_v == TKV_TYPE_TRELLIS2
                   ? describe<TKV_TYPE_TRELLIS3, TKV_TYPE_TRELLIS2, 128, 1>()
                   : decode_kernel{};
    default: return {};
    }
}

} /* namespace tkv_cuda */
