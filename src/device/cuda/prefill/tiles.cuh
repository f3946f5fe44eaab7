/* The producers of prefill over coded pages: pages, fetched by the copy engine, become tiles of
 * int8 levels in shared memory, laid out for wgmma. */
#ifndef TKV_DEVICE_CUDA_PREFILL_TILES_CUH
#define TKV_DEVICE_CUDA_PREFILL_TILES_CUH

#include "device/cuda/base/hopper.cuh"
#include "device/cuda/base/unpack.cuh"
#include "device/cuda/prefill/job.cuh"

namespace tkv_cuda
{

constexpr int warpgroup = 128;
constexpr int n_producers = 2; /* of keys, of values */
constexpr int n_consumers = 2;
constexpr int n_tiles = 3;
constexpr int max_raw = 6;
constexpr int unseen = 1 << 30; /* the start of a page that is not there */

template <int HeadDim> struct tile_shape {
    static constexpr int n_pages = HeadDim <= 128 ? 2 : 1; /* of a tile */
    static constexpr int n_tokens = n_pages * page_tokens;
    static constexpr int n_columns = HeadDim <= 128 ? HeadDim : 128; /* of one value product */
};

template <int HeadDim> struct __align__(128) level_tile
{
    uint8_t keys[tile_shape<HeadDim>::n_tokens * HeadDim];
    uint8_t values[tile_shape<HeadDim>::n_tokens * HeadDim];
    float key_scales[tile_shape<HeadDim>::n_tokens]; /* in the order in which the consumers read */
    __half value_scales[tile_shape<HeadDim>::n_tokens]; /* likewise; the largest is 255 */
    float value_unit;                                   /* value_scales times this are the scales */
    int starts[tile_shape<HeadDim>::n_pages];           /* positions of the pages' first tokens */
};

template <int HeadDim> struct coded_shared {
    level_tile<HeadDim> tiles[n_tiles];
    uint8_t queries[n_consumers][64 * HeadDim]; /* aligned, as they follow the tiles */
    uint32_t starts_v[tile_shape<HeadDim>::n_pages * 2]
                     [TKV_TRELLIS_START_BITS]; /* start bits, by token */
    float largest_scale[warpgroup / 32];
    int raw_starts[max_raw];
    shared_barrier raw_full[max_raw];
    shared_barrier raw_empty[max_raw];
    shared_barrier tile_full[n_tiles];
    shared_barrier tile_empty[n_tiles];
};

/* The ring of pages as they come from memory. */
struct page_ring {
    uint8_t *pages;
    int n_raw;
    int key_bytes;
    int value_bytes;

