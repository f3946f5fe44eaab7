/* What the kernels of the codec share: the numbers of docs/FORMAT.md in constant memory, halves as
 * src/base/half.h makes them, what a type is made of, and where blocks and codes lie. */
#ifndef TKV_DEVICE_CUDA_CODEC_CODEC_CUH
#define TKV_DEVICE_CUDA_CODEC_CODEC_CUH

#include "device/device_layout.h"
#include "format/constants.h"
#include "turbokv.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace tkv_cuda
{

constexpr int page_tokens = TKV_PAGE_TOKENS;
constexpr uint32_t full_warp = 0xffffffffu;
constexpr int group_tokens = 32; /* whose codes share a word of a value page */

constexpr float half_max = 65504.0f;
constexpr uint32_t half_nan = 0x7e00u;

__device__ inline uint32_t to_half(float value)
{
    const uint32_t half = __half_as_ushort(__float2half_rn(value));
    return isnan(value) ? (__float_as_uint(value) >> 16 & 0x8000u) | half_nan : half;
}

/* Finite values that would round to infinity become the largest half. */
__device__ inline uint32_t to_finite_half(float value)
{
    const uint32_t half = to_half(value);
    return (half & 0x7fffu) == 0x7c00u && isfinite(value) ? half - 1 : half;
}

__device__ inline float from_half(uint32_t half)
{
    return __half2float(__ushort_as_half((unsigned short)half));
}

/* The instruction itself, which __byte_perm is not: bit 3 of a selector asks for eight copies of
 * the byte's sign. */
__device__ inline uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector)
{
    uint32_t result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
}

/* What a coded type is made of (tkv_type_get_layout at compile time). */
template <int Type> struct type_traits {
    static constexpr bool is_uniform = Type == TKV_TYPE_TURBO8;
    static constexpr bool is_trellis = Type == TKV_TYPE_TRELLIS3 || Type == TKV_TYPE_TRELLIS2;
    static constexpr bool is_sketch = Type == TKV_TYPE_TURBO4Q || Type == TKV_TYPE_TURBO3Q;
    /* log2 of the levels of the codebook or trellis */
    static constexpr int level_bits =
        Type == TKV_TYPE_TURBO4 || Type == TKV_TYPE_TRELLIS3                               ? 4
        : Type == TKV_TYPE_TURBO3 || Type == TKV_TYPE_TRELLIS2 || Type == TKV_TYPE_TURBO4Q ? 3
                                                                                           : 2;
    static constexpr int n_planes =
        Type == TKV_TYPE_TURBO4Q                                                        ? 3
        : Type == TKV_TYPE_TURBO8 || Type == TKV_TYPE_TURBO4 || Type == TKV_TYPE_TURBO2 ? 1
                                                                                        : 2;
    static constexpr int code_bits = Type == TKV_TYPE_TURBO8                                ? 8
                                     : Type == TKV_TYPE_TURBO4 || Type == TKV_TYPE_TURBO4Q  ? 4
                                     : Type == TKV_TYPE_TURBO2 || Type == TKV_TYPE_TRELLIS2 ? 2
                                                                                            : 3;
    static constexpr int n_side_fields = is_sketch ? 2 : 1;
    static constexpr int free_bits = Type == TKV_TYPE_TRELLIS3 ? 2 : 1;

    __host__ __device__ static constexpr int plane_bits(int plane)
    {
        return n_planes == 1 ? code_bits : Type == TKV_TYPE_TRELLIS2 || plane > 0 ? 1 : 2;
    }

    /* Bits of a code that lie in earlier planes. */
    __host__ __device__ static constexpr int low_bit(int plane)
    {
        return plane == 0 ? 0 : plane_bits(0) + plane - 1;
    }
};

