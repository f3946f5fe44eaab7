/* Policy texts: refused with a message, or a policy that is written and read again as the same, and
 * that a cache takes or refuses. */
#include "fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#define MAX_LAYERS 40
#define HEAD_DIM 64

const int fuzz_runs = 200000;

static const char *const seeds[] = {
    "kv 3bit\nrecent 64 # exact\nsinks=4\n",
    "k turbo4 v turbo3 centre 64 boundary 2:turbo8/f16 sparse-v auto",
    "layers 4-5:turbo4/turbo3 layers 7:trellis2 sparse-v=0.001",
    "--kv 2bit --sinks 4 --recent 64 --boundary 2:turbo8 --sparse-v off"};

size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    if (index >= (int)(sizeof seeds / sizeof *seeds)) {
        return 0;
    }
    const size_t size = strlen(seeds[index]);
    memcpy(data, seeds[index], size);
    return size;
}

/* Text that means the same policy. */
static void check_text(const tkv_policy *policy)
{
    tkv_error error;
    tkv_policy again = {0};
    char text[1024];
    char second[1024];
    if (tkv_policy_format(policy, text, sizeof text, &error) != TKV_OK ||
        tkv_policy_parse(text, &again, &error) != TKV_OK ||
        tkv_policy_format(&again, second, sizeof second, &error) != TKV_OK) {
        fuzz_fail("a policy that was read cannot be written and read: %s", error.message);
    }
    if (strcmp(text, second) != 0) {
        fuzz_fail("'%s' became '%s'", text, second);
    }
}

static void check_use(const tkv_policy *policy)
{
    tkv_error error;
    tkv_type types_k[MAX_LAYERS];
    tkv_type types_v[MAX_LAYERS];
    tkv_context *context = NULL;
    tkv_cache *cache = NULL;
    tkv_status status = tkv_policy_layer_types(policy, MAX_LAYERS, types_k, types_v, &error);
    fuzz_check_error(status, &error);
    if (status != TKV_OK) {
        return;
    }
    for (int i = 0; i < MAX_LAYERS; i++) {
        if ((unsigned)types_k[i] >= TKV_TYPE_COUNT || (unsigned)types_v[i] >= TKV_TYPE_COUNT) {
            fuzz_fail("layer %d has types %d and %d", i, (int)types_k[i], (int)types_v[i]);
        }
    }
    if (tkv_context_create(&(tkv_context_params){.n_threads = 1}, &context, &error) != TKV_OK) {
        fuzz_fail("%s", error.message);
    }
    const tkv_cache_params params = {.n_layers = MAX_LAYERS,
                                     .n_kv_heads = 1,
                                     .head_dim_k = HEAD_DIM,
                                     .head_dim_v = HEAD_DIM,
                                     .max_tokens = 1000,
                                     .types_k = types_k,
                                     .types_v = types_v,
                                     .n_sinks = policy->n_sinks,
                                     .n_recent = policy->n_recent,
                                     .centre_tokens = policy->centre_tokens};
    status = tkv_cache_create(context, &params, &cache, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK &&
        !(tkv_policy_bits(policy, MAX_LAYERS, 1, HEAD_DIM, HEAD_DIM, 1000) > 0.0)) {
        fuzz_fail("a cache without bits");
    }
    tkv_cache_free(cache);
    tkv_context_free(context);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tkv_error error;
    tkv_policy policy = {.n_sinks = 3, .type_v = TKV_TYPE_TURBO2};
    const tkv_policy before = policy;
    char *text = malloc(size + 1);
    if (!text) {
        fuzz_fail("no memory for a text");
    }
    memcpy(text, data, size);
    text[size] = '\0';
    const tkv_status status = tkv_policy_parse(text, &policy, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        check_text(&policy);
        check_use(&policy);
    } else if (memcmp(&policy, &before, sizeof policy) != 0) {
        fuzz_fail("a text that was refused changed the policy");
    }
    free(text);
    return 0;
}
