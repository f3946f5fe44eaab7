/* Which blocks a warp takes, and how their pages come. The first blocks are fixed, so that nothing
 * waits for them; the others go to whoever is ready, since multiprocessors do not get the same
 * share of the memory. Nothing waits for a block's number or its entry in the table either: the
 * number is drawn a page before the entry is looked up, and that a page before the pages are asked
 * for. */
#ifndef TKV_DEVICE_CUDA_DECODE_BLOCKS_CUH
#define TKV_DEVICE_CUDA_DECODE_BLOCKS_CUH

#include "device/cuda/decode/work.cuh"

namespace tkv_cuda
{

/* atomicAdd(counter, 1), which the compiler would do once for all lanes and wait for at once. */
__device__ __forceinline__ unsigned draw_number(unsigned *counter)
{
    unsigned drawn;
    asm volatile("atom.inc.u32 %0, [%1], 0x7fffffff;" : "=r"(drawn) : "l"(counter) : "memory");
    return drawn;
}

/* An entry of the block table as it is loaded; nothing looks at it before the pages are due. */
struct raw_entry {
    uint64_t pages;
    int is_exact;
    int block;
};

__device__ __forceinline__ void load_entry(const decode_work &work, int block, raw_entry &entry)
{
    const tkv_device_block *from = (const tkv_device_block *)work.sequence.blocks + block;
    entry.block = block;
    /* In place and under a predicate, or the compiler would wait to move the result; nothing that
     * goes unused, or it would wait to use its register. */
    asm volatile("{\n.reg .pred is_there;\nsetp.lt.s32 is_there, %3, %4;\n"
                 "@is_there ld.global.nc.b64 %0, [%2];\n"
                 "@is_there ld.global.nc.b32 %1, [%2 + 8];\n}"
                 : "+l"(entry.pages), "+r"(entry.is_exact)
                 : "l"(from), "r"(block), "r"(work.end));
}

/* A block whose pages are asked for. */
struct due_block {
    uint64_t pages; /* of the KV head */
    int block;      /* the end if there is none */
    int is_exact;
};

template <typename Layout>
__device__ __forceinline__ due_block read_entry(const decode_work &work, const raw_entry &entry)
{
    uint64_t pages; /* now, not after the entry's registers are loaded again */
    asm volatile("mad.wide.s32 %0, %1, %2, %3;"
                 : "=l"(pages)
                 : "r"(work.kv_head), "n"(Layout::page_bytes), "l"(entry.pages));
    return {pages, entry.block, entry.is_exact};
}

/* Two groups of copies, even if there is nothing to copy. */
template <typename Layout>
__device__ __forceinline__ void copy_block(uint32_t stage, int lane, const decode_work &work,
                                           const due_block &due)
{
    if (due.block < work.end && !due.is_exact) {
        copy_pair<Layout>(stage, lane, due.pages);
    } else {
        close_copies();
        close_copies();
    }
}

/* The blocks ahead of the one that a warp works on. */
struct block_queue {
    int stride; /* blocks that all warps of the unit take in a turn */
    int number; /* of the block to look up */
    raw_entry ahead;
    unsigned drawn;
    unsigned *counter; /* of numbers drawn */
};

/* Looks up the two first blocks of the warp, of which the very first comes out. */
__device__ __forceinline__ raw_entry begin_blocks(const decode_work &work, int n_warps, int warp,
                                                  block_queue &queue)
{
    raw_entry first = {};
    queue.stride = work.n_active * n_warps;
    queue.number = work.begin + work.split * n_warps + warp;
    queue.ahead = {};
    queue.drawn = 0;
    load_entry(work, queue.number, first);
    queue.number += queue.stride;
    load_entry(work, queue.number, queue.ahead);
    queue.number += queue.stride;
    return first;
}

/* Draws a number and looks up the one drawn before; `is_fixed` in the first turn. */
__device__ __forceinline__ void advance_blocks(const decode_work &work, int lane, bool is_fixed,
                                               block_queue &queue)
{
    if (!is_fixed && queue.number < work.end) {
        queue.number = work.begin + 3 * queue.stride + (int)__shfl_sync(full_warp, queue.drawn, 0);
    }
    /* These are answered in order: what the next turn wants before its pages comes first. */
    load_entry(work, queue.number, queue.ahead);
    if (lane == 0 && queue.number < work.end) {
        queue.drawn = draw_number(queue.counter);
    }
}

} /* namespace tkv_cuda */

#endif
