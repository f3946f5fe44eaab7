/* The instances of attend_decode_kernel.cuh. */
#include "backend/cuda/attend_decode_kernel.cuh"
#include "backend/cuda/attend_decode_launch.cuh"

namespace tkv_cuda
{
namespace
{

template <int KeyType, int ValueType, int HeadDim, int RowTiles>
cudaError_t launch_paged(const decode_job &job, dim3 grid, cudaStream_t stream)
{
    using shape = decode_shape<KeyType, ValueType, HeadDim, RowTiles>;
    const auto kernel = attend_decode<KeyType, ValueType, HeadDim, RowTiles>;
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape::shared_bytes);
    if (error != cudaSuccess) {
        return error;
    }
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(shape::n_warps * 32);
    config.dynamicSmemBytes = shape::shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = job.is_early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, job);
}

template <int KeyType, int ValueType, int HeadDim, int RowTiles> decode_kernel describe()
{
    using shape = decode_shape<KeyType, ValueType, HeadDim, RowTiles>;
    return {launch_paged<KeyType, ValueType, HeadDim, RowTiles>, shape::n_rows, shape::n_warps,
            shape::n_ctas};
}

template <int Type> decode_kernel find_kernel_of_type(int head_dim, int n_rows)
{
    switch (head_dim) {
    case 64: return n_rows <= 4 ? describe<Type, Type, 64, 1>() : describe<Type, Type, 64, 2>();
    case 128: return n_rows <= 4 ? describe<Type, Type, 128, 1>() : describe<Type, Type, 128, 2>();
    case 256: return describe<Type, Type, 256, 1>();
    default: return {};
    }
}

} // namespace

decode_kernel find_paged_kernel(const tkv_device_layer &layer, int n_rows)
{
    const int d = layer.head_dim_k;
    if (layer.type_k != layer.type_v || d != layer.head_dim_v) {
        return {};
    }
    switch (layer.type_k) {
    case TKV_TYPE_TURBO8: return find_kernel_of_type<TKV_TYPE_TURBO8>(d, n_rows);
    case TKV_TYPE_TURBO4: return find_kernel_of_type<TKV_TYPE_TURBO4>(d, n_rows);
    case TKV_TYPE_TURBO3: return find_kernel_of_type<TKV_TYPE_TURBO3>(d, n_rows);
    case TKV_TYPE_TURBO2: return find_kernel_of_type<TKV_TYPE_TURBO2>(d, n_rows);
    case TKV_TYPE_TRELLIS3: return find_kernel_of_type<TKV_TYPE_TRELLIS3>(d, n_rows);
    case TKV_TYPE_TRELLIS2: return find_kernel_of_type<TKV_TYPE_TRELLIS2>(d, n_rows);
    default: return {};
    }
}

} // namespace tkv_cuda
