// Prefill over exact (f16) pages on Hopper: sinks, the recent window, types f16. Two warpgroups of
// 64 query rows share each page in shared memory and do what FlashAttention-3 does (Shah et al.
// 2024, section 3.2): products by wgmma, the scores of a page asked for before the sums of the page
// before, softmax in registers between. Bound by the tensor cores.
#include "device/cuda/prefill/attend_prefill.cuh"
#include "device/cuda/prefill/hopper.cuh"

namespace tkv_prefill
{
namespace
{

using namespace tkv_cuda;

constexpr int WARPGROUP = 128;
constexpr int N_THREADS = CTA_ROWS / 64 * WARPGROUP;
// Weights are 2^(logit - reference); the reference moves when the weights of a row and page come to
// more than MOST, and then so that none is above 2^HEADROOM: far from a half's end either way.
constexpr float HEADROOM = 8.0f;
constexpr float MOST = 0x1p15f;
// Eight coordinates of a page's tokens lie together, 16 bytes each, and so that eight of these
// columns are in different banks.
constexpr int COLUMN_BYTES = PAGE * 16 + 16;

template <int D> struct Shape {
    static constexpr int N_STAGES = D <= 128 ? 4 : 3;
    static constexpr int COLUMNS = D <= 128 ? D : 128; // of one value product
    // Whether there are registers for a page's scores while the sums of the page before are added.
    static constexpr bool IS_OVERLAPPED = D <= 128;
    // Pages on their way; where they overlap, the stage of the page before is still read.
    static constexpr int N_AHEAD = N_STAGES - (IS_OVERLAPPED ? 2 : 1);
};

template <int D> struct __align__(128) Stage
{
    unsigned char keys[D / 8 * COLUMN_BYTES];
    unsigned char values[D / 8 * COLUMN_BYTES];
};

__device__ inline void copy16(void *to, const void *from, bool is_there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

// Rows from n_tokens on, which hold what dropped tokens have left, become zero.
template <int D>
__device__ void fetch_page(const __half *keys, int n_slots, int n_tokens, Stage<D> &to)
{
    constexpr int CHUNKS = D / 8;
    const __half *values = keys + n_slots * D;
#pragma unroll
    for (int i = 0; i < PAGE * CHUNKS / N_THREADS; i++) {
        const int item = threadIdx.x + i * N_THREADS;
        const int row = item / CHUNKS;
        const int chunk = item % CHUNKS;
        const bool is_there = row < n_slots && row < n_tokens;
        const int from = is_there ? item * 8 : 0;
        const int at = chunk * COLUMN_BYTES + row * 16;
        copy16(to.keys + at, keys + from, is_there);
        copy16(to.values + at, values + from, is_there);
    }
}

template <int D> using Sums = float[D / Shape<D>::COLUMNS][Shape<D>::COLUMNS / 2];

// A thread's two rows (g and g + 8 of its warp's 16) and what the softmax knows of them.
struct Rows {
    int position[2]; // last token that the row sees; -1: none
    float reference[2];
    float largest[2]; // logit so far; only kept where values are sparse
    float sum[2];
};

__device__ inline Rows begin_rows(const Plan &plan, const tkv_device_sequence &sequence,
                                  int first_row)
{
    Rows rows;
    for (int h = 0; h < 2; h++) {
        const int row = first_row + 8 * h;
        const bool is_real = row < plan.n_rows;
        rows.position[h] = is_real ? first_position(plan, sequence) + row / plan.group : -1;
        rows.reference[h] = is_real ? -INFINITY : 0.0f; // what sees nothing never moves it
        rows.largest[h] = -INFINITY;
        rows.sum[h] = 0.0f;
    }
    return rows;
}

// Scores -> logits, base 2.
template <bool IS_SPECIAL>
__device__ inline void scale_scores(const Plan &plan, float (&s)[PAGE / 2])
{
    const float scale = plan.a.scale * LOG2E;
    const float cap = plan.a.logit_softcap * LOG2E;
#pragma unroll
    for (int c = 0; c < PAGE / 2; c++) {
        s[c] *= scale;
    }
    if constexpr (IS_SPECIAL) {
        if (cap > 0.0f) {
#pragma unroll
            for (int c = 0; c < PAGE / 2; c++) {
                s[c] = cap * tanhf(s[c] / cap);
            }
        }
    }
}

// -infinity where a row does not see a token. A thread has of every eight columns 2t and 2t + 1,
// for both rows. The block holds tokens start .. end-1.
__device__ inline void mask_logits(int start, int end, int window, const Rows &rows,
                                   float (&s)[PAGE / 2])
{
    int first[2]; // column that the row sees
    int last[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        last[h] = min(end - 1, rows.position[h]) - start;
        first[h] = window > 0 ? rows.position[h] - window + 1 - start : 0;
    }
    if (__all_sync(~0u,
                   first[0] <= 0 && first[1] <= 0 && last[0] >= PAGE - 1 && last[1] >= PAGE - 1)) {
        return;
    }
#pragma unroll
    for (int c = 0; c < PAGE / 2; c++) {
        const int h = c >> 1 & 1;
        const int column = 8 * (c / 4) + 2 * (threadIdx.x & 3) + (c & 1);
        s[c] = column >= first[h] && column <= last[h] ? s[c] : -INFINITY;
    }
}

__device__ inline unsigned pack_halves(float low, float high)
{
    const __half2 y = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&y);
}

// Weights of a page as operands of the second product; adds up each row's of this thread.
__device__ inline void weigh(const float (&s)[PAGE / 2], const float (&reference)[2],
                             unsigned (&weights)[PAGE / 16][4], float (&sums)[2])
{
    sums[0] = sums[1] = 0.0f;
#pragma unroll
    for (int w = 0; w < PAGE / 16; w++) {
#pragma unroll
        for (int r = 0; r < 4; r++) { // columns of eight r / 2, row half r % 2
            const int h = r & 1;
            const int at = 8 * w + 4 * (r >> 1) + 2 * h;
            const float low = exp2_fast(s[at] - reference[h]);
            const float high = exp2_fast(s[at + 1] - reference[h]);
            weights[w][r] = pack_halves(low, high);
            sums[h] += low + high;
        }
    }
}

__device__ inline float largest_of_row(const float (&s)[PAGE / 2], int h)
{
    float largest = -INFINITY;
#pragma unroll
    for (int j = 0; j < PAGE / 8; j++) {
        largest = fmaxf(largest, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
    }
    return max_of_four_lanes(largest);
}

// Weights below the threshold, relative to the row's largest logit so far, become zero.
__device__ inline void drop_small(const Plan &plan, const float (&s)[PAGE / 2], Rows &rows,
                                  unsigned (&weights)[PAGE / 16][4])
{
    const float threshold = log2f(plan.a.sparse_v);
    float limit[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        rows.largest[h] = fmaxf(rows.largest[h], largest_of_row(s, h));
        limit[h] = rows.largest[h] + threshold;
    }
#pragma unroll
    for (int w = 0; w < PAGE / 16; w++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int h = r & 1;
            const int at = 8 * w + 4 * (r >> 1) + 2 * h;
            weights[w][r] &=
                (s[at] < limit[h] ? 0u : 0xffffu) | (s[at + 1] < limit[h] ? 0u : 0xffff0000u);
        }
    }
}

// One step of the online softmax: logits -> weights. `rescale` is what the sums so far are to be
// multiplied by; returns whether that is not one somewhere in the warp.
template <bool IS_SPECIAL>
__device__ inline bool soften(const Plan &plan, const float (&s)[PAGE / 2], Rows &rows,
                              unsigned (&weights)[PAGE / 16][4], float (&rescale)[2])
{
    float sums[2];
    weigh(s, rows.reference, weights, sums);
    // Written so that what is not a number counts as too much.
    const bool is_fitting = sums[0] <= MOST && sums[1] <= MOST && rows.reference[0] != -INFINITY &&
                            rows.reference[1] != -INFINITY;
    const bool is_moved = !__all_sync(~0u, is_fitting);
    if (is_moved) {
        float reference[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float before = rows.reference[h];
            rows.reference[h] = fmaxf(before, largest_of_row(s, h) - HEADROOM);
            rescale[h] = rows.reference[h] == before ? 1.0f : exp2_fast(before - rows.reference[h]);
            rows.sum[h] *= rescale[h];
            reference[h] = rows.reference[h] == -INFINITY ? 0.0f : rows.reference[h];
        }
        weigh(s, reference, weights, sums);
    }
    rows.sum[0] += sums[0];
    rows.sum[1] += sums[1];
    if constexpr (IS_SPECIAL) {
        if (plan.a.sparse_v > 0.0f) {
            drop_small(plan, s, rows, weights);
        }
    }
    return is_moved;
}

// Asks for the scores of a warpgroup's 64 rows and the page's tokens.
template <int D>
__device__ inline void multiply_keys(const unsigned (&queries)[D / 16][4], const Stage<D> &stage,
                                     float (&scores)[PAGE / 2])
{
    const unsigned long long first = core_matrix_descriptor(stage.keys, COLUMN_BYTES);
    // A step of 16 coordinates is two columns on; descriptors count 16 bytes.
    wgmma_f16<PAGE, true, false>(scores, queries[0], first);
#pragma unroll
    for (int k = 1; k < D / 16; k++) {
        wgmma_f16<PAGE, false, false>(scores, queries[k], first + 2 * k * COLUMN_BYTES / 16);
    }
    wgmma_commit();
}

// Asks for weights times values to be added to the sums.
template <int D>
__device__ inline void multiply_values(const unsigned (&weights)[PAGE / 16][4],
                                       const Stage<D> &stage, Sums<D> &sums)
{
    constexpr int COLUMNS = Shape<D>::COLUMNS;
#pragma unroll
    for (int part = 0; part < D / COLUMNS; part++) {
        const unsigned long long first = core_matrix_descriptor(
            stage.values + part * COLUMNS / 8 * COLUMN_BYTES, 128, COLUMN_BYTES);
#pragma unroll
        for (int k = 0; k < PAGE / 16; k++) { // 16 tokens are 256 bytes on
            wgmma_f16<COLUMNS, false, true>(sums[part], weights[k], first + 16 * k);
        }
    }
    wgmma_commit();
}

template <int D> __device__ inline void rescale_sums(const float (&rescale)[2], Sums<D> &sums)
{
    constexpr int HALF = Shape<D>::COLUMNS / 2;
#pragma unroll
    for (int c = 0; c < D / 2; c++) {
        sums[c / HALF][c % HALF] *= rescale[c >> 1 & 1];
    }
}

// Waits for all products.
template <int D> __device__ inline void wait_for_sums(Sums<D> &sums)
{
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < D / Shape<D>::COLUMNS; part++) {
        wgmma_hold(sums[part]);
    }
}

// Of rows g and g + 8 of the warp, coordinates 2t and 2t + 8 of every 16.
template <int D>
__device__ inline void load_queries(const __half *row, unsigned (&queries)[D / 16][4])
{
    const __half *from = row + 2 * (threadIdx.x & 3);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            queries[k][r] =
                *reinterpret_cast<const unsigned *>(from + (r & 1) * 8 * D + 16 * k + (r >> 1) * 8);
        }
    }
}

