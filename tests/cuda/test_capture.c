/* A decode step as turbokv.h describes it, on a stream of the caller's: captured once in a graph,
 * replayed at every later length, beside the same steps on the CPU. Needs a CUDA device. */
#include "support/support.h"

#include <cuda_runtime_api.h>

enum { N_LAYERS = 2, N_KV_HEADS = 2, N_HEADS = 8, DIM = 128, MAX_TOKENS = 600, N_STEPS = 250 };
enum { KV_VALUES = N_KV_HEADS * DIM, Q_VALUES = N_HEADS * DIM };

#define assert_cuda(call) assert_int_equal(call, cudaSuccess)

/* One side: the CPU or the device. */
typedef struct side {
    tkv_context *context;
    tkv_cache *cache;
    void *k; /* [N_LAYERS][KV_VALUES], where the context computes */
    void *v;
    void *q;   /* [N_LAYERS][Q_VALUES] */
    void *out; /* likewise */
} side;

static cudaStream_t stream;

static side create_side(const char *device)
{
    const tkv_type types_k[N_LAYERS] = {TKV_TYPE_TURBO4, TKV_TYPE_TRELLIS3};
    const tkv_type types_v[N_LAYERS] = {TKV_TYPE_TURBO3, TKV_TYPE_TRELLIS3};
    const tkv_cache_params params = {.n_layers = N_LAYERS,
                                     .n_kv_heads = N_KV_HEADS,
                                     .head_dim_k = DIM,
                                     .head_dim_v = DIM,
                                     .max_tokens = MAX_TOKENS,
                                     .types_k = types_k,
                                     .types_v = types_v,
                                     .n_sinks = 4,
                                     .n_recent = 16,
                                     .centre_tokens = 32};
    const tkv_context_params context_params = {
        .n_threads = 1, .device = device, .stream = device ? stream : NULL};
    side s = {0};
    assert_ok(tkv_context_create(&context_params, &s.context, &error));
    assert_ok(tkv_cache_create(s.context, &params, &s.cache, &error));
    assert_ok(tkv_memory_allocate(s.context, N_LAYERS * KV_VALUES * sizeof(float), &s.k, &error));
    assert_ok(tkv_memory_allocate(s.context, N_LAYERS * KV_VALUES * sizeof(float), &s.v, &error));
    assert_ok(tkv_memory_allocate(s.context, N_LAYERS * Q_VALUES * sizeof(float), &s.q, &error));
    assert_ok(tkv_memory_allocate(s.context, N_LAYERS * Q_VALUES * sizeof(float), &s.out, &error));
    return s;
}

static void free_side(side *s)
{
    tkv_cache_free(s->cache);
    tkv_memory_free(s->context, s->k);
    tkv_memory_free(s->context, s->v);
    tkv_memory_free(s->context, s->q);
    tkv_memory_free(s->context, s->out);
    tkv_context_free(s->context);
}

static void upload(const side *s, void *to, const float *from, size_t n_values)
{
    assert_ok(tkv_memory_upload(s->context, to, from, n_values * sizeof *from, &error));
}

/* The same random token for both. */
static void upload_token(const side *a, const side *b, uint64_t *seed)
{
    float k[N_LAYERS * KV_VALUES];
    float v[N_LAYERS * KV_VALUES];
    float q[N_LAYERS * Q_VALUES];
    fill_gauss(seed, N_LAYERS * KV_VALUES, k);
    fill_gauss(seed, N_LAYERS * KV_VALUES, v);
    fill_gauss(seed, N_LAYERS * Q_VALUES, q);
    const side *sides[] = {a, b};
    for (int i = 0; i < 2; i++) {
        upload(sides[i], sides[i]->k, k, N_LAYERS * KV_VALUES);
        upload(sides[i], sides[i]->v, v, N_LAYERS * KV_VALUES);
        upload(sides[i], sides[i]->q, q, N_LAYERS * Q_VALUES);
    }
}

