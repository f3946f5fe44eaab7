#include "base/allocate.h"

#include <stdlib.h>
#include <string.h>

/* What malloc aligns to. */
#define ALIGNMENT 16

static void *allocate_from_library(void *user, size_t bytes, size_t alignment)
{
    (void)user;
    if (alignment <= ALIGNMENT) {
        return malloc(bytes);
    }
    const size_t rounded = (bytes + alignment - 1) & ~(alignment - 1);
    return rounded < bytes ? NULL : aligned_alloc(alignment, rounded);
}

static void release_to_library(void *user, void *memory)
{
    (void)user;
    free(memory);
}

const tkv_allocator tkv_default_allocator = {allocate_from_library, release_to_library, NULL};

void *tkv_allocate_aligned(const tkv_allocator *allocator, size_t bytes, size_t alignment)
{
    return allocator->allocate(allocator->user, bytes ? bytes : 1, alignment);
}

void *tkv_allocate(const tkv_allocator *allocator, size_t bytes)
{
    return tkv_allocate_aligned(allocator, bytes, ALIGNMENT);
}

void *tkv_allocate_zeroed(const tkv_allocator *allocator, size_t bytes)
{
    void *memory = tkv_allocate(allocator, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

void *tkv_enlarge(const tkv_allocator *allocator, void *memory, size_t bytes, size_t larger)
{
    void *moved = tkv_allocate(allocator, larger);
    if (moved && memory) {
        memcpy(moved, memory, bytes);
        tkv_release(allocator, memory);
    }
    return moved;
}

void tkv_release(const tkv_allocator *allocator, void *memory)
{
    if (memory) {
        allocator->release(allocator->user, memory);
    }
}
