/* Small uploads and gathered descriptors: bytes and addresses travel with the launch, so that
 * nobody waits and the host's memory is free at once. */
#include "device/cuda/kernels_cuda.h"

#include <string.h>

#define CHUNK_BYTES 2048
#define N_THREADS 256

#define CHUNK_ADDRESSES (CHUNK_BYTES / 8)

typedef struct address_chunk {
    uint64_t from[CHUNK_ADDRESSES];
} address_chunk;

typedef struct write_chunk {
    uint8_t bytes[CHUNK_BYTES];
} write_chunk;

__global__ static void write_bytes(uint8_t *to, write_chunk chunk, int n_bytes)
{
    for (int i = threadIdx.x; i < n_bytes; i += N_THREADS) {
        to[i] = chunk.bytes[i];
    }
}

cudaError_t tkv_cuda_write(void *to, const void *from, size_t n_bytes, cudaStream_t stream)
{
    for (size_t done = 0; done < n_bytes; done += CHUNK_BYTES) {
        const size_t n = n_bytes - done < CHUNK_BYTES ? n_bytes - done : CHUNK_BYTES;
        write_chunk chunk;
        memcpy(chunk.bytes, (const uint8_t *)from + done, n);
        write_bytes<<<1, N_THREADS, 0, stream>>>((uint8_t *)to + done, chunk, (int)n);
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

__global__ static void gather(tkv_device_sequence *sequences, address_chunk chunk, int n)
{
    if (threadIdx.x < n) {
        sequences[threadIdx.x] = *(const tkv_device_sequence *)chunk.from[threadIdx.x];
    }
}

cudaError_t tkv_cuda_gather(tkv_device_sequence *sequences, const uint64_t *from, int n,
                            cudaStream_t stream)
{
    static_assert(CHUNK_ADDRESSES <= N_THREADS, "a thread for each address");
    for (int done = 0; done < n; done += CHUNK_ADDRESSES) {
        const int n_here = n - done < CHUNK_ADDRESSES ? n - done : CHUNK_ADDRESSES;
        address_chunk chunk;
        memcpy(chunk.from, from + done, n_here * sizeof *from);
        gather<<<1, N_THREADS, 0, stream>>>(sequences + done, chunk, n_here);
        const cudaError_t result = cudaGetLastError();
        if (result != cudaSuccess) {
            return result;
        }
    }
    return cudaSuccess;
}
