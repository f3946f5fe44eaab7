/* The table of NVIDIA GPUs. Everything is enqueued on one stream; memory comes from a pool whose
 * allocations and releases are ordered in that stream too, so that nothing here waits but what says
 * so. */
#include "device/cuda/device_cuda.h"

#include "base/error.h"
#include "device/cuda/kernels_cuda.h"

#include <stdio.h>
#include <stdlib.h>

/* Larger uploads go through the driver, and wait. */
#define MAX_SMALL_UPLOAD ((size_t)16 << 10)

/* Ampere. */
#define MIN_COMPUTE_CAPABILITY 80

typedef struct cuda_device {
    tkv_device base;
    int index;
    cudaStream_t stream;
    bool owns_stream;
    cudaMemPool_t pool;
    void *counters; /* of attention: see kernels_cuda.h */
    int n_multiprocessors;
    int compute_major;
    char description[320];
} cuda_device;

tkv_cuda_current tkv_cuda_enter(const tkv_device *device)
{
    tkv_cuda_current current = {.index = ((const cuda_device *)device)->index};
    if (cudaGetDevice(&current.previous) != cudaSuccess) {
        current.previous = current.index;
    }
    if (current.previous != current.index) {
        cudaSetDevice(current.index);
    }
    return current;
}

void tkv_cuda_leave(tkv_cuda_current current)
{
    if (current.previous != current.index) {
        cudaSetDevice(current.previous);
    }
}

cudaStream_t tkv_cuda_stream(const tkv_device *device)
{
    return ((const cuda_device *)device)->stream;
}

tkv_status tkv_cuda_check(cudaError_t result, const char *what, tkv_error *error)
{
    if (result == cudaSuccess) {
        return TKV_OK;
    }
    cudaGetLastError(); /* errors that do not last are forgotten */
    return tkv_fail(
        error, result == cudaErrorMemoryAllocation ? TKV_ERR_OUT_OF_MEMORY : TKV_ERR_DEVICE,
        "CUDA, %s: %s (%s)", what, cudaGetErrorString(result), cudaGetErrorName(result));
}

/* Ends a call. */
static tkv_status finish(tkv_cuda_current current, cudaError_t result, const char *what,
                         tkv_error *error)
{
    const tkv_status status = tkv_cuda_check(result, what, error);
    tkv_cuda_leave(current);
    return status;
}

static int count(char *reason, size_t size)
{
    int n_devices = 0;
    const cudaError_t result = cudaGetDeviceCount(&n_devices);
    if (result != cudaSuccess) {
        cudaGetLastError();
        snprintf(reason, size, "%s", cudaGetErrorString(result));
        return 0;
    }
    if (n_devices == 0) {
        snprintf(reason, size, "the driver lists none");
    }
    return n_devices;
}

static tkv_status create_pool(cuda_device *device, tkv_error *error)
{
    const struct cudaMemPoolProps props = {
        .allocType = cudaMemAllocationTypePinned,
        .location = {.type = cudaMemLocationTypeDevice, .id = device->index}};
    tkv_status status =
        tkv_cuda_check(cudaMemPoolCreate(&device->pool, &props), "creating a memory pool", error);
    if (status == TKV_OK) {
        /* What is released stays with us: pages come and go. */
        uint64_t threshold = UINT64_MAX;
        status = tkv_cuda_check(
            cudaMemPoolSetAttribute(device->pool, cudaMemPoolAttrReleaseThreshold, &threshold),
            "setting up a memory pool", error);
    }
    return status;
}

static tkv_status create_counters(cuda_device *device, tkv_error *error)
{
    tkv_status status = tkv_cuda_check(cudaMalloc(&device->counters, TKV_CUDA_ATTEND_COUNTER_BYTES),
                                       "allocating counters", error);
    if (status == TKV_OK) {
        status = tkv_cuda_check(
            cudaMemsetAsync(device->counters, 0, TKV_CUDA_ATTEND_COUNTER_BYTES, device->stream),
            "clearing counters", error);
    }
    return status;
}

static tkv_status read_properties(cuda_device *device, tkv_error *error)
{
    struct cudaDeviceProp properties;
    const tkv_status status = tkv_cuda_check(cudaGetDeviceProperties(&properties, device->index),
                                             "reading a device's properties", error);
    if (status != TKV_OK) {
        return status;
    }
    const int capability = 10 * properties.major + properties.minor;
    device->n_multiprocessors = properties.multiProcessorCount;
    device->compute_major = properties.major;
    snprintf(device->description, sizeof device->description, "%s, sm_%d", properties.name,
             capability);
    if (capability < MIN_COMPUTE_CAPABILITY) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "CUDA device %d is a %s: expected sm_%d or newer", device->index,
                        device->description, MIN_COMPUTE_CAPABILITY);
    }
    int version;
    return tkv_cuda_check(tkv_cuda_code_version(&version), "looking for code for the device",
                          error);
}

