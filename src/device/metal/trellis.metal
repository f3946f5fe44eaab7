// The trellis search (docs/FORMAT.md, section 9.1): Viterbi's algorithm on integers, one simdgroup
// a row. State i lies in lane i % 32, register i / 32, so the predecessors i >> 1 and (i >> 1) +
// 128 of a state lie in one lane, their registers four apart: one shuffle of both metrics in a word
// brings them. A record keeps for each coordinate and state which predecessor won: bit i / 32 of
// byte j % 4 of word [j / 4][i % 32].

enum : int {
    target_limit = 190,
    renormalise_steps = 4,
    state_registers = 8,
};
constant uint unreached = 65535u;

// Costs of the four subsets at a target, two in a word, z0 = 0 and 1 apart: word z0 holds z1 = 0 in
// its low half.
struct subset_costs {
    uint pairs[2];
};

// Levels a standard deviation.
inline float trellis_unit(int type)
{
#define UNIT(bits, n) case bits: return TKV_TRELLIS_UNIT_##n;
    switch (tkv_type_level_bits(type)) {
        TKV_TRELLISES(UNIT)
    }
#undef UNIT
    return 0.0f;
}

inline int trellis_target(int type, float gain, float z)
{
    const float unit = trellis_unit(type);
    const float target = rint(z * (unit * gain));
    return int(fmax(-float(target_limit), fmin(target, float(target_limit))));
}

// The nearest level of a subset: its free bits; the lowest of equals.
inline int nearest_free(int type, int subset, int target, thread uint &cost)
{
    int best = 0;
    cost = 0xffffffffu;
    for (int free = 0; free < (1 << free_bits(type)); free++) {
        const int distance = target - int(table_level(type, uint(4 * free + subset)));
        const uint squared = uint(distance * distance);
        best = squared < cost ? free : best;
        cost = min(squared, cost);
    }
    return best;
}

inline subset_costs costs_of(int type, int target)
{
    subset_costs costs;
    for (int z0 = 0; z0 < 2; z0++) {
        uint low = 0;
        uint high = 0;
        nearest_free(type, z0, target, low);
        nearest_free(type, 2 + z0, target, high);
        costs.pairs[z0] = min(low, unreached) | min(high, unreached) << 16;
    }
    return costs;
}

// Subset (2 z1 + z0) of a window of nine path bits.
inline uint subset_of(uint window)
{
    return 2u * (popcount(window & TKV_TRELLIS_TAPS_Z1) & 1u) +
           (popcount(window & TKV_TRELLIS_TAPS_Z0) & 1u);
}

inline uint cost_of(uint even_pair, uint odd_pair, uint subset)
{
    const uint pair = (subset & 1u) != 0 ? odd_pair : even_pair;
    return (subset & 2u) != 0 ? pair >> 16 : pair & 0xffffu;
}

inline void begin_states(thread uint *metrics, uint lane)
{
    for (int r = 0; r < state_registers; r++) {
        const uint state = 32u * uint(r) + lane;
        metrics[r] = state < (1u << TKV_TRELLIS_START_BITS) ? 0u : unreached;
    }
}

// Takes the smallest metric off all.
inline void renormalise(int n, thread uint *metrics)
{
    uint smallest = unreached;
    for (int r = 0; r < n; r++) {
        smallest = min(smallest, metrics[r]);
    }
    smallest = simd_min(smallest);
    for (int r = 0; r < n; r++) {
        metrics[r] -= smallest;
    }
}

// One coordinate for all 256 states; returns the eight bits of the record. The subset of state
// lane + 32 r is that of `lane` with z1 and z0 flipped where bit 6 and bit 7 of the state are taps.
inline uint advance_states(thread uint *metrics, uint even_pair, uint odd_pair, uint lane)
{
    const uint lane_subset = subset_of(lane);
    uint packed[state_registers / 2];
    uint next[state_registers];
    uint record = 0;
    for (int r = 0; r < state_registers / 2; r++) {
        packed[r] = metrics[r] | metrics[r + state_registers / 2] << 16;
    }
    for (int r = 0; r < state_registers; r++) {
        const uint both = simd_shuffle(packed[r / 2], ushort(lane / 2 + 16u * uint(r & 1)));
        const uint subset = lane_subset ^ subset_of(32u * uint(r));
        const uint lower = (both & 0xffffu) + cost_of(even_pair, odd_pair, subset);
        const uint upper = (both >> 16) + cost_of(even_pair, odd_pair, subset ^ 2u);
        const uint lower_sum = min(lower, unreached);
        const uint upper_sum = min(upper, unreached);
        record |= upper_sum < lower_sum ? 1u << r : 0u;
        next[r] = min(lower_sum, upper_sum);
    }
    for (int r = 0; r < state_registers; r++) {
        metrics[r] = next[r];
    }
    return record;
}

// One coordinate for 32 survivors, one a lane, each with its own state of eight bits.
inline uint advance_survivors(thread uint &metric, thread uint &state, uint even_pair,
                              uint odd_pair, uint lane)
{
    const uint packed = metric | state << 16;
    const uint lower = simd_shuffle(packed, ushort(lane / 2));
    const uint upper = simd_shuffle(packed, ushort(lane / 2 + 16u));
    const uint lower_window = (lower >> 16) << 1 | (lane & 1u);
    const uint upper_window = (upper >> 16) << 1 | (lane & 1u);
    const uint lower_sum =
        min((lower & 0xffffu) + cost_of(even_pair, odd_pair, subset_of(lower_window)), unreached);
    const uint upper_sum =
        min((upper & 0xffffu) + cost_of(even_pair, odd_pair, subset_of(upper_window)), unreached);
    const bool is_upper = upper_sum < lower_sum;
    metric = is_upper ? upper_sum : lower_sum;
    state = (is_upper ? upper_window : lower_window) & 0xffu;
    return is_upper ? 1u : 0u;
}

