/* Where pages and the rows of a layer lie (device/geometry.h) as kernels find it out. */
#ifndef TKV_DEVICE_CUDA_BASE_PAGE_CUH
#define TKV_DEVICE_CUDA_BASE_PAGE_CUH

#include "device/cuda/base/type.cuh"
#include "device/device_layout.h"
#include "device/geometry.h"

#include <cuda_runtime.h>

namespace tkv_cuda
{

constexpr int page_tokens = TKV_PAGE_TOKENS;
constexpr int group_tokens = 32; /* whose codes share a word of a value page */

/* Bytes of a page; of f16 for n_slots rows. */
__host__ __device__ inline uint64_t page_bytes(int type, int head_dim, int n_slots)
{
    uint64_t bytes = tkv_stored_page_bytes(TKV_TYPE_F16, head_dim, n_slots);
    with_coded_type(type, [&](auto coded) {
        bytes = tkv_stored_page_bytes(decltype(coded)::value, head_dim, page_tokens);
    });
    return bytes;
}

/* Words of a plane of `bits` bits. */
__host__ __device__ constexpr int plane_words(int bits, int head_dim)
{
    return head_dim * bits * (page_tokens / 32);
}

__host__ __device__ inline int layer_head_dim(const tkv_device_layer &layer, int order)
{
    return order == TKV_ORDER_KEY ? layer.head_dim_k : layer.head_dim_v;
}

__host__ __device__ inline int layer_type(const tkv_device_layer &layer, int order)
{
    return order == TKV_ORDER_KEY ? layer.type_k : layer.type_v;
}

/* The pages of a KV head in a block. */
struct head_pages {
    uint8_t *keys;
    uint8_t *values;
    int type_k;
    int type_v;
    int n_slots;
};

__device__ inline head_pages find_pages(const tkv_device_layer &layer,
                                        const tkv_device_block &entry, int head)
{
    head_pages pages;
    pages.type_k = entry.is_exact ? TKV_TYPE_F16 : layer.type_k;
    pages.type_v = entry.is_exact ? TKV_TYPE_F16 : layer.type_v;
    pages.n_slots = entry.is_exact ? entry.n_slots : page_tokens;
    const uint64_t key_bytes = page_bytes(pages.type_k, layer.head_dim_k, pages.n_slots);
    const uint64_t value_bytes = page_bytes(pages.type_v, layer.head_dim_v, pages.n_slots);
    pages.keys = (uint8_t *)entry.pages + tkv_page_offset(head, false, key_bytes, value_bytes);
    pages.values = pages.keys + key_bytes;
    return pages;
}

/* One of them, and how it is coded. */
struct page_place {
    uint8_t *page;
    int type;
    const float *mean; /* [head_dim], or NULL */
};

__device__ inline page_place place_page(const tkv_device_layer &layer,
                                        const tkv_device_sequence &sequence, int block, int head,
                                        int order)
{
    const head_pages pages =
        find_pages(layer, ((const tkv_device_block *)sequence.blocks)[block], head);
    const bool is_value = order == TKV_ORDER_VALUE;
    page_place place;
    place.page = is_value ? pages.values : pages.keys;
    place.type = is_value ? pages.type_v : pages.type_k;
    const uint64_t means = is_value ? sequence.mean_v : sequence.mean_k;
    place.mean = means != 0 && place.type != TKV_TYPE_F16
                     ? (const float *)means + (size_t)head * layer_head_dim(layer, order)
                     : nullptr;
    return place;
}

} /* namespace tkv_cuda */

#endif
