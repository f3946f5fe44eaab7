/* Bytes of caches over their length, token by token: no preset ever holds more than f16 does, the
 * curve has no teeth, and what tkv_policy_bits states is what a cache holds. */
#include "cache/cache.h"
#include "support/support.h"

enum { MAX_LENGTH = 2000, MAX_LAYERS = 3 };

typedef struct shape {
    int n_layers;
    int n_kv_heads;
    int head_dim_k;
    int head_dim_v;
} shape;

static const shape shapes[] = {{3, 2, 64, 64}, {1, 8, 128, 128}, {2, 1, 100, 40}, {1, 1, 576, 0}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static tkv_cache *create(tkv_context *context, const shape *s, const tkv_policy *policy)
{
    tkv_type types_k[MAX_LAYERS];
    tkv_type types_v[MAX_LAYERS];
    assert_ok(tkv_policy_layer_types(policy, s->n_layers, types_k, types_v, &error));
    const tkv_cache_params params = {.n_layers = s->n_layers,
                                     .n_kv_heads = s->n_kv_heads,
                                     .head_dim_k = s->head_dim_k,
                                     .head_dim_v = s->head_dim_v,
                                     .max_tokens = MAX_LENGTH,
                                     .types_k = types_k,
                                     .types_v = types_v,
                                     .n_sinks = policy->n_sinks,
                                     .n_recent = policy->n_recent,
                                     .centre_tokens = policy->centre_tokens};
    tkv_cache *cache = NULL;
    assert_ok(tkv_cache_create(context, &params, &cache, &error));
    return cache;
}

/* An exact page of a layer, all heads. */
static size_t exact_page_bytes(const shape *s)
{
    return (size_t)s->n_kv_heads * (tkv_page_bytes(TKV_TYPE_F16, s->head_dim_k) +
                                    tkv_page_bytes(TKV_TYPE_F16, s->head_dim_v));
}

/* Bytes at every length. Bytes do not depend on content, and zeros are coded quickly. */
static void walk(tkv_context *context, const shape *s, const tkv_policy *policy, const char *name,
                 size_t bytes[MAX_LENGTH + 1])
{
    float *zeros = allocate((size_t)(s->n_kv_heads * TKV_MAX_HEAD_DIM) * sizeof *zeros);
    tkv_cache *cache = create(context, s, policy);
    bytes[0] = tkv_cache_bytes(cache);
    size_t before = bytes[0];
    for (int n = 1; n <= MAX_LENGTH; n++) {
        for (int layer = 0; layer < s->n_layers; layer++) {
            assert_ok(tkv_cache_append(cache, layer, 1, zeros, zeros, &error));
            const size_t now = tkv_cache_bytes(cache);
            if (now + exact_page_bytes(s) < before) {
                fail_msg("%s, head_dim %d/%d: falls from %zu to %zu bytes at %d tokens", name,
                         s->head_dim_k, s->head_dim_v, before, now, n);
            }
            before = now;
        }
        bytes[n] = before;
    }
    tkv_cache_free(cache);
    free(zeros);
}

static void check_stated_bits(const shape *s, const tkv_policy *policy, const char *name,
                              const size_t bytes[MAX_LENGTH + 1])
{
    for (int n = 1; n <= MAX_LENGTH; n++) {
        const double values =
            (double)(s->n_layers * s->n_kv_heads) * (s->head_dim_k + s->head_dim_v) * n;
        const double stated =
            tkv_policy_bits(policy, s->n_layers, s->n_kv_heads, s->head_dim_k, s->head_dim_v, n) *
            values / 8.0;
        if (!(fabs(stated - (double)bytes[n]) < 0.5)) {
            fail_msg("%s, head_dim %d/%d, %d tokens: %.1f bytes stated, %zu held", name,
                     s->head_dim_k, s->head_dim_v, n, stated, bytes[n]);
        }
    }
}

static void presets_never_hold_more_than_f16(void **state)
{
    static size_t exact[MAX_LENGTH + 1];
    static size_t bytes[MAX_LENGTH + 1];
    for (int i = 0; i < N_SHAPES; i++) {
        tkv_policy policy;
        assert_ok(tkv_policy_preset("f16", &policy, &error));
        walk(*state, &shapes[i], &policy, "f16", exact);
        const char *name;
        for (int p = 0; (name = tkv_policy_preset_name(p)); p++) {
            assert_ok(tkv_policy_preset(name, &policy, &error));
            walk(*state, &shapes[i], &policy, name, bytes);
            check_stated_bits(&shapes[i], &policy, name, bytes);
            for (int n = 0; n <= MAX_LENGTH; n++) {
                if (bytes[n] > exact[n]) {
                    fail_msg("%s, head_dim %d/%d, %d tokens: %zu bytes, f16 %zu", name,
                             shapes[i].head_dim_k, shapes[i].head_dim_v, n, bytes[n], exact[n]);
                }
            }
            assert_true(policy.type_k == TKV_TYPE_F16 || bytes[MAX_LENGTH] < exact[MAX_LENGTH]);
        }
    }
}

/* Settings that are not a preset's. */
static void stated_bits_are_those_of_a_cache(void **state)
{
    static const char *const texts[] = {
        "k turbo3 v turbo3", "k turbo4 v f16 sinks 70 recent 100", "k f16 v turbo2 centre 33",
        "k turbo4q v trellis2 sinks 1 recent 7 centre 128 boundary 1:turbo8"};
    static size_t bytes[MAX_LENGTH + 1];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (int s = 0; s < N_SHAPES; s++) {
            tkv_policy policy = {0};
            assert_ok(tkv_policy_parse(texts[i], &policy, &error));
            walk(*state, &shapes[s], &policy, texts[i], bytes);
            check_stated_bits(&shapes[s], &policy, texts[i], bytes);
        }
    }
}