// Lowest of the states with the smallest metric.
inline uint best_state(int n, thread const uint *metrics, uint lane)
{
    uint best = 0xffffffffu; // metric, then state
    for (int r = 0; r < n; r++) {
        best = min(best, metrics[r] << 16 | (32u * uint(r) + lane));
    }
    return simd_min(best) & 0xffffu;
}

// The path of a row: its bits, 32 coordinates a word, the same in all lanes, and the start bits.
struct trellis_path {
    uint words[max_registers];
    uint start;
};

// Follows the record back from the best state. n_states: 256, or 32 survivors.
inline void trace_back(int dim, uint n_states, uint at, threadgroup const uint *records,
                       thread trellis_path &path)
{
    for (int i = registers_of(dim) - 1; i >= 0; i--) {
        const int end = min(dim - 32 * i, 32);
        uint word = 0;
        for (int k = end - 1; k >= 0; k--) {
            const int j = 32 * i + k;
            const uint record = records[j / 4 * 32 + int(at % 32u)] >> (8 * (j % 4));
            const bool is_upper = ((record >> (at / 32u)) & 1u) != 0;
            word |= (at & 1u) << k;
            at = at / 2u + (is_upper ? n_states / 2u : 0u);
        }
        path.words[i] = word;
    }
    path.start = at & ((1u << TKV_TRELLIS_START_BITS) - 1u);
}

// Finds the path for z. records: 32 * head_dim bytes of the simdgroup's own.
inline void search_path(int type, bool is_fast, float gain, int dim, thread const float *z,
                        threadgroup uint *records, thread trellis_path &path, uint lane)
{
    uint metrics[state_registers];
    uint state = lane;
    begin_states(metrics, lane);
    const int n_registers = is_fast ? 1 : state_registers;
    for (int i = 0; i < registers_of(dim); i++) {
        const subset_costs costs = costs_of(type, trellis_target(type, gain, z[i]));
        const int end = min(dim - 32 * i, 32);
        uint record = 0;
        for (int k = 0; k < end; k++) {
            if (k % renormalise_steps == 0 && i + k > 0) {
                renormalise(n_registers, metrics);
            }
            const uint even_pair = simd_shuffle(costs.pairs[0], ushort(k));
            const uint odd_pair = simd_shuffle(costs.pairs[1], ushort(k));
            const uint bits = is_fast
                                  ? advance_survivors(metrics[0], state, even_pair, odd_pair, lane)
                                  : advance_states(metrics, even_pair, odd_pair, lane);
            record |= bits << (8 * (k % 4));
            if (k % 4 == 3) {
                records[(32 * i + k) / 4 * 32 + int(lane)] = record;
                record = 0;
            }
        }
    }
    const uint last = best_state(n_registers, metrics, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    trace_back(dim, is_fast ? 32u : 256u, last, records, path);
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Codes and levels of a path: the nearest level of each coordinate's subset.
inline void codes_of_path(int type, float gain, int dim, thread const float *z,
                          thread const trellis_path &path, uint lane, thread uint *codes,
                          thread float *levels)
{
    uint before = path_before(path.start);
    for (int i = 0; i < registers_of(dim); i++) {
        const uint word = path.words[i];
        const uint z1 = (subset_z1(word, before) >> lane) & 1u;
        const uint z0 = (subset_z0(word, before) >> lane) & 1u;
        uint cost = 0;
        const int subset = int(2u * z1 + z0);
        const int free = nearest_free(type, subset, trellis_target(type, gain, z[i]), cost);
        codes[i] = uint(free) | ((word >> lane) & 1u) << free_bits(type);
        levels[i] = table_level(type, uint(4 * free + subset));
        before = word;
    }
}

inline float gain_of_try(int n)
{
    return n == 1 ? 0.97f : n == 2 ? 1.03f : 1.0f;
}

// effort: tkv_effort; 1 searches with few survivors, 2 with three gains.
inline void quantise_trellis(int type, int effort, int dim, thread row_state &state,
                             threadgroup uint *records, uint lane)
{
    float best = -1.0f;
    for (int n = 0; n < (effort == 2 ? 3 : 1); n++) {
        trellis_path path;
        uint codes[max_registers];
        const float gain = gain_of_try(n);
        search_path(type, effort == 1, gain, dim, state.z, records, path, lane);
        codes_of_path(type, gain, dim, state.z, path, lane, codes, state.levels);
        const float dot = dot16(dim, state.z, state.levels, lane);
        const float correlation = dot * dot / dot16(dim, state.levels, state.levels, lane);
        const bool is_better = correlation > best;
        const float scale = unbiased_scale(state.norm2, dot / state.to_unit);
        state.side[0] = is_better ? trellis_field(scale, path.start) : state.side[0];
        best = is_better ? correlation : best;
        for (int i = 0; i < registers_of(dim); i++) {
            state.codes[i] = is_better ? codes[i] : state.codes[i];
        }
    }
}