/* What a graph holds of a step. */
static tkv_status append_and_attend(const side *s, int position, tkv_error *error)
{
    const tkv_attend_params params = {
        .n_queries = 1, .n_heads = N_HEADS, .first_position = position};
    tkv_status status = TKV_OK;
    for (int i = 0; i < N_LAYERS && status == TKV_OK; i++) {
        status = tkv_cache_append(s->cache, i, 1, (const float *)s->k + i * KV_VALUES,
                                  (const float *)s->v + i * KV_VALUES, error);
        if (status == TKV_OK) {
            status = tkv_attend(s->cache, i, &params, (const float *)s->q + i * Q_VALUES,
                                (float *)s->out + i * Q_VALUES, error);
        }
    }
    return status;
}

static cudaGraphExec_t capture(const side *s, int position)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_ok(append_and_attend(s, position, &error));
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&executable, graph, 0));
    assert_cuda(cudaGraphDestroy(graph));
    return executable;
}

static void assert_same_output(const side *cpu, const side *device, int position)
{
    float expected[N_LAYERS * Q_VALUES];
    float found[N_LAYERS * Q_VALUES];
    assert_ok(tkv_memory_download(cpu->context, expected, cpu->out, sizeof expected, &error));
    assert_ok(tkv_memory_download(device->context, found, device->out, sizeof found, &error));
    const double difference = relative_error(N_LAYERS * Q_VALUES, found, expected);
    if (!(difference < 0.02)) {
        fail_msg("step at %d: relative error %g, expected below 0.02", position, difference);
    }
}

static void graphs_are_replayed_at_every_length(void **state)
{
    (void)state;
    uint64_t seed = 7;
    side cpu = create_side(NULL);
    side device = create_side("cuda");
    cudaGraphExec_t graph = NULL;
    int64_t generation = -1;
    for (int step = 0; step < N_STEPS; step++) {
        const int position = tkv_cache_length(cpu.cache, 0);
        upload_token(&cpu, &device, &seed);
        assert_ok(append_and_attend(&cpu, position, &error));
        assert_ok(tkv_cache_reserve(device.cache, 1, 0, &error));
        if (tkv_cache_generation(device.cache) != generation) {
            generation = tkv_cache_generation(device.cache);
            if (graph) {
                assert_cuda(cudaGraphExecDestroy(graph));
                graph = NULL;
            }
            assert_ok(append_and_attend(&device, position, &error));
        } else {
            graph = graph ? graph : capture(&device, position);
            assert_cuda(cudaGraphLaunch(graph, stream));
        }
        assert_ok(tkv_cache_commit(device.cache, &error));
        assert_same_output(&cpu, &device, position);
        if (step == N_STEPS / 2) {
            assert_ok(tkv_cache_shift(cpu.cache, 10, 50, NULL, &error));
            assert_ok(tkv_cache_shift(device.cache, 10, 50, NULL, &error));
        }
    }
    assert_cuda(cudaGraphExecDestroy(graph));
    free_side(&cpu);
    free_side(&device);
}

/* A first step that is captured would allocate: that is an error, and the cache can go on. */
static void memory_is_not_taken_in_a_graph(void **state)
{
    (void)state;
    uint64_t seed = 8;
    side cpu = create_side(NULL);
    side device = create_side("cuda");
    cudaGraph_t graph = NULL;
    upload_token(&cpu, &device, &seed);
    assert_ok(append_and_attend(&cpu, 0, &error));
    assert_ok(tkv_cache_reserve(device.cache, 1, 0, &error));
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_fails(append_and_attend(&device, 0, &error), TKV_ERR_DEVICE,
                 "while a graph is captured");
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphDestroy(graph));
    assert_ok(append_and_attend(&device, 0, &error));
    assert_ok(tkv_cache_commit(device.cache, &error));
    assert_same_output(&cpu, &device, 0);
    free_side(&cpu);
    free_side(&device);
}

int main(void)
{
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        print_message("skipped: no CUDA device\n");
        return EXIT_SKIPPED;
    }
    assert_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const struct CMUnitTest tests[] = {cmocka_unit_test(graphs_are_replayed_at_every_length),
                                       cmocka_unit_test(memory_is_not_taken_in_a_graph)};
    const int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    cudaStreamDestroy(stream);
    return n_failed;
}
