#include "blocks.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *objc_retain(void *o);
void objc_release(void *o);

void *_NSConcreteStackBlock[32];
void *_NSConcreteGlobalBlock[32];
static void *heap_block[32];

enum {
    HAS_HELPERS = 1 << 25,
    FIELD_IS_OBJECT = 3,
    FIELD_IS_BLOCK = 7,
    FIELD_IS_VARIABLE = 8,
    FIELD_MASK = 15
};

typedef struct block {
    void *isa;
    int flags;
    atomic_int references; /* the ABI's reserved word; of blocks on the heap */
    void *invoke;
    const struct descriptor {
        unsigned long reserved;
        unsigned long size;
        void (*copy)(void *to, const void *from);
        void (*dispose)(const void *block);
    } * descriptor;
} block;

/* A __block variable, shared by its function and the blocks that use it. */
typedef struct variable {
    atomic_long references; /* the ABI's isa; of variables on the heap */
    struct variable *forwarding;
    int flags;
    int size;
    void (*keep)(void *to, void *from);
    void (*destroy)(void *variable);
} variable;

bool tkv_is_block(const void *object)
{
    const void *isa = ((const block *)object)->isa;
    return isa == (const void *)_NSConcreteStackBlock ||
           isa == (const void *)_NSConcreteGlobalBlock || isa == (const void *)heap_block;
}

void *_Block_copy(const void *pointer)
{
    block *b = (block *)(uintptr_t)pointer;
    if (!b || b->isa == (void *)_NSConcreteGlobalBlock) {
        return b;
    }
    if (b->isa == (void *)heap_block) {
        atomic_fetch_add(&b->references, 1);
        return b;
    }
    block *copy = malloc(b->descriptor->size);
    if (!copy) {
        abort();
    }
    memcpy(copy, b, b->descriptor->size);
    copy->isa = (void *)heap_block;
    atomic_init(&copy->references, 1);
    if (copy->flags & HAS_HELPERS) {
        copy->descriptor->copy(copy, b);
    }
    return copy;
}

void _Block_release(const void *pointer)
{
    block *b = (block *)(uintptr_t)pointer;
    if (b && b->isa == (void *)heap_block && atomic_fetch_sub(&b->references, 1) == 1) {
        if (b->flags & HAS_HELPERS) {
            b->descriptor->dispose(b);
        }
        free(b);
    }
}

/* Moves a variable to the heap when the first block that uses it does. */
static variable *keep_variable(variable *v)
{
    v = v->forwarding;
    if (atomic_load(&v->references) > 0) {
        atomic_fetch_add(&v->references, 1);
        return v;
    }
    variable *copy = malloc((size_t)v->size);
    if (!copy) {
        abort();
    }
    memcpy((void *)copy, (void *)v, (size_t)v->size);
    /* The block's, and that of the function whose variable it was. */
    atomic_init(&copy->references, 2);
    copy->forwarding = copy;
    v->forwarding = copy;
    if (v->flags & HAS_HELPERS) {
        v->keep(copy, v);
    }
    return copy;
}

static void drop_variable(variable *v)
{
    v = v->forwarding;
    if (atomic_load(&v->references) > 0 && atomic_fetch_sub(&v->references, 1) == 1) {
        if (v->flags & HAS_HELPERS) {
            v->destroy(v);
        }
        free(v);
    }
}

void _Block_object_assign(void *to, const void *object, int flags);
void _Block_object_assign(void *to, const void *object, int flags)
{
    void *o = (void *)(uintptr_t)object;
    switch (flags & FIELD_MASK) {
    case FIELD_IS_OBJECT: *(void **)to = objc_retain(o); break;
    case FIELD_IS_BLOCK: *(void **)to = _Block_copy(o); break;
    case FIELD_IS_VARIABLE: *(void **)to = keep_variable(o); break;
    default: abort();
    }
}

void _Block_object_dispose(const void *object, int flags);
void _Block_object_dispose(const void *object, int flags)
{
    void *o = (void *)(uintptr_t)object;
    switch (flags & FIELD_MASK) {
    case FIELD_IS_OBJECT: objc_release(o); break;
    case FIELD_IS_BLOCK: _Block_release(o); break;
    case FIELD_IS_VARIABLE: drop_variable(o); break;
    default: abort();
    }
}
