// Prefill over coded pages on Hopper. A CTA holds 128 query rows of one KV head. Two of its
// warpgroups fetch pages (bulk copies, a ring) and unpack each once into int8 tiles, one the keys,
// the other the values; two more hold 64 rows each: scores by int8 wgmma, softmax in registers,
// values by int8 wgmma with weights of one byte. For D = 128 a tile is two pages.
//
// What bounds it: per 128 x 128 tile the products take 980 clocks of the tensor cores, softmax and
// conversions some 1400 issue slots of each scheduler; the pages are read from L2 and hide.
#include "device/cuda/prefill/attend_prefill_tiles.cuh"

namespace tkv_prefill
{
namespace
{

// A thread's two rows (g and g + 8 of its warp's 16) and what the softmax knows of them.
struct Rows {
    int position[2]; // last token that the row sees; -1: none
    float scale[2];  // logits (base 2) a unit of score
    float bias[2];   // added to logits when they are capped
    float maximum[2];
    float sum[2];
};

// Token of a thread's score columns: word w of four bytes, byte i.
__device__ inline int token_of(int w, int i, bool natural)
{
    const int t = threadIdx.x & 3;
    return 16 * w + (natural ? 4 * t + i : t + 4 * i);
}

// Score column of byte i of word w, for the row of the half h (0: g, 1: g + 8).
__device__ constexpr int column_of(int w, int i, int h)
{
    return 8 * w + (i >> 1) * 4 + h * 2 + (i & 1);
}

// Integer scores -> scores; logits where they are capped: c * tanh(logit / c).
template <int TOKENS, bool IS_SPECIAL>
__device__ inline void scale_scores(const Plan &plan, const float *key_scales, const Rows &rows,
                                    const int *scores, float *s)
{
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int w = 0; w < TOKENS / 16; w++) {
        const float4 k4 = *reinterpret_cast<const float4 *>(key_scales + 16 * w + 4 * t);
        const float k[4] = {k4.x, k4.y, k4.z, k4.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int c = column_of(w, i, h);
                s[c] = static_cast<float>(scores[c]) * k[i];
            }
        }
    }
    if constexpr (IS_SPECIAL) {
        const float cap = plan.a.logit_softcap * LOG2E;
#pragma unroll
        for (int c = 0; c < TOKENS / 2 && cap > 0.0f; c++) {
            const int h = c >> 1 & 1;
            s[c] = cap * tanhf((s[c] * rows.scale[h] + rows.bias[h]) / cap);
        }
    }
}

// -infinity where a row does not see a token.
template <int TOKENS>
__device__ inline void mask_scores(const int *starts, int window, bool natural, const Rows &rows,
                                   float *s)
{
#pragma unroll
    for (int w = 0; w < TOKENS / 16; w++) {
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

// What one tile means for a row's sums: they are multiplied by `rescale`, the product by `unit`.
struct RowStep {
    float rescale;
    float unit;
};

// Half h's largest logit in this tile, base 2: what its weights are relative to.
template <int TOKENS> __device__ inline float largest_of_row(const float *s, int h, float factor)
{
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < TOKENS / 16; w++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            largest = fmaxf(largest, s[column_of(w, i, h)]);
        }
    }
    // Scores are scaled by a number that is not negative, so that their order is that of logits.
    return max_of_four_lanes(largest) * factor;
}

// Two weights 2^x as halves: eleven bits are enough for what becomes a byte.
__device__ inline unsigned exp2_of_two(float low, float high)
{
    const __half2 y = __floats2half2_rn(exp2_fast(low), exp2_fast(high));
    return *reinterpret_cast<const unsigned *>(&y);
}

// Weights times scales as integers up to 255: 1024 + n has the integer in its low byte.
__device__ inline unsigned round_two(unsigned weights, unsigned scales)
{
    unsigned y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(weights), "r"(scales), "r"(0x64006400u));
    return y;
}

// Scales of zero where a weight is below the threshold.
__device__ inline unsigned drop_two(unsigned scales, float low, float high, float threshold)
{
    return (low < threshold ? 0u : scales & 0xffffu) | (high < threshold ? 0u : scales & ~0xffffu);
}

// sums += the rows' sums of 16 columns of weights, by the tensor cores: rows g and g + 8 in [0],
// [2].
__device__ inline void add_row_sums(float (&sums)[4], const unsigned (&a)[4])
{
    constexpr unsigned ONES = 0x3c003c00u;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(ONES));
}

