// What the attention kernels have in common (src/device/host/attend.c is the specification). Work is
// cut into units (a KV head of a sequence), tiles of query rows and splits of the context; an item
// is one of each, and has an online softmax for coded blocks and one for exact ones, because they
// lie in different domains. The merge joins the softmaxes of all splits.
//
// An item's results: for each row the maximum, the sum, the weights seen and skipped; and sums
// [tile_rows][sum_floats] in the domain of the codes, of which the second half is the sketch's.

// Below all logits, and finite, for no kernel relies on infinity.
constant float no_logit = -3.0e38f;
constant float logit_limit = 1267650600228229401496703205376.0f; // 2^100
constant uint bits_of_minus_infinity = 0xff800000u;

// The part of the work of one item.
struct attend_work {
    device const tkv_device_sequence *sequence;
    int unit;
    int kv_head;
    int first_row; // of the unit
    int first_position;
    int begin; // block
    int end;
    ulong item;
};

inline int position_of_row(constant tkv_metal_attend &p, thread const attend_work &work, int row)
{
    return work.first_position + row / p.group;
}

// Positions from here on hold no token, or those of a later part of the sequence.
inline int end_of_tokens(constant tkv_metal_attend &p)
{
    return p.attend.end > 0 ? p.attend.end : 0x7fffffff;
}

// Finds the blocks that a tile's rows see and the share of the split.
inline attend_work work_of_item(constant tkv_metal_attend &p, int unit, int tile, int split)
{
    const int n_kv_heads = p.attend.layer.n_kv_heads;
    const int n_sinks = p.attend.layer.n_sinks;
    attend_work work;
    work.unit = unit;
    work.kv_head = unit % n_kv_heads;
    work.sequence = at_address<const tkv_device_sequence>(p.attend.sequences) + unit / n_kv_heads;
    work.first_row = tile * p.tile_rows;
    work.first_position = p.attend.first_position < 0 ? work.sequence->n_tokens - p.attend.n_queries
                                                      : p.attend.first_position;
    work.item = (ulong(unit) * ulong(p.n_tiles) + ulong(tile)) * ulong(p.n_splits) * 2 +
                ulong(split) * 2 + ulong(exact_blocks);
    const int last_row = min(work.first_row + p.tile_rows, p.n_rows) - 1;
    const int first_query = position_of_row(p, work, work.first_row);
    const int last_seen = min(position_of_row(p, work, last_row), end_of_tokens(p) - 1);
    const int oldest = p.attend.window > 0 ? first_query + 1 - p.attend.window : 0;
    const int first_block = tkv_block_of_place(n_sinks, max(oldest, p.attend.begin));
    const int end_block = min(tkv_block_of_place(n_sinks, last_seen) + 1, work.sequence->n_blocks);
    const int n_blocks = max(end_block - first_block, 0);
    work.begin = first_block + int(long(n_blocks) * split / p.n_splits);
    work.end = first_block + int(long(n_blocks) * (split + 1) / p.n_splits);
    return work;
}

// Slots first .. end-1 of a block; none if end is not larger.
struct slot_range {
    int first;
    int end;
};

// The slots that may be read: those that hold tokens, up to the last that the tile's last row sees,
// and in an exact block those that it has room for. The others hold what dropped tokens have left.
inline slot_range readable_slots(constant tkv_metal_attend &p, thread const attend_work &work,
                                 tkv_device_block block, int index)
{
    const int start = tkv_block_place(p.attend.layer.n_sinks, index);
    const int next = tkv_block_place(p.attend.layer.n_sinks, index + 1);
    const int last_row = min(work.first_row + p.tile_rows, p.n_rows) - 1;
    const int seen_end = position_of_row(p, work, last_row) + 1;
    const int end = min(min(seen_end, end_of_tokens(p)), next) - start;
    slot_range readable;
    readable.first = max(p.attend.begin - start, 0);
    readable.end = max(block.is_exact ? min(end, block.n_slots) : end, 0);
    return readable;
}

// Which of the readable slots of a block a row sees.
inline slot_range slots_of_row(constant tkv_metal_attend &p, thread const attend_work &work,
                               int row, int start, slot_range readable)
{
    slot_range seen;
    seen.first = 0;
    seen.end = 0;
    if (row < p.n_rows) {
        const int end = position_of_row(p, work, row) + 1 - start;
        seen.first =
            p.attend.window > 0 ? max(end - p.attend.window, readable.first) : readable.first;
        seen.end = min(end, readable.end);
    }
    return seen;
}

inline float to_logit(constant tkv_metal_attend &p, float score)
{
    const float scaled = score * p.attend.scale;
    const float logit = fmax(-logit_limit, fmin(scaled, logit_limit));
    const float softcap = p.attend.logit_softcap;
    return softcap > 0.0f ? softcap * tanh(logit / softcap) : logit;
}

// The online softmax of a row; all lanes hold the same.
struct row_softmax {
    float maximum;
    float sum;
    uint n_weights;
    uint n_skipped;
};

inline void begin_softmax(thread row_softmax &row)
{
    row.maximum = no_logit;
    row.sum = 0.0f;
    row.n_weights = 0;
    row.n_skipped = 0;
}

