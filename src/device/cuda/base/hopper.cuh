/* Hopper's asynchronous instructions: bulk copies that complete on a barrier in shared memory, and
 * matrix products of a warpgroup on bytes or halves (PTX ISA, "wgmma.mma_async"). */
#ifndef TKV_DEVICE_CUDA_BASE_HOPPER_CUH
#define TKV_DEVICE_CUDA_BASE_HOPPER_CUH

#include "device/cuda/base/copy.cuh"

namespace tkv_cuda
{

/* A barrier in shared memory with the parity of the phase that its user waits for next. */
struct shared_barrier {
    uint64_t state;

    __device__ void init(int n_arrivals)
    {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)),
                     "r"(n_arrivals));
    }
    __device__ void arrive()
    {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state))
                     : "memory");
    }
    __device__ void arrive_expect(uint32_t bytes)
    {
        asm volatile(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)),
            "r"(bytes)
            : "memory");
    }
    __device__ void wait(uint32_t parity)
    {
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "again:\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                     "@!done bra again;\n"
                     "}\n" ::"r"(shared_address(&state)),
                     "r"(parity)
                     : "memory");
    }
};

__device__ inline void bulk_copy(void *to, const void *from, uint32_t bytes,
                                 shared_barrier *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(&barrier->state))
                 : "memory");
}

/* Makes ordinary stores to shared memory visible to wgmma and the copy engine. */
__device__ inline void fence_async_proxy()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* A matrix in shared memory, made of 8 rows x 16 bytes cores of 128 contiguous bytes: `lead` bytes
 * from a core to the next along the contraction, `stride` along the rows. */
__device__ inline uint64_t core_matrix_descriptor(const void *p, uint32_t lead,
                                                  uint32_t stride = 128)
{
    const uint64_t address = (shared_address(p) & 0x3ffffu) >> 4;
    return address | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32;
}

__device__ inline void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until no more than Left of the committed groups are under way. */
template <int Left = 0> __device__ inline void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

/* After a wait: what a product has left is not read before it. */
template <int N> __device__ inline void wgmma_hold(float (&acc)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(acc[i])::"memory");
    }
}

/* The accumulators as operands; written only ("=r") by the first product of a sum, which starts
 * from zero, so that they need not be cleared. */
#define TKV_ACC8(use, i)                                                                           \
    use(acc[i]), use(acc[i + 1]), use(acc[i + 2]), use(acc[i + 3]), use(acc[i + 4]),               \
        use(acc[i + 5]), use(acc[i + 6]), use(acc[i + 7])
#define TKV_ACC32(use) TKV_ACC8(use, 0), TKV_ACC8(use, 8), TKV_ACC8(use, 16), TKV_ACC8(use, 24)
#define TKV_ACC64(use)                                                                             \
    TKV_ACC32(use), TKV_ACC8(use, 32), TKV_ACC8(use, 40), TKV_ACC8(use, 48), TKV_ACC8(use, 56)
#define TKV_WGMMA_S8(shape, names, accumulators, a_text, b_text, use)                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " use ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned." shape ".s32.s8.s8 {" names "}, " a_text           \
                 ", " b_text ", p;\n}\n"                                                           \
                 : accumulators                                                                    \
                 : "l"(a_matrix), "l"(b_matrix), "r"(IsFirst ? 0 : 1))
#define TKV_WGMMA_U8(shape, names, accumulators, a_text, b_text, use)                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " use ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned." shape ".s32.u8.s8 {" names "}, " a_text           \
                 ", " b_text ", p;\n}\n"                                                           \
                 : accumulators                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_matrix),                      \
                   "r"(IsFirst ? 0 : 1))
#define TKV_WGMMA_F16(shape, names, accumulators, a_text, b_text, use, flag)                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " use ", 0;\n"                                  \
                 "wgmma.mma_async.sync.aligned." shape ".f32.f16.f16 {" names "}, " a_text         \
                 ", " b_text ", p, 1, 1, " flag ";\n}\n"                                           \
                 : accumulators                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_matrix),                      \
                   "r"(IsFirst ? 0 : 1), "n"(IsTransposed ? 1 : 0))
#define TKV_NAMES32                                                                                \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%"  \
    "25,%26,%27,%28,%29,%30,%31"
#define TKV_NAMES64                                                                                \
    TKV_NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%"   \
                "51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TKV_WRITTEN "=r"
