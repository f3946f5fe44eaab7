/* Decode attention of keys that have more bits than the values, as policies like to have it. What
 * is not here is left to any.cu. */
#include "device/cuda/decode/instance.cuh"
#include "device/cuda/heuristics.h"

namespace tkv_cuda
{
decode_kernel find_mixed_kernel(const tkv_device_layer &layer)
{
    decode_kernel kernel = {};
    if (layer.head_dim_k != 128 || layer.head_dim_v != 128) {
        return kernel;
    }
    with_coded_type(layer.type_k, [&](auto coded_k) {
        with_coded_type(layer.type_v, [&](auto coded_v) {
            constexpr int type_k = decltype(coded_k)::value;
            constexpr int type_v = decltype(coded_v)::value;
            if constexpr (has_byte_products(type_k) && has_byte_products(type_v) &&
                          has_mixed_kernel(type_k, type_v)) {
                kernel = describe<type_k, type_v, 128, 1>();
            }
        });
    });
    return kernel;
}

} /* namespace tkv_cuda */
