/* Small uploads and gathered descriptors: bytes and addresses travel with the launch, so that
 * nobody waits and the host's memory is free at once. */
#include "device/cuda/kernels_cuda.h"

#include <string.h>

namespace tkv_cuda
{
namespace
{

constexpr int n_threads = 256;
constexpr int payload_bytes = 2048; /* of a launch */
constexpr int payload_addresses = payload_bytes / 8;

struct address_payload {
    uint64_t from[payload_addresses];
};

struct byte_payload {
    uint8_t bytes[payload_bytes];
};

__global__ void write_bytes(uint8_t *to, byte_payload payload, int n_bytes)
{
    for (int i = threadIdx.x; i < n_bytes; i += n_threads) {
        to[i] = payload.bytes[i];
    }
}

__global__ void gather(tkv_device_sequence *sequences, address_payload payload, int n)
{
    static_assert(payload_addresses <= n_threads, "a thread for each address");
    if (threadIdx.x < n) {
        sequences[threadIdx.x] = *(const tkv_device_sequence *)payload.from[threadIdx.x];
    }
}

} /* namespace */
} /* namespace tkv_cuda */

using namespace tkv_cuda;

cudaError_t tkv_cuda_write(void *to, const void *from, size_t n_bytes, cudaStream_t stream)
{
    for (size_t done = 0; done < n_bytes; done += payload_bytes) {
        const size_t n = n_bytes - done < payload_bytes ? n_bytes - done : payload_bytes;
        byte_payload payload;
        memcpy(payload.bytes, (const uint8_t *)from + done, n);
        write_bytes<<<1, n_threads, 0, stream>>>((uint8_t *)to + done, payload, (int)n);
        const cudaError_t result = cudaGetLastError();
        if (result != cudaSuccess) {
            return result;
        }
    }
    return cudaSuccess;
}

cudaError_t tkv_cuda_code_version(int *version)
{
    cudaFuncAttributes attributes;
    const cudaError_t result = cudaFuncGetAttributes(&attributes, write_bytes);
    *version = result == cudaSuccess ? attributes.ptxVersion : 0;
    return result;
}

cudaError_t tkv_cuda_gather(tkv_device_sequence *sequences, const uint64_t *from, int n,
                            cudaStream_t stream)
{
    for (int done = 0; done < n; done += payload_addresses) {
        const int n_here = n - done < payload_addresses ? n - done : payload_addresses;
        address_payload payload;
        memcpy(payload.from, from + done, n_here * sizeof *from);
        gather<<<1, n_threads, 0, stream>>>(sequences + done, payload, n_here);
        const cudaError_t result = cudaGetLastError();
        if (result != cudaSuccess) {
            return result;
        }
    }
    return cudaSuccess;
}
