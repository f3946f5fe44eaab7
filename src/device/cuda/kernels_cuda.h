/* Launches of the CUDA kernels. Arguments are those of the table (device/device.h), already
 * checked. They enqueue on the stream, never allocate or wait, and so may be captured in a graph;
 * what depends on a sequence's length they read from its tkv_device_sequence on the device. They
 * return the first error of their launches. */
#ifndef TKV_DEVICE_CUDA_KERNELS_CUDA_H
#define TKV_DEVICE_CUDA_KERNELS_CUDA_H

#include "device/device.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How far attention rounds on coded pages: weight_rounding and query_rounding of the table. */
#define TKV_CUDA_WEIGHT_ROUNDING 0x1p-8f
#define TKV_CUDA_QUERY_ROUNDING 0x1p-8f
#define TKV_CUDA_QUERY_ROUNDING_FINE 0x1p-14f

/* What the code that the current device runs was compiled for, 80 or newer (__CUDA_ARCH__ / 10):
 * something older than the device where the driver compiles it from PTX. */
cudaError_t tkv_cuda_code_version(int *version);

/* Writes n_bytes of the host's memory, which is free when the call returns. For few KiB. */
cudaError_t tkv_cuda_write(void *to, const void *from, size_t n_bytes, cudaStream_t stream);

/* sequences[i] := *from[i], the addresses being on the host and free when the call returns. */
cudaError_t tkv_cuda_gather(tkv_device_sequence *sequences, const uint64_t *from, int n,
                            cudaStream_t stream);

/* x [n_rows][head_dim] in place. */
cudaError_t tkv_cuda_rotate(int head_dim, size_t n_rows, float *x, bool is_inverse,
                            cudaStream_t stream);

/* Rows to another width, keys turned: tkv_device_rows. */
cudaError_t tkv_cuda_move_rows(const tkv_device_rows *rows, cudaStream_t stream);

/* Outputs over parts of a context joined: tkv_device_join. */
cudaError_t tkv_cuda_join(const tkv_device_join *join, cudaStream_t stream);

/* Tokens first .. first+n_tokens-1 of each sequence (first -1: its last n_tokens): k
 * [n_sequences][n_tokens][n_kv_heads][head_dim_k], v likewise. `sequences` is on the device,
 * `layer` on the host. */
cudaError_t tkv_cuda_store(const tkv_device_layer *layer, const tkv_device_sequence *sequences,
                           int n_sequences, int first, int n_tokens, const float *k, const float *v,
                           cudaStream_t stream);

/* k [n_tokens][n_kv_heads][head_dim_k] and v; either may be NULL. */
cudaError_t tkv_cuda_load(const tkv_device_layer *layer, const tkv_device_sequence *sequence,
                          int first, int n_tokens, float *k, float *v, cudaStream_t stream);

/* The same as halves, rounded as f16 pages are. */
cudaError_t tkv_cuda_load_half(const tkv_device_layer *layer, const tkv_device_sequence *sequence,
                               int first, int n_tokens, uint16_t *k, uint16_t *v,
                               cudaStream_t stream);

/* The CTAs that share a row tile meet through counters, which every launch leaves at zero: memory
 * that is zero at first and belongs to one stream, whatever happens to the workspace. */
#define TKV_CUDA_ATTEND_COUNTER_BYTES ((size_t)64 << 10)

/* Few rows (n_queries * n_heads / n_kv_heads) a KV head: up to 16 in one pass over the pages, more
 * in several. Plans plan->params, for the current device; what it says follows from the shapes and
 * max_tokens alone. */
void tkv_cuda_plan_decode(tkv_attend_plan *plan, int n_multiprocessors);
cudaError_t tkv_cuda_attend_decode(const tkv_attend_plan *plan, uint64_t workspace, void *counters,
                                   cudaStream_t stream);

/* Many rows a KV head, on Hopper: whether there are so many, and the types, head_dims and options
 * are among those that the kernels have; the others go through decode. */
bool tkv_cuda_prefills(const tkv_device_attend *params, int compute_major);
void tkv_cuda_plan_prefill(tkv_attend_plan *plan, int n_multiprocessors);
cudaError_t tkv_cuda_attend_prefill(const tkv_attend_plan *plan, uint64_t workspace,
                                    cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
