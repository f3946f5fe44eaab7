/* Prefill over coded pages on Hopper. A CTA holds 128 query rows of one KV head. Two of its
 * warpgroups fetch pages (bulk copies, a ring) and unpack each once into int8 tiles, one the keys,
 * the other the values; two more hold 64 rows each: scores by int8 wgmma, softmax in registers,
 * values by int8 wgmma with weights of one byte. For HeadDim = 128 a tile is two pages.
 *
 * What bounds it: per 128 x 128 tile the products take 980 clocks of the tensor cores, softmax and
 * conversions some 1400 issue slots of each scheduler; the pages are read from L2 and hide. */
#include "device/cuda/base/head_dim.cuh"
#include "device/cuda/prefill/tiles.cuh"

namespace tkv_cuda
{
namespace
{

/* A thread's two rows (g and g + 8 of its warp's 16) and what the softmax knows of them. */
struct coded_rows {
    int position[2]; /* last token that the row sees; -1: none */
    float scale[2];  /* logits (base 2) a unit of score */
    float bias[2];   /* added to logits when they are capped */
    float maximum[2];
    float sum[2];
};

/* Token of a thread's score columns: word w of four bytes, byte i. */
__device__ inline int token_of(int w, int i, bool natural)
{
    const int t = threadIdx.x & 3;
    return 16 * w + (natural ? 4 * t + i : t + 4 * i);
}

/* Score column of byte i of word w, for the row of the half h (0: g, 1: g + 8). */
__device__ constexpr int column_of(int w, int i, int h)
{
    return 8 * w + (i >> 1) * 4 + h * 2 + (i & 1);
}

/* Integer scores -> scores; logits where they are capped: c * tanh(logit / c). */
template <int Tokens, bool IsSpecial>
__device__ inline void scale_scores(const prefill_job &job, const float *key_scales,
                                    const coded_rows &rows, const int *scores, float *s)
{
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int w = 0; w < Tokens / 16; w++) {
        const float4 k4 = *(const float4 *)(key_scales + 16 * w + 4 * t);
        const float k[4] = {k4.x, k4.y, k4.z, k4.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int c = column_of(w, i, h);
                s[c] = (float)scores[c] * k[i];
            }
        }
    }
    if constexpr (IsSpecial) {
        const float cap = job.params.logit_softcap * log2_e;
#pragma unroll
        for (int c = 0; c < Tokens / 2 && cap > 0.0f; c++) {
            const int h = c >> 1 & 1;
            s[c] = cap_logit(cap, s[c] * rows.scale[h] + rows.bias[h]);
        }
    }
}

/* -infinity where a row does not see a token. */
template <int Tokens>
__device__ inline void mask_scores(const int *starts, int window, bool natural,
                                   const coded_rows &rows, float *s)
{
#pragma unroll
    for (int w = 0; w < Tokens / 16; w++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int position = starts[w / 4] + token_of(w % 4, i, natural);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const bool is_seen = position <= rows.position[h] &&
                                     (window <= 0 || position > rows.position[h] - window);
                s[column_of(w, i, h)] = is_seen ? s[column_of(w, i, h)] : -INFINITY;
            }
        }
    }
}

/* What one tile means for a row's sums: they are multiplied by `rescale`, the product by `unit`. */
struct row_step {
    float rescale;
    float unit;
};

/* Half h's largest logit in this tile, base 2: what its weights are relative to. */
template <int Tokens> __device__ inline float largest_of_row(const float *s, int h, float factor)
{
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < Tokens / 16; w++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            largest = fmaxf(largest, s[column_of(w, i, h)]);
        }
    }
    /* Scores are scaled by a number that is not negative, so that their order is that of logits. */
    return max_row(largest) * factor;
}

/* Two weights 2^x as halves: eleven bits are enough for what becomes a byte. */
__device__ inline uint32_t exp2_of_two(float low, float high)
{
    return to_two_halves(exp2_fast(low), exp2_fast(high));
}

/* Weights times scales as integers up to 255: 1024 + n has the integer in its low byte. */
__device__ inline uint32_t round_two(uint32_t weights, uint32_t scales)
{
    uint32_t y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(weights), "r"(scales), "r"(0x64006400u));
    return y;
}

/* Scales of zero where a weight is below the threshold. */
__device__ inline uint32_t drop_two(uint32_t scales, float low, float high, float threshold)
{
    return (low < threshold ? 0u : scales & 0xffffu) | (high < threshold ? 0u : scales & ~0xffffu);
}

/* sums += the rows' sums of 16 columns of weights, by the tensor cores: rows g and g + 8 in [0],
 * [2]. */
