/* The rows of a call that lie in one page, which a thread block of store or load has to itself. */
#ifndef TKV_DEVICE_CUDA_CODEC_PAGE_ROWS_CUH
#define TKV_DEVICE_CUDA_CODEC_PAGE_ROWS_CUH

#include "device/cuda/base/page.cuh"
#include "device/cuda/codec/pack.cuh"

namespace tkv_cuda
{

/* Which pages a launch has: those of the keys, the values or both, of every head, in the blocks of
 * some tokens: a grid of (blocks, heads and orders). */
struct page_grid {
    tkv_device_layer layer;
    int n_tokens;
    int first_order; /* of the thread blocks with blockIdx.y = 0 */
    int n_orders;
};

struct page_rows {
    int order;
    int head_dim;
    slot_range range;
    ptrdiff_t first; /* value of slot 0, were it there, in the rows of the call */
    ptrdiff_t stride;
    page_place place;
};

/* Those of the thread block, of tokens `first` and on. Returns whether there are any. */
__device__ inline bool find_rows(const page_grid &grid, const tkv_device_sequence &sequence,
                                 int first, page_rows *rows)
{
    const tkv_device_layer &layer = grid.layer;
    const int block = tkv_block_of_place(layer.n_sinks, first) + (int)blockIdx.x;
    const int start = tkv_block_place(layer.n_sinks, block);
    const int end = min(tkv_block_place(layer.n_sinks, block + 1), first + grid.n_tokens);
    if (start >= end) {
        return false;
    }
    const int head = (int)blockIdx.y / grid.n_orders;
    rows->order = grid.first_order + (int)blockIdx.y % grid.n_orders;
    rows->head_dim = layer_head_dim(layer, rows->order);
    rows->range.first = max(first - start, 0);
    rows->range.end = end - start;
    rows->stride = (ptrdiff_t)layer.n_kv_heads * rows->head_dim;
    rows->first = (start - first) * rows->stride + (ptrdiff_t)head * rows->head_dim;
    rows->place = place_page(layer, sequence, block, head, rows->order);
    return true;
}

inline dim3 grid_of(const page_grid &grid, int n_sequences)
{
    return dim3((unsigned)tkv_most_blocks(grid.layer.n_sinks, grid.n_tokens),
                (unsigned)(grid.layer.n_kv_heads * grid.n_orders), (unsigned)n_sequences);
}

/* Bytes of the largest image of a page. */
inline size_t largest_image(const page_grid &grid)
{
    size_t bytes = 0;
    for (int order = grid.first_order; order < grid.first_order + grid.n_orders; order++) {
        const size_t needed =
            image_bytes(layer_type(grid.layer, order), order, layer_head_dim(grid.layer, order));
        bytes = needed > bytes ? needed : bytes;
    }
    return bytes;
}

/* Calls launch(grid) for keys and values, at once where their rows are as long. */
template <typename F>
cudaError_t launch_orders(const tkv_device_layer &layer, int n_tokens, bool has_keys,
                          bool has_values, F launch)
{
    if (has_keys && has_values && layer.head_dim_k == layer.head_dim_v) {
        return launch(page_grid{layer, n_tokens, TKV_ORDER_KEY, 2});
    }
    const cudaError_t error =
        has_keys ? launch(page_grid{layer, n_tokens, TKV_ORDER_KEY, 1}) : cudaSuccess;
    return error == cudaSuccess && has_values
               ? launch(page_grid{layer, n_tokens, TKV_ORDER_VALUE, 1})
               : error;
}

} /* namespace tkv_cuda */

#endif
