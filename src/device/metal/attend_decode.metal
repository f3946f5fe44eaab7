// Attention of few queries: one simdgroup takes a split of the context, page by page, for all query
// rows of its tile, so that a page is unpacked once for the heads of a group, in registers. With
// keys a lane takes two tokens, with values every 32nd coordinate: all loads are of whole lines.

enum : int { max_tile_rows = 8 };

// The sums of one item.
struct decode_sums {
    float levels[max_tile_rows][max_registers];
    float signs[max_tile_rows][max_registers]; // of the sketch
};

// Adds q . levels of two tokens for the 4 codes n of a group, for every row.
inline void add_products(threadgroup const float *queries, int j, float4 a, float4 b,
                         thread float (*scores)[2])
{
#pragma unroll
    for (int r = 0; r < tile_rows; r++) {
        const float4 q = *reinterpret_cast<threadgroup const float4 *>(queries + r * key_dim + j);
        scores[r][0] += dot(q, a);
        scores[r][1] += dot(q, b);
    }
}

inline float4 four_signs(int type, thread const code_group &group, int n)
{
    const uint signs = group_signs(type, group) >> (4 * n);
    return float4((signs & 1u) != 0 ? -1.0f : 1.0f, (signs & 2u) != 0 ? -1.0f : 1.0f,
                  (signs & 4u) != 0 ? -1.0f : 1.0f, (signs & 8u) != 0 ? -1.0f : 1.0f);
}

// Scores of slots `lane` and `lane + 32` of a coded key page.
inline void score_coded(device const uint *page, threadgroup const float *queries,
                        threadgroup const float *sketched, uint lane, thread float (*scores)[2])
{
    float sketch_scores[max_tile_rows][2];
    for (int r = 0; r < tile_rows; r++) {
        sketch_scores[r][0] = 0.0f;
        sketch_scores[r][1] = 0.0f;
    }
    code_group groups[2];
    uint before[2];
    for (int h = 0; h < 2; h++) {
        before[h] =
            path_before(start_bits(side_field(key_type, key_dim, page, 0, int(lane) + 32 * h)));
    }
    for (int g = 0; g < registers_of(key_dim); g++) {
        for (int h = 0; h < 2; h++) {
            load_key_group(key_type, key_dim, page, g, int(lane) + 32 * h, groups[h]);
            if (is_trellis(key_type)) {
                const uint path = path_word(key_type, groups[h]);
                groups[h].z1 = subset_z1(path, before[h]);
                groups[h].z0 = subset_z0(path, before[h]);
                before[h] = path;
            }
        }
        const int n_quads = min(key_dim - 32 * g, 32) / 4;
        for (int n = 0; n < n_quads; n++) {
            add_products(queries, 32 * g + 4 * n, four_levels(key_type, groups[0], n),
                         four_levels(key_type, groups[1], n), scores);
            if (is_sketch(key_type)) {
                add_products(sketched, 32 * g + 4 * n, four_signs(key_type, groups[0], n),
                             four_signs(key_type, groups[1], n), sketch_scores);
            }
        }
    }
    for (int h = 0; h < 2; h++) {
        const int slot = int(lane) + 32 * h;
        const float scale = slot_scale(key_type, key_dim, page, slot);
        const float step = is_sketch(key_type)
                               ? half_to_float(side_field(key_type, key_dim, page, 1, slot))
                               : 0.0f;
        for (int r = 0; r < tile_rows; r++) {
            scores[r][h] = scores[r][h] * scale;
            scores[r][h] += is_sketch(key_type) ? sketch_scores[r][h] * step : 0.0f;
        }
    }
}