// One step of the online softmax: scores -> weights times value scales as bytes, relative to the
// tile's largest logit and largest scale.
template <int TOKENS, bool IS_SPECIAL>
__device__ inline void soften(const Plan &plan, const __half *value_scales, float value_unit,
                              Rows &rows, const float *s, unsigned (&weights)[TOKENS / 32][4],
                              RowStep (&steps)[2])
{
    const int t = threadIdx.x & 3;
    float factor[2];
    float offset[2];
    float of_tile[2];
    float threshold[2]; // of sparse values, as a logit
#pragma unroll
    for (int h = 0; h < 2; h++) {
        factor[h] = IS_SPECIAL && plan.a.logit_softcap > 0.0f ? 1.0f : rows.scale[h];
        const float largest = largest_of_row<TOKENS>(s, h, factor[h]);
        const float before = rows.maximum[h];
        rows.maximum[h] = fmaxf(before, largest);
        const float base = rows.maximum[h] == -INFINITY ? 0.0f : rows.maximum[h];
        offset[h] = largest == -INFINITY ? 0.0f : largest;
        of_tile[h] = exp2_fast(largest - base);
        steps[h] = {exp2_fast(before - base), of_tile[h] * value_unit};
        threshold[h] = IS_SPECIAL ? log2f(plan.a.sparse_v / of_tile[h]) : 0.0f;
    }
    float sums[4] = {};
#pragma unroll
    for (int w = 0; w < TOKENS / 16; w++) {
        const uint2 v = *reinterpret_cast<const uint2 *>(value_scales + 16 * w + 4 * t);
        unsigned a[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = fmaf(s[column_of(w, i, h)], factor[h], -offset[h]);
            }
            a[h] = exp2_of_two(x[0], x[1]);
            a[2 + h] = exp2_of_two(x[2], x[3]);
            unsigned low = v.x;
            unsigned high = v.y;
            if constexpr (IS_SPECIAL) {
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

// Scores of a consumer's 64 rows and the tile's tokens.
template <int D>
__device__ inline void multiply_keys(const unsigned char *queries, const Tile<D> &tile,
                                     int (&scores)[Shape<D>::TOKENS / 2])
{
    constexpr int TOKENS = Shape<D>::TOKENS;
    const unsigned long long first_query = core_matrix_descriptor(queries, 1024);
    const unsigned long long first_key = core_matrix_descriptor(tile.keys, TOKENS * 16);
    // A step of 32 coordinates is two core matrices on; descriptors count 16 bytes.
    const auto query = [=](int k) { return first_query + 2 * k * 1024 / 16; };
    const auto key = [=](int k) { return first_key + 2 * k * TOKENS; };
    wgmma_begin();
    wgmma_s8<TOKENS, true>(scores, query(0), key(0));
#pragma unroll
    for (int k = 1; k < D / 32; k++) {
        wgmma_s8<TOKENS, false>(scores, query(k), key(k));
    }
    wgmma_commit();
    wgmma_wait();
}

// Weights times COLUMNS columns of the tile's values, from column `first` on.
template <int D>
__device__ inline void multiply_values(const unsigned (&weights)[Shape<D>::TOKENS / 32][4],
                                       const Tile<D> &tile, int first,
                                       int (&products)[Shape<D>::COLUMNS / 2])
{
    constexpr int COLUMNS = Shape<D>::COLUMNS;
    const unsigned long long first_value = core_matrix_descriptor(tile.values + first * 16, D * 16);
    const auto value = [=](int k) { return first_value + 2 * k * D; };
    wgmma_begin();
    wgmma_u8<COLUMNS, true>(products, weights[0], value(0));
#pragma unroll
    for (int k = 1; k < Shape<D>::TOKENS / 32; k++) {
        wgmma_u8<COLUMNS, false>(products, weights[k], value(k));
    }
    wgmma_commit();
    wgmma_wait();
}

template <int D>
__device__ void write_part(const Plan &plan, int unit, int split, int first_row, const Rows &rows,
                           const float (&sums)[D / Shape<D>::COLUMNS][Shape<D>::COLUMNS / 2])
{
    constexpr int COLUMNS = Shape<D>::COLUMNS;
    const int t = threadIdx.x & 3;
    for (int h = 0; h < 2; h++) {
        const size_t part = part_index(plan, unit, 0, split, first_row + 8 * h);
        if (t == 0) {
            const float bias = plan.a.logit_softcap > 0.0f ? 0.0f : rows.bias[h];
            plan.part_stats[part] = make_float2(rows.maximum[h] + bias, rows.sum[h]);
        }
        float *out = plan.part_sums + part * D + 2 * t;
#pragma unroll
        for (int half = 0; half < D / COLUMNS; half++) {
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                *reinterpret_cast<float2 *>(out + half * COLUMNS + 8 * j) =
                    make_float2(sums[half][4 * j + 2 * h], sums[half][4 * j + 2 * h + 1]);
            }
        }
    }
}

// Whether every row of a warp sees the whole tile.
template <int D>
__device__ inline bool is_all_seen(const Tile<D> &tile, int lowest, int highest, int window)
{
    int last = 0;
    int oldest = UNSEEN;
#pragma unroll
    for (int p = 0; p < Shape<D>::PAGES; p++) {
        last = max(last, tile.starts[p] + PAGE - 1);
        oldest = min(oldest, tile.starts[p]);
    }
    return last <= lowest && (window <= 0 || oldest > highest - window);
}

// A consumer's way through the tiles of a split, and its partial result.
template <int D, bool IS_SPECIAL>
__device__ void consume(const Plan &plan, const tkv_device_sequence &sequence, int unit, int split,
                        Shared<D> &shared)
{
    constexpr int TOKENS = Shape<D>::TOKENS;
    constexpr int COLUMNS = Shape<D>::COLUMNS;
    const int consumer = threadIdx.x / WARPGROUP - N_PRODUCERS;
    const int lane = threadIdx.x & 31;
    const int warp_row = blockIdx.x * CTA_ROWS + consumer * 64 + (threadIdx.x / 32 & 3) * 16;
    const int first_row = warp_row + lane / 4;
    const bool natural = is_natural(plan.a.layer.type_v);
    const int first = first_position(plan, sequence);
    const int lowest = first + warp_row / plan.group;
    const int highest = first + min(warp_row + 15, plan.n_rows - 1) / plan.group;
    const size_t row_base = static_cast<size_t>(unit) * padded_rows(plan);
    Rows rows;
    for (int h = 0; h < 2; h++) {
        const int row = first_row + 8 * h;
        rows.position[h] = row < plan.n_rows ? first + row / plan.group : -1;
        rows.scale[h] = plan.q_scale[row_base + row];
        rows.bias[h] = plan.q_bias[row_base + row];
        rows.maximum[h] = -INFINITY;
        rows.sum[h] = 0.0f;
    }
    float sums[D / COLUMNS][COLUMNS / 2] = {};
    for (Cursor at = {0, 0};; at.advance(N_TILES)) {
        const Tile<D> &tile = shared.tiles[at.place];
        shared.tile_full[at.place].wait(at.parity);
        if (tile.starts[0] == UNSEEN) {
            break;
        }
        int scores[TOKENS / 2];
        multiply_keys<D>(shared.queries[consumer], tile, scores);
        float s[TOKENS / 2];
        scale_scores<TOKENS, IS_SPECIAL>(plan, tile.key_scales, rows, scores, s);
        if (!is_all_seen<D>(tile, lowest, highest, plan.a.window)) {
            mask_scores<TOKENS>(tile.starts, plan.a.window, natural, rows, s);
        }
        RowStep steps[2];
        unsigned weights[TOKENS / 32][4];
        soften<TOKENS, IS_SPECIAL>(plan, tile.value_scales, tile.value_unit, rows, s, weights,
                                   steps);
        // Once the largest logit has been met, most tiles change no sum's scale.
        if (__any_sync(~0u, steps[0].rescale != 1.0f || steps[1].rescale != 1.0f)) {
#pragma unroll
            for (int c = 0; c < D / 2; c++) {
                sums[c / (COLUMNS / 2)][c % (COLUMNS / 2)] *= steps[c >> 1 & 1].rescale;
            }
        }
#pragma unroll
        for (int half = 0; half < D / COLUMNS; half++) {
            int products[COLUMNS / 2];
            multiply_values<D>(weights, tile, half * COLUMNS, products);
            if (half == D / COLUMNS - 1) {
                shared.tile_empty[at.place].arrive();
            }
#pragma unroll
            for (int c = 0; c < COLUMNS / 2; c++) {
                sums[half][c] =
                    fmaf(static_cast<float>(products[c]), steps[c >> 1 & 1].unit, sums[half][c]);
            }
        }
    }
    write_part<D>(plan, unit, split, first_row, rows, sums);
}

template <int D> __device__ void load_queries(const Plan &plan, int unit, Shared<D> &shared)
{
    const size_t row_base = static_cast<size_t>(unit) * padded_rows(plan) + blockIdx.x * CTA_ROWS;
    constexpr int CHUNKS = D / 16;
    for (int item = threadIdx.x; item < CTA_ROWS * CHUNKS; item += blockDim.x) {
        const int row = item / CHUNKS;
        const int chunk = item % CHUNKS;
        const uint4 x =
            *reinterpret_cast<const uint4 *>(plan.q8 + (row_base + row) * D + chunk * 16);
        *reinterpret_cast<uint4 *>(shared.queries[row / 64] + chunk * 1024 + row % 64 * 16) = x;
    }
}

constexpr int N_THREADS = (N_PRODUCERS + N_CONSUMERS) * WARPGROUP;

template <int D> __host__ __device__ constexpr int shared_bytes()
{
    return (sizeof(Shared<D>) + 127) / 128 * 128;
}

// IS_SPECIAL: with a soft cap or sparse values.
template <int D, bool IS_SPECIAL>
__global__ void __launch_bounds__(N_THREADS, 1)
    attend_coded(const __grid_constant__ Plan plan, int n_raw)
{
    extern __shared__ __align__(128) unsigned char memory[];
    Shared<D> &shared = *reinterpret_cast<Shared<D> *>(memory);
    const int unit = blockIdx.y;
    const int split = blockIdx.z;
    const Unit u = unit_of(plan, unit);
    const tkv_device_layer &layer = plan.a.layer;
    const tkv_device_sequence &sequence = sequence_of(plan, u.sequence);
    const Ring ring = {memory + shared_bytes<D>(), n_raw, page_bytes(layer.type_k, D),
                       page_bytes(layer.type_v, D)};
    if (threadIdx.x == 0) {
        for (int i = 0; i < n_raw; i++) {
            shared.raw_full[i].init(1);
            shared.raw_empty[i].init(N_PRODUCERS * WARPGROUP);
        }
        for (int i = 0; i < N_TILES; i++) {
            shared.tile_full[i].init(N_PRODUCERS * WARPGROUP);
            shared.tile_empty[i].init(N_CONSUMERS * WARPGROUP);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    load_queries<D>(plan, unit, shared);
    fence_async_proxy();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        give_registers<56>();
        const BlockRange range = block_range(plan, sequence, blockIdx.x, split, plan.n_splits[0]);
        produce_keys<D>(plan, sequence, range, u.kv_head, ring, shared);
    } else if (threadIdx.x < N_PRODUCERS * WARPGROUP) {
        give_registers<56>();
        produce_values<D>(plan, sequence, ring, shared);
    } else {
        take_registers<200>();
        consume<D, IS_SPECIAL>(plan, sequence, unit, split, shared);
    }
}

template <int D, bool IS_SPECIAL> cudaError_t launch(const Plan &plan, cudaStream_t stream)
{
    constexpr int LIMIT = 227 * 1024; // of a Hopper CTA
    const int raw = page_bytes(plan.a.layer.type_k, D) + page_bytes(plan.a.layer.type_v, D);
    const int fits = (LIMIT - shared_bytes<D>()) / raw;
    const int n_raw = fits < MAX_RAW ? fits : MAX_RAW;
    const int bytes = shared_bytes<D>() + n_raw * raw;
    const cudaError_t error = cudaFuncSetAttribute(
        attend_coded<D, IS_SPECIAL>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 grid(plan.n_row_tiles, plan.a.n_sequences * plan.a.layer.n_kv_heads,
                    plan.n_splits[0]);
    attend_coded<D, IS_SPECIAL><<<grid, N_THREADS, bytes, stream>>>(plan, n_raw);
    return cudaGetLastError();
}

template <int D> cudaError_t launch(const Plan &plan, cudaStream_t stream)
{
    const bool is_special = plan.a.logit_softcap > 0.0f || plan.a.sparse_v > 0.0f;
    return is_special ? launch<D, true>(plan, stream) : launch<D, false>(plan, stream);
}

} // namespace

cudaError_t launch_coded(const Plan &plan, cudaStream_t stream)
{
    switch (plan.a.layer.head_dim_k) {
    case 64: return launch<64>(plan, stream);
    case 128: return launch<128>(plan, stream);
    default: return launch<256>(plan, stream);
    }
}

} // namespace tkv_prefill
