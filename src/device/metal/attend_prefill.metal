// Attention of many queries: a threadgroup of four simdgroups takes a tile of 8, 16 or 32 query
// rows and a split of the context. A page is unpacked 32 coordinates at a time into threadgroup
// memory, times its scales, and multiplied by 8x8 matrices. Each simdgroup has 16 tokens of the
// scores, a quarter of the rows of the softmax, and every fourth 8 coordinates of the sums.

enum : int {
    max_prefill_rows = 32,
    max_sum_tiles = 32, // of a simdgroup: tile_rows / 8 * ceil(value_dim / 32)
    prefill_threads = TKV_METAL_LANES * TKV_METAL_SIMDGROUPS,
};

// The threadgroup's memory.
struct prefill_memory {
    threadgroup float *scores;  // [tile_rows][64]: scores, then weights
    threadgroup float *stage;   // keys [32][64] or values [64][32]
    threadgroup float *rescale; // [tile_rows / 8][8][8], diagonal
    threadgroup float *scales;  // [2][64]: scales and steps of the values
    threadgroup uint *flags;    // [2][4]: any sums to be rescaled, any weight
};

struct thread_place {
    uint index; // in the threadgroup
    uint simdgroup_index;
    uint lane;
};

// Levels times scale, or signs times step, of 32 coordinates of a coded key page: [32][64].
inline void stage_coded_keys(device const uint *page, int group, bool is_sketch_part,
                             threadgroup float *stage, thread_place at)
{
    const int slot = int(at.index) % page_tokens;
    const int half_group = int(at.index) / page_tokens; // four codes n each
    code_group codes;
    load_key_group(key_type, key_dim, page, group, slot, codes);
    if (is_trellis(key_type)) {
        code_group earlier;
        uint before = path_before(start_bits(side_field(key_type, key_dim, page, 0, slot)));
        if (group > 0) {
            load_key_group(key_type, key_dim, page, group - 1, slot, earlier);
            before = path_word(key_type, earlier);
        }
        const uint path = path_word(key_type, codes);
        codes.z1 = subset_z1(path, before);
        codes.z0 = subset_z0(path, before);
    }
    const float scale = is_sketch_part ? half_to_float(side_field(key_type, key_dim, page, 1, slot))
                                       : slot_scale(key_type, key_dim, page, slot);
    for (int k = 0; k < 4; k++) {
        const int n = 4 * half_group + k;
        if (32 * group + 4 * n < key_dim) {
            const float4 values =
                is_sketch_part ? four_signs(key_type, codes, n) : four_levels(key_type, codes, n);
            for (int r = 0; r < 4; r++) {
                stage[(4 * n + r) * page_tokens + slot] = values[r] * scale;
            }
        }
    }
}

inline void stage_half_keys(device const half *page, int n_tokens, int group,
                            threadgroup float *stage, thread_place at)
{
    const int slot = int(at.index) % page_tokens;
    const int first = int(at.index) / page_tokens * 16;
    for (int k = 0; k < 16; k++) {
        const int j = 32 * group + first + k;
        if (j < key_dim) {
            stage[(first + k) * page_tokens + slot] =
                slot < n_tokens ? float(page[slot * key_dim + j]) : 0.0f;
        }
    }
}

// scores += queries [tile_rows][32 of key_dim] times staged keys, 16 tokens of them.
inline void multiply_keys(device const float *queries, int group, threadgroup const float *stage,
                          thread_place at, thread simdgroup_float8x8 *scores)
{
    const int n_steps = min(key_dim - 32 * group, 32) / 8;
    for (int k = 0; k < n_steps; k++) {
        simdgroup_float8x8 keys[2];
        for (int c = 0; c < 2; c++) {
            const int column = 16 * int(at.simdgroup_index) + 8 * c;
            simdgroup_load(keys[c], stage + 8 * k * page_tokens + column, page_tokens);
        }
#pragma unroll
        for (int t = 0; t < tile_rows / 8; t++) {
            simdgroup_float8x8 query;
            simdgroup_load(query, queries + 8 * t * key_dim + 32 * group + 8 * k, key_dim);
            for (int c = 0; c < 2; c++) {
                simdgroup_multiply_accumulate(scores[2 * t + c], query, keys[c], scores[2 * t + c]);
            }
        }
    }
}

