// The producers of prefill over coded pages: pages, fetched by the copy engine, become tiles of
// int8 levels in shared memory, laid out for wgmma.
#pragma once

#include "device/cuda/prefill/attend_prefill.cuh"
#include "device/cuda/prefill/hopper.cuh"
#include "device/cuda/prefill/unpack_codes.cuh"

namespace tkv_prefill
{

using namespace tkv_cuda;

constexpr int WARPGROUP = 128;
constexpr int N_PRODUCERS = 2; // of keys, of values
constexpr int N_CONSUMERS = 2;
constexpr int N_TILES = 3;
constexpr int MAX_RAW = 6;
constexpr int UNSEEN = 1 << 30; // the start of a page that is not there

template <int D> struct Shape {
    static constexpr int PAGES = D <= 128 ? 2 : 1; // of a tile
    static constexpr int TOKENS = PAGES * PAGE;
    static constexpr int COLUMNS = D <= 128 ? D : 128; // of one value product
};

template <int D> struct __align__(128) Tile
{
    unsigned char keys[Shape<D>::TOKENS * D];
    unsigned char values[Shape<D>::TOKENS * D];
    float key_scales[Shape<D>::TOKENS];    // in the order in which the consumers read
    __half value_scales[Shape<D>::TOKENS]; // likewise; the largest is 255
    float value_unit;                      // value_scales times this are the scales
    int starts[Shape<D>::PAGES];           // positions of the pages' first tokens
};

template <int D> struct Shared {
    Tile<D> tiles[N_TILES];
    unsigned char queries[N_CONSUMERS][64 * D]; // aligned, as they follow the tiles
    unsigned starts_v[Shape<D>::PAGES * 2][TKV_TRELLIS_START_BITS]; // start bits, by token
    float largest_scale[WARPGROUP / 32];
    int raw_starts[MAX_RAW];
    Barrier raw_full[MAX_RAW];
    Barrier raw_empty[MAX_RAW];
    Barrier tile_full[N_TILES];
    Barrier tile_empty[N_TILES];
};

// The ring of pages as they come from memory.
struct Ring {
    unsigned char *pages;
    int n_raw;
    int key_bytes;
    int value_bytes;

    __device__ unsigned char *keys(int place) const
    {
        return pages + static_cast<size_t>(place) * (key_bytes + value_bytes);
    }
    __device__ unsigned char *values(int place) const
    {
        return keys(place) + key_bytes;
    }
};

// A place in a ring of buffers and the parity of its use.
struct Cursor {
    int place;
    int parity;

    __device__ void advance(int n)
    {
        if (++place == n) {
            place = 0;
            parity ^= 1;
        }
    }
};

// Row of a key tile for a token, such that a consumer's score columns are the tokens whose weights
// it packs into one word: bytes i of word t of 16 tokens are t + 4i, or 4t + i in natural order.
__device__ inline int key_row(int token, bool natural)
{
    const int u = token & 15;
    const int t = natural ? u >> 2 : u & 3;
    const int i = natural ? u & 3 : u >> 2;
    return (token & ~15) + (i >> 1) * 8 + 2 * t + (i & 1);
}

// Where a consumer reads a token's scale: [16 tokens][t][i].
__device__ inline int scale_place(int token, bool natural)
{
    const int u = token & 15;
    return natural ? token : (token & ~15) + 4 * (u & 3) + (u >> 2);
}

// Half of the 32 unpacked codes as 16 bytes.
template <int TYPE> __device__ inline uint4 chunk_of(const unsigned (&out)[8], int half)
{
    return is_natural(TYPE)
               ? make_uint4(out[4 * half], out[4 * half + 1], out[4 * half + 2], out[4 * half + 3])
               : make_uint4(out[half], out[2 + half], out[4 + half], out[6 + half]);
}

__host__ __device__ constexpr bool is_trellis(int type)
{
    return type == TKV_TYPE_TRELLIS3 || type == TKV_TYPE_TRELLIS2;
}

// The words of 32 codes, `stride` apart, and of the one-bit plane; `z` only where the type is a
// trellis code.
template <int TYPE>
__device__ inline void unpack_group(const unsigned *first, int stride, unsigned bit_word,
                                    SubsetBits z, unsigned (&out)[8])
{
    if constexpr (TYPE == TKV_TYPE_TURBO8) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            out[i] = first[i * stride];
        }
    } else if constexpr (TYPE == TKV_TYPE_TURBO4) {
        const unsigned w[4] = {first[0], first[stride], first[2 * stride], first[3 * stride]};
        unpack_turbo4(w, out);
    } else if constexpr (TYPE == TKV_TYPE_TRELLIS2) {
        unpack_trellis2(first[0], z, out);
    } else {
        const unsigned w[2] = {first[0], first[stride]};
        if constexpr (TYPE == TKV_TYPE_TURBO3) {
            unpack_turbo3(w, bit_word, out);
        } else if constexpr (TYPE == TKV_TYPE_TURBO2) {
            unpack_turbo2(w, out);
        } else {
            unpack_trellis3(w, z, out);
        }
    }
}

