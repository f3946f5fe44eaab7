// Parts of a sequence: rows on their way to the positions of a segment, and what attention makes of
// each segment joined. One simdgroup a row.

// Coordinate j of a row that is turned by RoPE's angles.
inline float turned_coordinate(constant tkv_device_rows &p, device const float *row, int j)
{
    const bool is_interleaved = p.is_interleaved != 0;
    const bool is_second = is_interleaved ? j % 2 != 0 : j >= p.n_pairs;
    const int pair = is_interleaved ? j / 2 : is_second ? j - p.n_pairs : j;
    const float x = row[is_interleaved ? 2 * pair : pair];
    const float y = row[is_interleaved ? 2 * pair + 1 : pair + p.n_pairs];
    device const float *turns = at_address<const float>(p.turns);
    const float cosine = turns[pair];
    const float sine = p.is_back != 0 ? -turns[p.n_pairs + pair] : turns[p.n_pairs + pair];
    return is_second ? x * sine + y * cosine : x * cosine - y * sine;
}

[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_move_rows(constant tkv_device_rows &p [[buffer(0)]],
              uint threadgroup_index [[threadgroup_position_in_grid]],
              uint simdgroup_index [[simdgroup_index_in_threadgroup]],
              uint lane [[thread_index_in_simdgroup]])
{
    const ulong index = ulong(threadgroup_index) * TKV_METAL_SIMDGROUPS + simdgroup_index;
    if (index >= p.n_rows) {
        return;
    }
    device const float *from = at_address<const float>(p.from) + index * ulong(p.from_width);
    device float *to = at_address<float>(p.to) + index * ulong(p.to_width);
    const int n_turned = p.turns != 0 ? 2 * p.n_pairs : 0;
    for (int j = int(lane); j < p.to_width; j += TKV_METAL_LANES) {
        if (j < n_turned) {
            to[j] = turned_coordinate(p, from, j);
        } else {
            to[j] = j < p.from_width ? from[j] : 0.0f;
        }
    }
}

// What a part counts for, as yet not divided by the sum over all parts.
inline float weight_of_part(device const float *log_sums, ulong part, ulong n_rows, float maximum)
{
    return exp(log_sums[part * n_rows] - maximum);
}

[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_join_parts(constant tkv_device_join &p [[buffer(0)]],
               uint threadgroup_index [[threadgroup_position_in_grid]],
               uint simdgroup_index [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]])
{
    const ulong index = ulong(threadgroup_index) * TKV_METAL_SIMDGROUPS + simdgroup_index;
    if (index >= p.n_rows) {
        return;
    }
    const ulong n_parts = ulong(p.n_parts);
    device const float *log_sums = at_address<const float>(p.log_sums) + index;
    float maximum = no_logit;
    float sum = 0.0f;
    for (ulong part = 0; part < n_parts; part++) {
        maximum = fmax(maximum, log_sums[part * p.n_rows]);
    }
    for (ulong part = 0; part < n_parts; part++) {
        sum += weight_of_part(log_sums, part, p.n_rows, maximum);
    }
    device float *to = at_address<float>(p.out) + index * ulong(p.to_width);
    for (int j = int(lane); j < p.to_width; j += TKV_METAL_LANES) {
        float joined = 0.0f;
        for (ulong part = 0; part < n_parts; part++) {
            const float weight = weight_of_part(log_sums, part, p.n_rows, maximum);
            if (weight != 0.0f) { // or the row has seen nothing there, and holds anything
                const ulong row = part * p.n_rows + index;
                joined += weight / sum *
                          at_address<const float>(p.parts)[row * ulong(p.from_width) + ulong(j)];
            }
        }
        to[j] = joined;
    }
    if (p.log_sums_out != 0 && lane == 0) {
        at_address<float>(p.log_sums_out)[index] = log_of_sum(maximum, sum);
    }
}
