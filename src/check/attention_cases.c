/* Questions to layers of a device: types, lengths, options, batches and parts. */
#include "base/random.h"
#include "check/attention.h"

#include <math.h>

/* Asks one question of a layer of its own. */
static void check_one(tkv_trial *trial, const tkv_attention_case *c)
{
    tkv_trial_layer layer;
    if (tkv_trial_is_on(trial)) {
        tkv_trial_create_layer(trial, &c->data, &layer);
        tkv_trial_fill_layer(&layer);
        tkv_check_attention(&layer, c);
        tkv_trial_end(trial);
    }
}

static tkv_attention_case base_case(int type_k, int type_v, int head_dim, uint64_t seed)
{
    return (tkv_attention_case){.data = {.layer = {.type_k = type_k,
                                                   .type_v = type_v,
                                                   .n_kv_heads = 2,
                                                   .head_dim_k = head_dim,
                                                   .head_dim_v = head_dim,
                                                   .effort = TKV_EFFORT_FAST},
                                         .n_sequences = 1,
                                         .n_tokens = {200},
                                         .n_kinds = 1,
                                         .seed = seed},
                                .group = 4,
                                .n_queries = 1,
                                .first_position = -1,
                                .scale = 1.0f / sqrtf((float)head_dim)};
}

/* Every pair of types at the tuned head_dim, every type at the others; exact blocks among coded
 * ones, centred or not. */
static void attention_of_all_types(tkv_trial *trial)
{
    const int n_head_dims = trial->is_small ? 5 : TKV_TRIAL_DIMS;
    for (int k = 0; k < TKV_TYPE_COUNT; k++) {
        for (int v = 0; v < TKV_TYPE_COUNT; v += trial->is_small ? 4 : 1) {
            tkv_attention_case c = base_case(k, v, 128, (uint64_t)(9 * k + v));
            c.data.is_centred = (k + v) % 2;
            c.data.exact_share = v % 3;
            c.n_queries = v % 4 == 3 ? 5 : 1;
            check_one(trial, &c);
        }
        for (int d = 1; d < n_head_dims; d++) {
            tkv_attention_case c = base_case(k, (k + d) % TKV_TYPE_COUNT, tkv_trial_dims[d],
                                             (uint64_t)(1000 + 100 * k + d));
            c.data.layer.head_dim_v = d % 3 == 2 ? tkv_trial_dims[(d + 2) % 7] : tkv_trial_dims[d];
            c.data.n_tokens[0] = 130;
            c.data.exact_share = d % 2;
            c.data.is_centred = k % 2;
            c.n_queries = d % 5 == 4 ? 3 : 1;
            check_one(trial, &c);
        }
    }
}

/* Lengths and query counts around the edges of pages and of the kernels' tiles. */
static void attention_of_all_lengths(tkv_trial *trial)
{
    const int lengths[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300, 1000, 3000};
    const int queries[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 64, 100};
    for (int i = 0; i < 14; i += trial->is_small ? 4 : 1) {
        tkv_attention_case c =
            base_case(TKV_TYPE_TURBO3, TKV_TYPE_TURBO3, 128, (uint64_t)(2000 + i));
        c.data.n_tokens[0] = lengths[i];
        c.data.layer.n_sinks = i % 3 == 0 ? 4 : i % 3 == 1 ? 70 : 0;
        check_one(trial, &c);
        c.max_tokens = 5000;
        c.has_sinks = true;
        check_one(trial, &c);
    }
    for (int i = 0; i < 13; i += trial->is_small ? 4 : 1) {
        tkv_attention_case c = base_case(TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS3, i % 4 == 3 ? 64 : 128,
                                         (uint64_t)(2100 + i));
        c.n_queries = queries[i];
        c.data.n_tokens[0] = queries[i] + 40 * (i % 4);
        c.data.exact_share = i % 2;
        check_one(trial, &c);
        c.first_position = c.data.n_tokens[0] > c.n_queries + 3 ? 3 : 0;
        check_one(trial, &c);
    }
}

