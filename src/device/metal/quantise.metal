// The reference encoder (docs/FORMAT.md, section 9) on a row in the registers of a simdgroup, all
// but the trellis search. Every float operation is the reference's, in its order.

#define THRESHOLDS(bits)                                                                           \
    constant float thresholds_##bits[(1 << bits) - 1] = TKV_CODEBOOK_THRESHOLDS_##bits;
TKV_CODEBOOKS(THRESHOLDS)
#undef THRESHOLDS

constant float tiny_row = 9.094947017729282379150390625e-13f;                   // 2^-40
constant float huge_row = 1099511627776.0f;                                     // 2^40
constant float huge_factor = 2.117582368135750831670247018337249755859375e-22f; // 2^-72
constant uint half_nan = 0x7e00u;
constant uint half_largest = 0x7bffu;

// A row on its way to codes: y rotated, z of unit variance; then codes and side fields.
struct row_state {
    float y[max_registers];
    float z[max_registers];
    float levels[max_registers];
    uint codes[max_registers];
    float maximum;
    float norm2;
    float to_unit;
    uint side[2];
    bool is_zero;
    bool is_huge;
    bool is_finite;
};

inline float largest_magnitude(int dim, thread const float *x)
{
    uint largest = 0;
    for (int i = 0; i < registers_of(dim); i++) {
        largest = max(largest, as_type<uint>(x[i]) & 0x7fffffffu);
    }
    return as_type<float>(simd_max(largest));
}

// Steps 1 to 3: from x in state.y to the rotated row and its measures.
inline void prepare_row(int dim, thread row_state &state, uint lane)
{
    const float largest = largest_magnitude(dim, state.y);
    state.is_finite = as_type<uint>(largest) < 0x7f800000u;
    state.is_huge = state.is_finite && largest > huge_row;
    for (int i = 0; i < registers_of(dim); i++) {
        state.codes[i] = 0;
        state.y[i] = !state.is_finite ? 0.0f
                     : state.is_huge  ? state.y[i] * huge_factor
                                      : state.y[i];
    }
    rotate_row(dim, state.y, lane);
    const float maximum = largest_magnitude(dim, state.y);
    const float norm2 = dot16(dim, state.y, state.y, lane);
    state.is_zero = maximum < tiny_row;
    state.maximum = state.is_zero ? 1.0f : maximum; // any number that gives no NaN
    state.norm2 = state.is_zero ? 1.0f : norm2;
    state.to_unit = sqrt(float(dim) / state.norm2);
    for (int i = 0; i < registers_of(dim); i++) {
        state.z[i] = state.y[i] * state.to_unit;
    }
    state.side[0] = 0;
    state.side[1] = 0;
}

inline float unbiased_scale(float norm2, float dot)
{
    return fmin(norm2 / dot * level_unit, half_max);
}

inline void quantise_uniform(int dim, thread row_state &state, uint lane)
{
    const float factor = 127.0f / state.maximum;
    for (int i = 0; i < registers_of(dim); i++) {
        state.levels[i] = rint(state.y[i] * factor);
        state.codes[i] = uint(int(state.levels[i])) & 0xffu;
    }
    const float dot = dot16(dim, state.y, state.levels, lane);
    state.side[0] = float_to_half(unbiased_scale(state.norm2, dot));
}

inline float threshold_of(int bits, int k)
{
#define THRESHOLD(n) case n: return thresholds_##n[k];
    switch (bits) {
        TKV_CODEBOOKS(THRESHOLD)
    }
#undef THRESHOLD
    return 0.0f;
}

// Codes and levels of the nearest codebook entries: how many thresholds lie below.
inline void choose_codes(int type, int dim, thread row_state &state)
{
    const int bits = tkv_type_level_bits(type);
    for (int i = 0; i < registers_of(dim); i++) {
        uint code = 0;
        for (int k = 0; k < (1 << bits) - 1; k++) {
            code += state.z[i] > threshold_of(bits, k) ? 1u : 0u;
        }
        state.codes[i] = code;
        state.levels[i] = table_level(type, code);
    }
}

inline void quantise_codebook(int type, int dim, thread row_state &state, uint lane)
{
    choose_codes(type, dim, state);
    const float dot = dot16(dim, state.z, state.levels, lane) / state.to_unit;
    state.side[0] = float_to_half(unbiased_scale(state.norm2, dot));
}

inline void quantise_sketch(int type, int dim, thread row_state &state, uint lane)
{
    choose_codes(type, dim, state);
    const float scale = dot16(dim, state.z, state.levels, lane) / state.to_unit /
                        dot16(dim, state.levels, state.levels, lane) * level_unit;
    state.side[0] = float_to_half(fmin(scale, half_max));
    const float stored = half_to_float(state.side[0]) / level_unit;
    float residual[max_registers];
    for (int i = 0; i < registers_of(dim); i++) {
        const float decoded = stored * state.levels[i];
        const bool is_inside = 32 * i + int(lane) < dim;
        residual[i] = is_inside ? state.y[i] - decoded : 0.0f;
    }
    const float norm2 = dot16(dim, residual, residual, lane);
    mix_round(sketch_round, dim, residual, lane);
    for (int i = 0; i < registers_of(dim); i++) {
        state.codes[i] |= residual[i] < 0.0f ? 1u << tkv_type_level_bits(type) : 0u;
    }
    const float step = sqrt(norm2 / float(dim)) * (1.25331414f * (1.0f - 0.25f / float(dim)));
    state.side[1] = float_to_half(fmin(step, half_max));
}

// The half nearest to `scale` that carries the start bits.
inline uint trellis_field(float scale, uint start)
{
    const uint middle = (float_to_half(scale) & ~31u) | (start & 31u);
    uint best = middle;
    for (int step = -32; step <= 32; step += 64) {
        const int candidate = int(middle) + step;
        if (candidate >= 0 && candidate < 0x7c00 &&
            fabs(half_to_float(uint(candidate)) - scale) < fabs(half_to_float(best) - scale)) {
            best = uint(candidate);
        }
    }
    return best | (start >> 5) << 15;
}

// What becomes of rows that no code fits: zero, not finite, huge.
inline void settle_odd_rows(int type, int dim, thread row_state &state)
{
    if (state.is_zero || !state.is_finite) {
        for (int i = 0; i < registers_of(dim); i++) {
            state.codes[i] = 0;
        }
        state.side[0] = state.is_finite ? 0u : half_nan;
        state.side[1] = 0;
    }
    if (state.is_huge) {
        state.side[0] =
            is_trellis(type) ? trellis_field(half_max, start_bits(state.side[0])) : half_largest;
        state.side[1] = 0;
    }
}
