#pragma once
#include <stddef.h>
void *malloc(size_t n);
void *calloc(size_t count, size_t n);
void *realloc(void *memory, size_t n);
void *aligned_alloc(size_t alignment, size_t n);
int posix_memalign(void **memory, size_t alignment, size_t n);
void free(void *memory);
char *getenv(const char *name);
long strtol(const char *text, char **end, int base);
int abs(int x);
