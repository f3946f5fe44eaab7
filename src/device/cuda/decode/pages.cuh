/* Decode attention: few queries against a long coded context.
 *
 * Bound: every page is read once, so device memory; the kernel must spend fewer issue slots on a
 * page than the memory system needs to bring it (docs/CUDA.md counts both). A CTA takes a split of
 * the blocks of one KV head for up to 4 * RowTiles rows (a row is one query head of one token), a
 * warp whole page pairs on its own: no synchronisation between warps while pages stream in.
 *
 *   scores   integer tensor cores, m16n8k32: 16 tokens x 8 columns, where columns 2r and 2r+1 are
 *            the high and the low byte of row r's query. So lane 4g + t holds the scores of row t
 *            of the tokens that g stands for, rounded to 16 bits at the price of 8.
 *   softmax  in registers, 8 tokens a lane, relative to a maximum that is only brought up to date
 *            when a weight would no longer fit 16 bits: no reductions in the loop.
 *   values   weights times the scales of their tokens are 16-bit integers, again two columns a
 *            row, transposed by movmatrix; they meet the levels in the tensor cores, and the
 *            integer sums stay in the accumulators from page to page until the maximum moves.
 */
#ifndef TKV_DEVICE_CUDA_DECODE_PAGES_CUH
#define TKV_DEVICE_CUDA_DECODE_PAGES_CUH

#include "device/cuda/base/half.cuh"
#include "device/cuda/decode/layout.cuh"
#include "device/cuda/decode/rows.cuh"

#include <math_constants.h>

