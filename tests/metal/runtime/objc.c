/* A small Objective-C runtime for clang's macOS ABI on Linux: classes as the compiler laid them
 * out, message sends, reference counts, autorelease pools. Selectors are compared by their text. It
 * aborts on what Apple's runtime would crash on or throw: unknown selectors, too many releases. */
#include "objc.h"
#include "blocks.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct method {
    const char *selector;
    const char *types;
    void *implementation;
} method;

typedef struct method_list {
    uint32_t entry_size;
    uint32_t count;
    method methods[];
} method_list;

typedef struct class_data {
    uint32_t flags;
    uint32_t instance_start;
    uint32_t instance_size;
    uint32_t reserved;
    const uint8_t *strong_layout;
    const char *name;
    const method_list *methods;
    const void *protocols;
    const void *variables;
    const uint8_t *weak_layout;
    const void *properties;
} class_data;

typedef struct class_object {
    struct class_object *isa;
    struct class_object *superclass;
    const void *cache;
    const void *vtable;
    const class_data *data;
} class_object;

typedef struct object {
    class_object *isa;
} object;

/* In front of every object. */
typedef struct header {
    _Alignas(16) atomic_long references;
} header;

enum { CLASS_IS_META = 1 };

/* Symbols that the compiler refers to. */
extern class_object __CFConstantStringClassReference;
void *_objc_empty_cache;
void *_objc_empty_vtable;
int __objc_personality_v0(void);

static atomic_long n_live;

static _Noreturn void die(const char *what, const object *o, const char *detail)
{
    fprintf(stderr, "fake Objective-C runtime: %s: %s %s\n", what, o->isa->data->name, detail);
    abort();
}

int __objc_personality_v0(void)
{
    abort(); /* nobody throws */
}

long fake_metal_live_objects(void)
{
    return atomic_load(&n_live);
}

const char *tkv_objc_class_name(void *o)
{
    return ((object *)o)->isa->data->name;
}

/* Messages. */

static void *find(const class_object *class, const char *selector, const class_object **owner)
{
    for (; class; class = class->superclass) {
        const method_list *list = class->data->methods;
        for (uint32_t i = 0; list && i < list->count; i++) {
            if (strcmp(list->methods[i].selector, selector) == 0) {
                if (owner) {
                    *owner = class;
                }
                return list->methods[i].implementation;
            }
        }
    }
    return NULL;
}

void *tkv_objc_method(void *o, const char *selector)
{
    return find(((object *)o)->isa, selector, NULL);
}

/* Found methods by class and address of the selector's text. */
typedef struct cached {
    const class_object *class;
    const char *selector;
    void *implementation;
} cached;

enum { CACHE_SIZE = 256 };

static void *lookup(const object *o, const class_object *class, const char *selector)
{
    static _Thread_local cached cache[CACHE_SIZE];
    const uintptr_t key = (uintptr_t) class / 16 * 31 + (uintptr_t)selector;
    cached *slot = &cache[key % CACHE_SIZE];
    if (slot->class != class || slot->selector != selector) {
        void *implementation = find(class, selector, NULL);
        if (!implementation) {
            die("unrecognized selector", o, selector);
        }
        *slot = (cached){class, selector, implementation};
    }
    return slot->implementation;
}

struct objc_super {
    object *receiver;
    class_object *class;
};

/* Called from the assembly below. */
__attribute__((used)) void *tkv_objc_lookup(const object *o, const char *selector);
__attribute__((used)) void *tkv_objc_lookup_super(const struct objc_super *super,
                                                  const char *selector);

void *tkv_objc_lookup(const object *o, const char *selector)
{
    return lookup(o, o->isa, selector);
}

void *tkv_objc_lookup_super(const struct objc_super *super, const char *selector)
{
    return lookup(super->receiver, super->class->superclass, selector);
}

/* Keeps the registers of arguments (integers and, in xmm0-7, floats) across a lookup of the method
 * and jumps there. RECEIVER and SELECTOR are the registers that hold them. */
