// Prefill over exact (f16) pages: sinks, the recent window, types f16. Eight warps of 16 query rows
// share each page in shared memory (two stages, cp.async); products by f16 mma with f32 sums, in
// the manner of FlashAttention-2 (Dao 2023). Bound by the tensor cores' synchronous products.
#include "backend/cuda/attend_prefill.cuh"

namespace tkv_prefill
{
namespace
{

constexpr int N_THREADS = 256;
constexpr int N_STAGES = 2;

__device__ inline unsigned shared_address(const void *p)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ inline void copy16(void *to, const void *from, bool is_there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

__device__ inline void load_matrices(unsigned (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p))
                 : "memory");
}

__device__ inline void load_transposed(unsigned (&r)[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p))
                 : "memory");
}

__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned pack_halves(float low, float high)
{
    const __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&h);
}

// Halves of a matrix with rows of D, chunks of 8 swizzled so that eight rows of a column of chunks
// lie in different banks.
template <int D> __device__ inline int place(int row, int chunk)
{
    return row * D + ((chunk ^ (row & 7)) * 8);
}

template <int D> struct Shared {
    __half queries[CTA_ROWS * D];
    __half keys[N_STAGES][PAGE * D];
    __half values[N_STAGES][PAGE * D];
};

// Rows from n_tokens on, which hold what dropped tokens have left, become zero.
template <int D>
__device__ void fetch_page(const __half *keys, int n_slots, int n_tokens, __half *to_keys,
                           __half *to_values)
{
    constexpr int CHUNKS = D / 8;
    const __half *values = keys + n_slots * D;
    for (int item = threadIdx.x; item < PAGE * CHUNKS; item += N_THREADS) {
        const int row = item / CHUNKS;
        const int chunk = item % CHUNKS;
        const bool is_there = row < n_slots && row < n_tokens;
        const int from = is_there ? row * D + chunk * 8 : 0;
        copy16(to_keys + place<D>(row, chunk), keys + from, is_there);
        copy16(to_values + place<D>(row, chunk), values + from, is_there);
    }
}

// A warp's 16 rows: a thread has rows g and g + 8, columns 2t and 2t + 1 of every eight.
template <int D> struct WarpState {
    float sums[D / 8][4];
    float maximum[2];
    float sum[2];
    int position[2];
};

template <int D>
__device__ inline void score_page(const __half *queries, const __half *keys, int warp,
                                  float (&s)[PAGE / 8][4])
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < PAGE / 8; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned a[4];
        load_matrices(a, queries + place<D>(warp * 16 + (lane & 15), 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < PAGE / 8; n += 2) {
            unsigned b[4];
            load_matrices(
                b, keys + place<D>(8 * n + (lane & 7) + (lane / 16) * 8, 2 * k + (lane >> 3 & 1)));
            mma(s[n], a, b[0], b[1]);
            mma(s[n + 1], a, b[2], b[3]);
        }
    }
}

// Scores -> weights relative to the running maximum. The block holds tokens start .. end-1.
template <int D>
__device__ inline void soften_page(const Plan &plan, int start, int end, WarpState<D> &state,
                                   float (&s)[PAGE / 8][4])
{
    const float cap = plan.a.logit_softcap * LOG2E;
    const float scale = plan.a.scale * LOG2E;
    const int t = threadIdx.x & 3;
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int h = i >> 1;
            const int position = start + 8 * n + 2 * t + (i & 1);
            float x = s[n][i] * scale;
            if (cap > 0.0f) {
                x = cap * tanhf(x / cap);
            }
            const bool is_seen =
                position < end && position <= state.position[h] &&
                (plan.a.window <= 0 || position > state.position[h] - plan.a.window);
            s[n][i] = is_seen ? x : -INFINITY;
            largest[h] = fmaxf(largest[h], s[n][i]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], 1));
        largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], 2));
        const float maximum = fmaxf(state.maximum[h], largest[h]);
        const float base = maximum == -INFINITY ? 0.0f : maximum;
        const float rescale = exp2_fast(state.maximum[h] - base);
        state.maximum[h] = maximum;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; i++) {
                const float weight = exp2_fast(s[n][i] - base);
                sum += weight;
                s[n][i] = weight < plan.a.sparse_v ? 0.0f : weight;
            }
        }
        state.sum[h] = state.sum[h] * rescale + sum;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            state.sums[j][2 * h] *= rescale;
            state.sums[j][2 * h + 1] *= rescale;
        }
    }
}

template <int D>
__device__ inline void add_values(const __half *values, const float (&s)[PAGE / 8][4],
                                  WarpState<D> &state)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
        const unsigned a[4] = {pack_halves(s[2 * k][0], s[2 * k][1]),
                               pack_halves(s[2 * k][2], s[2 * k][3]),
                               pack_halves(s[2 * k + 1][0], s[2 * k + 1][1]),
                               pack_halves(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            unsigned b[4];
            load_transposed(b, values + place<D>(16 * k + (lane & 15), j + lane / 16));
            mma(state.sums[j], a, b[0], b[1]);
            mma(state.sums[j + 1], a, b[2], b[3]);
        }
    }
}