static void close_device(tkv_device *base)
{
    cuda_device *device = (cuda_device *)base;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    if (device->stream) {
        cudaStreamSynchronize(device->stream);
    }
    cudaFree(device->counters);
    if (device->pool) {
        cudaMemPoolDestroy(device->pool);
    }
    if (device->owns_stream) {
        cudaStreamDestroy(device->stream);
    }
    tkv_cuda_leave(current);
    free(device);
}

static tkv_status open_device(int index, const tkv_device_setup *setup, tkv_device **device,
                              tkv_error *error)
{
    void *stream = setup ? setup->stream : NULL;
    cuda_device *created = calloc(1, sizeof *created);
    if (!created) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for a device (%zu bytes)",
                        sizeof *created);
    }
    created->base.table = &tkv_device_table_cuda;
    created->index = index;
    created->stream = stream;
    const tkv_cuda_current current = tkv_cuda_enter(&created->base);
    tkv_status status = read_properties(created, error);
    if (status == TKV_OK && !stream) {
        status = tkv_cuda_check(cudaStreamCreateWithFlags(&created->stream, cudaStreamNonBlocking),
                                "creating a stream", error);
        created->owns_stream = status == TKV_OK;
    }
    if (status == TKV_OK) {
        status = create_pool(created, error);
    }
    if (status == TKV_OK) {
        status = create_counters(created, error);
    }
    tkv_cuda_leave(current);
    if (status != TKV_OK) {
        close_device(&created->base);
        return status;
    }
    *device = &created->base;
    return TKV_OK;
}

static const char *description(const tkv_device *device)
{
    return ((const cuda_device *)device)->description;
}

/* For what a graph cannot hold, or would hold with the values of now. */
static tkv_status check_not_capturing(const cuda_device *device, const char *what, tkv_error *error)
{
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    const tkv_status status =
        tkv_cuda_check(cudaStreamIsCapturing(device->stream, &capture), what, error);
    if (status == TKV_OK && capture != cudaStreamCaptureStatusNone) {
        return tkv_fail(error, TKV_ERR_DEVICE,
                        "CUDA, %s while a graph is captured: expected it before "
                        "(tkv_cache_reserve, and one step that is not captured)",
                        what);
    }
    return status;
}

static tkv_status allocate(tkv_device *base, size_t bytes, uint64_t *address, tkv_error *error)
{
    const cuda_device *device = (cuda_device *)base;
    tkv_status status = check_not_capturing(device, "allocating memory", error);
    if (status != TKV_OK) {
        return status;
    }
    void *memory = NULL;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    cudaError_t result = cudaMallocFromPoolAsync(&memory, bytes, device->pool, device->stream);
    if (result == cudaSuccess) {
        result = cudaMemsetAsync(memory, 0, bytes, device->stream);
        if (result != cudaSuccess) {
            cudaFreeAsync(memory, device->stream);
        }
    }
    tkv_cuda_leave(current);
    if (result == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for %zu bytes on the %s", bytes,
                        device->description);
    }
    *address = (uint64_t)(uintptr_t)memory;
    return tkv_cuda_check(result, "allocating memory", error);
}

static void *pointer_to(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

static void release(tkv_device *base, uint64_t address)
{
    const cuda_device *device = (cuda_device *)base;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    cudaFreeAsync(pointer_to(address), device->stream);
    tkv_cuda_leave(current);
}

static tkv_status upload(tkv_device *base, uint64_t to, const void *from, size_t bytes,
                         tkv_error *error)
{
    const cuda_device *device = (cuda_device *)base;
    const tkv_status status = check_not_capturing(device, "uploading", error);
    if (status != TKV_OK) {
        return status;
    }
    const tkv_cuda_current current = tkv_cuda_enter(base);
    cudaError_t result;
    if (bytes <= MAX_SMALL_UPLOAD) {
        result = tkv_cuda_write(pointer_to(to), from, bytes, device->stream);
    } else {
        result =
            cudaMemcpyAsync(pointer_to(to), from, bytes, cudaMemcpyHostToDevice, device->stream);
        /* `from` may be page-locked, and is then read later. */
        result = result == cudaSuccess ? cudaStreamSynchronize(device->stream) : result;
    }
    return finish(current, result, "uploading", error);
}

static tkv_status download(tkv_device *base, void *to, uint64_t from, size_t bytes,
                           tkv_error *error)
{
    const cuda_device *device = (cuda_device *)base;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    cudaError_t result =
        cudaMemcpyAsync(to, pointer_to(from), bytes, cudaMemcpyDeviceToHost, device->stream);
    result = result == cudaSuccess ? cudaStreamSynchronize(device->stream) : result;
    return finish(current, result, "downloading", error);
}

static tkv_status copy(tkv_device *base, uint64_t to, uint64_t from, size_t bytes, tkv_error *error)
{
    const cuda_device *device = (cuda_device *)base;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current,
                  cudaMemcpyAsync(pointer_to(to), pointer_to(from), bytes, cudaMemcpyDeviceToDevice,
                                  device->stream),
                  "copying", error);
}

