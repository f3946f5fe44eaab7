/* The memory of buffers: which of it a dispatch may touch, enforced by page protection, so that an
 * access to a buffer that is not resident, or beyond one, is found in every build. */
#ifndef TESTS_METAL_REGIONS_H
#define TESTS_METAL_REGIONS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fake_region {
    unsigned char *memory;
    size_t length;
    size_t mapped; /* length in whole pages */
    bool is_owned; /* allocated here, between guard pages */
    int protection;
    bool is_resident; /* for the dispatch that runs */
    bool is_writable;
    struct fake_region *next;
} fake_region;

/* Zeroed memory of its own. false: out of memory. */
bool fake_region_allocate(fake_region *region, size_t length);

/* Memory of the program, whole pages. */
void fake_region_adopt(fake_region *region, void *memory, size_t length);

void fake_region_remove(fake_region *region);

/* Closes all regions but the resident ones to the program until fake_regions_open. */
void fake_regions_close(void);

/* Opens them again. Returns false if something was written behind the end of a region. */
bool fake_regions_open(void);

void fake_regions_make_resident(fake_region *region, bool is_writable);

/* Bytes of all regions. */
size_t fake_regions_total(void);

size_t fake_page_bytes(void);

#endif