static void attention_of_all_groups(tkv_trial *trial)
{
    for (int group = 1; group <= 17; group += trial->is_small ? 5 : 1) {
        tkv_attention_case c = base_case(group % 2 ? TKV_TYPE_TURBO2 : TKV_TYPE_TURBO4Q,
                                         TKV_TYPE_TURBO4, 128, (uint64_t)(2200 + group));
        c.group = group == 17 ? 40 : group;
        c.n_queries = group % 3 ? 1 : 4;
        c.data.layer.n_kv_heads = 1 + group % 2;
        check_one(trial, &c);
    }
}

static void attention_with_all_options(tkv_trial *trial)
{
    const int windows[] = {0, 1, 5, 64, 150, 100000};
    for (int i = 0; i < 24; i += trial->is_small ? 5 : 1) {
        tkv_attention_case c = base_case(i % 2 ? TKV_TYPE_TURBO3 : TKV_TYPE_TRELLIS2,
                                         TKV_TYPE_TURBO3, 128, (uint64_t)(2300 + i));
        c.data.n_tokens[0] = 260;
        c.data.layer.n_sinks = i % 4 == 1 ? 4 : 0;
        c.data.exact_share = i % 3 == 1;
        c.data.is_centred = i % 3 == 2;
        c.n_queries = i % 2 ? 70 : 1;
        c.window = windows[i % 6];
        c.logit_softcap = i / 6 % 2 ? 3.0f : 0.0f;
        c.scale = i % 5 ? c.scale : 0.3f;
        c.has_sinks = i / 12;
        c.sparse_v = i % 4 == 3 ? 0.02f : 0.0f;
        c.has_stats = c.sparse_v > 0.0f;
        c.has_log_sums = i % 2 == i / 12;
        check_one(trial, &c);
    }
}

/* Sequences of different lengths in one call. */
static void attention_of_batches(tkv_trial *trial)
{
    for (int i = 0; i < 12; i += trial->is_small ? 5 : 1) {
        uint64_t seed = (uint64_t)(2400 + i);
        tkv_attention_case c = base_case(1 + i % 8, 1 + i / 2 % 8, i % 3 == 2 ? 64 : 128, seed);
        c.data.n_sequences = 1 + tkv_random_below(&seed, TKV_TRIAL_SEQUENCES);
        c.n_queries = i % 4 == 3 ? 6 : 1;
        for (int s = 0; s < c.data.n_sequences; s++) {
            c.data.n_tokens[s] = c.n_queries + tkv_random_below(&seed, s % 3 ? 200 : 700);
        }
        c.data.layer.n_sinks = i % 2 ? 4 : 0;
        c.data.exact_share = i % 3;
        check_one(trial, &c);
    }
}

/* Values of every kind that is finite: zero, tiny, huge, with outliers. */
static void attention_to_odd_values(tkv_trial *trial)
{
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        for (int i = 0; i < 4; i += trial->is_small ? 3 : 1) {
            tkv_attention_case c = base_case(type, i % 2 ? TKV_TYPE_TURBO3 : type,
                                             i == 2 ? 80 : 128, (uint64_t)(2500 + 10 * type + i));
            c.data.n_value_kinds = TKV_CHECK_FINITE_KINDS;
            c.data.exact_share = i / 2;
            c.n_queries = i == 3 ? 9 : 1;
            check_one(trial, &c);
        }
    }
}

/* A part of a sequence: tokens from a position on, before another one, or both, among what dropped
 * tokens have left; queries also behind the part's end, some of which see nothing through a window.
 */
static void attention_to_parts(tkv_trial *trial)
{
    const int begins[] = {0, 5, 64, 70, 133, 17};
    const int ends[] = {0, 200, 65, 129, 134, 60};
    const int types[][2] = {{TKV_TYPE_TURBO3, TKV_TYPE_TURBO4},
                            {TKV_TYPE_F16, TKV_TYPE_F16},
                            {TKV_TYPE_TURBO4Q, TKV_TYPE_TRELLIS3},
                            {TKV_TYPE_TURBO8, TKV_TYPE_TURBO3Q},
                            {TKV_TYPE_F16, TKV_TYPE_TURBO2}};
    for (int i = 0; i < 60; i += trial->is_small ? 7 : 1) {
        tkv_attention_case c = base_case(types[i % 5][0], types[i % 5][1], i % 3 == 2 ? 64 : 128,
                                         (uint64_t)(2600 + i));
        const bool is_far = i % 10 == 5;
        c.data.n_tokens[0] = 230;
        c.data.begin = begins[i % 6];
        c.data.end = ends[i / 2 % 6] > c.data.begin ? ends[i / 2 % 6] : is_far ? 230 : 0;
        c.data.layer.n_sinks = i % 4 == 1 ? 80 : i % 4 == 2 ? 16 : 0;
        c.data.exact_share = i % 3;
        c.data.is_centred = i % 3 == 1;
        c.n_queries = i % 4 == 0 ? 1 : i % 4 == 3 ? 40 : 9;
        c.first_position = is_far ? 1000 : i % 2 ? 190 : -1;
        c.max_tokens = is_far ? 1040 : 0;
        c.window = i % 7 == 3 ? 40 : i % 7 == 5 ? 150 : 0;
        c.has_sinks = i % 5 == 4;
        c.has_log_sums = i % 8 != 7;
        check_one(trial, &c);
    }
}