__device__ inline void add_row_sums(float (&sums)[4], const uint32_t (&a)[4])
{
    constexpr uint32_t ones = 0x3c003c00u;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(ones));
}

/* One step of the online softmax: scores -> weights times value scales as bytes, relative to the
 * tile's largest logit and largest scale. */
template <int Tokens, bool IsSpecial>
__device__ inline void soften(const prefill_job &job, const __half *value_scales, float value_unit,
                              coded_rows &rows, const float *s, uint32_t (&weights)[Tokens / 32][4],
                              row_step (&steps)[2])
{
    const int t = threadIdx.x & 3;
    float factor[2];
    float offset[2];
    float of_tile[2];
    float threshold[2]; /* of sparse values, as a logit */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        factor[h] = IsSpecial && job.params.logit_softcap > 0.0f ? 1.0f : rows.scale[h];
        const float largest = largest_of_row<Tokens>(s, h, factor[h]);
        const float before = rows.maximum[h];
        rows.maximum[h] = fmaxf(before, largest);
        const float base = rows.maximum[h] == -INFINITY ? 0.0f : rows.maximum[h];
        offset[h] = largest == -INFINITY ? 0.0f : largest;
        of_tile[h] = exp2_fast(largest - base);
        steps[h] = {exp2_fast(before - base), of_tile[h] * value_unit};
        threshold[h] = IsSpecial ? log2f(job.params.sparse_v / of_tile[h]) : 0.0f;
    }
    float sums[4] = {};
#pragma unroll
    for (int w = 0; w < Tokens / 16; w++) {
        const uint2 v = *(const uint2 *)(value_scales + 16 * w + 4 * t);
        uint32_t a[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = fmaf(s[column_of(w, i, h)], factor[h], -offset[h]);
            }
            a[h] = exp2_of_two(x[0], x[1]);
            a[2 + h] = exp2_of_two(x[2], x[3]);
            uint32_t low = v.x;
            uint32_t high = v.y;
            if constexpr (IsSpecial) {
                low = drop_two(low, x[0], x[1], threshold[h]);
                high = drop_two(high, x[2], x[3], threshold[h]);
            }
            weights[w / 2][(w & 1) * 2 + h] =
                __byte_perm(round_two(a[h], low), round_two(a[2 + h], high), 0x6420);
        }
        add_row_sums(sums, a);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        rows.sum[h] = rows.sum[h] * steps[h].rescale + sums[2 * h] * of_tile[h];
    }
}

/* Scores of a consumer's 64 rows and the tile's tokens. */
template <int HeadDim>
__device__ inline void multiply_keys(const uint8_t *queries, const level_tile<HeadDim> &tile,
                                     int (&scores)[tile_shape<HeadDim>::n_tokens / 2])
{
    constexpr int n_tokens = tile_shape<HeadDim>::n_tokens;
    const uint64_t first_query = core_matrix_descriptor(queries, 1024);
    const uint64_t first_key = core_matrix_descriptor(tile.keys, n_tokens * 16);
    /* A step of 32 coordinates is two core matrices on; descriptors count 16 bytes. */
    const auto query = [=](int k) { return first_query + 2 * k * 1024 / 16; };
    const auto key = [=](int k) { return first_key + 2 * k * n_tokens; };
    wgmma_begin();
    wgmma_s8<n_tokens, true>(scores, query(0), key(0));
#pragma unroll
    for (int k = 1; k < HeadDim / 32; k++) {
        wgmma_s8<n_tokens, false>(scores, query(k), key(k));
    }
    wgmma_commit();
    wgmma_wait();
}

/* Weights times n_columns columns of the tile's values, from column `first` on. */
template <int HeadDim>
__device__ inline void
multiply_values(const uint32_t (&weights)[tile_shape<HeadDim>::n_tokens / 32][4],
                const level_tile<HeadDim> &tile, int first,
                int (&products)[tile_shape<HeadDim>::n_columns / 2])
{
    constexpr int n_columns = tile_shape<HeadDim>::n_columns;
    const uint64_t first_value = core_matrix_descriptor(tile.values + first * 16, HeadDim * 16);
    const auto value = [=](int k) { return first_value + 2 * k * HeadDim; };
    wgmma_begin();
    wgmma_u8<n_columns, true>(products, weights[0], value(0));
#pragma unroll
    for (int k = 1; k < tile_shape<HeadDim>::n_tokens / 32; k++) {
        wgmma_u8<n_columns, false>(products, weights[k], value(k));
    }
    wgmma_commit();
    wgmma_wait();
}

