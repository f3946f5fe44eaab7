/* A captured decode step on an NVIDIA GPU: one CUDA graph of all layers' appends and attention, on
 * a stream of the program's own, replayed for every further token. The last outputs are compared
 * with attention by its definition. Ends with 77 where there is no such device. */
#include "example.h"

#include <cuda_runtime_api.h>

enum { N_LAYERS = 4, MAX_TOKENS = 512, N_STEPS = 300, NO_DEVICE = 77 };

static const shape layer_shape = {.n_kv_heads = 2, .n_heads = 8, .head_dim = 128};
enum { KV_ROW = 2 * 128, Q_ROW = 8 * 128 };

/* Everything is in the device's memory; the graph holds these addresses. */
typedef struct step_memory {
    float *k;   /* [N_LAYERS][KV_ROW] */
    float *v;   /* [N_LAYERS][KV_ROW] */
    float *q;   /* [N_LAYERS][Q_ROW] */
    float *out; /* [N_LAYERS][Q_ROW] */
} step_memory;

static void require_cuda(cudaError_t result)
{
    if (result != cudaSuccess) {
        fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(result));
        exit(EXIT_FAILURE);
    }
}

static float *device_floats(tkv_context *context, size_t n)
{
    tkv_error error;
    void *memory = NULL;
    require(tkv_memory_allocate(context, n * sizeof(float), &memory, &error), &error);
    return memory;
}

static tkv_cache *create_cache(tkv_context *context)
{
    tkv_error error;
    tkv_cache *cache = NULL;
    const tkv_type types[N_LAYERS] = {TKV_TYPE_TURBO4, TKV_TYPE_TURBO4, TKV_TYPE_TURBO3,
                                      TKV_TYPE_TURBO3};
    const tkv_cache_params params = {.n_layers = N_LAYERS,
                                     .n_kv_heads = layer_shape.n_kv_heads,
                                     .head_dim_k = layer_shape.head_dim,
                                     .head_dim_v = layer_shape.head_dim,
                                     .max_tokens = MAX_TOKENS,
                                     .types_k = types,
                                     .types_v = types,
                                     .n_sinks = 4,
                                     .n_recent = 16};
    require(tkv_cache_create(context, &params, &cache, &error), &error);
    return cache;
}

/* What is captured. A model's own kernels would stand between these calls, on the same stream. */
static void enqueue_step(tkv_cache *cache, const step_memory *m)
{
    tkv_error error;
    const tkv_attend_params params = {.n_queries = 1,
                                      .n_heads = layer_shape.n_heads,
                                      .first_position = tkv_cache_length(cache, 0)};
    for (int layer = 0; layer < N_LAYERS; layer++) {
        require(
            tkv_cache_append(cache, layer, 1, m->k + layer * KV_ROW, m->v + layer * KV_ROW, &error),
            &error);
        require(
            tkv_attend(cache, layer, &params, m->q + layer * Q_ROW, m->out + layer * Q_ROW, &error),
            &error);
    }
}

static cudaGraphExec_t capture(cudaStream_t stream, tkv_cache *cache, const step_memory *m)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue_step(cache, m);
    require_cuda(cudaStreamEndCapture(stream, &graph));
    require_cuda(cudaGraphInstantiate(&executable, graph, 0));
    require_cuda(cudaGraphDestroy(graph));
    return executable;
}

/* The largest relative error of a layer's output, q as it was uploaded. */
static double check(tkv_context *context, const tkv_cache *cache, const float *q,
                    const step_memory *m)
{
    tkv_error error;
    const int length = tkv_cache_length(cache, 0);
    const size_t n = (size_t)length * KV_ROW;
    float *held = device_floats(context, 2 * n); /* tkv_cache_read writes to the device */
    float *rows = floats(2 * n);
    float *out = floats(N_LAYERS * Q_ROW);
    double largest = 0.0;
    require(tkv_memory_download(context, out, m->out, N_LAYERS * Q_ROW * sizeof *out, &error),
            &error);
    for (int layer = 0; layer < N_LAYERS; layer++) {
        require(tkv_cache_read(cache, layer, 0, length, held, held + n, &error), &error);
        require(tkv_memory_download(context, rows, held, 2 * n * sizeof *rows, &error), &error);
        largest = fmax(largest, compare_with_definition(&layer_shape, length, q + layer * Q_ROW,
                                                        rows, rows + n, out + layer * Q_ROW));
    }
    free(out);
    free(rows);
    tkv_memory_free(context, held);
    return largest;
}

/* N_STEPS tokens: the first step runs as it is, so that workspaces are there, the second is
 * captured, all later ones replay the graph. */
static double decode(tkv_context *context, cudaStream_t stream, tkv_cache *cache,
                     const step_memory *m)
{
    tkv_error error;
    uint64_t seed = 4;
    float k[N_LAYERS * KV_ROW];
    float v[N_LAYERS * KV_ROW];
    float q[N_LAYERS * Q_ROW];
    cudaGraphExec_t graph = NULL;
    for (int step = 0; step < N_STEPS; step++) {
        fill_random(&seed, N_LAYERS * KV_ROW, k);
        fill_random(&seed, N_LAYERS * KV_ROW, v);
        fill_random(&seed, N_LAYERS * Q_ROW, q);
        require(tkv_memory_upload(context, m->k, k, sizeof k, &error), &error);
        require(tkv_memory_upload(context, m->v, v, sizeof v, &error), &error);
        require(tkv_memory_upload(context, m->q, q, sizeof q, &error), &error);
        require(tkv_cache_reserve(cache, 1, 0, &error), &error);
        if (step == 0) {
            enqueue_step(cache, m);
        } else {
            graph = graph ? graph : capture(stream, cache, m);
            require_cuda(cudaGraphLaunch(graph, stream));
        }
        require(tkv_cache_commit(cache, &error), &error);
    }
    require(tkv_context_wait(context, &error), &error);
    require_cuda(cudaGraphExecDestroy(graph));
    return check(context, cache, q, m);
}

int main(void)
{
    tkv_error error;
    tkv_context *context = NULL;
    cudaStream_t stream = NULL;
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("skipped: no CUDA device\n");
        return NO_DEVICE;
    }
    require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const tkv_context_params on_gpu = {.n_threads = 1, .device = "cuda", .stream = stream};
    const tkv_status status = tkv_context_create(&on_gpu, &context, &error);
    if (status == TKV_ERR_UNSUPPORTED) {
        printf("skipped: %s\n", error.message);
        cudaStreamDestroy(stream);
        return NO_DEVICE;
    }
    require(status, &error);
    tkv_cache *cache = create_cache(context);
    const step_memory m = {
        device_floats(context, N_LAYERS * KV_ROW), device_floats(context, N_LAYERS * KV_ROW),
        device_floats(context, N_LAYERS * Q_ROW), device_floats(context, N_LAYERS * Q_ROW)};
    const double difference = decode(context, stream, cache, &m);
    printf("%s: %d tokens, %d of them by replay; relative error of the last outputs %.5f\n",
           tkv_context_device(context), tkv_cache_length(cache, 0), N_STEPS - 1, difference);
    tkv_memory_free(context, m.k);
    tkv_memory_free(context, m.v);
    tkv_memory_free(context, m.q);
    tkv_memory_free(context, m.out);
    tkv_cache_free(cache);
    tkv_context_free(context);
    require_cuda(cudaStreamDestroy(stream));
    return difference < 0.02 ? EXIT_SUCCESS : EXIT_FAILURE;
}
