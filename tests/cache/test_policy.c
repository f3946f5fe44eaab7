#include "support/support.h"

#include <limits.h>

static tkv_policy parse(const char *text)
{
    tkv_policy policy = {0};
    assert_ok(tkv_policy_parse(text, &policy, &error));
    return policy;
}

static void text_form(void **state)
{
    (void)state;
    tkv_policy p = parse("--sinks 4 --recent 64 --boundary 2:turbo8");
    assert_int_equal(p.n_sinks, 4);
    assert_int_equal(p.n_recent, 64);
    assert_int_equal(p.boundary_layers, 2);
    assert_int_equal(p.boundary_k, TKV_TYPE_TURBO8);
    assert_int_equal(p.boundary_v, TKV_TYPE_TURBO8);
    p = parse("# a policy file\nk = turbo4 v=turbo3\ncentre 128 # and a comment\n"
              "layers 2-3:turbo2/f16 layers 5:turbo8\nsparse-v 0.001\n");
    assert_int_equal(p.type_k, TKV_TYPE_TURBO4);
    assert_int_equal(p.type_v, TKV_TYPE_TURBO3);
    assert_int_equal(p.centre_tokens, 128);
    assert_true(p.sparse_v == 0.001f);
    tkv_type types_k[8];
    tkv_type types_v[8];
    assert_ok(tkv_policy_layer_types(&p, 8, types_k, types_v, &error));
    const tkv_type expected_k[8] = {TKV_TYPE_TURBO4, TKV_TYPE_TURBO4, TKV_TYPE_TURBO2,
                                    TKV_TYPE_TURBO2, TKV_TYPE_TURBO4, TKV_TYPE_TURBO8,
                                    TKV_TYPE_TURBO4, TKV_TYPE_TURBO4};
    assert_memory_equal(types_k, expected_k, sizeof types_k);
    assert_int_equal(types_v[3], TKV_TYPE_F16);
    assert_int_equal(types_v[4], TKV_TYPE_TURBO3);
    p = parse("k turbo3 v turbo3 boundary 1:turbo8/turbo4");
    assert_ok(tkv_policy_layer_types(&p, 4, types_k, types_v, &error));
    assert_int_equal(types_k[0], TKV_TYPE_TURBO8);
    assert_int_equal(types_v[3], TKV_TYPE_TURBO4);
    assert_int_equal(types_k[1], TKV_TYPE_TURBO3);
    p = parse("sinks 9 kv 8bit");
    assert_int_equal(p.type_k, TKV_TYPE_TURBO8);
    assert_int_equal(parse("").n_sinks, 0);
    assert_true(parse("sparse-v auto").sparse_v > 0.0f);
    assert_true(parse("sparse-v auto sparse-v off").sparse_v == 0.0f);
}

/* Formatted and parsed again, every policy is the same. */
static void policies_become_text(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "kv 2bit",
        "k turbo4 v turbo3 sinks 4 recent 64 centre 64 boundary 2:turbo8",
        "kv 3bit layers 2-3:turbo2/f16 layers 5:turbo8 sparse-v 0.0003",
        "sparse-v 0.01234567",
    };
    char text[1024];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const tkv_policy policy = parse(texts[i]);
        assert_ok(tkv_policy_format(&policy, text, sizeof text, &error));
        const tkv_policy again = parse(text);
        assert_memory_equal(&again, &policy, sizeof policy);
    }
    const tkv_policy sparse = parse("sparse-v 0.01"); /* as it was written, though a float */
    assert_ok(tkv_policy_format(&sparse, text, sizeof text, &error));
    assert_string_equal(text, "k=f16 v=f16 sparse-v=0.01");
    const tkv_policy policy = parse("k turbo4 v turbo3 sinks 4");
    assert_ok(tkv_policy_format(&policy, text, sizeof text, &error));
    assert_string_equal(text, "k=turbo4 v=turbo3 sinks=4");
    assert_fails(tkv_policy_format(&policy, text, 25, &error), TKV_ERR_INVALID_ARGUMENT,
                 "25 bytes: expected room for 26");
    assert_fails(tkv_policy_format(NULL, text, 25, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    const struct {
        const char *text;
        const char *message;
    } cases[] = {{"sinks -1", "whole number"},
                 {"sinks 4x", "4x"},
                 {"sinks 99999999999", "from 0 to 2147483647"},
                 {"recent", "no value"},
                 {"colour blue", "expected kv, k, v, sinks"},
                 {"k q4_0", "turbo3"},
                 {"kv 5bit", "8bit"},
                 {"boundary turbo8", "LAYERS:TYPE"},
                 {"boundary 2:x", "turbo8"},
                 {"layers 3-2:turbo8", "first before"},
                 {"layers a:turbo8", "whole number"},
                 {"sparse-v 2", "0 to 1"},
                 {"sparse-v nan", "0 to 1"},
                 {"kv \x1b[2J", "'?[2J'"}}; /* not obeyed by a terminal */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tkv_policy policy = {.n_sinks = 7};
        const tkv_policy before = policy;
        assert_fails(tkv_policy_parse(cases[i].text, &policy, &error), TKV_ERR_INVALID_ARGUMENT,
                     cases[i].message);
        assert_memory_equal(&policy, &before, sizeof policy);
    }
    tkv_policy p = parse("layers 7-9:turbo2");
    tkv_type types[8];
    assert_fails(tkv_policy_layer_types(&p, 8, types, types, &error), TKV_ERR_INVALID_ARGUMENT,
                 "layers 0 to 7");
    p.ranges[0] = (tkv_layer_range){.first = -3, .last = 2};
    assert_fails(tkv_policy_layer_types(&p, 8, types, types, &error), TKV_ERR_INVALID_ARGUMENT,
                 "layers -3-2");
    p.n_ranges = TKV_POLICY_MAX_RANGES + 1;
    assert_fails(tkv_policy_layer_types(&p, 8, types, types, &error), TKV_ERR_INVALID_ARGUMENT,
                 "layer ranges");
}