// Bits a code in the first plane, and whether a plane of one bit follows it.
template <int TYPE> struct Planes {
    static constexpr int FIRST = TYPE == TKV_TYPE_TURBO8     ? 8
                                 : TYPE == TKV_TYPE_TURBO4   ? 4
                                 : TYPE == TKV_TYPE_TRELLIS2 ? 1
                                                             : 2;
    static constexpr bool HAS_SECOND = TYPE == TKV_TYPE_TURBO3 || is_trellis(TYPE);
};

__device__ inline float scale_of(int type, unsigned field)
{
    const unsigned short bits =
        static_cast<unsigned short>(is_trellis(type) ? field & 0x7fffu : field);
    return __half2float(__ushort_as_half(bits)) * (1.0f / TKV_LEVEL_UNIT);
}

// Side fields of a page.
__device__ inline const unsigned short *fields_of(const unsigned char *page, int page_bytes)
{
    return reinterpret_cast<const unsigned short *>(page + page_bytes - PAGE * 2);
}

// One key page into place `p` of a tile; an item is 32 coordinates of a token.
template <int D, int TYPE>
__device__ void unpack_keys(const unsigned char *raw, int page_bytes, int p, bool natural,
                            Tile<D> &tile)
{
    constexpr int TOKENS = Shape<D>::TOKENS;
    constexpr int BITS = Planes<TYPE>::FIRST;
    constexpr int GROUPS_A_STEP = WARPGROUP / PAGE;
    const int slot = threadIdx.x % PAGE;
    const int group = threadIdx.x % WARPGROUP / PAGE;
    const unsigned *first = reinterpret_cast<const unsigned *>(raw) + group * BITS * PAGE + slot;
    const unsigned *second =
        reinterpret_cast<const unsigned *>(raw) + BITS * D * PAGE / 32 + group * PAGE + slot;
    uint4 *to = reinterpret_cast<uint4 *>(tile.keys) + 2 * group * TOKENS +
                key_row(p * PAGE + slot, natural);
#pragma unroll
    for (int i = 0; i < D / 32 / GROUPS_A_STEP; i++) {
        const int b = i * GROUPS_A_STEP; // beyond the thread's first group
        const unsigned bits = Planes<TYPE>::HAS_SECOND ? second[b * PAGE] : 0;
        SubsetBits z = {};
        if constexpr (is_trellis(TYPE)) {
            z = subsets_along_row(bits, b + group
                                            ? second[(b - 1) * PAGE]
                                            : path_before_row(fields_of(raw, page_bytes)[slot]));
        }
        unsigned out[8];
        unpack_group<TYPE>(first + b * BITS * PAGE, PAGE, bits, z, out);
        to[2 * b * TOKENS] = chunk_of<TYPE>(out, 0);
        to[(2 * b + 1) * TOKENS] = chunk_of<TYPE>(out, 1);
    }
}

// One value page into place `p` of a tile; an item is 32 tokens of a coordinate. starts: start bits
// of the page's tokens, [2][TKV_TRELLIS_START_BITS].
template <int D, int TYPE>
__device__ void unpack_values(const unsigned char *raw, int p,
                              const unsigned (*starts)[TKV_TRELLIS_START_BITS], Tile<D> &tile)
{
    constexpr int BITS = Planes<TYPE>::FIRST;
    constexpr int N_ITEMS = D * (PAGE / 32);
    const int thread = threadIdx.x % WARPGROUP;
    const unsigned *words = reinterpret_cast<const unsigned *>(raw);
    const unsigned *second = words + BITS * D * PAGE / 32;
#pragma unroll
    for (int i = 0; i < N_ITEMS / WARPGROUP; i++) {
        const int j = (thread + i * WARPGROUP) % D;
        const int b = (thread + i * WARPGROUP) / D;
        const unsigned bits = Planes<TYPE>::HAS_SECOND ? second[b * D + j] : 0;
        SubsetBits z = {};
        if constexpr (is_trellis(TYPE)) {
            const auto path = [&](int back) {
                const int k = j - back;
                return k >= 0                         ? second[b * D + k]
                       : k >= -TKV_TRELLIS_START_BITS ? starts[b][-1 - k]
                                                      : 0u;
            };
            z = {bits ^ path(3) ^ path(6) ^ path(8), path(1) ^ path(2) ^ path(7)};
        }
        unsigned out[8];
        unpack_group<TYPE>(words + b * BITS * D + j, D, bits, z, out);
        uint4 *to = reinterpret_cast<uint4 *>(tile.values) + (p * (PAGE / 16) + 2 * b) * D + j;
        to[0] = chunk_of<TYPE>(out, 0);
        to[D] = chunk_of<TYPE>(out, 1);
    }
}

