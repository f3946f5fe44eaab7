// Rows into pages, in two steps so that no two threads write one word: first the codes of every
// row, a simdgroup a row, then the words of the pages, a thread a word. Exact rows are written at
// once.

// The place of a row of new tokens. head < 0: there is none.
struct row_place {
    device const tkv_device_sequence *sequence;
    tkv_device_block block;
    int head;
    int slot;
    ulong row;
};

inline int first_token_of(constant tkv_metal_rows &p, device const tkv_device_sequence *sequence)
{
    return p.first_token < 0 ? sequence->n_tokens - p.n_tokens : p.first_token;
}

inline row_place place_row(constant tkv_metal_rows &p, ulong row)
{
    row_place place;
    place.head = -1;
    place.row = row;
    const ulong n_heads = ulong(p.layer.n_kv_heads);
    const ulong token = row / n_heads;
    if (token >= ulong(p.n_sequences) * ulong(p.n_tokens)) {
        return place;
    }
    place.sequence = at_address<const tkv_device_sequence>(p.sequences) + token / ulong(p.n_tokens);
    const int position = first_token_of(p, place.sequence) + int(token % ulong(p.n_tokens));
    const int index = tkv_block_of_place(p.layer.n_sinks, position);
    if (position < 0 || position >= place.sequence->n_tokens || index >= place.sequence->n_blocks) {
        return place;
    }
    place.block = load_block(place.sequence, index);
    place.slot = position - tkv_block_place(p.layer.n_sinks, index);
    if (place.block.pages != 0 && (!place.block.is_exact || place.slot < place.block.n_slots)) {
        place.head = int(row % n_heads);
    }
    return place;
}

// Address of the mean of a side and head, or 0.
inline ulong mean_of(constant tkv_metal_rows &p, device const tkv_device_sequence *sequence,
                     int head)
{
    const ulong mean = p.order == order_value ? sequence->mean_v : sequence->mean_k;
    return mean == 0 ? 0 : mean + ulong(head) * ulong(key_dim) * sizeof(float);
}

inline void write_halves(int dim, thread const float *x, device ushort *row, uint lane)
{
    for (int i = 0; i < registers_of(dim); i++) {
        const int j = 32 * i + int(lane);
        if (j < dim) {
            row[j] = ushort(float_to_finite_half(x[i]));
        }
    }
}

// Reads a row. Exact ones are written to their page; of others y is filled, the mean taken off as
// if they had waited in an exact block. Returns whether the row is to be coded.
inline bool begin_row(constant tkv_metal_rows &p, thread const row_place &place,
                      thread row_state &state, uint lane)
{
    if (place.head < 0) {
        return false;
    }
    load_row(key_dim, at_address<const float>(p.x) + place.row * ulong(key_dim), state.y, lane);
    if (place.block.is_exact || is_half(key_type)) {
        const ulong page = page_address(p.layer, place.block, place.head, p.order);
        device ushort *row = at_address<ushort>(page) + ulong(place.slot) * ulong(key_dim);
        write_halves(key_dim, state.y, row, lane);
        return false;
    }
    const ulong mean = mean_of(p, place.sequence, place.head);
    for (int i = 0; mean != 0 && i < registers_of(key_dim); i++) {
        const int j = 32 * i + int(lane);
        if (j < key_dim) {
            const float exact = half_to_float(float_to_finite_half(state.y[i]));
            state.y[i] = exact - at_address<const float>(mean)[j];
        }
    }
    return true;
}

inline void end_row(constant tkv_metal_rows &p, ulong row, thread row_state &state, uint lane)
{
    settle_odd_rows(key_type, key_dim, state);
    device uchar *codes = at_address<uchar>(p.codes) + row * ulong(key_dim);
    for (int i = 0; i < registers_of(key_dim); i++) {
        const int j = 32 * i + int(lane);
        if (j < key_dim) {
            codes[j] = uchar(state.codes[i]);
        }
    }
    if (lane < 2) {
        at_address<ushort>(p.side)[2 * row + lane] =
            ushort(lane == 0 ? state.side[0] : state.side[1]);
    }
}