template <int HeadDim>
__device__ void
write_part(const prefill_job &job, int unit, int split, int first_row, const coded_rows &rows,
           const float (
               &sums)[HeadDim / tile_shape<HeadDim>::n_columns][tile_shape<HeadDim>::n_columns / 2])
{
    constexpr int n_columns = tile_shape<HeadDim>::n_columns;
    const int t = threadIdx.x & 3;
    for (int h = 0; h < 2; h++) {
        const size_t part = part_index(job, unit, 0, split, first_row + 8 * h);
        if (t == 0) {
            const float bias = job.params.logit_softcap > 0.0f ? 0.0f : rows.bias[h];
            job.part_stats[part] = make_float2(rows.maximum[h] + bias, rows.sum[h]);
        }
        float *out = job.part_sums + part * HeadDim + 2 * t;
#pragma unroll
        for (int half = 0; half < HeadDim / n_columns; half++) {
#pragma unroll
            for (int j = 0; j < n_columns / 8; j++) {
                *(float2 *)(out + half * n_columns + 8 * j) =
                    make_float2(sums[half][4 * j + 2 * h], sums[half][4 * j + 2 * h + 1]);
            }
        }
    }
}

/* Whether every row of a warp sees the whole tile. */
template <int HeadDim>
__device__ inline bool is_all_seen(const level_tile<HeadDim> &tile, int lowest, int highest,
                                   int window)
{
    int last = 0;
    int oldest = unseen;
#pragma unroll
    for (int p = 0; p < tile_shape<HeadDim>::n_pages; p++) {
        last = max(last, tile.starts[p] + page_tokens - 1);
        oldest = min(oldest, tile.starts[p]);
    }
    return last <= lowest && (window <= 0 || oldest > highest - window);
}

/* A consumer's way through the tiles of a split, and its partial result. */
template <int HeadDim, bool IsSpecial>
__device__ void consume(const prefill_job &job, const tkv_device_sequence &sequence, int unit,
                        int split, coded_shared<HeadDim> &shared)
{
    constexpr int n_tokens = tile_shape<HeadDim>::n_tokens;
    constexpr int n_columns = tile_shape<HeadDim>::n_columns;
    const int consumer = threadIdx.x / warpgroup - n_producers;
    const int lane = threadIdx.x & 31;
    const int warp_row = blockIdx.x * cta_rows + consumer * 64 + (threadIdx.x / 32 & 3) * 16;
    const int first_row = warp_row + lane / 4;
    const bool natural = is_natural(job.params.layer.type_v);
    const int first = first_position(job, sequence);
    const int lowest = first + warp_row / job.group;
    const int highest = first + min(warp_row + 15, job.n_rows - 1) / job.group;
    const size_t row_base = (size_t)unit * padded_rows(job);
    coded_rows rows;
    for (int h = 0; h < 2; h++) {
        const int row = first_row + 8 * h;
        rows.position[h] = row < job.n_rows ? first + row / job.group : -1;
        rows.scale[h] = job.q_scale[row_base + row];
        rows.bias[h] = job.q_bias[row_base + row];
        rows.maximum[h] = -INFINITY;
        rows.sum[h] = 0.0f;
    }
    float sums[HeadDim / n_columns][n_columns / 2] = {};
    for (ring_cursor at = {0, 0};; at.advance(n_tiles)) {
        const level_tile<HeadDim> &tile = shared.tiles[at.place];
        shared.tile_full[at.place].wait(at.parity);
        if (tile.starts[0] == unseen) {
            break;
        }
        int scores[n_tokens / 2];
        multiply_keys<HeadDim>(shared.queries[consumer], tile, scores);
        float s[n_tokens / 2];
        scale_scores<n_tokens, IsSpecial>(job, tile.key_scales, rows, scores, s);
        if (!is_all_seen<HeadDim>(tile, lowest, highest, job.params.window)) {
            mask_scores<n_tokens>(tile.starts, job.params.window, natural, rows, s);
        }
        row_step steps[2];
        uint32_t weights[n_tokens / 32][4];
        soften<n_tokens, IsSpecial>(job, tile.value_scales, tile.value_unit, rows, s, weights,
                                    steps);
        /* Once the largest logit has been met, most tiles change no sum's scale. */
        if (__any_sync(full_warp, steps[0].rescale != 1.0f || steps[1].rescale != 1.0f)) {
#pragma unroll
            for (int c = 0; c < HeadDim / 2; c++) {
                sums[c / (n_columns / 2)][c % (n_columns / 2)] *= steps[c >> 1 & 1].rescale;
            }
        }
#pragma unroll
        for (int half = 0; half < HeadDim / n_columns; half++) {
            int products[n_columns / 2];
            multiply_values<HeadDim>(weights, tile, half * n_columns, products);
            if (half == HeadDim / n_columns - 1) {
                shared.tile_empty[at.place].arrive();
            }
#pragma unroll
            for (int c = 0; c < n_columns / 2; c++) {
                sums[half][c] = fmaf((float)products[c], steps[c >> 1 & 1].unit, sums[half][c]);
            }
        }
    }
    write_part<HeadDim>(job, unit, split, first_row, rows, sums);
}

