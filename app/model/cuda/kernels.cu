#include "model/cuda/kernels.h"

#include <cuda_fp16.h>

#define N_THREADS 512
#define HEAD_THREADS 128
#define MAX_HEAD_DIM 1024

/* Rows whose largest value is above this are scaled: sums of products then have room too. */
#define LARGEST_HALF 16384.0f

enum reduction { SUM, LARGEST };

template <reduction Kind> __device__ static float combine(float a, float b)
{
    return Kind == SUM ? a + b : fmaxf(a, b);
}

/* The sum or the largest of all threads' values, for all of them. */
template <reduction Kind> __device__ static float reduce(float value)
{
    __shared__ float of_warps[32];
    for (int offset = 16; offset > 0; offset /= 2) {
        value = combine<Kind>(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        of_warps[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = of_warps[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) {
        value = combine<Kind>(value, of_warps[w]);
    }
    return value;
}

/* The power of two that brings the largest value of a row into range. */
__device__ static float scale_of(float largest)
{
    return largest > LARGEST_HALF && largest < INFINITY
               ? exp2f(ceilf(log2f(largest / LARGEST_HALF)))
               : 1.0f;
}

/* Writes a row whose values value(i) are computed twice: once for the scale. */
template <typename Value>
__device__ static void write_halves(int width, tkv_cuda_halves out, Value value)
{
    float largest = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        largest = fmaxf(largest, fabsf(value(i)));
    }
    const float scale = scale_of(reduce<LARGEST>(largest));
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        out.x[(size_t)blockIdx.x * width + i] = __half_as_ushort(__float2half_rn(value(i) / scale));
    }
    __syncthreads(); /* the scale of the input may lie there */
    if (threadIdx.x == 0) {
        out.scale[blockIdx.x] = scale;
    }
}

__device__ static float read_product(const tkv_cuda_product &p, int row, int width, int i)
{
    const float value = p.y[(size_t)row * width + i] * p.scale[row];
    return p.bias ? value + p.bias[i] : value;
}

__global__ static void embed(int width, const int32_t *tokens, const uint16_t *table,
                             float *residual)
{
    const uint16_t *row = table + (size_t)tokens[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        residual[(size_t)blockIdx.x * width + i] = __half2float(__ushort_as_half(row[i]));
    }
}

__global__ static void add_and_norm(int width, tkv_cuda_product product, float *residual,
                                    const float *weight, float epsilon, tkv_cuda_halves out)
{
    float *row = residual + (size_t)blockIdx.x * width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        if (product.y) {
            row[i] += read_product(product, blockIdx.x, width, i);
        }
        squares += row[i] * row[i];
    }
    const float inverse = 1.0f / sqrtf(reduce<SUM>(squares) / width + epsilon);
    write_halves(width, out, [=](int i) { return row[i] * inverse * weight[i]; });
}

/* Turns x [head_dim] in shared memory by its position; writes it to out. */
__device__ static void turn(const tkv_cuda_heads &heads, int position, const float *x, float *out)
{
    const int n_pairs = heads.rope_dim / 2;
    for (int i = threadIdx.x; i < n_pairs; i += blockDim.x) {
        const int first = heads.is_interleaved ? 2 * i : i;
        const int second = heads.is_interleaved ? 2 * i + 1 : i + n_pairs;
        double sine, cosine;
        sincos(position * heads.rope_frequencies[i], &sine, &cosine);
        const float c = (float)(heads.rope_magnitude * cosine);
        const float s = (float)(heads.rope_magnitude * sine);
        out[first] = x[first] * c - x[second] * s;
        out[second] = x[first] * s + x[second] * c;
    }
    for (int i = heads.rope_dim + threadIdx.x; i < heads.head_dim_k; i += blockDim.x) {
        out[i] = x[i];
    }
}

__device__ static void norm_head(int head_dim, const float *weight, float epsilon, float *x)
{
    float squares = 0.0f;
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) {
        squares += x[i] * x[i];
    }
    const float inverse = 1.0f / sqrtf(reduce<SUM>(squares) / head_dim + epsilon);
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) {
        x[i] *= inverse * weight[i];
    }
}