template <int D>
__device__ void write_part(const Plan &plan, int unit, int split, int first_row,
                           const WarpState<D> &state)
{
    const int t = threadIdx.x & 3;
    for (int h = 0; h < 2; h++) {
        float sum = state.sum[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const size_t part = part_index(plan, unit, 1, split, first_row + 8 * h);
        if (t == 0) {
            plan.part_stats[part] = make_float2(state.maximum[h], sum);
        }
        if (state.maximum[h] == -INFINITY) {
            continue; // nothing seen: the sums will not be read
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *reinterpret_cast<float2 *>(plan.part_sums + part * D + 8 * j + 2 * t) =
                make_float2(state.sums[j][2 * h], state.sums[j][2 * h + 1]);
        }
    }
}

template <int D>
__global__ void __launch_bounds__(N_THREADS, D <= 128 ? 2 : 1)
    attend_exact(const __grid_constant__ Plan plan)
{
    extern __shared__ __align__(128) unsigned char memory[];
    Shared<D> &shared = *reinterpret_cast<Shared<D> *>(memory);
    const int unit = blockIdx.y;
    const int split = blockIdx.z;
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x & 31;
    const Unit u = unit_of(plan, unit);
    const tkv_device_sequence &sequence = sequence_of(plan, u.sequence);
    const size_t row_base = static_cast<size_t>(unit) * padded_rows(plan) + blockIdx.x * CTA_ROWS;
    for (int item = threadIdx.x; item < CTA_ROWS * (D / 8); item += N_THREADS) {
        const int row = item / (D / 8);
        const int chunk = item % (D / 8);
        copy16(shared.queries + place<D>(row, chunk), plan.q16 + (row_base + row) * D + chunk * 8,
               true);
    }
    WarpState<D> state = {};
    const int first_row = blockIdx.x * CTA_ROWS + warp * 16 + lane / 4;
    for (int h = 0; h < 2; h++) {
        const int row = first_row + 8 * h;
        state.position[h] =
            row < plan.n_rows ? first_position(plan, sequence) + row / plan.group : -1;
        state.maximum[h] = -INFINITY;
    }
    BlockWalk walk;
    walk.begin(sequence, block_range(plan, sequence, blockIdx.x, 0, 1), 1, !plan.has_coded);
    // Exact blocks lie together, so that splits take them in turn.
    walk.skip(split);
    // Every warp walks alike; block [s] is the one in stage s.
    int blocks[N_STAGES];
    const auto fetch = [&](int stage) {
        unsigned long long pages = 0;
        int n_slots = 0;
        blocks[stage] = walk.next(&pages, &n_slots);
        walk.skip(plan.n_splits[1] - 1);
        if (blocks[stage] >= 0) {
            const auto *keys = reinterpret_cast<const __half *>(pages) +
                               static_cast<size_t>(u.kv_head) * n_slots * D * 2;
            const int end = min(first_position(plan, sequence) + plan.a.n_queries,
                                block_start(plan.a.layer, blocks[stage] + 1));
            fetch_page<D>(keys, n_slots, end - block_start(plan.a.layer, blocks[stage]),
                          shared.keys[stage], shared.values[stage]);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    fetch(0);
    fetch(1);
    for (int stage = 0; blocks[stage] >= 0; stage ^= 1) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        float s[PAGE / 8][4];
        score_page<D>(shared.queries, shared.keys[stage], warp, s);
        soften_page<D>(plan, block_start(plan.a.layer, blocks[stage]),
                       block_start(plan.a.layer, blocks[stage] + 1), state, s);
        add_values<D>(shared.values[stage], s, state);
        __syncthreads();
        fetch(stage);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    write_part<D>(plan, unit, split, first_row, state);
}

template <int D> cudaError_t launch(const Plan &plan, cudaStream_t stream)
{
    const int bytes = sizeof(Shared<D>);
    const cudaError_t error =
        cudaFuncSetAttribute(attend_exact<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 grid(plan.n_row_tiles, plan.a.n_sequences * plan.a.layer.n_kv_heads,
                    plan.n_splits[1]);
    attend_exact<D><<<grid, N_THREADS, bytes, stream>>>(plan);
    return cudaGetLastError();
}

} // namespace

cudaError_t launch_exact(const Plan &plan, cudaStream_t stream)
{
    switch (plan.a.layer.head_dim_k) {
    case 64: return launch<64>(plan, stream);
    case 128: return launch<128>(plan, stream);
    default: return launch<256>(plan, stream);
    }
}

} // namespace tkv_prefill