template <int HeadDim>
__device__ void load_queries(const prefill_job &job, int unit, coded_shared<HeadDim> &shared)
{
    const size_t row_base = (size_t)unit * padded_rows(job) + blockIdx.x * cta_rows;
    constexpr int n_chunks = HeadDim / 16;
    for (int item = threadIdx.x; item < cta_rows * n_chunks; item += blockDim.x) {
        const int row = item / n_chunks;
        const int chunk = item % n_chunks;
        const uint4 x = *(const uint4 *)(job.q8 + (row_base + row) * HeadDim + chunk * 16);
        *(uint4 *)(shared.queries[row / 64] + chunk * 1024 + row % 64 * 16) = x;
    }
}

constexpr int n_threads = (n_producers + n_consumers) * warpgroup;

template <int HeadDim> __host__ __device__ constexpr int shared_bytes()
{
    return (sizeof(coded_shared<HeadDim>) + 127) / 128 * 128;
}

/* IsSpecial: with a soft cap or sparse values. */
template <int HeadDim, bool IsSpecial>
__global__ void __launch_bounds__(n_threads, 1)
    attend_coded(const __grid_constant__ prefill_job job, int n_raw)
{
    extern __shared__ __align__(128) uint8_t memory[];
    coded_shared<HeadDim> &shared = *(coded_shared<HeadDim> *)memory;
    const int unit = blockIdx.y;
    const int split = blockIdx.z;
    const unit_place u = unit_of(job, unit);
    const tkv_device_sequence &sequence = sequence_of(job, u.sequence);
    const page_ring ring = {memory + shared_bytes<HeadDim>(), n_raw, job.key_bytes,
                            job.value_bytes};
    if (threadIdx.x == 0) {
        for (int i = 0; i < n_raw; i++) {
            shared.raw_full[i].init(1);
            shared.raw_empty[i].init(n_producers * warpgroup);
        }
        for (int i = 0; i < n_tiles; i++) {
            shared.tile_full[i].init(n_producers * warpgroup);
            shared.tile_empty[i].init(n_consumers * warpgroup);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    load_queries<HeadDim>(job, unit, shared);
    fence_async_proxy();
    __syncthreads();
    if (threadIdx.x < warpgroup) {
        give_registers<56>();
        const block_range range = range_of_split(job, sequence, blockIdx.x, split, job.n_splits[0]);
        produce_keys<HeadDim>(job, sequence, range, u.kv_head, ring, shared);
    } else if (threadIdx.x < n_producers * warpgroup) {
        give_registers<56>();
        produce_values<HeadDim>(job, sequence, ring, shared);
    } else {
        take_registers<200>();
        consume<HeadDim, IsSpecial>(job, sequence, unit, split, shared);
    }
}

template <int HeadDim, bool IsSpecial>
cudaError_t launch(const prefill_job &job, cudaStream_t stream)
{
    constexpr int limit = 227 * 1024; /* of a Hopper CTA */
    const int raw = job.key_bytes + job.value_bytes;
    const int fits = (limit - shared_bytes<HeadDim>()) / raw;
    const int n_raw = fits < max_raw ? fits : max_raw;
    const int bytes = shared_bytes<HeadDim>() + n_raw * raw;
    const cudaError_t error = cudaFuncSetAttribute(
        attend_coded<HeadDim, IsSpecial>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 grid(job.n_row_tiles, job.params.n_sequences * job.params.layer.n_kv_heads,
                    job.n_splits[0]);
    attend_coded<HeadDim, IsSpecial><<<grid, n_threads, bytes, stream>>>(job, n_raw);
    return cudaGetLastError();
}

template <int HeadDim> cudaError_t launch(const prefill_job &job, cudaStream_t stream)
{
    const bool is_special = job.params.logit_softcap > 0.0f || job.params.sparse_v > 0.0f;
    return is_special ? launch<HeadDim, true>(job, stream) : launch<HeadDim, false>(job, stream);
}

} /* namespace */

cudaError_t launch_prefill_coded(const prefill_job &job, cudaStream_t stream)
{
    cudaError_t error = cudaErrorInvalidValue;
    with_head_dim(job.params.layer.head_dim_k,
                  [&](auto size) { error = launch<decltype(size)::value>(job, stream); });
    return error;
}

} /* namespace tkv_cuda */