// Scores of a page of halves: eight lanes share a token, so that a load is of whole lines; `shared`
// brings the scores to the lanes of their tokens.
inline void score_halves(device const half *page, int n_tokens, threadgroup const float *queries,
                         threadgroup float *shared, uint lane, thread float (*scores)[2])
{
    for (int first = 0; first < n_tokens; first += 4) {
        const int slot = min(first + int(lane) / 8, n_tokens - 1);
        float sums[max_tile_rows];
        for (int r = 0; r < tile_rows; r++) {
            sums[r] = 0.0f;
        }
        for (int j = 4 * int(lane % 8u); j < key_dim; j += 32) {
            const float4 key =
                float4(*reinterpret_cast<device const half4 *>(page + slot * key_dim + j));
            for (int r = 0; r < tile_rows; r++) {
                const float4 q =
                    *reinterpret_cast<threadgroup const float4 *>(queries + r * key_dim + j);
                sums[r] += dot(q, key);
            }
        }
        for (int r = 0; r < tile_rows; r++) {
            float sum = sums[r];
            for (ushort apart = 4; apart > 0; apart /= 2) {
                sum += simd_shuffle_xor(sum, apart);
            }
            if (lane % 8u == 0 && first + int(lane) / 8 < n_tokens) {
                shared[r * page_tokens + slot] = sum;
            }
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int r = 0; r < tile_rows; r++) {
        for (int h = 0; h < 2; h++) {
            const int slot = int(lane) + 32 * h;
            scores[r][h] = slot < n_tokens ? shared[r * page_tokens + slot] : 0.0f;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Where the weight of a slot lies, so that those of codes 4n + r, n = 4m .. 4m + 3, are neighbours.
inline int weight_place(int slot)
{
    return slot / 32 * 32 + slot % 4 * 8 + slot % 32 / 4;
}

// sums += weights . values of one coordinate for the codes 4n + r of a group, n = 0 .. 7.
inline void add_weighted(threadgroup const float *weights, int place, float4 low, float4 high,
                         thread float *sums)
{
#pragma unroll
    for (int r = 0; r < tile_rows; r++) {
        threadgroup const float4 *w =
            reinterpret_cast<threadgroup const float4 *>(weights + r * page_tokens + place);
        sums[r] += dot(w[0], low) + dot(w[1], high);
    }
}

// The levels of codes 4n + r of a group for n = first .. first + 3.
inline float4 levels_of_tokens(int type, thread const code_group &group, int first, int r)
{
    return float4(group_level(type, group, first, r), group_level(type, group, first + 1, r),
                  group_level(type, group, first + 2, r), group_level(type, group, first + 3, r));
}

inline float sign_of_token(uint signs, int code)
{
    return ((signs >> code) & 1u) != 0 ? -1.0f : 1.0f;
}

inline float4 signs_of_tokens(int type, thread const code_group &group, int first, int r)
{
    const uint signs = group_signs(type, group);
    return float4(sign_of_token(signs, 4 * first + r), sign_of_token(signs, 4 * first + 4 + r),
                  sign_of_token(signs, 4 * first + 8 + r),
                  sign_of_token(signs, 4 * first + 12 + r));
}

// Path bits of 32 tokens `by` coordinates earlier: those of another lane, or of one that held the
// register before.
inline uint path_of_earlier_lane(uint path, uint before, uint by, uint lane)
{
    const uint given = lane >= 32u - by ? before : path;
    return simd_shuffle(given, ushort((lane + 32u - by) % 32u));
}

// Subset bits of 32 tokens at the lane's coordinate.
inline void subset_of_tokens(uint path, uint before, uint lane, thread code_group &group)
{
    group.z1 = path ^ path_of_earlier_lane(path, before, 3, lane) ^
               path_of_earlier_lane(path, before, 6, lane) ^
               path_of_earlier_lane(path, before, 8, lane);
    group.z0 = path_of_earlier_lane(path, before, 1, lane) ^
               path_of_earlier_lane(path, before, 2, lane) ^
               path_of_earlier_lane(path, before, 7, lane);
}

// The start bits of 32 tokens as path bits of the coordinates before 0: lane 31 has coordinate -1,
// which is start bit 0. `field` is that of the lane's token.
inline uint start_path_of_tokens(uint field, uint lane)
{
    uint path = 0;
    for (uint k = 0; k < TKV_TRELLIS_START_BITS; k++) {
        const uint word = simd_sum(((start_bits(field) >> k) & 1u) << lane);
        path = lane == 31u - k ? word : path;
    }
    return path;
}

inline void begin_sums(thread float *sums)
{
#pragma unroll
    for (int r = 0; r < tile_rows; r++) {
        sums[r] = 0.0f;
    }
}

// Adds the sums of a page's tokens to those of all: register i may be one of memory, too, for it is
// met once a page.
inline void add_sums(thread const float *page_sums, int i, thread float (*sums)[max_registers])
{
#pragma unroll
    for (int r = 0; r < tile_rows; r++) {
        sums[r][i] += page_sums[r];
    }
}

// sums += weights . values of a coded page. `weights` [tile_rows][64] are times the scales of their
// tokens, `sign_weights` times the steps of the sketch.
inline void accumulate_coded(device const uint *page, int n_tokens,
                             threadgroup const float *weights,
                             threadgroup const float *sign_weights, uint lane,
                             thread decode_sums &sums)
{
    for (int b = 0; 32 * b < n_tokens; b++) {
        code_group group;
        uint before = 0;
        if (is_trellis(value_type)) {
            const uint field = side_field(value_type, value_dim, page, 0, 32 * b + int(lane));
            before = start_path_of_tokens(field, lane);
        }
        for (int i = 0; i < registers_of(value_dim); i++) {
            const int j = min(32 * i + int(lane), value_dim - 1);
            load_value_group(value_type, value_dim, page, b, j, group);
            if (is_trellis(value_type)) {
                const uint path = path_word(value_type, group);
                subset_of_tokens(path, before, lane, group);
                before = path;
            }
            float levels[max_tile_rows];
            float signs[max_tile_rows];
            begin_sums(levels);
            begin_sums(signs);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int place = 32 * b + 8 * r;
                add_weighted(weights, place, levels_of_tokens(value_type, group, 0, r),
                             levels_of_tokens(value_type, group, 4, r), levels);
                if (is_sketch(value_type)) {
                    add_weighted(sign_weights, place, signs_of_tokens(value_type, group, 0, r),
                                 signs_of_tokens(value_type, group, 4, r), signs);
                }
            }
            add_sums(levels, i, sums.levels);
            if (is_sketch(value_type)) {
                add_sums(signs, i, sums.signs);
            }
        }
    }
}

// Slots without a token may hold values that are not finite: a weight of 0 does not hide them.
inline void accumulate_halves(device const half *page, slot_range readable,
                              threadgroup const float *weights, uint lane, thread decode_sums &sums)
{
    for (int i = 0; i < registers_of(value_dim); i++) {
        const int j = min(32 * i + int(lane), value_dim - 1);
        float values[max_tile_rows];
        begin_sums(values);
        for (int slot = readable.first; slot < readable.end; slot++) {
            const float value = float(page[slot * value_dim + j]);
#pragma unroll
            for (int r = 0; r < tile_rows; r++) {
                values[r] += weights[r * page_tokens + weight_place(slot)] * value;
            }
        }
        add_sums(values, i, sums.levels);
    }
}

// Puts the lane's two weights of every row where the values are added.
inline void share_weights(device const uint *page, uint lane, thread float (*weights)[2],
                          threadgroup float *shared, threadgroup float *shared_signs)
{
    for (int h = 0; h < 2; h++) {
        const int slot = int(lane) + 32 * h;
        const bool is_coded = !is_half(value_type);
        const float scale = is_coded ? slot_scale(value_type, value_dim, page, slot) : 1.0f;
        const float step = is_sketch(value_type)
                               ? half_to_float(side_field(value_type, value_dim, page, 1, slot))
                               : 0.0f;
        for (int r = 0; r < tile_rows; r++) {
            const int at = r * page_tokens + weight_place(slot);
            const float weight = weights[r][h];
            shared[at] = weight > 0.0f ? weight * scale : 0.0f;
            if (is_sketch(value_type)) {
                shared_signs[at] = weight > 0.0f ? weight * step : 0.0f;
            }
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// The threadgroup's memory: queries, their sketches, and weights of each simdgroup.
struct decode_memory {
    threadgroup float *queries;
    threadgroup float *sketched;
    threadgroup float *weights;
    threadgroup float *sign_weights;
};

inline decode_memory place_memory(threadgroup float *memory, uint simdgroup_index)
{
    const int query_floats = tile_rows * key_dim;
    const int weight_floats = tile_rows * page_tokens;
    decode_memory at;
    at.queries = memory;
    at.sketched = memory + (is_sketch(key_type) ? query_floats : 0);
    at.weights = at.sketched + query_floats +
                 int(simdgroup_index) * weight_floats * (is_sketch(value_type) ? 2 : 1);
    at.sign_weights = at.weights + (is_sketch(value_type) ? weight_floats : 0);
    return at;
}

inline void rescale_sums(int r, float factor, thread decode_sums &sums)
{
    for (int i = 0; i < registers_of(value_dim); i++) {
        sums.levels[r][i] *= factor;
        if (is_sketch(value_type)) {
            sums.signs[r][i] *= factor;
        }
    }
}

// One block for all rows of the tile.
inline void attend_block(constant tkv_metal_attend &p, thread const attend_work &work,
                         tkv_device_block block, int index, thread const decode_memory &memory,
                         uint lane, thread row_softmax *softmax, thread decode_sums &sums)
{
    const int start = tkv_block_place(p.attend.layer.n_sinks, index);
    const slot_range readable = readable_slots(p, work, block, index);
    const ulong keys = page_address(p.attend.layer, block, work.kv_head, 0);
    const ulong values = page_address(p.attend.layer, block, work.kv_head, order_value);
    float weights[max_tile_rows][2];
    for (int r = 0; r < tile_rows; r++) {
        weights[r][0] = 0.0f;
        weights[r][1] = 0.0f;
    }
    if (is_half(key_type)) {
        score_halves(at_address<const half>(keys), readable.end, memory.queries, memory.weights, lane,
                     weights);
    } else {
        score_coded(at_address<const uint>(keys), memory.queries, memory.sketched, lane, weights);
    }
    float largest = 0.0f;
    for (int r = 0; r < tile_rows; r++) {
        const int row = work.first_row + r;
        const float bias = exact_blocks == 0
                               ? at_address<const float>(
                                     p.bias)[ulong(work.unit) * ulong(p.padded_rows) + ulong(row)]
                               : 0.0f;
        weights[r][0] += bias;
        weights[r][1] += bias;
        const slot_range seen = slots_of_row(p, work, row, start, readable);
        const float factor = advance_softmax(p, seen, lane, softmax[r], weights[r]);
        rescale_sums(r, factor, sums);
        largest = fmax(largest, fmax(weights[r][0], weights[r][1]));
    }
    if (simd_max(largest) == 0.0f) {
        return; // sparse V has left no weight
    }
    share_weights(at_address<const uint>(values), lane, weights, memory.weights,
                  memory.sign_weights);
    if (is_half(value_type)) {
        accumulate_halves(at_address<const half>(values), readable, memory.weights, lane, sums);
    } else {
        accumulate_coded(at_address<const uint>(values), readable.end, memory.weights,
                         memory.sign_weights, lane, sums);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Grid: splits by simdgroups, tiles, units. memory: see decode_memory.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_attend_decode(constant tkv_metal_attend &p [[buffer(0)]],
                  threadgroup float *memory [[threadgroup(0)]],
                  uint3 threadgroup_index [[threadgroup_position_in_grid]],
                  uint3 thread_index [[thread_position_in_threadgroup]],
                  uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]])
{
    const int unit = int(threadgroup_index.z);
    const int tile = int(threadgroup_index.y);
    const int split = int(threadgroup_index.x) * TKV_METAL_SIMDGROUPS + int(simdgroup_index);
    if (unit >= p.attend.n_sequences * p.attend.layer.n_kv_heads || tile >= p.n_tiles ||
        tile_rows != p.tile_rows) {
        return;
    }
    attend_work work = work_of_item(p, unit, tile, min(split, p.n_splits - 1));
    const decode_memory at = place_memory(memory, simdgroup_index);
    device const float *queries =
        queries_of_tile(p, work, exact_blocks != 0 ? p.q_exact : p.q_coded);
    for (int i = int(thread_index.x); i < tile_rows * key_dim; i += 32 * TKV_METAL_SIMDGROUPS) {
        at.queries[i] = queries[i];
        if (is_sketch(key_type)) {
            at.sketched[i] = queries_of_tile(p, work, p.q_sketch)[i];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (split >= p.n_splits) {
        return;
    }
    row_softmax softmax[max_tile_rows];
    decode_sums sums;
    for (int r = 0; r < tile_rows; r++) {
        begin_softmax(softmax[r]);
        for (int i = 0; i < registers_of(value_dim); i++) {
            sums.levels[r][i] = 0.0f;
            sums.signs[r][i] = 0.0f;
        }
    }
    for (int index = work.begin; index < work.end; index++) {
        const tkv_device_block block = load_block(work.sequence, index);
        if ((block.is_exact != 0) == (exact_blocks != 0) && block.pages != 0) {
            attend_block(p, work, block, index, at, lane, softmax, sums);
        }
    }
    for (int r = 0; r < tile_rows; r++) {
        write_softmax(p, work.item, r, softmax[r], lane);
        if (softmax[r].sum > 0.0f) {
            device float *to = sums_of_row(p, work.item, r);
            store_row(value_dim, to, sums.levels[r], lane);
            if (is_sketch(value_type)) {
                store_row(value_dim, to + value_dim, sums.signs[r], lane);
            }
        }
    }
}