/* What is counted of a layer with a window, for plans, is what it takes; its table may have been
 * longer once. */
static void windows_cost_what_is_counted(void **state)
{
    static const char *const texts[] = {"kv f16",
                                        "kv 8bit",
                                        "kv 3bit",
                                        "k turbo4 v turbo2",
                                        "k turbo4 v turbo4 sinks 4 recent 32 centre 200",
                                        "k turbo4 v turbo4 centre 60"};
    static const int windows[] = {1, 40, 128, 300};
    float *zeros = allocate((size_t)(2 * 64) * sizeof *zeros);
    for (int i = 0; i < 6 * 4; i++) {
        const tkv_layer_shape layer = {
            .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 40, .window = windows[i / 6]};
        tkv_policy policy = {0};
        assert_ok(tkv_policy_parse(texts[i % 6], &policy, &error));
        const tkv_cache_params params = {.n_layers = 1,
                                         .max_tokens = MAX_LENGTH,
                                         .types_k = &policy.type_k,
                                         .types_v = &policy.type_v,
                                         .n_sinks = policy.n_sinks,
                                         .n_recent = policy.n_recent,
                                         .centre_tokens = policy.centre_tokens,
                                         .shapes = &layer};
        tkv_cache *cache = NULL;
        assert_ok(tkv_cache_create(*state, &params, &cache, &error));
        for (int n = 1; n <= MAX_LENGTH / 2; n++) {
            assert_ok(tkv_cache_append(cache, 0, 1, zeros, zeros, &error));
            const size_t held = tkv_layer_bytes(&cache->layers[0]);
            const size_t counted =
                tkv_policy_layer_bytes(&policy, policy.type_k, policy.type_v, &layer, n, 1);
            const size_t table = (size_t)cache->layers[0].block_capacity * sizeof(tkv_block *);
            if (counted > held || held > counted + table) {
                fail_msg("%s, window %d, %d tokens: %zu bytes counted, %zu held", texts[i % 6],
                         layer.window, n, counted, held);
            }
        }
        tkv_cache_free(cache);
    }
    free(zeros);
}

static int set_up(void **state)
{
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    *state = context;
    return 0;
}

static int tear_down(void **state)
{
    tkv_context_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(presets_never_hold_more_than_f16),
                                       cmocka_unit_test(stated_bits_are_those_of_a_cache),
                                       cmocka_unit_test(windows_cost_what_is_counted)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
