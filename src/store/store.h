/* The store's inside. Keys and values are two sides that know nothing of each other, so that they
 * may be written at different times:
 *
 *     side      table of entries, one for 64 slots | regions
 *     entry     which slots hold a row, how far keys were shifted; a page
 *     page      coded: a coded page of each KV head; exact: f16 pages of as many rows as are
 * needed; which rows are the exact ones. Reference-counted, copied before it is written. */
#ifndef TKV_STORE_STORE_H
#define TKV_STORE_STORE_H

#include "base/allocate.h"
#include "device/context.h"
#include "device/geometry.h"
#include "format/codec.h"

#include <stdatomic.h>

#define TKV_STORE_ALIGNMENT 64

/* Rows that are copied at a time where they cannot be read or written in place. */
#define TKV_STORE_CHUNK_ROWS 16

typedef struct tkv_store_page {
    atomic_int n_owners;
    int n_exact_slots;   /* of each exact page: a multiple of TKV_EXACT_ROWS */
    uint64_t exact_rows; /* slots whose row is in the exact page, not in the coded one */
    uint8_t *coded;      /* NULL, or [n_kv_heads][coded_bytes] */
    uint16_t *exact;     /* NULL, or [n_kv_heads][n_exact_slots][padded_dim] */
} tkv_store_page;

typedef struct tkv_store_entry {
    tkv_store_page *page; /* NULL: no slot holds anything */
    uint64_t held;        /* slots that hold a row */
    int64_t *turns;       /* NULL, or [TKV_PAGE_TOKENS] positions that keys are to be turned by */
    int64_t newest;       /* number in its region of the row that was written exactly last */
    int64_t older;        /* neighbours in the list of pages that will age; -1: none */
    int64_t newer;
    bool is_listed;
} tkv_store_entry;

typedef struct tkv_store_region {
    int64_t n_written; /* rows so far */
    int64_t oldest;    /* pages that will age, by `newest`; -1: none */
    int64_t newest;
} tkv_store_region;

typedef struct tkv_store_side {
    tkv_type type;
    tkv_page_order order;
    int head_dim;
    int padded_dim;
    size_t coded_bytes; /* of the coded page of a KV head */
    tkv_store_entry *entries;
    tkv_store_region *regions;
} tkv_store_side;

struct tkv_store {
    tkv_context *context;
    int64_t n_slots;
    int64_t n_pages;
    int64_t n_regions;
    int64_t region_slots;
    int n_kv_heads;
    int64_t n_exact;
    int64_t n_exact_first;
    tkv_rope rope;           /* its frequencies are the store's; NULL: none */
    int n_sides;             /* 1: keys only */
    tkv_store_side sides[2]; /* by tkv_page_order */
};

static inline tkv_store_region *tkv_store_region_of(const tkv_store *store,
                                                    const tkv_store_side *side, int64_t page)
{
    return &side->regions[page * TKV_PAGE_TOKENS / store->region_slots];
}

/* n slots from `first` on, as bits. */
static inline uint64_t tkv_slot_bits(int first, int n)
{
    return n == 0 ? 0 : (n == 64 ? ~(uint64_t)0 : (((uint64_t)1 << n) - 1)) << first;
}

/* The part of a run of slots that lies in the page of its first one. */
static inline int tkv_slots_in_page(int64_t first, int64_t n_slots)
{
    const int64_t left = TKV_PAGE_TOKENS - first % TKV_PAGE_TOKENS;
    return (int)(n_slots < left ? n_slots : left);
}

/* Takes the first run of set bits away from *bits. */
static inline tkv_slots tkv_take_run(uint64_t *bits)
{
    tkv_slots run = {__builtin_ctzll(*bits), 0};
    const uint64_t rest = ~(*bits >> run.first);
    const int n = rest ? __builtin_ctzll(rest) : TKV_PAGE_TOKENS;
    run.end = run.first + (n < TKV_PAGE_TOKENS - run.first ? n : TKV_PAGE_TOKENS - run.first);
    *bits &= ~tkv_slot_bits(run.first, run.end - run.first);
    return run;
}

/* ---- Pages (page.c) ---- */

