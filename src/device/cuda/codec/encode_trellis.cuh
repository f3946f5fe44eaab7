/* Quantisation of the trellis types: two rows a warp, as quantise_trellis of src/format/quantise.c.
 */
#ifndef TKV_DEVICE_CUDA_CODEC_ENCODE_TRELLIS_CUH
#define TKV_DEVICE_CUDA_CODEC_ENCODE_TRELLIS_CUH

#include "device/cuda/base/trellis.cuh"
#include "device/cuda/codec/encode.cuh"
#include "device/cuda/codec/trellis_search.cuh"

namespace tkv_cuda
{

__constant__ const float search_gains[] = {1.0f, 0.97f, 1.03f};

/* The half nearest to `scale` that carries the start bits. */
__device__ inline uint32_t trellis_field(float scale, uint32_t start)
{
    const int base = (int)((to_half(scale) & ~31u) | (start & 31u));
    int best = base;
    for (int step = -32; step <= 32; step += 64) {
        const int candidate = base + step;
        if (candidate >= 0 && candidate < 0x7c00 &&
            fabsf(from_half((uint32_t)candidate) - scale) <
                fabsf(from_half((uint32_t)best) - scale)) {
            best = candidate;
        }
    }
    return (uint32_t)best | start >> 5 << 15;
}

/* Index of the target of a coordinate in a nearest_table. */
__device__ inline int target_index(float z, float unit)
{
    const float limit = (float)target_limit;
    return (int)fmaxf(-limit, fminf(rintf(z * unit), limit)) + target_limit;
}

template <int N, int Type>
__device__ void write_costs(const row_shape<N> &shape, const row_input<N> &in, float unit,
                            const search_scratch &scratch)
{
    const int lane = lane_of_row();
    const int row = threadIdx.x / half_warp % 2;
    uint2 *costs = in_shared<uint2>(scratch.costs) + row * shape.head_dim;
    uint32_t *block_cost = in_shared<uint32_t>(scratch.block_cost) + row * (shape.head_dim / 4);
    const nearest_table<Type> &table = nearest_levels<Type>;
    __syncwarp();
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        const uint32_t *entry = table.costs[target_index(in.y[i] * in.to_unit, unit)];
        const uint2 cost = make_uint2(entry[0], entry[1]);
        uint32_t most = larger_half(__vmaxu2(cost.x, cost.y));
        most += __shfl_xor_sync(full_warp, most, 1);
        most += __shfl_xor_sync(full_warp, most, 2);
        costs[i * half_warp + lane] = cost;
        if (lane % 4 == 0) {
            block_cost[4 * i + lane / 4] = most;
        }
    }
    __syncwarp();
}

/* Codes and levels of the path that a search found. */
template <int N, int Type>
__device__ void read_path(const row_shape<N> &shape, const row_input<N> &in, float unit,
                          const uint16_t *path, uint32_t start, uint32_t *codes, float *levels)
{
    constexpr int free_bits = type_traits<Type>::free_bits;
    const int lane = lane_of_row();
    const nearest_table<Type> &table = nearest_levels<Type>;
    uint32_t window = row_path_before(start);
#pragma unroll(row_shape <N>::unroll)
    for (int i = 0; i < shape.n(); i++) {
        window |= (uint32_t)path[i] << 16;
        const uint32_t subset = row_subset(window, lane);
        const uint32_t all_free = table.free[target_index(in.y[i] * in.to_unit, unit)];
        const uint32_t free = all_free >> 2 * subset & ((1u << free_bits) - 1);
        codes[i] = free | (window >> (16 + lane) & 1u) << free_bits;
        levels[i] = level_at<Type>(4 * free + subset);
        window >>= 16;
    }
}

/* Encodes the rows of a warp that are in in->y. */
template <int N, int Type>
__device__ void encode_trellis_row(const row_shape<N> &shape, int effort,
                                   const search_scratch &scratch, row_input<N> *in,
                                   row_codes<N> *out)
{
    constexpr float unit = trellis_unit<Type>();
    const int d = shape.head_dim;
    const int own_row = threadIdx.x / half_warp % 2;
    prepare_row(shape, in);
    float best = -1.0f;
    const int n_gains = effort == TKV_EFFORT_BEST ? 3 : 1;
#pragma unroll 1
    for (int g = 0; g < n_gains; g++) {
        const float scaled_unit = unit * search_gains[g];
        write_costs<N, Type>(shape, *in, scaled_unit, scratch);
        if (effort != TKV_EFFORT_FAST) {
            search_all_states(scratch);
        } else {
            search_survivors(scratch, 0);
            search_survivors(scratch, 1);
        }
        __syncwarp();
        uint32_t codes[row_shape<N>::capacity];
        float levels[row_shape<N>::capacity];
        float z[row_shape<N>::capacity];
        const uint32_t start = in_shared<uint32_t>(scratch.start)[own_row];
        read_path<N, Type>(shape, *in, scaled_unit,
                           in_shared<uint16_t>(scratch.path) + own_row * (d / half_warp), start,
                           codes, levels);
#pragma unroll(row_shape <N>::unroll)
        for (int i = 0; i < shape.n(); i++) {
            z[i] = in->y[i] * in->to_unit;
        }
        const float dot = dot_row(shape, z, levels);
        const float correlation = __fdiv_rn(dot * dot, dot_row(shape, levels, levels));
        if (correlation > best) {
            best = correlation;
            out->side[0] =
                trellis_field(unbiased_scale(in->norm2, __fdiv_rn(dot, in->to_unit)), start);
#pragma unroll(row_shape <N>::unroll)
            for (int i = 0; i < shape.n(); i++) {
                out->codes[i] = codes[i];
            }
        }
    }
    const uint32_t found = start_bits(out->side[0]);
    finish_row(shape, *in, trellis_field(half_max, found), out);
}

} /* namespace tkv_cuda */

#endif