    __device__ uint8_t *keys(int place) const
    {
        return pages + (size_t)place * (key_bytes + value_bytes);
    }
    __device__ uint8_t *values(int place) const
    {
        return keys(place) + key_bytes;
    }
};

/* A place in a ring of buffers and the parity of its use. */
struct ring_cursor {
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

/* Row of a key tile for a token, such that a consumer's score columns are the tokens whose weights
 * it packs into one word: bytes i of word t of 16 tokens are t + 4i, or 4t + i in natural order. */
__device__ inline int key_row(int token, bool natural)
{
    const int u = token & 15;
    const int t = natural ? u >> 2 : u & 3;
    const int i = natural ? u & 3 : u >> 2;
    return (token & ~15) + (i >> 1) * 8 + 2 * t + (i & 1);
}

/* Where a consumer reads a token's scale: [16 tokens][t][i]. */
__device__ inline int scale_place(int token, bool natural)
{
    const int u = token & 15;
    return natural ? token : (token & ~15) + 4 * (u & 3) + (u >> 2);
}

/* Half of the 32 unpacked codes as 16 bytes. */
template <int Type> __device__ inline uint4 chunk_of(const uint32_t (&levels)[8], int half)
{
    return type_traits<Type>::is_bytes
               ? make_uint4(levels[4 * half], levels[4 * half + 1], levels[4 * half + 2],
                            levels[4 * half + 3])
               : make_uint4(levels[half], levels[2 + half], levels[4 + half], levels[6 + half]);
}

/* Levels of 32 codes, from words `stride` apart and that of the second plane; `z` only where the
 * type is a trellis code. */
template <int Type>
__device__ inline void read_group(const uint32_t *first, int stride, uint32_t second,
                                  trellis_bits z, uint32_t (&levels)[8])
{
    using traits = type_traits<Type>;
    static_assert(traits::n_planes <= 2, "one plane behind the first");
    uint32_t words[traits::bits0 + 1];
#pragma unroll
    for (int w = 0; w < traits::bits0; w++) {
        words[w] = first[w * stride];
    }
    words[traits::bits0] = second;
    unpack_levels<Type>(words, trellis_pair_up(z), levels);
}

__device__ inline float scale_of(int type, uint32_t field)
{
    return from_half(is_trellis(type) ? field & 0x7fffu : field) * (1.0f / TKV_LEVEL_UNIT);
}

/* Side fields of a page. */
__device__ inline const uint16_t *fields_of(const uint8_t *page, int page_bytes)
{
    return (const uint16_t *)(page + page_bytes - page_tokens * 2);
}

/* One key page into place `p` of a tile; an item is 32 coordinates of a token. */
template <int HeadDim, int Type>
__device__ void unpack_keys(const uint8_t *raw, int page_bytes, int p, bool natural,
                            level_tile<HeadDim> &tile)
{
    using traits = type_traits<Type>;
    constexpr int n_tokens = tile_shape<HeadDim>::n_tokens;
    constexpr int groups_a_step = warpgroup / page_tokens;
    const int slot = threadIdx.x % page_tokens;
    const int group = threadIdx.x % warpgroup / page_tokens;
    const uint32_t *first = (const uint32_t *)raw + group * traits::bits0 * page_tokens + slot;
    const uint32_t *second =
        (const uint32_t *)raw + plane_words(traits::bits0, HeadDim) + group * page_tokens + slot;
    uint4 *to =
        (uint4 *)tile.keys + 2 * group * n_tokens + key_row(p * page_tokens + slot, natural);
#pragma unroll
    for (int i = 0; i < HeadDim / 32 / groups_a_step; i++) {
        const int b = i * groups_a_step; /* beyond the thread's first group */
        const uint32_t bits = traits::n_planes > 1 ? second[b * page_tokens] : 0;
        trellis_bits z = {};
        if constexpr (traits::is_trellis) {
            z = trellis_key_bits(b + group
                                     ? second[(b - 1) * page_tokens]
                                     : path_before(start_bits(fields_of(raw, page_bytes)[slot])),
                                 bits);
        }
        uint32_t levels[8];
        read_group<Type>(first + b * traits::bits0 * page_tokens, page_tokens, bits, z, levels);
        to[2 * b * n_tokens] = chunk_of<Type>(levels, 0);
        to[(2 * b + 1) * n_tokens] = chunk_of<Type>(levels, 1);
    }
}

/* One value page into place `p` of a tile; an item is 32 tokens of a coordinate. starts: start bits
 * of the page's tokens, [2][TKV_TRELLIS_START_BITS]. */
template <int HeadDim, int Type>
__device__ void unpack_values(const uint8_t *raw, int p,
                              const uint32_t (*starts)[TKV_TRELLIS_START_BITS],
                              level_tile<HeadDim> &tile)
{
    using traits = type_traits<Type>;
    constexpr int n_items = HeadDim * (page_tokens / 32);
    const int thread = threadIdx.x % warpgroup;
    const uint32_t *words = (const uint32_t *)raw;
    const uint32_t *second = words + plane_words(traits::bits0, HeadDim);
#pragma unroll
    for (int i = 0; i < n_items / warpgroup; i++) {
        const int j = (thread + i * warpgroup) % HeadDim;
        const int b = (thread + i * warpgroup) / HeadDim;
        const uint32_t bits = traits::n_planes > 1 ? second[b * HeadDim + j] : 0;
        trellis_bits z = {};
        if constexpr (traits::is_trellis) {
            const auto path = [&](int back) {
                const int k = j - back;
                return k >= 0                         ? second[b * HeadDim + k]
                       : k >= -TKV_TRELLIS_START_BITS ? starts[b][-1 - k]
                                                      : 0u;
            };
            z = trellis_taps(bits, path(1), path(2), path(3), path(6), path(7), path(8));
        }
        uint32_t levels[8];
        read_group<Type>(words + b * traits::bits0 * HeadDim + j, HeadDim, bits, z, levels);
        uint4 *to = (uint4 *)tile.values + (p * (page_tokens / 16) + 2 * b) * HeadDim + j;
        to[0] = chunk_of<Type>(levels, 0);
        to[HeadDim] = chunk_of<Type>(levels, 1);
    }
}

/* Pages of a type that is known at run time. */
template <int HeadDim>
__device__ void unpack_keys_of(int type, const uint8_t *raw, int page_bytes, int p, bool natural,
                               level_tile<HeadDim> &tile)
{
    with_coded_type(type, [&](auto coded) {
        if constexpr (has_byte_products(decltype(coded)::value)) {
            unpack_keys<HeadDim, decltype(coded)::value>(raw, page_bytes, p, natural, tile);
        }
    });
}

template <int HeadDim>
__device__ void unpack_values_of(int type, const uint8_t *raw, int p,
                                 const uint32_t (*starts)[TKV_TRELLIS_START_BITS],
                                 level_tile<HeadDim> &tile)
{
    with_coded_type(type, [&](auto coded) {
        if constexpr (has_byte_products(decltype(coded)::value)) {
            unpack_values<HeadDim, decltype(coded)::value>(raw, p, starts, tile);
        }
    });
}

/* Fetches pages into the ring, in order; called by one warp. */
template <int HeadDim> struct page_fetch {
    block_walk walk;
    const tkv_device_layer *layer;
    int kv_head;
    ring_cursor cursor; /* where the next page goes */

    __device__ void issue(const page_ring &ring, coded_shared<HeadDim> &shared)
    {
        uint64_t pages = 0;
        int n_slots = 0;
        const int block = walk.next(&pages, &n_slots);
        if (threadIdx.x == 0) {
            const uint32_t bytes = ring.key_bytes + ring.value_bytes;
            shared_barrier &full = shared.raw_full[cursor.place];
            shared.raw_starts[cursor.place] =
                block < 0 ? unseen : tkv_block_place(layer->n_sinks, block);
            if (block < 0) {
                full.arrive();
            } else {
                full.arrive_expect(bytes);
                bulk_copy(ring.keys(cursor.place),
                          (const void *)(pages + (uint64_t)kv_head * bytes), bytes, &full);
            }
        }
        cursor.advance(ring.n_raw);
    }
};

/* A producer's way through the ring and the tiles. */
template <int HeadDim> struct ring_progress {
    ring_cursor raw;
    ring_cursor tile;
    int places[tile_shape<HeadDim>::n_pages]; /* of the tile's pages in the ring */
    int starts[tile_shape<HeadDim>::n_pages];

    /* Waits for a free tile and its pages; returns whether there is any page. */
    __device__ bool wait(coded_shared<HeadDim> &shared, const page_ring &ring)
    {
        shared.tile_empty[tile.place].wait(tile.parity ^ 1);
#pragma unroll
        for (int p = 0; p < tile_shape<HeadDim>::n_pages; p++) {
            shared.raw_full[raw.place].wait(raw.parity);
            places[p] = raw.place;
            starts[p] = shared.raw_starts[raw.place];
            raw.advance(ring.n_raw);
        }
        return starts[0] != unseen;
    }

    __device__ void release(coded_shared<HeadDim> &shared)
    {
#pragma unroll
        for (int p = 0; p < tile_shape<HeadDim>::n_pages; p++) {
            shared.raw_empty[places[p]].arrive();
        }
        fence_async_proxy();
        shared.tile_full[tile.place].arrive();
        tile.advance(n_tiles);
    }
};

template <int HeadDim>
__device__ void produce_keys(const prefill_job &job, const tkv_device_sequence &sequence,
                             block_range range, int kv_head, const page_ring &ring,
                             coded_shared<HeadDim> &shared)
{
    const tkv_device_layer &layer = job.params.layer;
    const bool natural = is_natural(layer.type_v);
    const int thread = threadIdx.x % warpgroup;
    page_fetch<HeadDim> fetch = {{}, &layer, kv_head, {0, 0}};
    fetch.walk.begin(sequence, range, 0, false);
    for (int i = 0; thread < 32 && i < ring.n_raw; i++) {
        fetch.issue(ring, shared);
    }
    ring_progress<HeadDim> progress = {};
    for (bool is_first = true, is_any = true; is_any; is_first = false) {
        /* What the tile before has read is free once the values' producers have read it too. */
        for (int p = 0; thread < 32 && !is_first && p < tile_shape<HeadDim>::n_pages; p++) {
            shared.raw_empty[fetch.cursor.place].wait(fetch.cursor.parity ^ 1);
            fetch.issue(ring, shared);
        }
        is_any = progress.wait(shared, ring);
        level_tile<HeadDim> &tile = shared.tiles[progress.tile.place];
#pragma unroll
        for (int p = 0; p < tile_shape<HeadDim>::n_pages; p++) {
            const uint8_t *raw = ring.keys(progress.places[p]);
            const bool is_there = progress.starts[p] != unseen;
            if (thread < page_tokens) {
                const uint32_t field = is_there ? fields_of(raw, ring.key_bytes)[thread] : 0;
                tile.key_scales[p * page_tokens + scale_place(thread, natural)] =
                    scale_of(layer.type_k, field);
            }
            if (thread == 0) {
                tile.starts[p] = progress.starts[p];
            }
            if (is_there) {
                unpack_keys_of(layer.type_k, raw, ring.key_bytes, p, natural, tile);
            }
        }
        progress.release(shared);
    }
}

/* Scales of a tile's values, so that the largest is 255, and their start bits. Slots from position
 * `end` on hold what dropped tokens have left. */
template <int HeadDim>
__device__ void scale_values(const tkv_device_layer &layer, int end, const page_ring &ring,
                             const ring_progress<HeadDim> &progress, coded_shared<HeadDim> &shared)
{
    constexpr int n_pages = tile_shape<HeadDim>::n_pages;
    level_tile<HeadDim> &tile = shared.tiles[progress.tile.place];
    const int token = threadIdx.x % warpgroup;
    const int p = token / page_tokens;
    uint32_t field = 0;
#pragma unroll
    for (int i = 0; i < n_pages; i++) {
        if (i == p && progress.starts[i] != unseen &&
            progress.starts[i] + token % page_tokens < end) {
            field =
                fields_of(ring.values(progress.places[i]), ring.value_bytes)[token % page_tokens];
        }
    }
    const float scale = scale_of(layer.type_v, field);
    float largest = max_lanes(scale);
    if (is_trellis(layer.type_v) && p < n_pages) {
        const uint32_t start = start_bits(field);
#pragma unroll
        for (int i = 0; i < TKV_TRELLIS_START_BITS; i++) {
            const uint32_t bits = __ballot_sync(full_warp, start >> i & 1u);
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
    for (int i = 0; i < warpgroup / 32; i++) {
        largest = fmaxf(largest, shared.largest_scale[i]);
    }
    const float inverse = largest > 0.0f ? __fdividef(255.0f, largest) : 0.0f;
    if (p < n_pages) {
        tile.value_scales[p * page_tokens +
                          scale_place(token % page_tokens, is_natural(layer.type_v))] =
            __float2half_rn(scale * inverse);
    }
    if (token == 0) {
        tile.value_unit = largest * (1.0f / 255.0f);
    }
}

template <int HeadDim>
__device__ void produce_values(const prefill_job &job, const tkv_device_sequence &sequence,
                               const page_ring &ring, coded_shared<HeadDim> &shared)
{
    const tkv_device_layer &layer = job.params.layer;
    const int end = first_position(job, sequence) + job.params.n_queries;
    ring_progress<HeadDim> progress = {};
    for (bool is_any = true; is_any;) {
        is_any = progress.wait(shared, ring);
        scale_values<HeadDim>(layer, end, ring, progress, shared);
#pragma unroll
        for (int p = 0; p < tile_shape<HeadDim>::n_pages; p++) {
            if (progress.starts[p] != unseen) {
                unpack_values_of(layer.type_v, ring.values(progress.places[p]), p,
                                 shared.starts_v + 2 * p, shared.tiles[progress.tile.place]);
            }
        }
        progress.release(shared);
        warpgroup_sync(1); /* before the start bits and scales of the next tile */
    }
}

} /* namespace tkv_cuda */

#endif