template <int D>
__device__ void write_part(const Plan &plan, int unit, int split, int first_row, const Rows &rows,
                           const Sums<D> &sums)
{
    constexpr int COLUMNS = Shape<D>::COLUMNS;
    const int t = threadIdx.x & 3;
    for (int h = 0; h < 2; h++) {
        float sum = rows.sum[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const size_t part = part_index(plan, unit, 1, split, first_row + 8 * h);
        if (t == 0) {
            plan.part_stats[part] = make_float2(rows.reference[h], sum);
        }
        if (rows.reference[h] == -INFINITY) {
            continue; // nothing seen: the sums will not be read
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float *two = sums[8 * j / COLUMNS] + 4 * (j % (COLUMNS / 8)) + 2 * h;
            *reinterpret_cast<float2 *>(plan.part_sums + part * D + 8 * j + 2 * t) =
                make_float2(two[0], two[1]);
        }
    }
}

// The exact pages of a split, in order. Exact blocks lie together, so that splits take them in
// turn; every warp walks alike.
template <int D> struct Pages {
    const Plan &plan;
    const tkv_device_sequence &sequence;
    int kv_head;
    BlockWalk walk;

    // Asks for the next page; returns its block or -1.
    __device__ int fetch(Stage<D> &stage)
    {
        unsigned long long pages = 0;
        int n_slots = 0;
        const int block = walk.next(&pages, &n_slots);
        walk.skip(plan.n_splits[1] - 1);
        if (block >= 0) {
            const auto *keys = reinterpret_cast<const __half *>(pages) +
                               static_cast<size_t>(kv_head) * n_slots * D * 2;
            const int end = min(first_position(plan, sequence) + plan.a.n_queries,
                                block_start(plan.a.layer, block + 1));
            fetch_page<D>(keys, n_slots, end - block_start(plan.a.layer, block), stage);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        return block;
    }
};

// IS_SPECIAL: with a soft cap or sparse values.
template <int D, bool IS_SPECIAL>
__global__ void __launch_bounds__(N_THREADS, 1) attend_exact(const __grid_constant__ Plan plan)
{
    constexpr int N_STAGES = Shape<D>::N_STAGES;
    constexpr int N_AHEAD = Shape<D>::N_AHEAD;
    constexpr bool IS_OVERLAPPED = Shape<D>::IS_OVERLAPPED;
    extern __shared__ __align__(128) unsigned char memory[];
    Stage<D> *stages = reinterpret_cast<Stage<D> *>(memory);
    const int unit = blockIdx.y;
    const int split = blockIdx.z;
    const Unit u = unit_of(plan, unit);
    const tkv_device_sequence &sequence = sequence_of(plan, u.sequence);
    const int first_row = blockIdx.x * CTA_ROWS + threadIdx.x / 32 * 16 + (threadIdx.x & 31) / 4;
    Pages<D> pages = {plan, sequence, u.kv_head, {}};
    pages.walk.begin(sequence, block_range(plan, sequence, blockIdx.x, 0, 1), 1, !plan.has_coded);
    pages.walk.skip(split);
    int blocks[N_AHEAD + 1]; // the page to work on and those asked for
#pragma unroll
    for (int i = 0; i < N_AHEAD; i++) {
        blocks[i] = pages.fetch(stages[i]);
    }
    unsigned queries[D / 16][4];
    load_queries<D>(plan.q16 + (static_cast<size_t>(unit) * padded_rows(plan) + first_row) * D,
                    queries);
    Rows rows = begin_rows(plan, sequence, first_row);
    Sums<D> sums = {};
    unsigned weights[PAGE / 16][4] = {}; // nothing before the first page
    int at = 0;
    int before = 0;
    bool is_any = false;
    while (blocks[0] >= 0) {
        asm volatile("cp.async.wait_group %0;" ::"n"(N_AHEAD - 1) : "memory");
        fence_async_proxy();
        __syncthreads();
        float s[PAGE / 2];
        wgmma_begin();
        multiply_keys<D>(queries, stages[at], s);
        if constexpr (IS_OVERLAPPED) {
            multiply_values<D>(weights, stages[is_any ? before : at], sums);
        }
        // Behind the products, which wait for all copies that are asked for before.
        blocks[N_AHEAD] = pages.fetch(stages[(at + N_AHEAD) % N_STAGES]);
        wgmma_wait<IS_OVERLAPPED ? 1 : 0>();
        wgmma_hold(s);
        scale_scores<IS_SPECIAL>(plan, s);
        mask_logits(block_start(plan.a.layer, blocks[0]), block_start(plan.a.layer, blocks[0] + 1),
                    plan.a.window, rows, s);
        if constexpr (IS_OVERLAPPED) {
            wait_for_sums<D>(sums);
        }
        float rescale[2];
        if (soften<IS_SPECIAL>(plan, s, rows, weights, rescale)) {
            rescale_sums<D>(rescale, sums);
        }
        if constexpr (!IS_OVERLAPPED) {
            wgmma_begin();
            multiply_values<D>(weights, stages[at], sums);
            wait_for_sums<D>(sums);
        }
#pragma unroll
        for (int i = 0; i < N_AHEAD; i++) {
            blocks[i] = blocks[i + 1];
        }
        is_any = true;
        before = at;
        at = at + 1 == N_STAGES ? 0 : at + 1;
    }
    if (IS_OVERLAPPED && is_any) {
        wgmma_begin();
        multiply_values<D>(weights, stages[before], sums);
        wait_for_sums<D>(sums);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    write_part<D>(plan, unit, split, first_row, rows, sums);
}

template <int D, bool IS_SPECIAL> cudaError_t launch(const Plan &plan, cudaStream_t stream)
{
    const int bytes = Shape<D>::N_STAGES * sizeof(Stage<D>);
    const cudaError_t error = cudaFuncSetAttribute(
        attend_exact<D, IS_SPECIAL>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 grid(plan.n_row_tiles, plan.a.n_sequences * plan.a.layer.n_kv_heads,
                    plan.n_splits[1]);
    attend_exact<D, IS_SPECIAL><<<grid, N_THREADS, bytes, stream>>>(plan);
    return cudaGetLastError();
}

template <int D> cudaError_t launch(const Plan &plan, cudaStream_t stream)
{
    const bool is_special = plan.a.logit_softcap > 0.0f || plan.a.sparse_v > 0.0f;
    return is_special ? launch<D, true>(plan, stream) : launch<D, false>(plan, stream);
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