// Scores of a whole page into memory.scores.
inline void score_page(constant tkv_metal_attend &p, thread const attend_work &work, ulong page,
                       int n_tokens, thread const prefill_memory &memory, thread_place at)
{
    simdgroup_float8x8 scores[max_prefill_rows / 8 * 2];
#pragma unroll
    for (int t = 0; t < tile_rows / 8 * 2; t++) {
        scores[t] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    for (int g = 0; g < registers_of(key_dim); g++) {
        for (int part = 0; part < (is_sketch(key_type) ? 2 : 1); part++) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (is_half(key_type)) {
                stage_half_keys(at_address<const half>(page), n_tokens, g, memory.stage, at);
            } else {
                stage_coded_keys(at_address<const uint>(page), g, part == 1, memory.stage, at);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const ulong queries = part == 1           ? p.q_sketch
                                  : exact_blocks != 0 ? p.q_exact
                                                      : p.q_coded;
            multiply_keys(queries_of_tile(p, work, queries), g, memory.stage, at, scores);
        }
    }
#pragma unroll
    for (int t = 0; t < tile_rows / 8 * 2; t++) {
        const int column = 16 * int(at.simdgroup_index) + t % 2 * 8;
        simdgroup_store(scores[t], memory.scores + t / 2 * 8 * page_tokens + column, page_tokens);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The softmax of every fourth row, which stays with its simdgroup.
inline void weigh_page(constant tkv_metal_attend &p, thread const attend_work &work, int index,
                       slot_range readable, thread const prefill_memory &memory, thread_place at,
                       thread row_softmax *softmax)
{
    const int start = tkv_block_place(p.attend.layer.n_sinks, index);
    uint is_rescaled = 0;
    uint is_any_left = 0;
    for (int k = 0; k < tile_rows / TKV_METAL_SIMDGROUPS; k++) {
        const int r = TKV_METAL_SIMDGROUPS * k + int(at.simdgroup_index);
        const int row = work.first_row + r;
        const ulong bias_index = ulong(work.unit) * ulong(p.padded_rows) + ulong(row);
        const float bias = exact_blocks == 0 ? at_address<const float>(p.bias)[bias_index] : 0.0f;
        threadgroup float *scores = memory.scores + r * page_tokens;
        float weights[2] = {scores[at.lane] + bias, scores[at.lane + 32] + bias};
        const slot_range seen = slots_of_row(p, work, row, start, readable);
        const float factor = advance_softmax(p, seen, at.lane, softmax[k], weights);
        scores[at.lane] = weights[0];
        scores[at.lane + 32] = weights[1];
        is_rescaled |= factor != 1.0f ? 1u : 0u;
        is_any_left |= weights[0] > 0.0f || weights[1] > 0.0f ? 1u : 0u;
        if (at.lane == 0) {
            memory.rescale[r / 8 * 64 + r % 8 * 9] = factor;
        }
    }
    is_any_left = simd_max(is_any_left);
    if (at.lane == 0) {
        memory.flags[at.simdgroup_index] = is_rescaled;
        memory.flags[4 + at.simdgroup_index] = is_any_left;
    }
}

inline bool is_flagged(threadgroup const uint *flags)
{
    return (flags[0] | flags[1] | flags[2] | flags[3]) != 0;
}

inline int sum_columns()
{
    return registers_of(value_dim);
}

// Whether the simdgroup has coordinates among 32.
inline bool has_columns(int chunk, thread_place at)
{
    return 32 * chunk + 8 * int(at.simdgroup_index) < value_dim;
}

inline void rescale_tiles(threadgroup const float *rescale, thread_place at,
                          thread simdgroup_float8x8 *sums)
{
#pragma unroll
    for (int t = 0; t < tile_rows / 8; t++) {
        simdgroup_float8x8 diagonal;
        simdgroup_load(diagonal, rescale + 64 * t, 8);
#pragma unroll
        for (int c = 0; c < sum_columns(); c++) {
            if (has_columns(c, at)) {
                simdgroup_float8x8 product;
                simdgroup_multiply(product, diagonal, sums[t * sum_columns() + c]);
                sums[t * sum_columns() + c] = product;
            }
        }
    }
}

// Values times scale, or signs times step, of 32 coordinates: [64][32], a lane a coordinate. A
// simdgroup takes a half of a group of 32 tokens. `before`: path words of the coordinates before.
inline void stage_coded_values(device const uint *page, slot_range readable, int chunk,
                               bool is_sketch_part, thread const prefill_memory &memory,
                               thread_place at, thread uint &before)
{
    const int b = int(at.simdgroup_index) % 2;
    const int first = int(at.simdgroup_index) / 2 * 4;
    const int j = min(32 * chunk + int(at.lane), value_dim - 1);
    code_group group;
    load_value_group(value_type, value_dim, page, b, j, group);
    if (is_trellis(value_type)) {
        const uint path = path_word(value_type, group);
        subset_of_tokens(path, before, at.lane, group);
        before = path;
    }
    threadgroup const float *scales = memory.scales + (is_sketch_part ? page_tokens : 0);
    for (int n = first; n < first + 4; n++) {
        const float4 values =
            is_sketch_part ? four_signs(value_type, group, n) : four_levels(value_type, group, n);
        for (int r = 0; r < 4; r++) {
            const int slot = 32 * b + 4 * n + r;
            const bool is_readable = slot >= readable.first && slot < readable.end;
            memory.stage[slot * 32 + int(at.lane)] = is_readable ? values[r] * scales[slot] : 0.0f;
        }
    }
}

inline void stage_half_values(device const half *page, slot_range readable, int chunk,
                              threadgroup float *stage, thread_place at)
{
    const int j = min(32 * chunk + int(at.lane), value_dim - 1);
    for (int slot = int(at.simdgroup_index); slot < page_tokens; slot += TKV_METAL_SIMDGROUPS) {
        const bool is_readable = slot >= readable.first && slot < readable.end;
        stage[slot * 32 + int(at.lane)] = is_readable ? float(page[slot * value_dim + j]) : 0.0f;
    }
}

// sums += weights [tile_rows][64] times staged values, 8 coordinates of them.
inline void multiply_values(int n_tokens, int chunk, thread const prefill_memory &memory,
                            thread_place at, thread simdgroup_float8x8 *sums)
{
    for (int k = 0; 8 * k < n_tokens; k++) {
        simdgroup_float8x8 values;
        simdgroup_load(values, memory.stage + 8 * k * 32 + 8 * int(at.simdgroup_index), 32);
#pragma unroll
        for (int t = 0; t < tile_rows / 8; t++) {
            simdgroup_float8x8 weights;
            simdgroup_load(weights, memory.scores + 8 * t * page_tokens + 8 * k, page_tokens);
            simdgroup_multiply_accumulate(sums[t * sum_columns() + chunk], weights, values,
                                          sums[t * sum_columns() + chunk]);
        }
    }
}

inline void stage_scales(device const uint *page, threadgroup float *scales, thread_place at)
{
    if (at.index < uint(page_tokens)) {
        const int slot = int(at.index);
        scales[slot] = slot_scale(value_type, value_dim, page, slot);
        scales[page_tokens + slot] =
            is_sketch(value_type) ? half_to_float(side_field(value_type, value_dim, page, 1, slot))
                                  : 0.0f;
    }
}

// sums += weights times the values of a page, or the signs of its sketch.
inline void accumulate_page(ulong page, slot_range readable, bool is_sketch_part,
                            thread const prefill_memory &memory, thread_place at,
                            thread simdgroup_float8x8 *sums)
{
    uint before = 0;
    if (is_trellis(value_type)) {
        const int slot = int(at.simdgroup_index) % 2 * 32 + int(at.lane);
        before = start_path_of_tokens(
            side_field(value_type, value_dim, at_address<const uint>(page), 0, slot), at.lane);
    }
#pragma unroll
    for (int chunk = 0; chunk < sum_columns(); chunk++) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (is_half(value_type)) {
            stage_half_values(at_address<const half>(page), readable, chunk, memory.stage, at);
        } else {
            stage_coded_values(at_address<const uint>(page), readable, chunk, is_sketch_part,
                               memory, at, before);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (has_columns(chunk, at)) {
            multiply_values(readable.end, chunk, memory, at, sums);
        }
    }
}

inline void write_tiles(constant tkv_metal_attend &p, thread const attend_work &work, int offset,
                        thread_place at, thread const simdgroup_float8x8 *sums)
{
#pragma unroll
    for (int t = 0; t < tile_rows / 8; t++) {
        device float *rows = sums_of_row(p, work.item, 8 * t) + offset;
#pragma unroll
        for (int c = 0; c < sum_columns(); c++) {
            if (has_columns(c, at)) {
                simdgroup_store(sums[t * sum_columns() + c],
                                rows + 32 * c + 8 * int(at.simdgroup_index), ulong(p.sum_floats));
            }
        }
    }
}

// The sums of one item.
struct prefill_sums {
    simdgroup_float8x8 levels[max_sum_tiles];
    simdgroup_float8x8 signs[max_sum_tiles]; // of the sketch
};

// One page. Its first barrier, in score_page, parts it from the one before.
inline void attend_page(constant tkv_metal_attend &p, thread const attend_work &work,
                        tkv_device_block block, int index, thread const prefill_memory &memory,
                        thread_place at, thread row_softmax *softmax, thread prefill_sums &sums)
{
    const slot_range readable = readable_slots(p, work, block, index);
    const ulong values = page_address(p.attend.layer, block, work.kv_head, order_value);
    score_page(p, work, page_address(p.attend.layer, block, work.kv_head, 0), readable.end, memory, at);
    if (!is_half(value_type)) {
        stage_scales(at_address<const uint>(values), memory.scales, at);
    }
    weigh_page(p, work, index, readable, memory, at, softmax);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (is_flagged(memory.flags)) {
        rescale_tiles(memory.rescale, at, sums.levels);
        if (is_sketch(value_type)) {
            rescale_tiles(memory.rescale, at, sums.signs);
        }
    }
    if (is_flagged(memory.flags + 4)) { // or sparse V has left no weight
        accumulate_page(values, readable, false, memory, at, sums.levels);
        if (is_sketch(value_type)) {
            accumulate_page(values, readable, true, memory, at, sums.signs);
        }
    }
}

inline void begin_tiles(thread simdgroup_float8x8 *sums)
{
#pragma unroll
    for (int t = 0; t < tile_rows / 8 * sum_columns(); t++) {
        sums[t] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
}

// Grid: splits, tiles, units.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_attend_prefill(constant tkv_metal_attend &p [[buffer(0)]],
                   uint3 threadgroup_index [[threadgroup_position_in_grid]],
                   uint thread_index [[thread_index_in_threadgroup]],
                   uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float scores[32 * 64];
    threadgroup float stage[32 * 64];
    threadgroup float rescale[4 * 64];
    threadgroup float scales[2 * 64];
    threadgroup uint flags[8];
    const int unit = int(threadgroup_index.z);
    const int tile = int(threadgroup_index.y);
    const int split = int(threadgroup_index.x);
    if (unit >= p.attend.n_sequences * p.attend.layer.n_kv_heads || tile >= p.n_tiles ||
        split >= p.n_splits || tile_rows != p.tile_rows) {
        return;
    }
    prefill_memory memory;
    memory.scores = scores;
    memory.stage = stage;
    memory.rescale = rescale;
    memory.scales = scales;
    memory.flags = flags;
    thread_place at;
    at.index = thread_index;
    at.simdgroup_index = simdgroup_index;
    at.lane = lane;
    for (int i = int(thread_index); i < 4 * 64; i += prefill_threads) {
        rescale[i] = 0.0f;
    }
    const attend_work work = work_of_item(p, unit, tile, split);
    row_softmax softmax[max_prefill_rows / TKV_METAL_SIMDGROUPS];
    for (int k = 0; k < tile_rows / TKV_METAL_SIMDGROUPS; k++) {
        begin_softmax(softmax[k]);
    }
    prefill_sums sums;
    begin_tiles(sums.levels);
    begin_tiles(sums.signs);
    bool is_any = false;
    for (int index = work.begin; index < work.end; index++) {
        const tkv_device_block block = load_block(work.sequence, index);
        if ((block.is_exact != 0) == (exact_blocks != 0) && block.pages != 0) {
            attend_page(p, work, block, index, memory, at, softmax, sums);
            is_any = true;
        }
    }
    for (int k = 0; k < tile_rows / TKV_METAL_SIMDGROUPS; k++) {
        write_softmax(p, work.item, TKV_METAL_SIMDGROUPS * k + int(simdgroup_index), softmax[k],
                      lane);
    }
    if (is_any) { // or the merge finds that there is no sum
        write_tiles(p, work, 0, at, sums.levels);
    }
    if (is_any && is_sketch(value_type)) {
        write_tiles(p, work, value_dim, at, sums.signs);
    }
}
