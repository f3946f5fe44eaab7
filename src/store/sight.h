/* What queries see: for each stream the pages that any of its queries sees, and for each query and
 * page the slots, as bits. Slots that do not hold both a key and a value are seen by nobody. */
#ifndef TKV_STORE_SIGHT_H
#define TKV_STORE_SIGHT_H

#include "store/store.h"

typedef struct tkv_sight {
    int n_streams;
    int n_queries;
    int64_t *begin;     /* [n_streams + 1] of a stream's pages in `pages` */
    int64_t *pages;     /* ascending within a stream */
    uint64_t *bits;     /* a stream's [n_queries][pages of the stream], one after the other */
    uint8_t *has_added; /* likewise: whether the mask has other numbers than 0; NULL: never */
    void *memory;       /* of all of these */
} tkv_sight;

static inline int64_t tkv_sight_pages(const tkv_sight *sight, int stream)
{
    return sight->begin[stream + 1] - sight->begin[stream];
}

/* Index in bits and has_added of a query and its stream's page number `index`. */
static inline int64_t tkv_sight_at(const tkv_sight *sight, int stream, int query, int64_t index)
{
    return sight->begin[stream] * sight->n_queries + query * tkv_sight_pages(sight, stream) + index;
}

/* Numbers of the mask for the slots of a page, 0 where there are none or they are not seen. */
void tkv_mask_numbers(const tkv_store_attend_params *params, int stream, int query, int64_t page,
                      float *numbers);

/* Fails for numbers in the mask that are NaN or infinity; the caller gives `memory` back. */
tkv_status tkv_sight_create(const tkv_store *store, const tkv_store_attend_params *params,
                            tkv_sight *sight, tkv_error *error);

#endif
