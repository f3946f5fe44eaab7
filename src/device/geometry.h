/* Where a token's row lies. Plain functions of numbers, the same in C, CUDA C++ and Metal, so that
 * the cache, every back end and every count of bytes share them.
 *
 *     layer     segment | segment | ...      runs of tokens, in the order of positions
 *     segment   block | block | block | ...  places 0, 1, 2 ...: first `head` of them in head
 * blocks, then 64 a block
 *
 *                   head = 80:     0 ... 63 | 64 ... 79 | 80 ... 143 | 144 ... 207 | ...
 *                   block               0   |     1     |     2      |      3      |
 *
 *               A segment holds the places [begin, end): of its first block it may leave out
 *               leading slots, of its last one trailing slots.
 *     block     K page of KV head 0 | V page of KV head 0 | K page of KV head 1 | ...
 *     page      exact: rows of f16 one after the other, as many as the block has slots
 *               coded: 64 rows together (docs/FORMAT.md), whatever is filled
 *     row       one token's key or value of one KV head, in a slot of a page */
#ifndef TKV_DEVICE_GEOMETRY_H
#define TKV_DEVICE_GEOMETRY_H

#include "format/type_table.h"
#include "turbokv.h"

#ifdef __CUDACC__
#define TKV_GEOMETRY static inline __host__ __device__
#else
#define TKV_GEOMETRY static inline
#endif

#define TKV_MAX_LAYERS 4096
#define TKV_MAX_KV_HEADS 4096

/* Exact pages on the host end after a multiple of so many rows. */
#define TKV_EXACT_ROWS 16

TKV_GEOMETRY int tkv_ceil_divide(int a, int b)
{
    return a / b + (a % b != 0);
}

/* ---- Blocks of a segment whose first `head` places are in head blocks ---- */

/* Blocks that hold the head. */
TKV_GEOMETRY int tkv_head_blocks(int head)
{
    return (head + TKV_PAGE_TOKENS - 1) / TKV_PAGE_TOKENS;
}

/* The place of a block's first slot; that of the block after it is the end of its own. */
TKV_GEOMETRY int tkv_block_place(int head, int block)
{
    const int n = tkv_head_blocks(head);
    return block < n ? block * TKV_PAGE_TOKENS : head + (block - n) * TKV_PAGE_TOKENS;
}

/* The block that holds a place. */
TKV_GEOMETRY int tkv_block_of_place(int head, int place)
{
    return place < head ? place / TKV_PAGE_TOKENS
                        : tkv_head_blocks(head) + (place - head) / TKV_PAGE_TOKENS;
}

/* Blocks that n places in a row can touch at most, wherever they begin. */
TKV_GEOMETRY int tkv_most_blocks(int head, int n)
{
    return (n + TKV_PAGE_TOKENS - 2) / TKV_PAGE_TOKENS + 1 +
           (n > 1 && head % TKV_PAGE_TOKENS != 0 ? 1 : 0);
}

/* Slots first .. end-1 of a block. */
typedef struct tkv_slots {
    int first;
    int end;
} tkv_slots;

/* The slots of a block that are of the places [begin, end). */
TKV_GEOMETRY tkv_slots tkv_slots_of_places(int head, int block, int begin, int end)
{
    const int start = tkv_block_place(head, block);
    const int next = tkv_block_place(head, block + 1);
    const int first = begin > start ? begin : start;
    const int last = end < next ? end : next;
    tkv_slots slots;
    slots.first = first - start;
    slots.end = (last > first ? last : first) - start;
    return slots;
}

/* ---- Pages of a block ---- */

/* Rows of an exact page that holds `filled` tokens of a block for `whole`, in multiples of `rows`.
 */
TKV_GEOMETRY int tkv_exact_slots(int filled, int whole, int rows)
{
    const int needed = tkv_ceil_divide(filled, rows) * rows;
    return needed < whole ? needed : whole;
}

/* Bytes of a page with room for n_slots rows; coded ones have all TKV_PAGE_TOKENS. */
TKV_GEOMETRY size_t tkv_stored_page_bytes(int type, int padded_dim, int n_slots)
{
    return (size_t)n_slots * (size_t)tkv_type_row_bytes(type, padded_dim);
}

/* Bytes before the page of a KV head in a block whose pages have so many bytes each. */
TKV_GEOMETRY size_t tkv_page_offset(int kv_head, bool is_value, size_t key_bytes,
                                    size_t value_bytes)
{
    return (size_t)kv_head * (key_bytes + value_bytes) + (is_value ? key_bytes : 0);
}

#endif
