/* Decode attention of keys and values of one type. */
#include "device/cuda/base/head_dim.cuh"
#include "device/cuda/decode/instance.cuh"

namespace tkv_cuda
{
namespace
{

/* Two tiles of rows share the unpacking, where there are registers for both. */
template <int Type, int HeadDim> decode_kernel find_rows(int n_rows)
{
    if constexpr (HeadDim <= 128) {
        return n_rows <= 4 ? describe<Type, Type, HeadDim, 1>()
                           : describe<Type, Type, HeadDim, 2>();
    } else {
        return describe<Type, Type, HeadDim, 1>();
    }
}

} /* namespace */

decode_kernel find_paged_kernel(const tkv_device_layer &layer, int n_rows)
{
    decode_kernel kernel = {};
    if (layer.type_k != layer.type_v || layer.head_dim_k != layer.head_dim_v) {
        return kernel;
    }
    with_coded_type(layer.type_k, [&](auto coded) {
        constexpr int type = decltype(coded)::value;
        if constexpr (has_byte_products(type)) {
            with_head_dim(layer.head_dim_k, [&](auto size) {
                kernel = find_rows<type, decltype(size)::value>(n_rows);
            });
        }
    });
    return kernel;
}

} /* namespace tkv_cuda */
