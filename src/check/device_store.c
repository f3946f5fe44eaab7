/* Rotation, storing and loading of a device: equal to the reference to the bit. */
#include "base/half.h"
#include "base/random.h"
#include "check/trial.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Tells of values that must be equal to the bit, and of their guard. */
static void tell_equal(tkv_trial *trial, const void *found, const void *expected, size_t bytes,
                       bool is_intact)
{
    if (is_intact) {
        tkv_check_tell_equal(trial->check, NULL, found, expected, bytes);
    } else {
        tkv_check_tell(trial->check, NULL, 1.0, 0.0, "writes outside its arrays");
    }
}

/* ---- Rotation ------------------------------------------------------------------------------ */

static void rotate_rows(tkv_trial *trial, int head_dim, int n_rows, bool is_inverse, uint64_t seed)
{
    const size_t n = (size_t)n_rows * (size_t)head_dim;
    float *expected = tkv_trial_host(trial, n * sizeof *expected);
    const uint64_t x = tkv_trial_put_guarded(trial, n);
    if (tkv_trial_is_on(trial)) {
        tkv_random_fill(&seed, n, expected);
        tkv_trial_note(trial, trial->table->upload(trial->device, x, expected, n * sizeof *expected,
                                                   trial->check->error));
    }
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial, trial->table->rotate(trial->device, head_dim, (size_t)n_rows, x,
                                                   is_inverse, trial->check->error));
        (is_inverse ? tkv_kernels_scalar.unrotate : tkv_kernels_scalar.rotate)(head_dim, n_rows,
                                                                               expected);
    }
    bool is_intact = true;
    const float *found = tkv_trial_get_guarded(trial, x, n, &is_intact);
    if (found) {
        tkv_check_name(trial->check, is_inverse ? TKV_OPERATION_UNROTATE : TKV_OPERATION_ROTATE,
                       TKV_TYPE_COUNT, head_dim, "%d rows", n_rows);
        tell_equal(trial, found, expected, n * sizeof *found, is_intact);
    }
    tkv_trial_end(trial);
}

void tkv_check_device_rotation(tkv_trial *trial)
{
    const bool is_answers = trial->check->params->mode == TKV_CHECK_ANSWERS;
    const int n = is_answers ? TKV_CHECK_DIMS : TKV_MAX_HEAD_DIM / 16;
    for (int i = 0; i < 2 * n; i++) {
        const int head_dim = is_answers ? tkv_check_dims[i / 2] : 16 + i / 2 * 16;
        if (tkv_check_takes_dim(trial->check, head_dim) && (!trial->is_small || i / 2 % 9 == 0)) {
            rotate_rows(trial, head_dim, 1 + (head_dim / 16 + 29) % 37, i % 2, (uint64_t)i);
        }
    }
    rotate_rows(trial, 128, trial->is_small || is_answers ? 130 : 5000, false, 3);
}

void tkv_check_device_rotation_shape(tkv_trial *trial, int head_dim)
{
    for (int is_inverse = 0; is_inverse < 2; is_inverse++) {
        rotate_rows(trial, head_dim, 130, is_inverse, (uint64_t)head_dim);
    }
}

/* ---- Storing and loading ------------------------------------------------------------------- */

/* Stores tokens of all sequences, on the device and on the host; `first` as in the table. */
static void store_tokens(tkv_trial_layer *l, int first, int n_tokens)
{
    tkv_trial *trial = l->trial;
    const tkv_layer_case *c = l->params;
    uint64_t addresses[2] = {0, 0};
    for (int order = 0; order < 2 && tkv_trial_is_on(trial); order++) {
        const size_t token =
            (size_t)c->layer.n_kv_heads * (size_t)tkv_trial_head_dim(&c->layer, order);
        const size_t n = (size_t)n_tokens * token;
        float *x = tkv_trial_host(trial, (size_t)c->n_sequences * n * sizeof *x);
        for (int s = 0; x && s < c->n_sequences; s++) {
            const int from = first >= 0 ? first : c->n_tokens[s] - n_tokens;
            memcpy(x + (size_t)s * n, l->sequences[s].rows[order] + (size_t)from * token,
                   n * sizeof *x);
            for (int i = 0; i < n_tokens * c->layer.n_kv_heads; i++) {
                tkv_trial_store_row(l, s, from + i / c->layer.n_kv_heads, i % c->layer.n_kv_heads,
                                    order);
            }
        }
        addresses[order] = tkv_trial_put(trial, x, (size_t)c->n_sequences * n * sizeof *x);
    }
    if (tkv_trial_is_on(trial)) {
        tkv_trial_note(trial, trial->table->store(trial->device, &c->layer, l->address,
                                                  c->n_sequences, first, n_tokens, addresses[0],
                                                  addresses[1], trial->check->error));
    }
}

