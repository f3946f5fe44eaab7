/* One instance of the kernel of kernel.cuh, and its launch. */
#ifndef TKV_DEVICE_CUDA_DECODE_INSTANCE_CUH
#define TKV_DEVICE_CUDA_DECODE_INSTANCE_CUH

#include "device/cuda/decode/kernel.cuh"
#include "device/cuda/decode/launch.cuh"

namespace tkv_cuda
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
    return {launch_paged<KeyType, ValueType, HeadDim, RowTiles>, shape::n_rows, shape::n_warps, 1,
            shape::shared_bytes};
}

} /* namespace tkv_cuda */

#endif
