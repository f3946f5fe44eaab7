#include "regions.h"

#include "executor/executor.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define POISON(address, bytes) __asan_poison_memory_region(address, bytes)
#define UNPOISON(address, bytes) __asan_unpoison_memory_region(address, bytes)
#define HAVE_POISON
#endif
#endif
#ifndef POISON
#define POISON(address, bytes) ((void)(address), (void)(bytes))
#define UNPOISON(address, bytes) ((void)(address), (void)(bytes))
#endif

enum { TAIL_BYTE = 0xa5 }; /* between the end of a region and of its last page */

static struct {
    pthread_mutex_t lock;
    fake_region *first;
    volatile bool is_closed;
} regions = {.lock = PTHREAD_MUTEX_INITIALIZER};

size_t fake_page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0) {
        _exit(3);
    }
}

static const fake_region *region_around(uintptr_t address)
{
    const size_t page = fake_page_bytes();
    for (const fake_region *r = regions.first; r; r = r->next) {
        const size_t guard = r->is_owned ? page : 0;
        const uintptr_t start = (uintptr_t)r->memory;
        if (address >= start - guard && address < start + r->mapped + guard) {
            return r;
        }
    }
    return NULL;
}

static void describe_fault(uintptr_t address, const char *where)
{
    char text[512];
    const fake_region *r = region_around(address);
    const char *what = "outside of every buffer";
    if (r && (address < (uintptr_t)r->memory || address >= (uintptr_t)r->memory + r->length)) {
        what = "beyond the end of a buffer";
    } else if (r && !r->is_resident) {
        what = "to a buffer that is not resident: neither bound nor named to useResource";
    } else if (r) {
        what = "to a buffer that was made resident for reading only";
    }
    snprintf(text, sizeof text, "fake Metal: %s: access %s: address %#lx, offset %ld of %zu\n",
             where, what, (unsigned long)address, r ? (long)(address - (uintptr_t)r->memory) : 0L,
             r ? r->length : 0);
    say(text);
}

/* A fault of the kernel ends the program. One of another thread of the program, which may use the
 * memory of its buffers at any time, waits until the dispatch is over and tries again. */
static void on_fault(int signal_number, siginfo_t *information, void *context)
{
    (void)context;
    char where[256];
    const uintptr_t address = (uintptr_t)information->si_addr;
    if (msl_running(where, sizeof where)) {
        describe_fault(address, where);
    } else if (regions.is_closed && region_around(address)) {
        const struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
        return;
    }
    signal(signal_number, SIG_DFL);
    raise(SIGABRT);
}

static void install_handler(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

static void add(fake_region *region)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_handler);
    region->protection = PROT_READ | PROT_WRITE;
    pthread_mutex_lock(&regions.lock);
    region->next = regions.first;
    regions.first = region;
    pthread_mutex_unlock(&regions.lock);
}

static size_t whole_pages(size_t length)
{
    const size_t page = fake_page_bytes();
    return (length + page - 1) / page * page;
}

bool fake_region_allocate(fake_region *region, size_t length)
{
    const size_t page = fake_page_bytes();
    const size_t mapped = whole_pages(length);
    unsigned char *memory = mmap(NULL, mapped + 2 * page, PROT_NONE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return false;
    }
    if (mprotect(memory + page, mapped, PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, mapped + 2 * page);
        return false;
    }
    *region = (fake_region){
        .memory = memory + page, .length = length, .mapped = mapped, .is_owned = true};
    memset(region->memory + length, TAIL_BYTE, mapped - length);
    POISON(region->memory + length, mapped - length);
    add(region);
    return true;
}

void fake_region_adopt(fake_region *region, void *memory, size_t length)
{
    *region = (fake_region){.memory = memory, .length = length, .mapped = whole_pages(length)};
    add(region);
}

void fake_region_remove(fake_region *region)
{
    pthread_mutex_lock(&regions.lock);
    fake_region **link = &regions.first;
    while (*link && *link != region) {
        link = &(*link)->next;
    }
    if (*link) {
        *link = region->next;
    }
    pthread_mutex_unlock(&regions.lock);
    if (region->is_owned) {
        const size_t page = fake_page_bytes();
        UNPOISON(region->memory, region->mapped);
        munmap(region->memory - page, region->mapped + 2 * page);
    }
}

static void protect(fake_region *region, int protection)
{
    if (region->protection != protection && region->mapped > 0 &&
        mprotect(region->memory, region->mapped, protection) == 0) {
        region->protection = protection;
    }
}

void fake_regions_make_resident(fake_region *region, bool is_writable)
{
    region->is_resident = true;
    region->is_writable |= is_writable;
}

void fake_regions_close(void)
{
    pthread_mutex_lock(&regions.lock);
    regions.is_closed = true;
    for (fake_region *r = regions.first; r; r = r->next) {
        protect(r, !r->is_resident  ? PROT_NONE
                   : r->is_writable ? PROT_READ | PROT_WRITE
                                    : PROT_READ);
    }
}

static bool is_tail_intact(const fake_region *region)
{
#ifdef HAVE_POISON
    (void)region; /* nothing gets there unseen */
#else
    for (size_t i = region->length; region->is_owned && i < region->mapped; i++) {
        if (region->memory[i] != TAIL_BYTE) {
            return false;
        }
    }
#endif
    return true;
}

bool fake_regions_open(void)
{
    bool is_intact = true;
    for (fake_region *r = regions.first; r; r = r->next) {
        protect(r, PROT_READ | PROT_WRITE);
        is_intact = is_intact && is_tail_intact(r);
        r->is_resident = false;
        r->is_writable = false;
    }
    regions.is_closed = false;
    pthread_mutex_unlock(&regions.lock);
    return is_intact;
}

size_t fake_regions_total(void)
{
    pthread_mutex_lock(&regions.lock);
    size_t total = 0;
    for (const fake_region *r = regions.first; r; r = r->next) {
        total += r->length;
    }
    pthread_mutex_unlock(&regions.lock);
    return total;
}