/* Bytes of the pages of keys, or of values, that are not what they should be. */
static double count_other_bytes(const tkv_trial_layer *l, const tkv_trial_block *block,
                                const uint8_t *found, int order)
{
    const tkv_device_layer *layer = &l->params->layer;
    double n_other = 0.0;
    for (int head = 0; head < layer->n_kv_heads; head++) {
        const uint8_t *page = tkv_trial_page(layer, block, head, order);
        const size_t at = (size_t)(page - block->pages);
        for (size_t i = 0; i < tkv_trial_page_bytes(layer, block, order); i++) {
            n_other += page[i] != found[at + i];
        }
    }
    return n_other;
}

static void compare_pages(const tkv_trial_layer *l, const char *what)
{
    tkv_trial *trial = l->trial;
    double n_other[2] = {0.0, 0.0};
    for (int s = 0; s < l->params->n_sequences; s++) {
        for (int b = 0; tkv_trial_is_on(trial) && b < l->sequences[s].entry.n_blocks; b++) {
            const tkv_trial_block *block = &l->sequences[s].blocks[b];
            uint8_t *found = tkv_trial_host(trial, block->bytes);
            tkv_trial_get(trial, found, block->entry.pages, block->bytes);
            for (int order = 0; tkv_trial_is_on(trial) && order < 2; order++) {
                n_other[order] += count_other_bytes(l, block, found, order);
            }
        }
    }
    for (int order = 0; tkv_trial_is_on(trial) && order < 2; order++) {
        tkv_trial_name(l, TKV_OPERATION_STORE, order, what);
        tkv_check_tell(trial->check, NULL, n_other[order], 0.0,
                       order ? "values: other bits than the reference"
                             : "keys: other bits than the reference");
    }
}

/* The rows that a load should bring. */
static float *expect_rows(const tkv_trial_layer *l, int sequence, int first, int n_tokens,
                          int order)
{
    const int n_kv_heads = l->params->layer.n_kv_heads;
    const size_t head_dim = (size_t)tkv_trial_head_dim(&l->params->layer, order);
    const size_t n = (size_t)(n_tokens * n_kv_heads) * head_dim;
    float *rows = tkv_trial_host(l->trial, n * sizeof *rows);
    for (int i = 0; rows && i < n_tokens * n_kv_heads; i++) {
        tkv_trial_load_row(l, sequence, first + i / n_kv_heads, i % n_kv_heads, order,
                           rows + (size_t)i * head_dim);
    }
    if (rows) {
        tkv_check_unify_nan(n, rows);
    }
    return rows;
}

/* Loads tokens of one sequence; order 2: keys and values in one call. */
static void load_tokens(const tkv_trial_layer *l, int sequence, int first, int n_tokens, int which)
{
    tkv_trial *trial = l->trial;
    const tkv_device_layer *layer = &l->params->layer;
    uint64_t addresses[2] = {0, 0};
    size_t n[2];
    for (int order = 0; order < 2; order++) {
        n[order] =
            (size_t)(n_tokens * layer->n_kv_heads) * (size_t)tkv_trial_head_dim(layer, order);
        if (which == 2 || which == order) {
            addresses[order] = tkv_trial_put_guarded(trial, n[order]);
        }
    }
    if (tkv_trial_is_on(trial)) {
        const uint64_t address = l->address + (uint64_t)sequence * sizeof(tkv_device_sequence);
        tkv_trial_note(trial, trial->table->load(trial->device, layer, address, first, n_tokens,
                                                 addresses[0], addresses[1], trial->check->error));
    }
    for (int order = 0; order < 2; order++) {
        bool is_intact = true;
        const float *expected =
            addresses[order] ? expect_rows(l, sequence, first, n_tokens, order) : NULL;
        float *found =
            expected ? tkv_trial_get_guarded(trial, addresses[order], n[order], &is_intact) : NULL;
        if (found) {
            tkv_check_unify_nan(n[order], found);
            tkv_trial_name(l, TKV_OPERATION_LOAD, order, order ? "values" : "keys");
            tell_equal(trial, found, expected, n[order] * sizeof *found, is_intact);
        }
    }
}

