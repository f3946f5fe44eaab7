// Joins the splits of the attention (flash decoding): one simdgroup an output row.

// The sums of all splits of one kind of block, relative to `maximum`; returns their softmax's sum.
inline float merge_splits(constant tkv_metal_attend &p, ulong first_item, int r, float maximum,
                          int offset, int kind, thread float *out, uint lane)
{
    float total = 0.0f;
    for (int i = 0; i < registers_of(value_dim); i++) {
        out[i] = 0.0f;
    }
    for (int s = 0; s < p.n_splits; s++) {
        const ulong item = first_item + ulong(2 * s + kind);
        device const float *stats = stats_of_row(p, item, r);
        const float sum = stats[1];
        if (sum > 0.0f || sum != sum) {
            const float factor = exp(stats[0] - maximum);
            device const float *sums = sums_of_row(p, item, r) + offset;
            total += factor * sum;
            for (int i = 0; i < registers_of(value_dim); i++) {
                const int j = 32 * i + int(lane);
                out[i] += j < value_dim ? factor * sums[j] : 0.0f;
            }
        }
    }
    return total;
}

// Largest logit of a row over all splits.
inline float merge_maximum(constant tkv_metal_attend &p, ulong first_item, int r, float maximum,
                           uint lane)
{
    for (int i = int(lane); i < 2 * p.n_splits; i += 32) {
        maximum = fmax(maximum, stats_of_row(p, first_item + ulong(i), r)[0]);
    }
    return simd_max(maximum);
}

// The logarithm of a softmax's sum, which is relative to `maximum`; a row that sees nothing has none.
inline float log_of_sum(float maximum, float sum)
{
    return sum == 0.0f ? as_type<float>(bits_of_minus_infinity) : maximum + log(sum);
}

[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_merge_rows(constant tkv_metal_attend &p [[buffer(0)]],
               uint threadgroup_index [[threadgroup_position_in_grid]],
               uint simdgroup_index [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]])
{
    const int n_kv_heads = p.attend.layer.n_kv_heads;
    const ulong index = ulong(threadgroup_index) * TKV_METAL_SIMDGROUPS + simdgroup_index;
    const int unit = int(index / ulong(p.n_rows));
    const int row = int(index % ulong(p.n_rows));
    if (unit >= p.attend.n_sequences * n_kv_heads) {
        return;
    }
    const int kv_head = unit % n_kv_heads;
    const int head = kv_head * p.group + row % p.group;
    const int r = row % p.tile_rows;
    const ulong first_item =
        (ulong(unit) * ulong(p.n_tiles) + ulong(row / p.tile_rows)) * ulong(p.n_splits) * 2;
    const float sink =
        p.attend.sinks != 0 ? at_address<const float>(p.attend.sinks)[head] : no_logit;
    const float maximum = merge_maximum(p, first_item, r, sink, lane);
    float out[max_registers];
    float part[max_registers];
    const float coded = merge_splits(p, first_item, r, maximum, 0, 0, out, lane);
    if (is_sketch(value_type)) {
        merge_splits(p, first_item, r, maximum, value_dim, 0, part, lane);
        unmix_round(sketch_round, value_dim, part, lane);
        for (int i = 0; i < registers_of(value_dim); i++) {
            out[i] += part[i];
        }
    }
    device const tkv_device_sequence *sequence =
        at_address<const tkv_device_sequence>(p.attend.sequences) + unit / n_kv_heads;
    if (!is_half(value_type)) {
        unrotate_row(value_dim, out, lane);
        const ulong mean = sequence->mean_v;
        for (int i = 0; mean != 0 && i < registers_of(value_dim); i++) {
            const int j = 32 * i + int(lane);
            out[i] += j < value_dim ? coded * at_address<const float>(mean)[kv_head * value_dim + j]
                                    : 0.0f;
        }
    }
    const float exact = merge_splits(p, first_item, r, maximum, 0, 1, part, lane);
    const float total = coded + exact + (sink > no_logit ? exp(sink - maximum) : 0.0f);
    for (int i = 0; i < registers_of(value_dim); i++) {
        out[i] = (out[i] + part[i]) / total;
    }
    const ulong query = ulong(unit / n_kv_heads) * ulong(p.attend.n_queries) + ulong(row / p.group);
    const ulong out_row = query * ulong(p.attend.n_heads) + ulong(head);
    store_row(value_dim, at_address<float>(p.attend.out) + out_row * ulong(value_dim), out, lane);
    if (p.attend.log_sums != 0 && lane == 0) {
        at_address<float>(p.attend.log_sums)[out_row] = log_of_sum(maximum, total);
    }
}

// Adds the weights seen and skipped to the caller's counters; one simdgroup in all.
[[max_total_threads_per_threadgroup(32)]] kernel void
tkv_count_weights(constant tkv_metal_attend &p [[buffer(0)]],
                  uint threadgroup_index [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]])
{
    if (threadgroup_index != 0 || p.attend.stats == 0) {
        return;
    }
    const ulong n_items = ulong(p.attend.n_sequences) * ulong(p.attend.layer.n_kv_heads) *
                          ulong(p.n_tiles) * ulong(p.n_splits) * 2;
    ulong n_weights = 0;
    ulong n_skipped = 0;
    for (ulong i = lane; i < n_items * ulong(p.tile_rows); i += 32) {
        device const float *stats = at_address<const float>(p.stats) + 4 * i;
        n_weights += as_type<uint>(stats[2]);
        n_skipped += as_type<uint>(stats[3]);
    }
    // 64-bit sums across lanes in two 32-bit halves of 27 and 37 bits, so that none overflows.
    const uint mask = (1u << 27) - 1u;
    const uint weights_low = simd_sum(uint(n_weights) & mask);
    const uint weights_high = simd_sum(uint(n_weights >> 27));
    const uint skipped_low = simd_sum(uint(n_skipped) & mask);
    const uint skipped_high = simd_sum(uint(n_skipped >> 27));
    if (lane == 0) {
        device ulong *counters = at_address<ulong>(p.attend.stats);
        counters[0] += ulong(weights_low) + (ulong(weights_high) << 27);
        counters[1] += ulong(skipped_low) + (ulong(skipped_high) << 27);
    }
}