// Calls f<type>() for the types that prefill reads.
template <typename F> __device__ inline void with_type(int type, F f)
{
    switch (type) {
    case TKV_TYPE_TURBO8: f.template operator()<TKV_TYPE_TURBO8>(); break;
    case TKV_TYPE_TURBO4: f.template operator()<TKV_TYPE_TURBO4>(); break;
    case TKV_TYPE_TURBO3: f.template operator()<TKV_TYPE_TURBO3>(); break;
    case TKV_TYPE_TURBO2: f.template operator()<TKV_TYPE_TURBO2>(); break;
    case TKV_TYPE_TRELLIS3: f.template operator()<TKV_TYPE_TRELLIS3>(); break;
    default: f.template operator()<TKV_TYPE_TRELLIS2>();
    }
}

template <int D> struct KeyUnpack {
    const unsigned char *raw;
    int page_bytes;
    int p;
    bool natural;
    Tile<D> *tile;

    template <int TYPE> __device__ void operator()() const
    {
        unpack_keys<D, TYPE>(raw, page_bytes, p, natural, *tile);
    }
};

template <int D> struct ValueUnpack {
    const unsigned char *raw;
    int p;
    const unsigned (*starts)[TKV_TRELLIS_START_BITS];
    Tile<D> *tile;

    template <int TYPE> __device__ void operator()() const
    {
        unpack_values<D, TYPE>(raw, p, starts, *tile);
    }
};

// Fetches pages into the ring, in order; called by one warp.
template <int D> struct PageFetch {
    BlockWalk walk;
    const tkv_device_layer *layer;
    int kv_head;
    Cursor cursor; // where the next page goes

    __device__ void issue(const Ring &ring, Shared<D> &shared)
    {
        unsigned long long pages = 0;
        int n_slots = 0;
        const int block = walk.next(&pages, &n_slots);
        if (threadIdx.x == 0) {
            const unsigned bytes = ring.key_bytes + ring.value_bytes;
            Barrier &full = shared.raw_full[cursor.place];
            shared.raw_starts[cursor.place] = block < 0 ? UNSEEN : block_start(*layer, block);
            if (block < 0) {
                full.arrive();
            } else {
                full.arrive_expect(bytes);
                bulk_copy(ring.keys(cursor.place),
                          reinterpret_cast<const void *>(
                              pages + static_cast<unsigned long long>(kv_head) * bytes),
                          bytes, &full);
            }
        }
        cursor.advance(ring.n_raw);
    }
};

// A producer's way through the ring and the tiles.
template <int D> struct Progress {
    Cursor raw;
    Cursor tile;
    int places[Shape<D>::PAGES]; // of the tile's pages in the ring
    int starts[Shape<D>::PAGES];

    // Waits for a free tile and its pages; returns whether there is any page.
    __device__ bool wait(Shared<D> &shared, const Ring &ring)
    {
        shared.tile_empty[tile.place].wait(tile.parity ^ 1);
#pragma unroll
        for (int p = 0; p < Shape<D>::PAGES; p++) {
            shared.raw_full[raw.place].wait(raw.parity);
            places[p] = raw.place;
            starts[p] = shared.raw_starts[raw.place];
            raw.advance(ring.n_raw);
        }
        return starts[0] != UNSEEN;
    }

    __device__ void release(Shared<D> &shared)
    {
#pragma unroll
        for (int p = 0; p < Shape<D>::PAGES; p++) {
            shared.raw_empty[places[p]].arrive();
        }
        fence_async_proxy();
        shared.tile_full[tile.place].arrive();
        tile.advance(N_TILES);
    }
};