/* Keys and values as halves, where the back end has them. */
static void load_halves(const tkv_trial_layer *l, int sequence, int first, int n_tokens)
{
    enum { GUARD = 64 };
    tkv_trial *trial = l->trial;
    const tkv_device_layer *layer = &l->params->layer;
    uint64_t addresses[2];
    size_t n[2];
    for (int order = 0; order < 2; order++) {
        n[order] =
            (size_t)(n_tokens * layer->n_kv_heads) * (size_t)tkv_trial_head_dim(layer, order);
        addresses[order] = tkv_trial_allocate(trial, (n[order] + GUARD) * sizeof(uint16_t));
    }
    if (tkv_trial_is_on(trial)) {
        const uint64_t address = l->address + (uint64_t)sequence * sizeof(tkv_device_sequence);
        tkv_trial_note(trial,
                       trial->table->load_half(trial->device, layer, address, first, n_tokens,
                                               addresses[0], addresses[1], trial->check->error));
    }
    for (int order = 0; order < 2; order++) {
        const float *expected = expect_rows(l, sequence, first, n_tokens, order);
        uint16_t *found = tkv_trial_host(trial, (n[order] + GUARD) * sizeof *found);
        double n_other = 0.0;
        tkv_trial_get(trial, found, addresses[order], (n[order] + GUARD) * sizeof *found);
        for (size_t i = 0; tkv_trial_is_on(trial) && i < n[order] + GUARD; i++) {
            const bool is_nan = i < n[order] && isnan(expected[i]);
            const uint16_t right =
                i < n[order] && !is_nan ? tkv_float_to_finite_half(expected[i]) : 0;
            n_other += is_nan ? !isnan(tkv_half_to_float(found[i])) : found[i] != right;
        }
        tkv_trial_name(l, TKV_OPERATION_LOAD, order, "halves");
        tkv_check_tell(trial->check, NULL, n_other, 0.0, "halves: other bits than the reference");
    }
}

/* A prefill chunk, then tokens one by one; then all sequences' tails at once. */
static void check_storing(tkv_trial *trial, const tkv_layer_case *c)
{
    tkv_trial_layer l;
    int shortest = c->n_tokens[0];
    for (int s = 1; s < c->n_sequences; s++) {
        shortest = c->n_tokens[s] < shortest ? c->n_tokens[s] : shortest;
    }
    const int chunk = shortest * 2 / 3;
    tkv_trial_create_layer(trial, c, &l);
    if (chunk > 0) {
        store_tokens(&l, 0, chunk);
    }
    for (int i = chunk; i < shortest && i < chunk + 3; i++) {
        store_tokens(&l, i, 1);
    }
    compare_pages(&l, "a chunk and tokens");
    store_tokens(&l, -1, 1);
    store_tokens(&l, -1, shortest - chunk);
    compare_pages(&l, "all tokens");
    for (int s = 0; s < c->n_sequences; s++) {
        const int first = chunk / 3;
        load_tokens(&l, s, first, c->n_tokens[s] - first, 2);
        load_tokens(&l, s, c->n_tokens[s] - 1, 1, s % 2);
        if (trial->table->load_half) {
            load_halves(&l, s, first, c->n_tokens[s] - first);
        }
    }
    tkv_trial_end(trial);
}