/* A block for each head of each row. */
__global__ static void place_heads(tkv_cuda_heads heads, tkv_cuda_product product,
                                   const int32_t *first_position, float *q, float *k, float *v)
{
    __shared__ float x[MAX_HEAD_DIM];
    const int row = blockIdx.x;
    const int head = blockIdx.y;
    const int n_turned = heads.n_heads + heads.n_kv_heads;
    const int width = n_turned * heads.head_dim_k + heads.n_kv_heads * heads.head_dim_v;
    if (head >= n_turned) {
        const int kv_head = head - n_turned;
        const int at = n_turned * heads.head_dim_k + kv_head * heads.head_dim_v;
        float *out = v + ((size_t)row * heads.n_kv_heads + kv_head) * heads.head_dim_v;
        for (int i = threadIdx.x; i < heads.head_dim_v; i += blockDim.x) {
            out[i] = read_product(product, row, width, at + i);
        }
        return;
    }
    for (int i = threadIdx.x; i < heads.head_dim_k; i += blockDim.x) {
        x[i] = read_product(product, row, width, head * heads.head_dim_k + i);
    }
    const bool is_query = head < heads.n_heads;
    const float *norm = is_query ? heads.query_norm : heads.key_norm;
    if (norm) {
        norm_head(heads.head_dim_k, norm, heads.epsilon, x);
    }
    __syncthreads();
    float *out =
        is_query ? q + ((size_t)row * heads.n_heads + head) * heads.head_dim_k
                 : k + ((size_t)row * heads.n_kv_heads + head - heads.n_heads) * heads.head_dim_k;
    turn(heads, *first_position + row, x, out);
}

__global__ static void halve(int width, const float *x, tkv_cuda_halves out)
{
    const float *row = x + (size_t)blockIdx.x * width;
    write_halves(width, out, [=](int i) { return row[i]; });
}

__global__ static void swiglu(int width, tkv_cuda_product product, tkv_cuda_halves out)
{
    const int row = blockIdx.x;
    write_halves(width, out, [=](int i) {
        const float gate = read_product(product, row, 2 * width, i);
        const float up = read_product(product, row, 2 * width, width + i);
        return gate / (1.0f + expf(-gate)) * up;
    });
}

__global__ static void finish(int width, tkv_cuda_product product, float *y)
{
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < width) {
        y[(size_t)blockIdx.x * width + i] = read_product(product, blockIdx.x, width, i);
    }
}

cudaError_t tkv_cuda_embed(int n_rows, int width, const int32_t *tokens, const uint16_t *table,
                           float *residual, cudaStream_t stream)
{
    embed<<<n_rows, N_THREADS, 0, stream>>>(width, tokens, table, residual);
    return cudaGetLastError();
}

cudaError_t tkv_cuda_add_and_norm(int n_rows, int width, const tkv_cuda_product *product,
                                  float *residual, const float *weight, float epsilon,
                                  const tkv_cuda_halves *out, cudaStream_t stream)
{
    add_and_norm<<<n_rows, N_THREADS, 0, stream>>>(width, *product, residual, weight, epsilon,
                                                   *out);
    return cudaGetLastError();
}

cudaError_t tkv_cuda_place_heads(int n_rows, const tkv_cuda_heads *heads,
                                 const tkv_cuda_product *product, const int32_t *first_position,
                                 float *q, float *k, float *v, cudaStream_t stream)
{
    const dim3 grid(n_rows, heads->n_heads + 2 * heads->n_kv_heads);
    place_heads<<<grid, HEAD_THREADS, 0, stream>>>(*heads, *product, first_position, q, k, v);
    return cudaGetLastError();
}

cudaError_t tkv_cuda_halve(int n_rows, int width, const float *x, const tkv_cuda_halves *out,
                           cudaStream_t stream)
{
    halve<<<n_rows, N_THREADS, 0, stream>>>(width, x, *out);
    return cudaGetLastError();
}

cudaError_t tkv_cuda_swiglu(int n_rows, int width, const tkv_cuda_product *product,
                            const tkv_cuda_halves *out, cudaStream_t stream)
{
    swiglu<<<n_rows, N_THREADS, 0, stream>>>(width, *product, *out);
    return cudaGetLastError();
}

cudaError_t tkv_cuda_finish(int n_rows, int width, const tkv_cuda_product *product, float *y,
                            cudaStream_t stream)
{
    const dim3 grid(n_rows, (width + N_THREADS - 1) / N_THREADS);
    finish<<<grid, N_THREADS, 0, stream>>>(width, *product, y);
    return cudaGetLastError();
}
