/* The table of a device: the host (host/) or a GPU, whose pages live in memory of its own. It works
 * on whole layers where the table of kernels.h works on single pages; the bits in the pages are the
 * same.
 *
 * Calls are enqueued on the device's stream and return at once unless they say that they wait; they
 * may be captured in a graph unless they allocate or wait. Those of an immediate device are done
 * when they return. Arguments have been checked by the caller; errors are those of the device
 * (TKV_ERR_DEVICE, with the device's own text) and memory. Functions are never NULL unless they say
 * so. */
#ifndef TKV_DEVICE_DEVICE_H
#define TKV_DEVICE_DEVICE_H

#include "device/device_layout.h"
#include "format/type_table.h"
#include "kernels/kernels.h"
#include "turbokv.h"

typedef struct tkv_device_table tkv_device_table;

/* A back end's own struct begins with this. */
typedef struct tkv_device {
    const tkv_device_table *table;
} tkv_device;

/* What a device is opened with: of a GPU its stream, of the host the rest. */
typedef struct tkv_device_setup {
    void *stream; /* the caller's (CUDA: a cudaStream_t), or NULL for one of the device's own */
    const tkv_kernels *kernels;     /* NULL: the best */
    tkv_threads *threads;           /* NULL: the caller's alone */
    const tkv_allocator *allocator; /* outlives the device; NULL: the C library's */
    bool (*is_stopped)(void *user); /* as in tkv_context_params */
    void *stop_user;
} tkv_device_setup;

/* Attention that was planned once, to be run any number of times. */
typedef struct tkv_attend_plan {
    tkv_device_attend params; /* what was asked for; the addresses alone may change between runs */
    size_t workspace_bytes;
    int way;          /* the back end's: which of its ways it goes */
    uint64_t own[48]; /* likewise, how */
} tkv_attend_plan;

struct tkv_device_table {
    const char *name; /* "cpu", "cuda", "metal" */
    tkv_device_kind kind;

    /* Calls are done when they return, fail for want of memory or when they are stopped, and may
     * come from several threads at a time. */
    bool is_immediate;
    bool has_keys_only; /* layers of head_dim_v 0 */
    int exact_rows;     /* exact blocks have a multiple of so many rows: 64 where making one longer
                           costs more than the memory is worth */

    /* How many devices there are; none is no error. `reason` [size] receives why there is none. */
    int (*count)(char *reason, size_t size);

    /* Opens device `index`; setup NULL: all of it zero. */
    tkv_status (*open)(int index, const tkv_device_setup *setup, tkv_device **device,
                       tkv_error *error);
    void (*close)(tkv_device *device);

    /* For people: "NVIDIA H200, sm_90". Lives as long as the device. */
    const char *(*description)(const tkv_device *device);

    /* The kernels in use. NULL: those that the table's name says. */
    const char *(*kernels)(const tkv_device *device);

    /* What work is enqueued on (CUDA: a cudaStream_t). NULL: nothing that callers could use. */
    void *(*stream)(const tkv_device *device);

    /* Memory: zeroed, aligned to the largest power of two up to 256 that divides `bytes`, and at
     * least to 16. */
    tkv_status (*allocate)(tkv_device *device, size_t bytes, uint64_t *address, tkv_error *error);
    void (*release)(tkv_device *device, uint64_t address);
    /* Memory for one call, aligned to 64 bytes, that may hold anything; it is released like other.
     * NULL: calls come one after the other, so that they can share memory that stays. */
    tkv_status (*borrow)(tkv_device *device, size_t bytes, uint64_t *address, tkv_error *error);
    tkv_status (*upload)(tkv_device *device, uint64_t to, const void *from, size_t bytes,
                         tkv_error *error); /* `from` may be reused at once */
    tkv_status (*download)(tkv_device *device, void *to, uint64_t from, size_t bytes,
                           tkv_error *error); /* waits */
    tkv_status (*copy)(tkv_device *device, uint64_t to, uint64_t from, size_t bytes,
                       tkv_error *error);
    /* Copies 32 bytes (a tkv_device_sequence) from each of n addresses to `to` and on. NULL: the
     * back end has only `copy`. */
    tkv_status (*gather)(tkv_device *device, uint64_t to, const uint64_t *from, int n,
                         tkv_error *error);
    tkv_status (*wait)(tkv_device *device, tkv_error *error); /* until all calls are done */

    /* Index of the first of n floats that is not finite, n if all are. NULL: nobody looks. */
    size_t (*find_non_finite)(tkv_device *device, size_t n, uint64_t x);

    /* tkv_rotate and tkv_unrotate on rows [n_rows][head_dim] in the device's memory. */
    tkv_status (*rotate)(tkv_device *device, int head_dim, size_t n_rows, uint64_t x,
                         bool is_inverse, tkv_error *error);

    /* As tkv_device_rows says: every value is rounded as in x * cosine - y * sine, products first.
     */
    tkv_status (*move_rows)(tkv_device *device, const tkv_device_rows *rows, tkv_error *error);

    /* As tkv_device_join says: a row of `out` is the sum of its parts weighed by the exponentials
     * of their log_sums. */
    tkv_status (*join)(tkv_device *device, const tkv_device_join *join, tkv_error *error);

    /* Writes rows of tokens first .. first+n_tokens-1 of each sequence (first -1: its last
     * n_tokens) into the blocks that its table names: exact ones as f16, coded ones less the means,
     * encoded as the reference does, bit for bit. k
     * [n_sequences][n_tokens][n_kv_heads][head_dim_k], v likewise. NaN and infinity as in
     * tkv_encode_page, unreported. */
    tkv_status (*store)(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                        int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                        tkv_error *error);

    /* Decodes tokens of one sequence, means added: k [n_tokens][n_kv_heads][head_dim_k], v; either
     * may be 0. */
    tkv_status (*load)(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                       int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error);

    /* The same as halves, rounded as f16 pages are. NULL: the back end has no such call. */
    tkv_status (*load_half)(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                            int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error);

    /* Codes tokens first .. first+n_tokens-1 of a sequence, whose blocks are exact, into the blocks
     * that the table of `coded`, another tkv_device_sequence, names in the same places. NULL: it is
     * done by `load` and `store`. */
    tkv_status (*age)(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                      uint64_t coded, int first, int n_tokens, tkv_error *error);

    /* As tkv_attend, in two steps: how, which depends on shapes, options and max_tokens alone, and
     * the doing, in a workspace of plan->workspace_bytes that may hold anything. The error bounds
     * are the table's. */
    tkv_status (*plan)(tkv_device *device, const tkv_device_attend *params, tkv_attend_plan *plan,
                       tkv_error *error);
    tkv_status (*attend)(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                         tkv_error *error);

    /* As in tkv_kernels: how far weights times scales, and queries, are rounded on coded pages. */
    float weight_rounding;
    float query_rounding;
    float query_rounding_fine;
    float exact_rounding; /* of weights and queries on exact pages, each by itself */
};

/* How far a table rounds the queries for a type. */
static inline float tkv_device_query_rounding(const tkv_device_table *table, int type)
{
    switch (tkv_type_rounding(type)) {
    case TKV_ROUNDING_NONE: break;
    case TKV_ROUNDING_COARSE:
    case TKV_ROUNDING_FINE: return table->query_rounding;
    case TKV_ROUNDING_FINEST: return table->query_rounding_fine;
    }
    return 0.0f;
}

/* The host's, which every build has. */
extern const tkv_device_table tkv_device_table_host;

/* The other tables of this build by index from 0; NULL beyond the last. A table may find no device.
 */
const tkv_device_table *tkv_device_tables(int index);

#endif