namespace tkv_cuda
{

/* 2^23 + n has n in its low bits: a fused multiply-add also rounds to an integer. */
constexpr float integer_base = 8388608.0f;
constexpr uint32_t integer_base_high = 0x4b00u;
/* The largest weight is set to 2^15 of 2^16. */
constexpr float weight_bits = 15.0f;
/* A token without a value may weigh 2^70 times more than those with one. */
constexpr float valueless_bits = 70.0f;
constexpr float sum_limit = 1e30f;

template <int KeyType, int ValueType, int HeadDim, int RowTiles> struct decode_shape {
    using layout = pair_layout<KeyType, ValueType, HeadDim>;
    static constexpr int n_rows = 4 * RowTiles;
    static constexpr int n_steps = HeadDim / 32; /* of the score product */
    static constexpr int fragment_words = n_steps * 2 * 32;
    static constexpr int most_warps = most_decode_warps(HeadDim, RowTiles);
    static constexpr int query_bytes = RowTiles * fragment_words * 4 + n_rows * 16;
    static constexpr int fitting = (decode_shared_limit - query_bytes) / (2 * layout::bytes);
    static constexpr int n_warps = fitting < most_warps ? fitting : most_warps;
    static constexpr int warp_bytes = 2 * layout::bytes; /* one page pair is worked on, one comes */
    static constexpr int shared_bytes = query_bytes + n_warps * warp_bytes;
};

/* Lane 4g + t's eight tokens are first_slot(g) + pair_offset(p) + {0, 1}, chosen so that what
 * movmatrix brings together is a quad of the values' type (unpack.cuh). */
template <int ValueType> __device__ __forceinline__ int first_slot(int g)
{
    return type_traits<ValueType>::is_bytes ? 32 * (g >> 2) + 16 * (g >> 1 & 1) + 2 * (g & 1)
                                            : 32 * (g >> 2) + 2 * (g >> 1 & 1) + 8 * (g & 1);
}

template <int ValueType> __device__ __forceinline__ constexpr int pair_offset(int p)
{
    return type_traits<ValueType>::is_bytes ? 4 * p : 4 * (p & 1) + 16 * (p >> 1);
}

__device__ __forceinline__ void multiply_queries(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                 uint32_t a3, const uint32_t *b)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_weights(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                 uint32_t a3, const uint32_t *b)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x)
{
    uint32_t y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

/* Asks for the codes of one page, 16 bytes a lane and instruction. */
template <typename Side>
__device__ __forceinline__ void copy_codes(uint32_t to, int lane, const uint8_t *page)
{
#pragma unroll
    for (int at = 0; at < Side::code_bytes; at += copy_bytes) {
        /* Rows of 256 bytes: the upper half of the warp is in another row. */
        const int upper = Side::target_of(at + copy_bytes / 2) - Side::target_of(at);
        copy_chunk(to + Side::target_of(at) + lane * chunk_bytes +
                       (lane >> 4) * (upper - copy_bytes / 2),
                   page + at + lane * chunk_bytes);
    }
}

/* Asks for a page pair in two groups, first the keys with the scales of both, then the values: work
 * on the keys can begin when half of the bytes are there. */
template <typename Layout>
__device__ __forceinline__ void copy_pair(uint32_t to, int lane, uint64_t pages)
{
    const uint8_t *keys = (const uint8_t *)pages;
    const uint8_t *values = keys + Layout::keys::page_bytes;
    const int side_chunks = side_bytes / chunk_bytes;
    copy_codes<typename Layout::keys>(to, lane, keys);
    if (lane < 2 * side_chunks) {
        const uint8_t *from = lane < side_chunks ? keys + Layout::keys::code_bytes
                                                 : values + Layout::values::code_bytes - side_bytes;
        copy_chunk(to + Layout::key_scales_at + lane * chunk_bytes, from + lane * chunk_bytes);
    }
    close_copies();
    copy_codes<typename Layout::values>(to + Layout::values_at, lane, values);
    close_copies();
}

/* Start bits of keys, a word a slot, before the first row of the path plane: FORMAT.md 5.3. */
template <typename Layout>
__device__ __forceinline__ void place_key_starts(uint8_t *stage, const uint32_t (&fields)[2])
{
    uint32_t *row = (uint32_t *)(stage + Layout::keys::plane_offset(1));
    row[threadIdx.x % 32] = path_before(start_bits(fields[0]));
    row[threadIdx.x % 32 + 32] = path_before(start_bits(fields[1]));
}

/* Those of values, a word of 32 tokens for each place before the first coordinate. */
template <typename Layout>
__device__ __forceinline__ void place_value_starts(uint8_t *stage, const uint32_t (&fields)[2])
{
    using values = typename Layout::values;
#pragma unroll
    for (int b = 0; b < 2; b++) {
        uint32_t words[8] = {};
#pragma unroll
        for (int k = 0; k < TKV_TRELLIS_START_BITS; k++) {
            const uint32_t bit = k < TKV_TRELLIS_START_BITS - 1 ? 1u << k : 1u << 15;
            words[7 - k] = __ballot_sync(full_warp, (fields[b] & bit) != 0);
        }
        if (threadIdx.x % 32 == 0) {
            uint4 *row =
                (uint4 *)(stage + Layout::values_at + values::row_address(1, b) - sizeof words);
            row[0] = make_uint4(words[0], words[1], words[2], words[3]);
            row[1] = make_uint4(words[4], words[5], words[6], words[7]);
        }
    }
}

template <typename Layout> __device__ __forceinline__ void place_start_bits(uint8_t *stage)
{
    constexpr bool has_keys = Layout::keys::c::is_trellis;
    constexpr bool has_values = Layout::values::c::is_trellis;
    if constexpr (has_keys || has_values) {
        const int lane = threadIdx.x % 32;
        const uint16_t *of_keys = (const uint16_t *)(stage + Layout::key_scales_at);
        const uint16_t *of_values = (const uint16_t *)(stage + Layout::value_scales_at);
        const uint32_t keys[2] = {of_keys[lane], of_keys[lane + 32]};
        const uint32_t values[2] = {of_values[lane], of_values[lane + 32]};
        if constexpr (has_keys) {
            place_key_starts<Layout>(stage, keys);
        }
        if constexpr (has_values) {
            place_value_starts<Layout>(stage, values);
        }
        __syncwarp();
    }
}

/* Offset of the rows that lane t reads, from those of lane 0. */
template <typename Side> __device__ __forceinline__ int lane_rows(int plane, int t)
{
    const int bits = Side::plane_bits(plane);
    if (!Side::is_shared) {
        return t * bits * Side::row_bytes + Side::shift_of_lane(t);
    }
    if (Side::is_path(plane)) {
        return Side::row_address(1, 1) * (t >> 1) - Side::row_address(1, 0) * (t >> 1);
    }
    return bits == 1 ? (t >> 1) * Side::row_bytes + Side::shift_of_lane(t & 2)
                     : t * (bits / 2) * Side::row_bytes + Side::shift_of_lane(t);
}

/* Index bits of the values' trellis, by token group and by what place_value_pairs calls even or
 * odd: groups are in different banks. They take the place of the keys. */
template <typename Layout> struct value_pairs_layout {
    static constexpr int row_bytes = Layout::values::row_bytes + 64;
    static constexpr int odd = 2 * row_bytes;
    static_assert(!Layout::values::c::is_trellis || odd + 2 * row_bytes <= Layout::values_at,
                  "the keys' codes leave room");
};

/* Works out the index bits once a page, which two lanes each want for their halves of a group. */
template <typename Layout> __device__ __forceinline__ void place_value_pairs(uint8_t *stage)
{
    using values = typename Layout::values;
    using pairs = value_pairs_layout<Layout>;
    constexpr int quarters = values::row_bytes / 16; /* of four coordinates */
#pragma unroll
    for (int k = 0; k < 2 * quarters / 32; k++) {
        const int item = threadIdx.x % 32 + 32 * k;
        const int b = item / quarters;
        const int at = item % quarters * 16;
        const uint8_t *row = stage + Layout::values_at + at + values::row_address(1, 0) +
                             b * (values::row_address(1, 1) - values::row_address(1, 0));
        uint32_t u[12];
#pragma unroll
        for (int j = 0; j < 3; j++) {
            *(uint4 *)(u + 4 * j) = *(const uint4 *)(row - 32 + 16 * j);
        }
        uint32_t even[4];
        uint32_t odd[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t *now = u + 8 + j;
            const trellis_pairs two = trellis_pair_up(
                trellis_taps(now[0], now[-1], now[-2], now[-3], now[-6], now[-7], now[-8]));
            even[j] = two.even;
            odd[j] = two.odd;
        }
        uint8_t *to = stage + b * pairs::row_bytes + at;
        *(uint4 *)to = make_uint4(even[0], even[1], even[2], even[3]);
        *(uint4 *)(to + pairs::odd) = make_uint4(odd[0], odd[1], odd[2], odd[3]);
    }
}

/* What a lane knows for the whole launch: where it reads in a stage, and the levels. */
template <int KeyType, int ValueType> struct lane_constants {
    int keys[2];     /* its first slot in its first row, by plane */
    int keys_before; /* of a trellis' path plane: the row before */
    int values[2];
    int value_pairs; /* of a trellis */
    int key_scales;
    int value_scales;
    half_share share;
    level_tables<KeyType> key_levels;
    level_tables<ValueType> value_levels;
};

/* Level tables on their way through shared memory, twice so that the address depends on the lane.
 * This hides from the compiler that they are constants: it would load them again before every use.
 */
template <int KeyType, int ValueType> struct hidden_tables {
    level_tables<KeyType> keys;
    level_tables<ValueType> values;
};

/* x itself, but nothing that the compiler could compute again instead of keeping it. */
__device__ __forceinline__ int pin(int x)
{
    return __shfl_sync(full_warp, x, threadIdx.x % 32);
}

template <int Type>
__device__ __forceinline__ level_tables<Type> read_tables(const volatile level_tables<Type> &hidden)
{
    level_tables<Type> tables;
#pragma unroll
    for (int i = 0; i < 2 * type_traits<Type>::n_tables; i++) {
        tables.half[i / 2][i % 2] = hidden.half[i / 2][i % 2];
    }
    tables.minus_one = hidden.minus_one;
    return tables;
}

template <typename Layout, int KeyType, int ValueType>
__device__ __forceinline__ lane_constants<KeyType, ValueType>
make_lane_constants(const hidden_tables<KeyType, ValueType> *hidden)
{
    using keys = typename Layout::keys;
    using values = typename Layout::values;
    const int t = threadIdx.x & 3;
    const int g = threadIdx.x % 32 >> 2;
    const int slot = first_slot<ValueType>(g);
    lane_constants<KeyType, ValueType> lane;
#pragma unroll
    for (int plane = 0; plane < 2; plane++) {
        lane.keys[plane] = pin(4 * slot + lane_rows<keys>(plane, t) + keys::row_address(plane, 0));
        lane.values[plane] = pin(16 * g + Layout::values_at + lane_rows<values>(plane, t) +
                                 values::row_address(plane, 0));
    }
    lane.keys_before = keys::is_shared ? (t < 2 ? keys::plane_offset(1) : keys::row_address(1, 0))
                                       : keys::row_address(1, 0) +
                                             (t ? lane_rows<keys>(1, t - 1) : -keys::path_room(1));
    lane.keys_before = pin(lane.keys_before + 4 * slot);
    lane.value_pairs = pin(16 * g + (t >> 1) * value_pairs_layout<Layout>::row_bytes);
    lane.share = share_of_half(t & 1);
    lane.share = {(uint32_t)pin((int)lane.share.mask), (uint32_t)pin((int)lane.share.factor),
                  pin(lane.share.shift)};
    lane.key_scales = pin(Layout::key_scales_at + 2 * slot);
    lane.value_scales = lane.key_scales + side_bytes;
    lane.key_levels = read_tables<KeyType>(hidden[t & 1].keys);
    lane.value_levels = read_tables<ValueType>(hidden[t & 1].values);
    return lane;
}

/* Words of group 4 * block + t (or of half a group) of the slots of pair p. */
template <typename Side, typename Lane>
__device__ __forceinline__ void load_key_words(const uint8_t *stage, const Lane &lane, int offset,
                                               int block, uint32_t (&words)[2][8],
                                               trellis_pairs (&pairs)[2])
{
    int n = 0;
#pragma unroll
    for (int plane = 0; plane < Side::c::n_planes; plane++) {
        const int bits = Side::plane_bits(plane);
        const int n_words = Side::is_shared && bits > 1 ? bits / 2 : bits;
        const uint8_t *rows = stage + lane.keys[plane] + offset;
#pragma unroll
        for (int w = 0; w < n_words; w++) {
            const int row = 4 * block * bits + w;
            const int at = Side::row_address(plane, row) - Side::row_address(plane, 0);
            const uint2 two = *(const uint2 *)(rows + at);
            if (Side::is_path(plane)) {
                const uint2 past = *(const uint2 *)(stage + lane.keys_before + offset + at);
                pairs[0] = trellis_pair_up(trellis_key_bits(past.x, two.x));
                pairs[1] = trellis_pair_up(trellis_key_bits(past.y, two.y));
            } else {
                words[0][n] = two.x;
                words[1][n] = two.y;
                n++;
            }
        }
    }
}

/* Scores of one page: score[tile][2 * p + e] of row t of the tile and token (p, e), an integer. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void
compute_scores(const uint8_t *stage, const lane_constants<KeyType, ValueType> &lane,
               const uint32_t (&queries)[RowTiles][HeadDim / 16],
               const int (&query_sums)[RowTiles][2], int (&score)[RowTiles][8])
{
    using layout = pair_layout<KeyType, ValueType, HeadDim>;
    using side = typename layout::keys;
    constexpr int n_tables = type_traits<KeyType>::n_tables;
    constexpr int n_blocks = side::is_shared ? 1 : HeadDim / 128;
    constexpr int n_quads = side::is_shared ? 4 : 8;
#pragma unroll
    for (int p = 0; p < 4; p++) {
        int c[RowTiles][4];
#pragma unroll
        for (int i = 0; i < RowTiles; i++) {
            c[i][0] = c[i][2] = query_sums[i][0];
            c[i][1] = c[i][3] = query_sums[i][1];
        }
#pragma unroll
        for (int block = 0; block < n_blocks; block++) {
            uint32_t words[2][8];
            trellis_pairs pairs[2] = {};
            uint32_t quads[2][n_tables][n_quads];
            load_key_words<side>(stage, lane, 4 * pair_offset<ValueType>(p), block, words, pairs);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if constexpr (side::is_shared) {
                    unpack_half<KeyType>(lane.key_levels, words[e], pairs[e], lane.share, quads[e]);
                } else {
                    unpack_group<KeyType>(lane.key_levels, words[e], pairs[e], quads[e]);
                }
            }
#pragma unroll
            for (int table = 0; table < n_tables; table++) {
#pragma unroll
                for (int k = 0; k < n_quads; k += 2) {
#pragma unroll
                    for (int i = 0; i < RowTiles; i++) {
                        multiply_queries(c[i], quads[0][table][k], quads[1][table][k],
                                         quads[0][table][k + 1], quads[1][table][k + 1],
                                         &queries[i][8 * block + k]);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < RowTiles; i++) {
            score[i][2 * p] = c[i][0] * 256 + c[i][1];
            score[i][2 * p + 1] = c[i][2] * 256 + c[i][3];
        }
    }
}

/* Four neighbouring words of each of the rows that the lane needs for coordinates 4g .. 4g+3 of
 * block `block` of 32. */
template <typename Layout, typename Lane>
__device__ __forceinline__ void load_value_words(const uint8_t *stage, const Lane &lane, int block,
                                                 uint32_t (&words)[4][8], trellis_pairs (&pairs)[4])
{
    using side = typename Layout::values;
    int n = 0;
#pragma unroll
    for (int plane = 0; plane < side::c::n_planes; plane++) {
        const int bits = side::plane_bits(plane);
        const int n_words = bits > 1 ? bits / 2 : 1;
        if (side::is_path(plane)) {
            const uint8_t *row = stage + lane.value_pairs + 128 * block;
            const uint4 even = *(const uint4 *)row;
            const uint4 odd = *(const uint4 *)(row + value_pairs_layout<Layout>::odd);
            pairs[0] = {even.x, odd.x};
            pairs[1] = {even.y, odd.y};
            pairs[2] = {even.z, odd.z};
            pairs[3] = {even.w, odd.w};
        } else {
            const uint8_t *rows = stage + lane.values[plane] + 128 * block;
#pragma unroll
            for (int w = 0; w < n_words; w++) {
                const uint4 four = *(const uint4 *)(rows + w * side::row_bytes);
                words[0][n] = four.x;
                words[1][n] = four.y;
                words[2][n] = four.z;
                words[3][n] = four.w;
                n++;
            }
        }
    }
}

/* Adds weights times levels: sums[tile][2 * block + e] are the coordinates 32 * block + 4g + 2e and
 * the next, of each the columns of the high and the low byte of row t's weights. */
template <int KeyType, int ValueType, int HeadDim, int RowTiles>
__device__ __forceinline__ void
add_values(const uint8_t *stage, const lane_constants<KeyType, ValueType> &lane,
           const uint32_t (&weights)[RowTiles][4], int (&sums)[RowTiles][HeadDim / 16][4])
{
    using layout = pair_layout<KeyType, ValueType, HeadDim>;
    constexpr int n_tables = type_traits<ValueType>::n_tables;
#pragma unroll
    for (int block = 0; block < HeadDim / 32; block++) {
        uint32_t words[4][8];
        trellis_pairs pairs[4] = {};
        load_value_words<layout>(stage, lane, block, words, pairs);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t quads[2][n_tables][4];
            unpack_half<ValueType>(lane.value_levels, words[2 * e], pairs[2 * e], lane.share,
                                   quads[0]);
            unpack_half<ValueType>(lane.value_levels, words[2 * e + 1], pairs[2 * e + 1],
                                   lane.share, quads[1]);
#pragma unroll
            for (int table = 0; table < n_tables; table++) {
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
#pragma unroll
                    for (int i = 0; i < RowTiles; i++) {
                        multiply_weights(sums[i][2 * block + e], quads[0][table][k],
                                         quads[1][table][k], quads[0][table][k + 1],
                                         quads[1][table][k + 1], &weights[i][k]);
                    }
                }
            }
        }
    }
}

} /* namespace tkv_cuda */

#endif