static inline uint8_t *tkv_store_coded(const tkv_store_side *side, const tkv_store_page *page,
                                       int kv_head)
{
    return page->coded + (size_t)kv_head * side->coded_bytes;
}

static inline uint16_t *tkv_store_exact(const tkv_store_side *side, const tkv_store_page *page,
                                        int kv_head)
{
    return page->exact + (size_t)kv_head * (size_t)page->n_exact_slots * (size_t)side->padded_dim;
}

/* Slots of a page whose rows never age. */
uint64_t tkv_store_first_bits(const tkv_store *store, int64_t page);

/* Makes the page of an entry its own, if it has none empty, with room for coded rows and for exact
 * ones up to slot n_exact_slots-1. On failure the rows are what they were. */
tkv_status tkv_store_prepare(const tkv_store *store, const tkv_store_side *side,
                             tkv_store_entry *entry, bool has_coded, int n_exact_slots,
                             tkv_error *error);

/* Gives back exact rows that no slot needs; without memory to do so they stay. */
void tkv_store_shorten(const tkv_store *store, const tkv_store_side *side,
                       const tkv_store_entry *entry);

void tkv_store_release(const tkv_store *store, tkv_store_page *page);
size_t tkv_store_page_bytes(const tkv_store *store, const tkv_store_side *side,
                            const tkv_store_page *page);

/* Slots of a page hold nothing any more. */
void tkv_store_drop(const tkv_store *store, const tkv_store_side *side, int64_t page,
                    uint64_t bits);

/* ---- Ageing (age.c) ---- */

/* The page's newest exact row is number `number` of its region. */
void tkv_store_list(const tkv_store *store, const tkv_store_side *side, int64_t page,
                    int64_t number);
void tkv_store_unlist(const tkv_store *store, const tkv_store_side *side, int64_t page);

/* Codes exact rows of a page among `bits`. */
tkv_status tkv_store_age_page(const tkv_store *store, const tkv_store_side *side, int64_t page,
                              uint64_t bits, tkv_error *error);

/* Codes the pages of all regions whose time has come. One for which there is no memory stays exact
 * until the next call. */
void tkv_store_settle(const tkv_store *store, const tkv_store_side *side);

/* ---- Rows of the caller (elements.c) ---- */

size_t tkv_element_bytes(tkv_element element);

/* n numbers from index `at` of an array on, as floats, and back. */
void tkv_elements_load(tkv_element element, const void *array, size_t at, size_t n, float *x);
void tkv_elements_save(tkv_element element, void *array, size_t at, size_t n, const float *x);

/* A layout without zeros, for n_rows rows of n_heads heads of head_dim in each stream; NULL: dense
 * floats. */
tkv_layout tkv_layout_of(const tkv_layout *layout, int64_t n_rows, int n_heads, int head_dim);

/* ---- What the functions of turbokv.h do, arguments checked ---- */

tkv_status tkv_store_make(tkv_context *context, const tkv_store_params *params, tkv_store **store,
                          tkv_error *error);
void tkv_store_clear_slots(tkv_store *store, int64_t first, int64_t n_slots);
tkv_status tkv_store_age_slots(tkv_store *store, int64_t first, int64_t n_slots, tkv_error *error);
tkv_status tkv_store_write_rows(tkv_store *store, int64_t n_rows, const int64_t *slots,
                                const void *k, const tkv_layout *layout_k, const void *v,
                                const tkv_layout *layout_v, tkv_error *error);
void tkv_store_read_side(const tkv_store *store, tkv_page_order order, int64_t n_rows,
                         const int64_t *slots, void *x, const tkv_layout *layout);
tkv_status tkv_store_copy_rows(tkv_store *to, int64_t to_first, const tkv_store *from,
                               int64_t from_first, int64_t n_slots, tkv_error *error);
tkv_status tkv_store_shift_keys(tkv_store *store, int64_t first, int64_t n_slots,
                                const int32_t *deltas, tkv_error *error);
tkv_status tkv_store_attend(const tkv_store *store, const tkv_store_attend_params *params,
                            const void *q, void *out, tkv_error *error);

#endif