#define SEND(NAME, RECEIVER, SELECTOR, LOOKUP, LOAD_RECEIVER, WHEN_NIL)                            \
    ".globl " NAME "\n"                                                                            \
    ".type " NAME ", @function\n" NAME ":\n"                                                       \
    "    testq " RECEIVER ", " RECEIVER "\n"                                                       \
    "    jz 1f\n"                                                                                  \
    "    pushq %rbp\n"                                                                             \
    "    movq %rsp, %rbp\n"                                                                        \
    "    pushq %rdi\n"                                                                             \
    "    pushq %rsi\n"                                                                             \
    "    pushq %rdx\n"                                                                             \
    "    pushq %rcx\n"                                                                             \
    "    pushq %r8\n"                                                                              \
    "    pushq %r9\n"                                                                              \
    "    pushq %rax\n"                                                                             \
    "    subq $136, %rsp\n"                                                                        \
    "    movups %xmm0, (%rsp)\n"                                                                   \
    "    movups %xmm1, 16(%rsp)\n"                                                                 \
    "    movups %xmm2, 32(%rsp)\n"                                                                 \
    "    movups %xmm3, 48(%rsp)\n"                                                                 \
    "    movups %xmm4, 64(%rsp)\n"                                                                 \
    "    movups %xmm5, 80(%rsp)\n"                                                                 \
    "    movups %xmm6, 96(%rsp)\n"                                                                 \
    "    movups %xmm7, 112(%rsp)\n"                                                                \
    "    movq " SELECTOR ", %rax\n"                                                                \
    "    movq " RECEIVER ", %rdi\n"                                                                \
    "    movq %rax, %rsi\n"                                                                        \
    "    call " LOOKUP "@PLT\n"                                                                    \
    "    movq %rax, %r11\n"                                                                        \
    "    movups (%rsp), %xmm0\n"                                                                   \
    "    movups 16(%rsp), %xmm1\n"                                                                 \
    "    movups 32(%rsp), %xmm2\n"                                                                 \
    "    movups 48(%rsp), %xmm3\n"                                                                 \
    "    movups 64(%rsp), %xmm4\n"                                                                 \
    "    movups 80(%rsp), %xmm5\n"                                                                 \
    "    movups 96(%rsp), %xmm6\n"                                                                 \
    "    movups 112(%rsp), %xmm7\n"                                                                \
    "    addq $136, %rsp\n"                                                                        \
    "    popq %rax\n"                                                                              \
    "    popq %r9\n"                                                                               \
    "    popq %r8\n"                                                                               \
    "    popq %rcx\n"                                                                              \
    "    popq %rdx\n"                                                                              \
    "    popq %rsi\n"                                                                              \
    "    popq %rdi\n"                                                                              \
    "    popq %rbp\n" LOAD_RECEIVER "    jmp *%r11\n"                                              \
    "1:\n" WHEN_NIL "    ret\n"                                                                    \
    ".size " NAME ", .-" NAME "\n"

__asm__(".text\n" SEND("objc_msgSend", "%rdi", "%rsi", "tkv_objc_lookup", "",
                       "    xorl %eax, %eax\n    xorps %xmm0, %xmm0\n")
        /* The result is a structure in memory, whose address comes first. */
        SEND("objc_msgSend_stret", "%rsi", "%rdx", "tkv_objc_lookup", "", "    movq %rdi, %rax\n")
            SEND("objc_msgSendSuper2", "%rdi", "%rsi", "tkv_objc_lookup_super",
                 "    movq (%rdi), %rdi\n", ""));

/* Reference counts. */

void *objc_retain(void *o);
void objc_release(void *o);
void *objc_autorelease(void *o);

/* Classes and constant strings live forever. */
static bool is_counted(const object *o)
{
    return o->isa != &__CFConstantStringClassReference && !(o->isa->data->flags & CLASS_IS_META);
}

static header *header_of(void *o)
{
    return (header *)o - 1;
}

void *tkv_objc_create(void *class_pointer)
{
    class_object *class = class_pointer;
    header *h = calloc(1, sizeof *h + class->data->instance_size);
    if (!h) {
        return NULL;
    }
    atomic_init(&h->references, 1);
    atomic_fetch_add(&n_live, 1);
    object *o = (object *)(h + 1);
    o->isa = class;
    return o;
}

/* Releases what the object's variables refer to, class by class, and frees it. */
void tkv_objc_destroy(void *o)
{
    const class_object *owner;
    for (const class_object *class = ((object *)o)->isa; class; class = owner->superclass) {
        void *destruct = find(class, ".cxx_destruct", &owner);
        if (!destruct) {
            break;
        }
        ((void (*)(void *, const char *))destruct)(o, ".cxx_destruct");
    }
    atomic_fetch_sub(&n_live, 1);
    free(header_of(o));
}

void *objc_retain(void *o)
{
    if (o && tkv_is_block(o)) {
        return _Block_copy(o); /* off the stack */
    }
    if (o && is_counted(o)) {
        atomic_fetch_add(&header_of(o)->references, 1);
    }
    return o;
}