static tkv_status gather(tkv_device *base, uint64_t to, const uint64_t *from, int n,
                         tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current, tkv_cuda_gather(pointer_to(to), from, n, ((cuda_device *)base)->stream),
                  "gathering descriptors", error);
}

static tkv_status wait_for_device(tkv_device *base, tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current, cudaStreamSynchronize(((cuda_device *)base)->stream), "waiting", error);
}

static tkv_status rotate(tkv_device *base, int head_dim, size_t n_rows, uint64_t x, bool is_inverse,
                         tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(
        current,
        tkv_cuda_rotate(head_dim, n_rows, pointer_to(x), is_inverse, ((cuda_device *)base)->stream),
        "rotating", error);
}

static tkv_status move_rows(tkv_device *base, const tkv_device_rows *rows, tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current, tkv_cuda_move_rows(rows, ((cuda_device *)base)->stream), "moving rows",
                  error);
}

static tkv_status join(tkv_device *base, const tkv_device_join *parts, tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current, tkv_cuda_join(parts, ((cuda_device *)base)->stream),
                  "joining parts of attention", error);
}

static tkv_status store(tkv_device *base, const tkv_device_layer *layer, uint64_t sequences,
                        int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                        tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current,
                  tkv_cuda_store(layer, pointer_to(sequences), n_sequences, first, n_tokens,
                                 pointer_to(k), pointer_to(v), ((cuda_device *)base)->stream),
                  "storing rows", error);
}

static tkv_status load(tkv_device *base, const tkv_device_layer *layer, uint64_t sequence,
                       int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current,
                  tkv_cuda_load(layer, pointer_to(sequence), first, n_tokens, pointer_to(k),
                                pointer_to(v), ((cuda_device *)base)->stream),
                  "loading rows", error);
}

static tkv_status load_half(tkv_device *base, const tkv_device_layer *layer, uint64_t sequence,
                            int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error)
{
    const tkv_cuda_current current = tkv_cuda_enter(base);
    return finish(current,
                  tkv_cuda_load_half(layer, pointer_to(sequence), first, n_tokens, pointer_to(k),
                                     pointer_to(v), ((cuda_device *)base)->stream),
                  "loading rows", error);
}

/* The ways of a plan. */
enum { WAY_DECODE, WAY_PREFILL };

static tkv_status plan_attention(tkv_device *base, const tkv_device_attend *params,
                                 tkv_attend_plan *plan, tkv_error *error)
{
    (void)error;
    const cuda_device *device = (const cuda_device *)base;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    plan->params = *params;
    plan->way = tkv_cuda_prefills(params, device->compute_major) ? WAY_PREFILL : WAY_DECODE;
    if (plan->way == WAY_PREFILL) {
        tkv_cuda_plan_prefill(plan, device->n_multiprocessors);
    } else {
        tkv_cuda_plan_decode(plan, device->n_multiprocessors);
    }
    tkv_cuda_leave(current);
    return TKV_OK;
}

static tkv_status attend(tkv_device *base, const tkv_attend_plan *plan, uint64_t workspace,
                         tkv_error *error)
{
    const cuda_device *device = (cuda_device *)base;
    const tkv_cuda_current current = tkv_cuda_enter(base);
    const cudaError_t result =
        plan->way == WAY_PREFILL
            ? tkv_cuda_attend_prefill(plan, workspace, device->stream)
            : tkv_cuda_attend_decode(plan, workspace, device->counters, device->stream);
    return finish(current, result, "attending", error);
}

static void *stream_of(const tkv_device *device)
{
    return tkv_cuda_stream(device);
}

const tkv_device_table tkv_device_table_cuda = {
    .name = "cuda",
    .kind = TKV_DEVICE_CUDA,
    .exact_rows = TKV_PAGE_TOKENS,
    .count = count,
    .open = open_device,
    .close = close_device,
    .description = description,
    .stream = stream_of,
    .allocate = allocate,
    .release = release,
    .upload = upload,
    .download = download,
    .copy = copy,
    .gather = gather,
    .wait = wait_for_device,
    .rotate = rotate,
    .move_rows = move_rows,
    .join = join,
    .store = store,
    .load = load,
    .load_half = load_half,
    .plan = plan_attention,
    .attend = attend,
    .weight_rounding = TKV_CUDA_WEIGHT_ROUNDING,
    .query_rounding = TKV_CUDA_QUERY_ROUNDING,
    .query_rounding_fine = TKV_CUDA_QUERY_ROUNDING_FINE,
    .exact_rounding = 0x1p-11f, /* halves, where there are many queries */
};