// All types but the trellis ones.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_encode_rows(constant tkv_metal_rows &p [[buffer(0)]],
                uint threadgroup_index [[threadgroup_position_in_grid]],
                uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]])
{
    const row_place place =
        place_row(p, ulong(threadgroup_index) * TKV_METAL_SIMDGROUPS + simdgroup_index);
    row_state state;
    if (!begin_row(p, place, state, lane)) {
        return;
    }
    prepare_row(key_dim, state, lane);
    if (is_uniform(key_type)) {
        quantise_uniform(key_dim, state, lane);
    } else if (is_sketch(key_type)) {
        quantise_sketch(key_type, key_dim, state, lane);
    } else {
        quantise_codebook(key_type, key_dim, state, lane);
    }
    end_row(p, place.row, state, lane);
}

// The trellis types; one simdgroup a threadgroup. records: 32 * head_dim bytes. Variant:
// tkv_effort.
[[max_total_threads_per_threadgroup(32)]] kernel void
tkv_encode_trellis_rows(constant tkv_metal_rows &p [[buffer(0)]],
                        threadgroup uint *records [[threadgroup(0)]],
                        uint threadgroup_index [[threadgroup_position_in_grid]],
                        uint lane [[thread_index_in_simdgroup]])
{
    const row_place place = place_row(p, ulong(threadgroup_index));
    row_state state;
    if (!begin_row(p, place, state, lane)) {
        return;
    }
    prepare_row(key_dim, state, lane);
    quantise_trellis(key_type, variant, key_dim, state, records, lane);
    end_row(p, place.row, state, lane);
}

// Where the codes of a word of a page come from.
struct word_codes {
    int plane_bits;
    int low_bit; // of the plane in a code
    int group;   // 32 coordinates, or in a value page 32 slots
    int word;    // of the group; of a half group: pair of half-words
    int line;    // slot, or in a value page coordinate
    bool is_half_group;
};

// Finds what word `index` of a page holds.
inline word_codes locate_word(int type, int dim, int order, int index)
{
    word_codes at = {0, 0, 0, 0, 0, false};
    for (int plane = 0; plane < 3; plane++) {
        const int bits = tkv_type_plane_bits(type, plane);
        const int n_words = dim * bits * page_tokens / 32;
        at.plane_bits = bits;
        if (index < n_words) {
            break;
        }
        index -= n_words;
        at.low_bit += bits;
    }
    const int line_length = order == order_value ? dim : page_tokens;
    const int row = index / line_length;
    at.line = index % line_length;
    at.group = row / at.plane_bits;
    at.word = row % at.plane_bits;
    if (order != order_value && at.plane_bits < 8 && row >= dim / 32 * at.plane_bits) {
        at.is_half_group = true;
        at.group = dim / 32;
        at.word = row - dim / 32 * at.plane_bits;
    }
    return at;
}

// One code of a word.
struct code_place {
    int in_group; // 0-31
    int line;
    int shift;
};

// The k-th code of a word, k below 32 / plane_bits.
inline code_place place_in_word(thread const word_codes &at, int k)
{
    const int bits = at.plane_bits;
    code_place place;
    place.line = at.line;
    if (bits == 8) {
        place.in_group = 4 * at.word + k;
        place.shift = 8 * k;
        return place;
    }
    const int per_nibble = 4 / bits;
    int word = at.word;
    int upper_half = 0;
    if (at.is_half_group) {
        upper_half = k / (16 / bits);
        k = k % (16 / bits);
        word = bits == 1 ? 0 : 2 * at.word + upper_half;
        place.line = bits == 1 ? at.line + 32 * upper_half : at.line;
    }
    const int n = k / per_nibble;
    const int r = word * per_nibble + k % per_nibble;
    place.in_group = 4 * n + r;
    place.shift = 16 * upper_half + 4 * n + r * bits % 4;
    return place;
}