void objc_release(void *o)
{
    if (o && tkv_is_block(o)) {
        _Block_release(o);
        return;
    }
    if (!o || !is_counted(o)) {
        return;
    }
    const long before = atomic_fetch_sub(&header_of(o)->references, 1);
    if (before <= 0) {
        die("released too often", o, "");
    }
    if (before == 1) {
        ((void (*)(void *, const char *))lookup(o, ((object *)o)->isa, "dealloc"))(o, "dealloc");
    }
}

void objc_storeStrong(void **place, void *value);
void objc_storeStrong(void **place, void *value)
{
    void *before = *place;
    *place = objc_retain(value);
    objc_release(before);
}

/* Autorelease pools: a stack of objects per thread, of which a pool is a height. */

static _Thread_local struct {
    void **objects;
    size_t n;
    size_t capacity;
} pool;

void *objc_autoreleasePoolPush(void);
void *objc_autoreleasePoolPush(void)
{
    return (void *)(uintptr_t)(pool.n + 1);
}

void objc_autoreleasePoolPop(void *token);
void objc_autoreleasePoolPop(void *token)
{
    while (pool.n > (uintptr_t)token - 1) {
        objc_release(pool.objects[--pool.n]);
    }
    if (pool.n == 0) {
        free(pool.objects);
        pool.objects = NULL;
        pool.capacity = 0;
    }
}

void *objc_autorelease(void *o)
{
    if (!o || (!tkv_is_block(o) && !is_counted(o))) {
        return o;
    }
    if (pool.n == pool.capacity) {
        pool.capacity = pool.capacity ? 2 * pool.capacity : 64;
        pool.objects = realloc(pool.objects, pool.capacity * sizeof *pool.objects);
        if (!pool.objects) {
            die("out of memory for the autorelease pool", o, "");
        }
    }
    pool.objects[pool.n++] = o;
    return o;
}

/* Apple's runtime hands results over without the pool where both sides agree; this one never does,
 * which is correct as well. */

#define ENTRY(NAME, BODY)                                                                          \
    void *NAME(void *o);                                                                           \
    void *NAME(void *o)                                                                            \
    {                                                                                              \
        BODY;                                                                                      \
    }
ENTRY(objc_retainBlock, return objc_retain(o))
ENTRY(objc_retainAutorelease, return objc_autorelease(objc_retain(o)))
ENTRY(objc_autoreleaseReturnValue, return objc_autorelease(o))
ENTRY(objc_retainAutoreleaseReturnValue, return objc_autorelease(objc_retain(o)))
ENTRY(objc_retainAutoreleasedReturnValue, return objc_retain(o))
ENTRY(objc_claimAutoreleasedReturnValue, return objc_retain(o))
ENTRY(objc_unsafeClaimAutoreleasedReturnValue, return o)
ENTRY(objc_opt_self, return o)
ENTRY(objc_opt_class,
      return ((object *)o)->isa->data->flags & CLASS_IS_META ? o : ((object *)o)->isa)

static void *send(void *o, const char *selector)
{
    return o ? ((void *(*)(void *, const char *))lookup(o, ((object *)o)->isa, selector))(o,
                                                                                          selector)
             : NULL;
}

ENTRY(objc_alloc, return send(o, "alloc"))
ENTRY(objc_allocWithZone, return send(o, "alloc"))
ENTRY(objc_alloc_init, return send(send(o, "alloc"), "init"))
ENTRY(objc_opt_new, return send(send(o, "alloc"), "init"))

const char *sel_getName(const char *selector);
const char *sel_getName(const char *selector)
{
    return selector;
}

void objc_enumerationMutation(void *o);
void objc_enumerationMutation(void *o)
{
    die("changed while enumerated", o, "");
}

void *objc_getProperty(void *o, const char *selector, ptrdiff_t offset, bool is_atomic);
void *objc_getProperty(void *o, const char *selector, ptrdiff_t offset, bool is_atomic)
{
    (void)selector;
    (void)is_atomic;
    return objc_autorelease(objc_retain(*(void **)(void *)((char *)o + offset)));
}

/* Strings, the only objects with `copy`, do not change: a copy is the same object. */
static void set_property(void *o, const char *selector, void *value, ptrdiff_t offset)
{
    (void)selector;
    objc_storeStrong((void **)(void *)((char *)o + offset), value);
}

#define SETTER(NAME)                                                                               \
    void NAME(void *o, const char *selector, void *value, ptrdiff_t offset);                       \
    void NAME(void *o, const char *selector, void *value, ptrdiff_t offset)                        \
    {                                                                                              \
        set_property(o, selector, value, offset);                                                  \
    }
SETTER(objc_setProperty_atomic)
SETTER(objc_setProperty_nonatomic)
SETTER(objc_setProperty_atomic_copy)
SETTER(objc_setProperty_nonatomic_copy)