// One block: the lane's scores of slots `lane` and `lane + 32` become weights; returns what earlier
// sums are to be multiplied by. Weights below the threshold of sparse V become zero.
inline float advance_softmax(constant tkv_metal_attend &p, slot_range seen, uint lane,
                             thread row_softmax &row, thread float *weights)
{
    float maximum = row.maximum;
    bool is_seen[2];
    for (int h = 0; h < 2; h++) {
        const int slot = int(lane) + 32 * h;
        is_seen[h] = slot >= seen.first && slot < seen.end;
        weights[h] = to_logit(p, weights[h]);
        maximum = is_seen[h] ? fmax(maximum, weights[h]) : maximum;
    }
    maximum = simd_max(maximum);
    const float rescale = row.sum > 0.0f ? exp(row.maximum - maximum) : 0.0f;
    for (int h = 0; h < 2; h++) {
        weights[h] = is_seen[h] ? exp(weights[h] - maximum) : 0.0f;
    }
    row.sum = row.sum * rescale + simd_sum(weights[0] + weights[1]);
    row.maximum = maximum;
    if (p.attend.sparse_v > 0.0f) {
        uint n_skipped = 0;
        for (int h = 0; h < 2; h++) {
            const bool is_skipped = is_seen[h] && weights[h] < p.attend.sparse_v;
            n_skipped += is_skipped ? 1u : 0u;
            weights[h] = is_skipped ? 0.0f : weights[h];
        }
        row.n_weights += uint(max(seen.end - seen.first, 0));
        row.n_skipped += simd_sum(n_skipped);
    }
    return rescale;
}

inline device float *stats_of_row(constant tkv_metal_attend &p, ulong item, int row)
{
    return at_address<float>(p.stats) + (item * ulong(p.tile_rows) + ulong(row)) * 4;
}

inline device float *sums_of_row(constant tkv_metal_attend &p, ulong item, int row)
{
    return at_address<float>(p.sums) +
           (item * ulong(p.tile_rows) + ulong(row)) * ulong(p.sum_floats);
}

inline void write_softmax(constant tkv_metal_attend &p, ulong item, int r,
                          thread const row_softmax &row, uint lane)
{
    if (lane == 0) {
        device float *stats = stats_of_row(p, item, r);
        stats[0] = row.maximum;
        stats[1] = row.sum;
        stats[2] = as_type<float>(row.n_weights);
        stats[3] = as_type<float>(row.n_skipped);
    }
}

// Queries of a tile in the domain of the item's blocks.
inline device const float *queries_of_tile(constant tkv_metal_attend &p,
                                           thread const attend_work &work, ulong queries)
{
    const ulong row = ulong(work.unit) * ulong(p.padded_rows) + ulong(work.first_row);
    return at_address<const float>(queries) + row * ulong(key_dim);
}

// Brings the queries into the order of rows and into the domains of the blocks, rows that pad the
// last tile zero; and takes their products with the means. One simdgroup a row.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_prepare_queries(constant tkv_metal_attend &p [[buffer(0)]],
                    uint threadgroup_index [[threadgroup_position_in_grid]],
                    uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]])
{
    const int n_kv_heads = p.attend.layer.n_kv_heads;
    const ulong index = ulong(threadgroup_index) * TKV_METAL_SIMDGROUPS + simdgroup_index;
    const int unit = int(index / ulong(p.padded_rows));
    const int row = int(index % ulong(p.padded_rows));
    if (unit >= p.attend.n_sequences * n_kv_heads) {
        return;
    }
    float x[max_registers];
    for (int i = 0; i < registers_of(key_dim); i++) {
        x[i] = 0.0f;
    }
    if (row < p.n_rows) {
        const ulong query =
            ulong(unit / n_kv_heads) * ulong(p.attend.n_queries) + ulong(row / p.group);
        const ulong head =
            query * ulong(p.attend.n_heads) + ulong(unit % n_kv_heads * p.group + row % p.group);
        load_row(key_dim, at_address<const float>(p.attend.q) + head * ulong(key_dim), x, lane);
    }
    store_row(key_dim, at_address<float>(p.q_exact) + index * ulong(key_dim), x, lane);
    device const tkv_device_sequence *sequence =
        at_address<const tkv_device_sequence>(p.attend.sequences) + unit / n_kv_heads;
    float bias = 0.0f;
    if (sequence->mean_k != 0 && !is_half(key_type)) {
        device const float *mean =
            at_address<const float>(sequence->mean_k) + ulong(unit % n_kv_heads) * ulong(key_dim);
        for (int i = 0; i < registers_of(key_dim); i++) {
            const int j = 32 * i + int(lane);
            bias += j < key_dim ? x[i] * mean[j] : 0.0f;
        }
        bias = simd_sum(bias);
    }
    if (lane == 0) {
        at_address<float>(p.bias)[index] = bias;
    }
    if (!is_half(key_type)) {
        rotate_row(key_dim, x, lane);
    }
    store_row(key_dim, at_address<float>(p.q_coded) + index * ulong(key_dim), x, lane);
    if (is_sketch(key_type)) {
        mix_round(sketch_round, key_dim, x, lane);
        store_row(key_dim, at_address<float>(p.q_sketch) + index * ulong(key_dim), x, lane);
    }
}