/* Sinks, two blocks and a part of one. */
static void check_answer(tkv_trial *trial, tkv_type type, int head_dim, int index)
{
    const tkv_layer_case c = {.layer = {.type_k = (int32_t)type,
                                        .type_v = (int32_t)type,
                                        .n_kv_heads = 2,
                                        .head_dim_k = head_dim,
                                        .head_dim_v = head_dim,
                                        .n_sinks = 4,
                                        .effort = TKV_EFFORT_DEFAULT},
                              .n_sequences = 1,
                              .n_tokens = {4 + 2 * TKV_PAGE_TOKENS + 19},
                              .is_centred = index % 2,
                              .n_kinds = TKV_CHECK_FINITE_KINDS,
                              .seed = tkv_check_seed(trial->check, index)};
    if (tkv_check_takes_dim(trial->check, head_dim) && tkv_trial_is_on(trial)) {
        check_storing(trial, &c);
    }
}

void tkv_check_device_storing_shape(tkv_trial *trial, tkv_type type, int head_dim)
{
    check_answer(trial, type, head_dim, 1);
}

/* Every type on every size, centred or not. */
static void check_answers(tkv_trial *trial)
{
    for (int i = 0; i < TKV_TYPE_COUNT * TKV_CHECK_DIMS; i++) {
        check_answer(trial, (tkv_type)(i % TKV_TYPE_COUNT), tkv_check_dims[i / TKV_TYPE_COUNT], i);
    }
}

/* Types of keys and values that differ, several sequences, all efforts. */
static void check_mixtures(tkv_trial *trial)
{
    const int n_dims = trial->is_small ? 6 : TKV_TRIAL_DIMS;
    for (int i = 0; i < n_dims * TKV_TYPE_COUNT && tkv_trial_is_on(trial); i++) {
        const int d = i / TKV_TYPE_COUNT;
        const int type = i % TKV_TYPE_COUNT;
        uint64_t seed = tkv_check_seed(trial->check, 100 * d + type);
        tkv_layer_case c = {
            .layer = {.type_k = type,
                      .type_v = (type + d) % TKV_TYPE_COUNT,
                      .n_kv_heads = 1 + (d + type) % 3,
                      .head_dim_k = tkv_trial_dims[d],
                      .head_dim_v = type % 4 == 3 ? tkv_trial_dims[(d + 3) % 7] : tkv_trial_dims[d],
                      .n_sinks = type % 3 == 0 ? 0 : 1 + tkv_random_below(&seed, 100),
                      .effort = (d + type) % TKV_EFFORT_COUNT},
            .n_sequences = 1 + type % 3,
            .is_centred = (d + type) % 2,
            .exact_share = type % 4 == 1,
            .n_kinds = type % 2 == d % 2 ? TKV_CHECK_KINDS : 1,
            .seed = seed};
        for (int s = 0; s < c.n_sequences; s++) {
            c.n_tokens[s] = 1 + tkv_random_below(&seed, trial->is_small ? 70 : 300);
        }
        check_storing(trial, &c);
    }
}

/* Every type in both orders, at the lengths around a page's edges. */
static void check_edges(tkv_trial *trial)
{
    const int lengths[] = {1, 31, 32, 33, 63, 64, 65, 127, 128, 129};
    for (int k = 0; k < 10 * TKV_TYPE_COUNT && tkv_trial_is_on(trial); k++) {
        const int type = k / 10;
        const int i = k % 10;
        const tkv_layer_case c = {.layer = {.type_k = type,
                                            .type_v = type,
                                            .n_kv_heads = 1,
                                            .head_dim_k = i % 2 ? 48 : 128,
                                            .head_dim_v = i % 2 ? 48 : 128,
                                            .n_sinks = i % 3 ? 0 : 4,
                                            .effort = TKV_EFFORT_FAST},
                                  .n_sequences = 1,
                                  .n_tokens = {lengths[i]},
                                  .n_kinds = TKV_CHECK_KINDS,
                                  .seed = tkv_check_seed(trial->check, k)};
        if (!trial->is_small || i % 4 == 0) {
            check_storing(trial, &c);
        }
    }
}

void tkv_check_device_storing(tkv_trial *trial)
{
    if (!tkv_check_wants(trial->check, TKV_OPERATION_STORE) &&
        !tkv_check_wants(trial->check, TKV_OPERATION_LOAD)) {
        return;
    }
    if (trial->check->params->mode == TKV_CHECK_ANSWERS) {
        check_answers(trial);
    } else {
        check_mixtures(trial);
        check_edges(trial);
    }
}