/* Bytes of a page; of f16 for n_slots rows. */
__host__ __device__ inline uint64_t page_bytes(int type, int head_dim, int n_slots)
{
    switch (type) {
    case TKV_TYPE_TURBO8: return (uint64_t)page_tokens * (head_dim + 2);
    case TKV_TYPE_TURBO4: return (uint64_t)page_tokens * (head_dim / 2 + 2);
    case TKV_TYPE_TURBO3:
    case TKV_TYPE_TRELLIS3: return (uint64_t)page_tokens * (3 * head_dim / 8 + 2);
    case TKV_TYPE_TURBO2:
    case TKV_TYPE_TRELLIS2: return (uint64_t)page_tokens * (head_dim / 4 + 2);
    case TKV_TYPE_TURBO4Q: return (uint64_t)page_tokens * (head_dim / 2 + 4);
    case TKV_TYPE_TURBO3Q: return (uint64_t)page_tokens * (3 * head_dim / 8 + 4);
    default: return (uint64_t)n_slots * head_dim * 2;
    }
}

/* Blocks by position, as in src/cache/cache.h. */
__host__ __device__ inline int sink_blocks(const tkv_device_layer &layer)
{
    return (layer.n_sinks + page_tokens - 1) / page_tokens;
}

__host__ __device__ inline int block_start(const tkv_device_layer &layer, int block)
{
    const int n_sink_blocks = sink_blocks(layer);
    return block < n_sink_blocks ? block * page_tokens
                                 : layer.n_sinks + (block - n_sink_blocks) * page_tokens;
}

__host__ __device__ inline int block_end(const tkv_device_layer &layer, int block)
{
    return block_start(layer, block + 1);
}

__host__ __device__ inline int block_of(const tkv_device_layer &layer, int position)
{
    return position < layer.n_sinks ? position / page_tokens
                                    : sink_blocks(layer) + (position - layer.n_sinks) / page_tokens;
}

/* Blocks that n_tokens tokens in a row can touch, wherever they begin. */
__host__ inline int max_blocks(const tkv_device_layer &layer, int n_tokens)
{
    const int n = (n_tokens + page_tokens - 2) / page_tokens + 1;
    return n + (n_tokens > 1 && layer.n_sinks % page_tokens != 0 ? 1 : 0);
}

__host__ __device__ inline int layer_head_dim(const tkv_device_layer &layer, int order)
{
    return order == TKV_ORDER_KEY ? layer.head_dim_k : layer.head_dim_v;
}

__host__ __device__ inline int layer_type(const tkv_device_layer &layer, int order)
{
    return order == TKV_ORDER_KEY ? layer.type_k : layer.type_v;
}

/* The page of a KV head in a block, and how it is coded. */
struct page_place {
    uint8_t *page;
    int type;
    const float *mean; /* [head_dim], or NULL */
};

__device__ inline page_place place_page(const tkv_device_layer &layer,
                                        const tkv_device_sequence &sequence, int block, int head,
                                        int order)
{
    const tkv_device_block entry = ((const tkv_device_block *)sequence.blocks)[block];
    const int type_k = entry.is_exact ? TKV_TYPE_F16 : layer.type_k;
    const int type_v = entry.is_exact ? TKV_TYPE_F16 : layer.type_v;
    const int n_slots = entry.is_exact ? entry.n_slots : page_tokens;
    const uint64_t key_bytes = page_bytes(type_k, layer.head_dim_k, n_slots);
    const uint64_t pair = key_bytes + page_bytes(type_v, layer.head_dim_v, n_slots);
    const bool is_value = order == TKV_ORDER_VALUE;
    page_place place;
    place.page = (uint8_t *)(entry.pages + head * pair + (is_value ? key_bytes : 0));
    place.type = is_value ? type_v : type_k;
    const uint64_t means = is_value ? sequence.mean_v : sequence.mean_k;
    place.mean = means != 0 && place.type != TKV_TYPE_F16
                     ? (const float *)means + (size_t)head * layer_head_dim(layer, order)
                     : nullptr;
    return place;
}

/* Words of a plane of `bits` bits. */
__host__ __device__ inline int plane_words(int bits, int head_dim)
{
    return head_dim * bits * (page_tokens / 32);
}

} /* namespace tkv_cuda */

#endif
