// Rows out of pages, in the original domain, means added.

// Levels of a slot's row, one register after the other, in the domain of the codes.
inline void unpack_row(int type, int dim, int order, device const uint *page, int slot,
                       thread float *y, uint lane)
{
    const uint field = side_field(type, dim, page, 0, slot);
    const float scale = slot_scale(type, dim, page, slot);
    uint before = path_before(start_bits(field));
    for (int i = 0; i < registers_of(dim); i++) {
        const int j = 32 * i + int(lane);
        const uint code = j < dim ? read_code(type, dim, order, page, slot, j) : 0u;
        float level = 0.0f;
        if (is_uniform(type)) {
            level = float(as_type<char>(uchar(code)));
        } else if (is_trellis(type)) {
            const int free = free_bits(type);
            const uint path = simd_sum((code >> free) << lane);
            const uint z1 = (subset_z1(path, before) >> lane) & 1u;
            const uint z0 = (subset_z0(path, before) >> lane) & 1u;
            level = level_of(type, (code & ((1u << free) - 1u)) << 2 | z1 << 1 | z0);
            before = path;
        } else {
            level = level_of(type, code & ((1u << tkv_type_level_bits(type)) - 1u));
        }
        y[i] = j < dim ? level * scale : 0.0f;
    }
}

// y += what the signs of the sketch say.
inline void add_residual(int type, int dim, int order, device const uint *page, int slot,
                         thread float *y, uint lane)
{
    const float step = half_to_float(side_field(type, dim, page, 1, slot));
    float residual[max_registers];
    for (int i = 0; i < registers_of(dim); i++) {
        const int j = 32 * i + int(lane);
        const uint code = j < dim ? read_code(type, dim, order, page, slot, j) : 0u;
        const bool is_negative = ((code >> tkv_type_level_bits(type)) & 1u) != 0;
        residual[i] = j >= dim ? 0.0f : is_negative ? -step : step;
    }
    unmix_round(sketch_round, dim, residual, lane);
    for (int i = 0; i < registers_of(dim); i++) {
        y[i] += residual[i];
    }
}

// One simdgroup a row. Variant 1: halves instead of floats, as f16 rows store them.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_decode_rows(constant tkv_metal_rows &p [[buffer(0)]],
                uint threadgroup_index [[threadgroup_position_in_grid]],
                uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]])
{
    const row_place place =
        place_row(p, ulong(threadgroup_index) * TKV_METAL_SIMDGROUPS + simdgroup_index);
    if (place.head < 0) {
        return;
    }
    const ulong page = page_address(p.layer, place.block, place.head, p.order);
    float y[max_registers];
    if (place.block.is_exact || is_half(key_type)) {
        device const ushort *row =
            at_address<const ushort>(page) + ulong(place.slot) * ulong(key_dim);
        for (int i = 0; i < registers_of(key_dim); i++) {
            const int j = 32 * i + int(lane);
            y[i] = j < key_dim ? half_to_float(row[j]) : 0.0f;
        }
    } else {
        device const uint *words = at_address<const uint>(page);
        unpack_row(key_type, key_dim, p.order, words, place.slot, y, lane);
        if (is_sketch(key_type)) {
            add_residual(key_type, key_dim, p.order, words, place.slot, y, lane);
        }
        unrotate_row(key_dim, y, lane);
        const ulong mean = mean_of(p, place.sequence, place.head);
        for (int i = 0; mean != 0 && i < registers_of(key_dim); i++) {
            const int j = 32 * i + int(lane);
            y[i] = j < key_dim ? y[i] + at_address<const float>(mean)[j] : 0.0f;
        }
    }
    if (variant == 1) {
        write_halves(key_dim, y, at_address<ushort>(p.x) + place.row * ulong(key_dim), lane);
    } else {
        store_row(key_dim, at_address<float>(p.x) + place.row * ulong(key_dim), y, lane);
    }
}