#define TKV_ADDED_TO "+r"
#define TKV_WRITTEN_FLOAT "=f"
#define TKV_ADDED_TO_FLOAT "+f"

/* acc [64 x N] = (or, if not the first, +=) A [64 x 32] B^T [N x 32]: signed bytes in shared
 * memory. */
template <int N, bool IsFirst>
__device__ inline void wgmma_s8(int (&acc)[N / 2], uint64_t a_matrix, uint64_t b_matrix)
{
    static_assert(N == 64 || N == 128, "64 or 128 columns");
    if constexpr (N == 64 && IsFirst) {
        TKV_WGMMA_S8("m64n64k32", TKV_NAMES32, TKV_ACC32(TKV_WRITTEN), "%32", "%33", "%34");
    } else if constexpr (N == 64) {
        TKV_WGMMA_S8("m64n64k32", TKV_NAMES32, TKV_ACC32(TKV_ADDED_TO), "%32", "%33", "%34");
    } else if constexpr (IsFirst) {
        TKV_WGMMA_S8("m64n128k32", TKV_NAMES64, TKV_ACC64(TKV_WRITTEN), "%64", "%65", "%66");
    } else {
        TKV_WGMMA_S8("m64n128k32", TKV_NAMES64, TKV_ACC64(TKV_ADDED_TO), "%64", "%65", "%66");
    }
}

/* The same with A, unsigned bytes, in registers. */
template <int N, bool IsFirst>
__device__ inline void wgmma_u8(int (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b_matrix)
{
    static_assert(N == 64 || N == 128, "64 or 128 columns");
    if constexpr (N == 64 && IsFirst) {
        TKV_WGMMA_U8("m64n64k32", TKV_NAMES32, TKV_ACC32(TKV_WRITTEN), "{%32,%33,%34,%35}", "%36",
                     "%37");
    } else if constexpr (N == 64) {
        TKV_WGMMA_U8("m64n64k32", TKV_NAMES32, TKV_ACC32(TKV_ADDED_TO), "{%32,%33,%34,%35}", "%36",
                     "%37");
    } else if constexpr (IsFirst) {
        TKV_WGMMA_U8("m64n128k32", TKV_NAMES64, TKV_ACC64(TKV_WRITTEN), "{%64,%65,%66,%67}", "%68",
                     "%69");
    } else {
        TKV_WGMMA_U8("m64n128k32", TKV_NAMES64, TKV_ACC64(TKV_ADDED_TO), "{%64,%65,%66,%67}", "%68",
                     "%69");
    }
}

/* acc [64 x N] = (or, if not the first, +=) A [64 x 16] B^T [N x 16] of halves, A in registers. If
 * B is transposed, the rows of its cores run along the contraction. */
template <int N, bool IsFirst, bool IsTransposed>
__device__ inline void wgmma_f16(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b_matrix)
{
    static_assert(N == 64 || (N == 128 && !IsFirst), "what is used");
    if constexpr (N == 64 && IsFirst) {
        TKV_WGMMA_F16("m64n64k16", TKV_NAMES32, TKV_ACC32(TKV_WRITTEN_FLOAT), "{%32,%33,%34,%35}",
                      "%36", "%37", "%38");
    } else if constexpr (N == 64) {
        TKV_WGMMA_F16("m64n64k16", TKV_NAMES32, TKV_ACC32(TKV_ADDED_TO_FLOAT), "{%32,%33,%34,%35}",
                      "%36", "%37", "%38");
    } else {
        TKV_WGMMA_F16("m64n128k16", TKV_NAMES64, TKV_ACC64(TKV_ADDED_TO_FLOAT), "{%64,%65,%66,%67}",
                      "%68", "%69", "%70");
    }
}

#undef TKV_ACC8
#undef TKV_ACC32
#undef TKV_ACC64
#undef TKV_WGMMA_S8
#undef TKV_WGMMA_U8
#undef TKV_WGMMA_F16
#undef TKV_NAMES32
#undef TKV_NAMES64
#undef TKV_WRITTEN
#undef TKV_ADDED_TO
#undef TKV_WRITTEN_FLOAT
#undef TKV_ADDED_TO_FLOAT

template <int Registers> __device__ inline void take_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

template <int Registers> __device__ inline void give_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

/* Among the 128 threads of a warpgroup. */
__device__ inline void warpgroup_sync(int barrier)
{
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

} /* namespace tkv_cuda */

#endif
