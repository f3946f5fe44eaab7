// The rotation (docs/FORMAT.md, section 3) of a row in registers.

constant uint rotation_signs[3][32] = {TKV_ROTATION_SIGNS_0, TKV_ROTATION_SIGNS_1,
                                       TKV_SKETCH_SIGNS};
enum : int { sketch_round = 2 };

inline int rotation_block(int dim)
{
    int block = 16;
    while (2 * block <= dim) {
        block *= 2;
    }
    return block;
}

// (float)(1 / sqrt(block)): powers of two are exact, so only the last factor is rounded.
inline float rotation_norm(int block)
{
    float norm = 1.0f;
    for (; block >= 4; block /= 4) {
        norm *= 0.5f;
    }
    return block == 2 ? norm * 0.707106769f : norm;
}

// Walsh-Hadamard transform of `block` coordinates; `place` is the lane's place among 32 of them,
// which differs from its number by exclusive or, so that partners are as far apart as coordinates.
// Of a block of 16, the other half of the lanes hold zero.
inline void transform(int block, thread float *x, uint place)
{
    const int n = registers_of(block);
    for (ushort apart = 1; apart < min(block, 32); apart *= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            const float other = simd_shuffle_xor(x[i], apart);
            x[i] = place & apart ? other - x[i] : x[i] + other;
        }
    }
    for (int apart = 1; apart < n; apart *= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            if ((i & apart) == 0) {
                const float a = x[i];
                const float b = x[i + apart];
                x[i] = a + b;
                x[i + apart] = a - b;
            }
        }
    }
    const float norm = rotation_norm(block);
    for (int i = 0; i < n; i++) {
        x[i] *= norm;
    }
}

// The transform of the coordinates from `first` on. If that is half a register, they are shifted by
// 16 lanes: lanes 16 to 31 of one register and 0 to 15 of the next make 32 coordinates.
inline void transform_from(int first, int block, thread float *x, uint lane)
{
    const int begin = first / 32;
    if (first % 32 == 0) {
        transform(block, x + begin, lane);
        return;
    }
    const int n = block / 32;
    float shifted[max_registers / 2];
    for (int i = 0; i < n; i++) {
        shifted[i] = lane >= 16 ? x[begin + i] : x[begin + i + 1];
    }
    transform(block, shifted, lane ^ 16u);
    for (int i = 0; i < n; i++) {
        x[begin + i] = lane >= 16 ? shifted[i] : x[begin + i];
        x[begin + i + 1] = lane >= 16 ? x[begin + i + 1] : shifted[i];
    }
}

inline void flip_signs(int round, int first, int end, thread float *x, uint lane)
{
    for (int i = first / 32; 32 * i < end; i++) {
        const int j = 32 * i + int(lane);
        const bool is_flipped = ((rotation_signs[round][i] >> lane) & 1u) != 0;
        x[i] = is_flipped && j >= first && j < end ? -x[i] : x[i];
    }
}

inline void mix_round(int round, int dim, thread float *x, uint lane)
{
    const int block = rotation_block(dim);
    const int last = dim - block;
    flip_signs(round, 0, block, x, lane);
    transform_from(0, block, x, lane);
    if (last > 0) {
        flip_signs(round, last, dim, x, lane);
        transform_from(last, block, x, lane);
    }
}

inline void unmix_round(int round, int dim, thread float *x, uint lane)
{
    const int block = rotation_block(dim);
    const int last = dim - block;
    if (last > 0) {
        transform_from(last, block, x, lane);
        flip_signs(round, last, dim, x, lane);
    }
    transform_from(0, block, x, lane);
    flip_signs(round, 0, block, x, lane);
}

inline void rotate_row(int dim, thread float *x, uint lane)
{
    mix_round(0, dim, x, lane);
    mix_round(1, dim, x, lane);
}

inline void unrotate_row(int dim, thread float *x, uint lane)
{
    unmix_round(1, dim, x, lane);
    unmix_round(0, dim, x, lane);
}

inline void load_row(int dim, device const float *from, thread float *x, uint lane)
{
    for (int i = 0; i < registers_of(dim); i++) {
        const int j = 32 * i + int(lane);
        x[i] = j < dim ? from[j] : 0.0f;
    }
}

inline void store_row(int dim, device float *to, thread const float *x, uint lane)
{
    for (int i = 0; i < registers_of(dim); i++) {
        const int j = 32 * i + int(lane);
        if (j < dim) {
            to[j] = x[i];
        }
    }
}

// One simdgroup a row. Variant 1: the inverse.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_rotate_rows(constant tkv_metal_rotate &p [[buffer(0)]],
                uint threadgroup_index [[threadgroup_position_in_grid]],
                uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]])
{
    const uint row = threadgroup_index * TKV_METAL_SIMDGROUPS + simdgroup_index;
    if (row >= p.n_rows) {
        return;
    }
    device float *x = at_address<float>(p.x) + ulong(row) * ulong(key_dim);
    float values[max_registers];
    load_row(key_dim, x, values, lane);
    if (variant == 1) {
        unrotate_row(key_dim, values, lane);
    } else {
        rotate_row(key_dim, values, lane);
    }
    store_row(key_dim, x, values, lane);
}
