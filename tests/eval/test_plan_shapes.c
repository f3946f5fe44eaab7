/* Plans of public models' shapes: against the formula, and against caches that hold tokens. */
#include "eval/plan.h"

#include "cache/cache.h"
#include "model_shapes.h"
#include "support/support.h"

static tkv_policy policy_of(const char *text)
{
    tkv_policy policy = {0};
    assert_ok(tkv_policy_parse(text, &policy, &error));
    return policy;
}

static void f16_is_what_the_formula_says(void **state)
{
    (void)state;
    const tkv_policy f16 = policy_of("kv f16");
    for (int i = 0; i < n_model_shapes; i++) {
        const model_shape *shape = &model_shapes[i];
        tkv_geometry g;
        model_shape_read(shape, &g);
        const tkv_plan_params params = {.geometry = &g};
        uint64_t planned = 0;
        assert_ok(tkv_plan_series(&params, &f16, 1, &shape->context_length, &planned, &error));
        const double right = (double)model_shape_f16_bytes(shape);
        if (fabs((double)planned - right) > 0.011 * right) {
            fail_msg("%s: planned %.2f MiB, right %.2f MiB", shape->name, (double)planned / 0x1p20,
                     right / 0x1p20);
        }
        assert_int_equal(g.assumption[0] != '\0', 0);
        tkv_geometry_free(&g);
    }
}

/* Today's sizes of heads in a cache. */
static bool must_be_taken(int head_dim)
{
    return head_dim >= TKV_MIN_HEAD_DIM && head_dim % 16 == 0;
}

/* Bytes of a cache of one layer that holds n_tokens, appended one at a time; 0 if the library does
 * not take the layer's shape. */
static size_t measure(tkv_context *context, const tkv_geometry_layer *layer,
                      const tkv_policy *policy, int n_tokens)
{
    const tkv_cache_params params = {.n_layers = 1,
                                     .n_kv_heads = layer->n_kv_heads,
                                     .head_dim_k = layer->head_dim_k,
                                     .head_dim_v = layer->head_dim_v,
                                     .max_tokens = n_tokens,
                                     .types_k = &policy->type_k,
                                     .types_v = &policy->type_v,
                                     .n_sinks = policy->n_sinks,
                                     .n_recent = policy->n_recent,
                                     .centre_tokens = policy->centre_tokens};
    tkv_error reason = {TKV_OK, ""};
    tkv_cache *cache = NULL;
    if (tkv_cache_create(context, &params, &cache, &reason) != TKV_OK) {
        if (must_be_taken(layer->head_dim_k) && must_be_taken(layer->head_dim_v)) {
            fail_msg("%d and %d coordinates: %s", layer->head_dim_k, layer->head_dim_v,
                     reason.message);
        }
        return 0;
    }
    float *x = allocate((size_t)layer->n_kv_heads * TKV_MAX_HEAD_DIM * sizeof *x);
    uint64_t seed = 5;
    fill_gauss(&seed, (size_t)layer->n_kv_heads * TKV_MAX_HEAD_DIM, x);
    for (int i = 0; i < n_tokens; i++) {
        assert_ok(tkv_cache_append(cache, 0, 1, x, x, &error));
    }
    const size_t bytes = tkv_cache_bytes(cache);
    free(x);
    tkv_cache_free(cache);
    return bytes;
}

/* A cache keeps all tokens that are appended, so windows are left out. True if it was compared. */
static bool compare(tkv_context *context, const char *name, tkv_geometry_layer layer,
                    const tkv_policy *policy, int n_tokens)
{
    tkv_geometry g;
    layer.window = 0;
    layer.compressed.width = 0;
    layer.indexer.width = 0;
    const double measured = (double)measure(context, &layer, policy, n_tokens);
    if (measured == 0.0) {
        return false;
    }
    assert_ok(tkv_geometry_uniform(1, &layer, &g, &error));
    const tkv_plan_params params = {.geometry = &g};
    uint64_t planned = 0;
    assert_ok(tkv_plan_series(&params, policy, 1, &n_tokens, &planned, &error));
    tkv_geometry_free(&g);
    if (fabs((double)planned - measured) > 0.05 * measured) {
        fail_msg("%s, %d heads of %d and %d, %d tokens: planned %llu bytes, a cache takes %.0f",
                 name, layer.n_kv_heads, layer.head_dim_k, layer.head_dim_v, n_tokens,
                 (unsigned long long)planned, measured);
    }
    return true;
}

static bool is_as_before(const tkv_geometry *g, int layer)
{
    const tkv_geometry_layer *a = &g->layers[layer];
    for (int i = 0; i < layer; i++) {
        const tkv_geometry_layer *b = &g->layers[i];
        if (a->n_kv_heads == b->n_kv_heads && a->head_dim_k == b->head_dim_k &&
            a->head_dim_v == b->head_dim_v && a->compressed.width == b->compressed.width &&
            a->indexer.width == b->indexer.width) {
            return true;
        }
    }
    return false;
}

/* Every kind of layer of every shape, and every kind of rows beside, that the library takes. */
static void plans_are_what_caches_take(void **state)
{
    (void)state;
    const tkv_policy policies[] = {policy_of("kv f16"), policy_of("k turbo4 v turbo3"),
                                   policy_of("kv 4bit")};
    const int n_tokens[] = {1000, 640, 500};
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error));
    int n_compared = 0;
    int n_refused = 0;
    for (int i = 0; i < n_model_shapes; i++) {
        tkv_geometry g;
        model_shape_read(&model_shapes[i], &g);
        for (int j = 0; j < g.n_layers; j++) {
            const tkv_geometry_layer *layer = &g.layers[j];
            const tkv_geometry_layer parts[] = {
                *layer,
                {.n_kv_heads = 1, .head_dim_k = layer->compressed.width},
                {.n_kv_heads = 1, .head_dim_k = layer->indexer.width}};
            for (int p = 0; p < 3 && layer->n_kv_heads > 0 && !is_as_before(&g, j); p++) {
                for (int q = 0; q < 3 && parts[p].head_dim_k > 0; q++) {
                    const bool is_compared =
                        compare(context, model_shapes[i].name, parts[p], &policies[q], n_tokens[q]);
                    n_compared += is_compared;
                    n_refused += !is_compared;
                }
            }
        }
        tkv_geometry_free(&g);
    }
    print_message("compared %d caches; the library refused the shape of %d\n", n_compared,
                  n_refused);
    assert_true(n_compared >= 3 * 20);
    tkv_context_free(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(f16_is_what_the_formula_says),
                                       cmocka_unit_test(plans_are_what_caches_take)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