// The tokens to be written, seen from a page of one head.
struct token_span {
    int first_slot; // of token 0; may lie before the page
    int n_tokens;
    ulong first_row;
};

// Puts the new codes of one word of a page in their places.
inline void write_word(constant tkv_metal_rows &p, device uint *page, int index,
                       thread const token_span &span)
{
    const word_codes at = locate_word(key_type, key_dim, p.order, index);
    device const uchar *codes = at_address<const uchar>(p.codes);
    const uint mask = (1u << at.plane_bits) - 1u;
    uint word = 0;
    uint written = 0;
    for (int k = 0; k < 32 / at.plane_bits; k++) {
        const code_place place = place_in_word(at, k);
        const int in_group = 32 * at.group + place.in_group;
        const int slot = p.order == order_value ? in_group : place.line;
        const int j = p.order == order_value ? place.line : in_group;
        const int token = slot - span.first_slot;
        if (token >= 0 && token < span.n_tokens) {
            const ulong row = span.first_row + ulong(token) * ulong(p.layer.n_kv_heads);
            const uint code = codes[row * ulong(key_dim) + ulong(j)];
            word |= ((code >> at.low_bit) & mask) << place.shift;
            written |= mask << place.shift;
        }
    }
    if (written != 0) {
        page[index] = (page[index] & ~written) | word;
    }
}

// Two side fields of a page, those of neighbouring slots.
inline void write_side_word(constant tkv_metal_rows &p, device uint *page, int index,
                            thread const token_span &span)
{
    const int half_index = 2 * (index - page_code_words(key_type, key_dim));
    device const ushort *side = at_address<const ushort>(p.side);
    uint word = page[index];
    for (int k = 0; k < 2; k++) {
        const int field = (half_index + k) / page_tokens;
        const int token = (half_index + k) % page_tokens - span.first_slot;
        if (token >= 0 && token < span.n_tokens) {
            const ulong row = span.first_row + ulong(token) * ulong(p.layer.n_kv_heads);
            const uint value = side[2 * row + ulong(field)];
            word = (word & ~(0xffffu << (16 * k))) | value << (16 * k);
        }
    }
    page[index] = word;
}

// Grid: words of a page, KV heads times blocks that a sequence's tokens may touch, sequences.
[[max_total_threads_per_threadgroup(128)]] kernel void
tkv_pack_words(constant tkv_metal_rows &p [[buffer(0)]], uint3 position [[thread_position_in_grid]])
{
    const int n_words = int(tkv_stored_page_bytes(key_type, key_dim, page_tokens) / 4u);
    const int index = int(position.x);
    const int head = int(position.y) % p.layer.n_kv_heads;
    if (index >= n_words || int(position.y) >= p.n_blocks * p.layer.n_kv_heads ||
        int(position.z) >= p.n_sequences) {
        return;
    }
    device const tkv_device_sequence *sequence =
        at_address<const tkv_device_sequence>(p.sequences) + position.z;
    const int first = max(first_token_of(p, sequence), 0);
    const int block_index = tkv_block_of_place(p.layer.n_sinks, first) + int(position.y) / p.layer.n_kv_heads;
    if (block_index >= sequence->n_blocks) {
        return;
    }
    const tkv_device_block block = load_block(sequence, block_index);
    const int start = tkv_block_place(p.layer.n_sinks, block_index);
    if (block.pages == 0 || block.is_exact || start >= first + p.n_tokens) {
        return;
    }
    device uint *page = at_address<uint>(page_address(p.layer, block, head, p.order));
    token_span span;
    span.first_slot = first - start;
    span.n_tokens = min(p.n_tokens, sequence->n_tokens - first);
    span.first_row =
        (ulong(position.z) * ulong(p.n_tokens)) * ulong(p.layer.n_kv_heads) + ulong(head);
    if (index < page_code_words(key_type, key_dim)) {
        write_word(p, page, index, span);
    } else {
        write_side_word(p, page, index, span);
    }
}
