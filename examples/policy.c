/* Policies: the presets, a preset changed by words as on the command line, the types that each
 * layer then has, and what a cache with it takes, beside what was predicted. */
#include "example.h"

#include <string.h>

enum { N_LAYERS = 8, N_KV_HEADS = 2, HEAD_DIM = 128, N_TOKENS = 2000 };

static const char changes[] = "kv 3bit            # trellis3, sinks, recent tokens, centring\n"
                              "boundary 2:turbo8  # the first and the last two layers\n"
                              "layers 4:turbo4/turbo3\n"
                              "recent 64\n";

static void print_presets(void)
{
    tkv_error error;
    const char *name;
    for (int i = 0; (name = tkv_policy_preset_name(i)); i++) {
        tkv_policy policy;
        char text[1024];
        require(tkv_policy_preset(name, &policy, &error), &error);
        require(tkv_policy_format(&policy, text, sizeof text, &error), &error);
        printf("%-5s %6.3f bits a value at %d tokens: %s\n", name,
               tkv_policy_bits(&policy, N_LAYERS, N_KV_HEADS, HEAD_DIM, HEAD_DIM, N_TOKENS),
               N_TOKENS, text);
    }
}

/* Fills every layer with the same random tokens; returns the bits a value. */
static double fill(tkv_cache *cache)
{
    tkv_error error;
    const size_t row = N_KV_HEADS * HEAD_DIM;
    float *rows = floats(2 * row);
    uint64_t seed = 2;
    for (int t = 0; t < N_TOKENS; t++) {
        fill_random(&seed, 2 * row, rows);
        for (int layer = 0; layer < N_LAYERS; layer++) {
            require(tkv_cache_append(cache, layer, 1, rows, rows + row, &error), &error);
        }
    }
    free(rows);
    return 8.0 * (double)tkv_cache_bytes(cache) / (2.0 * N_LAYERS * N_TOKENS * row);
}

int main(void)
{
    tkv_error error;
    tkv_policy policy = {0};
    tkv_type types_k[N_LAYERS];
    tkv_type types_v[N_LAYERS];
    print_presets();
    require(tkv_policy_parse(changes, &policy, &error), &error);
    require(tkv_policy_layer_types(&policy, N_LAYERS, types_k, types_v, &error), &error);
    printf("\n%s\n", changes);
    for (int layer = 0; layer < N_LAYERS; layer++) {
        const tkv_type_info *k = tkv_type_get_info(types_k[layer]);
        const tkv_type_info *v = tkv_type_get_info(types_v[layer]);
        printf("layer %d: keys %s, values %s\n", layer, k->name, v->name);
    }

    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    const tkv_context_params fast = {.effort = TKV_EFFORT_FAST}; /* of the trellis encoder */
    const tkv_cache_params params = {.n_layers = N_LAYERS,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = HEAD_DIM,
                                     .head_dim_v = HEAD_DIM,
                                     .max_tokens = N_TOKENS};
    require(tkv_context_create(&fast, &context, &error), &error);
    require(tkv_policy_create_cache(context, &params, &policy, &cache, &error), &error);
    const double predicted =
        tkv_policy_bits(&policy, N_LAYERS, N_KV_HEADS, HEAD_DIM, HEAD_DIM, N_TOKENS);
    const double found = fill(cache);
    printf("bits a value: predicted %.3f, found %.3f\n", predicted, found);
    tkv_cache_free(cache);
    tkv_context_free(context);

    /* A mistake is explained, and the policy stays as it is. */
    const tkv_policy before = policy;
    const bool is_refused = tkv_policy_parse("sinks 8 recent -1", &policy, &error) != TKV_OK;
    printf("refused: %s\n", error.message);
    const bool is_kept = memcmp(&before, &policy, sizeof policy) == 0;
    return is_refused && is_kept && types_k[4] == TKV_TYPE_TURBO4 &&
                   fabs(found - predicted) < 0.05 * predicted
               ? EXIT_SUCCESS
               : EXIT_FAILURE;
}
