/* Memory of the host from a context's allocator. */
#ifndef TKV_BASE_ALLOCATE_H
#define TKV_BASE_ALLOCATE_H

#include "turbokv.h"

/* The C library's. */
extern const tkv_allocator tkv_default_allocator;

/* `bytes` (0 counts as 1) aligned to 16, or zeroed too, or aligned to more (a power of two up to
 * 256); NULL: none left. */
void *tkv_allocate(const tkv_allocator *allocator, size_t bytes);
void *tkv_allocate_zeroed(const tkv_allocator *allocator, size_t bytes);
void *tkv_allocate_aligned(const tkv_allocator *allocator, size_t bytes, size_t alignment);

/* What is at `memory` [bytes] in a larger place, of which the rest is not set; NULL: none left, and
 * it stays where it is. NULL is nothing yet. */
void *tkv_enlarge(const tkv_allocator *allocator, void *memory, size_t bytes, size_t larger);

/* NULL is nothing to release. */
void tkv_release(const tkv_allocator *allocator, void *memory);

#endif
