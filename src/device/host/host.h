/* The inside of the host's device: layers over the kernels of pages (kernels/kernels.h), in the
 * process's own memory. Addresses are pointers; calls are done when they return. */
#ifndef TKV_DEVICE_HOST_HOST_H
#define TKV_DEVICE_HOST_HOST_H

#include "device/device.h"
#include "device/geometry.h"
#include "kernels/kernels.h"

/* Rows that are copied at a time where they cannot be read or written in place. */
#define TKV_HOST_CHUNK_ROWS 16

typedef struct tkv_host_device {
    tkv_device base;
    tkv_device_setup setup;
} tkv_host_device;

static inline const tkv_host_device *tkv_host_of(const tkv_device *device)
{
    return (const tkv_host_device *)(const void *)device;
}

static inline void *tkv_host_pointer(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

static inline bool tkv_host_is_stopped(const tkv_host_device *device)
{
    return device->setup.is_stopped && device->setup.is_stopped(device->setup.stop_user);
}

/* ---- Pages ---- */

/* A layer with what is asked for at every page of it. */
typedef struct tkv_host_layer {
    tkv_device_layer of;
    size_t coded_bytes[2]; /* of a coded page, by tkv_page_order */
} tkv_host_layer;

tkv_host_layer tkv_host_layer_of(const tkv_device_layer *layer);

static inline int tkv_host_head_dim(const tkv_host_layer *layer, tkv_page_order order)
{
    return order == TKV_ORDER_KEY ? layer->of.head_dim_k : layer->of.head_dim_v;
}

/* Pages of a KV head in a block: keys and values, or keys only. */
static inline int tkv_host_orders(const tkv_host_layer *layer)
{
    return layer->of.head_dim_v ? 2 : 1;
}

static inline tkv_type tkv_host_page_type(const tkv_host_layer *layer,
                                          const tkv_device_block *block, tkv_page_order order)
{
    if (block->is_exact) {
        return TKV_TYPE_F16;
    }
    return (tkv_type)(order == TKV_ORDER_KEY ? layer->of.type_k : layer->of.type_v);
}

static inline size_t tkv_host_page_bytes(const tkv_host_layer *layer, const tkv_device_block *block,
                                         tkv_page_order order)
{
    return block->is_exact ? tkv_stored_page_bytes(TKV_TYPE_F16, tkv_host_head_dim(layer, order),
                                                   block->n_slots)
                           : layer->coded_bytes[order];
}

static inline uint8_t *tkv_host_page(const tkv_host_layer *layer, const tkv_device_block *block,
                                     int kv_head, tkv_page_order order)
{
    return (uint8_t *)tkv_host_pointer(block->pages) +
           tkv_page_offset(kv_head, order == TKV_ORDER_VALUE,
                           tkv_host_page_bytes(layer, block, TKV_ORDER_KEY),
                           tkv_host_page_bytes(layer, block, TKV_ORDER_VALUE));
}

/* Slots of one page of a sequence. */
typedef struct tkv_host_span {
    const tkv_device_sequence *sequence;
    const tkv_device_block *block;
    int kv_head;
    tkv_page_order order;
    int first_slot;
    int n_rows;
} tkv_host_span;

/* Writes rows x + i * stride into the slots, less the mean if the page is coded and there is one;
 * and reads them, the mean added. */
void tkv_host_encode(const tkv_host_device *device, const tkv_host_layer *layer,
                     const tkv_host_span *span, const float *x, size_t stride);
void tkv_host_decode(const tkv_host_device *device, const tkv_host_layer *layer,
                     const tkv_host_span *span, float *x, size_t stride);

/* ---- Tokens of sequences, page by page ---- */

typedef struct tkv_host_tokens {
    const tkv_host_device *device;
    tkv_host_layer layer;
    const tkv_device_sequence *sequences;
    int n_sequences;
    int first; /* place; -1: the last n_tokens */
    int n_tokens;
    float *x[2]; /* by tkv_page_order: [sequence][token][n_kv_heads][head_dim] */
    const tkv_device_sequence *coded; /* NULL, or where their pages are coded, which takes long */
} tkv_host_tokens;

/* Works on the tokens of one page, whose rows begin at x, if there are any, and follow each other
 * by `stride`. */
typedef void (*tkv_host_page_work)(const tkv_host_tokens *tokens, const tkv_host_span *span,
                                   float *x, size_t stride);

/* Does so for all pages that tokens lie in, on the device's threads if it is worth it. */
void tkv_host_for_pages(const tkv_host_tokens *tokens, tkv_host_page_work work);

/* ---- Attention ---- */

/* A plan's own part. Work is cut into (KV head, tile of query rows, split of the context), each
 * computed independently with an online softmax, then the splits are merged. A row is one query
 * head of one query token; the rows of a group share every unpacked page. */
typedef struct tkv_host_plan {
    int group;        /* query heads a KV head */
    int tile_queries; /* query tokens a tile */
    int tile_rows;    /* rows a full tile */
    int n_tiles;
    int n_splits;
    int n_threads;
    int n_value_dims;  /* of a row of out */
    int sum_dim;       /* of a row of sums */
    size_t sum_floats; /* of a full tile */
    /* In the workspace, after the sums: */
    size_t stats_at;         /* of items: float [n_items][N_STATES][2][tile_rows] */
    size_t thread_counts_at; /* tkv_attend_stats [n_threads] */
    size_t scratch_at;       /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
} tkv_host_plan;

/* Coded and exact blocks lie in different domains, so each kind has its own online softmax and
 * sums; the merge joins them like two splits. */
enum { TKV_HOST_CODED = 0, TKV_HOST_EXACT = 1, TKV_HOST_STATES = 2 };

/* Buffers of one thread. */
typedef struct tkv_host_scratch {
    float *queries;                  /* [tile_rows][head_dim_k] */
    void *prepared[TKV_HOST_STATES]; /* queries in the kernels' form */
    float *bias;                     /* [tile_rows] query times the mean of the keys */
    float *scores;                   /* [tile_rows][TKV_PAGE_TOKENS] */
    float *rescale;                  /* [tile_rows] */
    int *first;                      /* [tile_rows] */
    int *end;                        /* [tile_rows] */
    float *rows;                     /* [TKV_PAGE_TOKENS][head_dim_k] of a layer of keys only */
    void *kernel;
} tkv_host_scratch;

/* Places the buffers of one thread from `base` on; returns their size. base may be NULL. */
size_t tkv_host_place_scratch(const tkv_kernels *kernels, const tkv_device_layer *layer,
                              int tile_rows, uint8_t *base, tkv_host_scratch *scratch);

/* ---- The table's functions ---- */

tkv_status tkv_host_move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *error);
tkv_status tkv_host_join(tkv_device *device, const tkv_device_join *join, tkv_error *error);
tkv_status tkv_host_store(tkv_device *device, const tkv_device_layer *layer, uint64_t sequences,
                          int n_sequences, int first, int n_tokens, uint64_t k, uint64_t v,
                          tkv_error *error);
tkv_status tkv_host_load(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                         int first, int n_tokens, uint64_t k, uint64_t v, tkv_error *error);
tkv_status tkv_host_age(tkv_device *device, const tkv_device_layer *layer, uint64_t sequence,
                        uint64_t coded, int first, int n_tokens, tkv_error *error);
tkv_status tkv_host_plan_attend(tkv_device *device, const tkv_device_attend *params,
                                tkv_attend_plan *plan, tkv_error *error);
tkv_status tkv_host_attend(tkv_device *device, const tkv_attend_plan *plan, uint64_t workspace,
                           tkv_error *error);

#endif