/* The parts before and from a position on, joined, are the whole. */
static void attention_to_parts_joined(tkv_trial *trial)
{
    const int splits[] = {1, 37, 64, 100, 128, 199};
    for (int i = 0; i < 24; i += trial->is_small ? 5 : 1) {
        tkv_attention_case c =
            base_case(i % 4 == 3 ? TKV_TYPE_F16 : i % 8, i % 4 == 3 ? TKV_TYPE_F16 : i % 7,
                      i % 3 == 2 ? 80 : 128, (uint64_t)(2700 + i));
        c.split = splits[i % 6];
        c.data.layer.n_sinks = i % 3 == 1 ? 32 : 0;
        c.data.exact_share = i % 3;
        c.data.is_centred = i % 3 == 2;
        c.data.n_sequences = i % 4 == 1 ? 3 : 1;
        c.data.n_tokens[1] = 230;
        c.data.n_tokens[2] = 300;
        c.n_queries = i / 6 % 2 && c.split < 150 ? 50 : 1; /* none before the second part */
        c.window = i % 5 == 4 ? 120 : 0;
        c.has_sinks = i / 12;
        c.has_log_sums = i % 2;
        check_one(trial, &c);
    }
}

/* One query and many, in one call and in two parts. */
static void attention_answer(tkv_trial *trial, int type, int head_dim, int index)
{
    tkv_trial_layer layer;
    tkv_attention_case c =
        base_case(type, type, head_dim, tkv_check_seed(trial->check, 500 + index));
    c.data.layer.n_sinks = 4;
    c.data.n_tokens[0] = 4 + 2 * TKV_PAGE_TOKENS + 19;
    c.data.is_centred = index % 2;
    c.data.exact_share = 1;
    if (!tkv_check_takes_dim(trial->check, head_dim) || !tkv_trial_is_on(trial)) {
        return;
    }
    tkv_trial_create_layer(trial, &c.data, &layer);
    tkv_trial_fill_layer(&layer);
    for (int k = 0; k < 4; k++) {
        c.n_queries = k % 2 ? 21 : 1;
        c.split = k / 2 ? 4 + TKV_PAGE_TOKENS + 23 : 0; /* within a block */
        tkv_check_attention(&layer, &c);
    }
    tkv_trial_end(trial);
}

void tkv_check_device_attention_shape(tkv_trial *trial, tkv_type type, int head_dim)
{
    attention_answer(trial, (int)type, head_dim, 1);
}

/* Every type on every size. */
static void attention_answers(tkv_trial *trial)
{
    for (int i = 0; i < TKV_TYPE_COUNT * TKV_CHECK_DIMS; i++) {
        attention_answer(trial, i % TKV_TYPE_COUNT, tkv_check_dims[i / TKV_TYPE_COUNT], i);
    }
}

void tkv_check_device_attention(tkv_trial *trial)
{
    if (!tkv_check_wants(trial->check, TKV_OPERATION_ATTEND)) {
        return;
    }
    if (trial->check->params->mode == TKV_CHECK_ANSWERS) {
        attention_answers(trial);
        return;
    }
    attention_of_all_types(trial);
    attention_of_all_lengths(trial);
    attention_of_all_groups(trial);
    attention_with_all_options(trial);
    attention_of_batches(trial);
    attention_to_odd_values(trial);
    attention_to_parts(trial);
    attention_to_parts_joined(trial);
}
