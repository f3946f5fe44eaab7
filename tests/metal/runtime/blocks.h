/* Blocks, by the ABI that clang's documentation specifies. */
#ifndef TESTS_METAL_BLOCKS_H
#define TESTS_METAL_BLOCKS_H

#include <stdbool.h>

bool tkv_is_block(const void *object);

/* The compiler calls these, too. */
void *_Block_copy(const void *block);
void _Block_release(const void *block);

#endif