/* The stated bits are those of a real cache, filled token by token. */
static void bits_match_a_real_cache(void **state)
{
    (void)state;
    const char *const texts[] = {"k f16 v f16", "k turbo3 v turbo3", "k turbo4 v turbo2 sinks 4",
                                 "k turbo3 v turbo3 sinks 70 recent 100 centre 128",
                                 "k turbo2 v turbo2 recent 64 boundary 1:turbo8"};
    enum { N_LAYERS = 3, N_KV_HEADS = 2, DIM_K = 96, DIM_V = 64, N = 1000 };
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    float *x = allocate(N_KV_HEADS * DIM_K * sizeof *x);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const tkv_policy p = parse(texts[i]);
        tkv_type types_k[N_LAYERS];
        tkv_type types_v[N_LAYERS];
        assert_ok(tkv_policy_layer_types(&p, N_LAYERS, types_k, types_v, &error));
        const tkv_cache_params params = {.n_layers = N_LAYERS,
                                         .n_kv_heads = N_KV_HEADS,
                                         .head_dim_k = DIM_K,
                                         .head_dim_v = DIM_V,
                                         .max_tokens = N,
                                         .types_k = types_k,
                                         .types_v = types_v,
                                         .n_sinks = p.n_sinks,
                                         .n_recent = p.n_recent,
                                         .centre_tokens = p.centre_tokens};
        tkv_cache *cache = NULL;
        assert_ok(tkv_cache_create(context, &params, &cache, &error));
        for (int n = 1; n <= N; n++) {
            for (int layer = 0; layer < N_LAYERS; layer++) {
                assert_ok(tkv_cache_append(cache, layer, 1, x, x, &error));
            }
            if (n % 111 == 0 || n == N) {
                const double values = (double)N_LAYERS * N_KV_HEADS * (DIM_K + DIM_V) * n;
                const double real = 8.0 * (double)tkv_cache_bytes(cache) / values;
                const double stated = tkv_policy_bits(&p, N_LAYERS, N_KV_HEADS, DIM_K, DIM_V, n);
                assert_true(fabs(stated - real) < 0.01 * real);
            }
        }
        tkv_cache_free(cache);
    }
    free(x);
    tkv_context_free(context);
    assert_true(tkv_policy_bits(NULL, 1, 1, 64, 64, 1) == 0.0);
}

/* A program may fill a policy in itself, and wrongly. */
static void policies_of_programs_are_checked(void **state)
{
    (void)state;
    tkv_policy wrong[12];
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        wrong[i] = parse("kv 3bit boundary 2:turbo8 layers 0-1:turbo4 sparse-v 0.5");
    }
    wrong[0].type_k = TKV_TYPE_COUNT;
    wrong[1].boundary_v = (tkv_type)77;
    wrong[2].ranges[0].type_k = (tkv_type)-1;
    wrong[3].n_sinks = -5;
    wrong[4].n_recent = -1;
    wrong[5].centre_tokens = INT_MIN;
    wrong[6].boundary_layers = INT_MIN;
    wrong[7].ranges[0].first = -4;
    wrong[8].ranges[0].last = -1;
    wrong[9].n_ranges = TKV_POLICY_MAX_RANGES + 1;
    wrong[10].n_ranges = -1;
    wrong[11].sparse_v = NAN;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        tkv_type types[2][4];
        char text[1024];
        assert_fails(tkv_policy_layer_types(&wrong[i], 4, types[0], types[1], &error),
                     TKV_ERR_INVALID_ARGUMENT, "policy: ");
        assert_fails(tkv_policy_format(&wrong[i], text, sizeof text, &error),
                     TKV_ERR_INVALID_ARGUMENT, "policy: ");
        assert_true(tkv_policy_bits(&wrong[i], 4, 2, 64, 64, 100) == 0.0);
    }
}