template <int D>
__device__ void produce_keys(const Plan &plan, const tkv_device_sequence &sequence,
                             BlockRange range, int kv_head, const Ring &ring, Shared<D> &shared)
{
    const tkv_device_layer &layer = plan.a.layer;
    const bool natural = is_natural(layer.type_v);
    const int thread = threadIdx.x % WARPGROUP;
    PageFetch<D> fetch = {{}, &layer, kv_head, {0, 0}};
    fetch.walk.begin(sequence, range, 0, false);
    for (int i = 0; thread < 32 && i < ring.n_raw; i++) {
        fetch.issue(ring, shared);
    }
    Progress<D> progress = {};
    for (bool is_first = true, is_any = true; is_any; is_first = false) {
        // What the tile before has read is free once the values' producers have read it too.
        for (int p = 0; thread < 32 && !is_first && p < Shape<D>::PAGES; p++) {
            shared.raw_empty[fetch.cursor.place].wait(fetch.cursor.parity ^ 1);
            fetch.issue(ring, shared);
        }
        is_any = progress.wait(shared, ring);
        Tile<D> &tile = shared.tiles[progress.tile.place];
#pragma unroll
        for (int p = 0; p < Shape<D>::PAGES; p++) {
            const unsigned char *raw = ring.keys(progress.places[p]);
            const bool is_there = progress.starts[p] != UNSEEN;
            if (thread < PAGE) {
                const unsigned field = is_there ? fields_of(raw, ring.key_bytes)[thread] : 0;
                tile.key_scales[p * PAGE + scale_place(thread, natural)] =
                    scale_of(layer.type_k, field);
            }
            if (thread == 0) {
                tile.starts[p] = progress.starts[p];
            }
            if (is_there) {
                with_type(layer.type_k, KeyUnpack<D>{raw, ring.key_bytes, p, natural, &tile});
            }
        }
        progress.release(shared);
    }
}

// Scales of a tile's values, so that the largest is 255, and their start bits. Slots from position
// `end` on hold what dropped tokens have left.
template <int D>
__device__ void scale_values(const tkv_device_layer &layer, int end, const Ring &ring,
                             const Progress<D> &progress, Shared<D> &shared)
{
    constexpr int PAGES = Shape<D>::PAGES;
    Tile<D> &tile = shared.tiles[progress.tile.place];
    const int token = threadIdx.x % WARPGROUP;
    const int p = token / PAGE;
    unsigned field = 0;
#pragma unroll
    for (int i = 0; i < PAGES; i++) {
        if (i == p && progress.starts[i] != UNSEEN && progress.starts[i] + token % PAGE < end) {
            field = fields_of(ring.values(progress.places[i]), ring.value_bytes)[token % PAGE];
        }
    }
    const float scale = scale_of(layer.type_v, field);
    float largest = scale;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
    }
    if (is_trellis(layer.type_v) && p < PAGES) {
        const unsigned start = (field & 31u) | field >> 15 << 5;
#pragma unroll
        for (int i = 0; i < TKV_TRELLIS_START_BITS; i++) {
            const unsigned bits = __ballot_sync(~0u, start >> i & 1u);
            if (token % 32 == 0) {
                shared.starts_v[token / 32][i] = bits;
            }
        }
    }
    if (token % 32 == 0) {
        shared.largest_scale[token / 32] = largest;
    }
    warpgroup_sync(1);
#pragma unroll
    for (int i = 0; i < WARPGROUP / 32; i++) {
        largest = fmaxf(largest, shared.largest_scale[i]);
    }
    const float inverse = largest > 0.0f ? __fdividef(255.0f, largest) : 0.0f;
    if (p < PAGES) {
        tile.value_scales[p * PAGE + scale_place(token % PAGE, is_natural(layer.type_v))] =
            __float2half_rn(scale * inverse);
    }
    if (token == 0) {
        tile.value_unit = largest * (1.0f / 255.0f);
    }
}

template <int D>
__device__ void produce_values(const Plan &plan, const tkv_device_sequence &sequence,
                               const Ring &ring, Shared<D> &shared)
{
    const tkv_device_layer &layer = plan.a.layer;
    const int end = first_position(plan, sequence) + plan.a.n_queries;
    Progress<D> progress = {};
    for (bool is_any = true; is_any;) {
        is_any = progress.wait(shared, ring);
        scale_values<D>(layer, end, ring, progress, shared);
#pragma unroll
        for (int p = 0; p < Shape<D>::PAGES; p++) {
            if (progress.starts[p] != UNSEEN) {
                with_type(layer.type_v, ValueUnpack<D>{ring.values(progress.places[p]), p,
                                                       shared.starts_v + 2 * p,
                                                       &shared.tiles[progress.tile.place]});
            }
        }
        progress.release(shared);
        warpgroup_sync(1); // before the start bits and scales of the next tile
    }
}

} // namespace tkv_prefill