static void what_no_cache_can_be_has_no_bits(void **state)
{
    (void)state;
    const tkv_policy good = parse("k turbo4 v turbo3 sinks 4 recent 32 centre 64");
    assert_true(tkv_policy_bits(&good, 2, 2, 64, 64, 100) > 3.0);
    tkv_policy wrong = good;
    wrong.type_k = (tkv_type)77;
    assert_true(tkv_policy_bits(&wrong, 2, 2, 64, 64, 100) == 0.0);
    wrong = good;
    wrong.type_v = (tkv_type)-1;
    assert_true(tkv_policy_bits(&wrong, 2, 2, 64, 64, 100) == 0.0);
    wrong = parse("boundary 1:turbo8");
    wrong.boundary_v = TKV_TYPE_COUNT;
    assert_true(tkv_policy_bits(&wrong, 2, 2, 64, 64, 100) == 0.0);
    wrong = parse("layers 1:turbo8");
    wrong.ranges[0].type_k = (tkv_type)77;
    assert_true(tkv_policy_bits(&wrong, 2, 2, 64, 64, 100) == 0.0);
    wrong = parse("layers 2:turbo8");
    assert_true(tkv_policy_bits(&wrong, 2, 2, 64, 64, 100) == 0.0);
    int *const counts[] = {&wrong.n_sinks,         &wrong.n_recent, &wrong.centre_tokens,
                           &wrong.boundary_layers, &wrong.n_ranges, &wrong.ranges[0].first};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        wrong = parse("layers 1:turbo8");
        *counts[i] = -1;
        assert_true(tkv_policy_bits(&wrong, 2, 2, 64, 64, 100) == 0.0);
    }
    const int shapes[][5] = {
        {2, 2, 65, 64, 100},    {2, 2, 64, 65, 100},       {2, 2, 0, 64, 100},
        {2, 2, -64, 64, 100},   {2, 2, 64, -64, 100},      {2, 2, 1026, 64, 100},
        {2, 2, 64, 1040, 100},  {0, 2, 64, 64, 100},       {-1, 2, 64, 64, 100},
        {2, 0, 64, 64, 100},    {2, INT_MAX, 64, 64, 100}, {2, 2, 64, 64, 0},
        {2, 2, 64, 64, INT_MIN}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int *s = shapes[i];
        assert_true(tkv_policy_bits(&good, s[0], s[1], s[2], s[3], s[4]) == 0.0);
    }
}

/* As many layers or tokens as can be said cost no time, and no more a value than a few. */
static void alike_layers_are_counted_once(void **state)
{
    (void)state;
    const tkv_policy p = parse("kv 3bit boundary 1000:turbo8 layers 5-9:f16 layers 7-800:turbo2");
    const tkv_policy middle = parse("kv 3bit");
    const double few = tkv_policy_bits(&middle, 3, 2, 64, 64, 10000);
    const double many = tkv_policy_bits(&p, INT_MAX, 2, 64, 64, 10000);
    assert_true(fabs(many - few) < 0.001 * few);
    assert_true(fabs(tkv_policy_bits(&p, INT_MAX, 2, 64, 64, INT_MAX) -
                     tkv_bits_per_value(TKV_TYPE_TRELLIS3, 64)) < 0.2);
    /* Where the types change within the layers, as the layers one by one. */
    const tkv_policy mixed =
        parse("k turbo2 v turbo3 boundary 2:turbo8/f16 layers 1-4:turbo4 layers 3:f16");
    tkv_type types[2][7];
    assert_ok(tkv_policy_layer_types(&mixed, 7, types[0], types[1], &error));
    double sum = 0.0;
    for (int i = 0; i < 7; i++) {
        const tkv_policy alone = {.type_k = types[0][i], .type_v = types[1][i]};
        sum += tkv_policy_bits(&alone, 1, 2, 64, 64, 100000);
    }
    const double together = tkv_policy_bits(&mixed, 7, 2, 64, 64, 100000);
    assert_true(fabs(together - sum / 7.0) < 1e-3 * together);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(text_form),
                                       cmocka_unit_test(policies_become_text),
                                       cmocka_unit_test(mistakes_are_explained),
                                       cmocka_unit_test(policies_of_programs_are_checked),
                                       cmocka_unit_test(bits_match_a_real_cache),
                                       cmocka_unit_test(what_no_cache_can_be_has_no_bits),
                                       cmocka_unit_test(alike_layers_are_counted_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
