/* Small GGUF files of any architecture, for tests of what is read from them. */
#ifndef TESTS_EVAL_GGUF_FILE_H
#define TESTS_EVAL_GGUF_FILE_H

#include "model/geometry.h"

#include <stdio.h>

#define GGUF_FILE_MAX_ENTRIES 128

typedef struct gguf_entry {
    char key[96];
    tkv_gguf_type type; /* TKV_GGUF_INT32 or TKV_GGUF_BOOL; TKV_GGUF_STRING: the text */
    bool is_array;
    int n;
    int32_t values[GGUF_FILE_MAX_ENTRIES];
    char text[64];
} gguf_entry;

typedef struct gguf_shape {
    char name[64];
    uint64_t columns;
    uint64_t rows;
} gguf_shape;

/* Owns nothing: plain values. */
typedef struct gguf_file {
    const char *architecture; /* NULL: not written */
    int n_entries;
    gguf_entry entries[32];
    int n_tensors;
    gguf_shape tensors[400];
} gguf_file;

void gguf_file_init(gguf_file *file, const char *architecture);

/* Replaces the key or adds it. Keys that do not begin with general., split. or tokenizer. are the
 * architecture's. */
void gguf_file_set(gguf_file *file, const char *key, int value);
void gguf_file_set_array(gguf_file *file, const char *key, tkv_gguf_type type, int n,
                         const int32_t *values);
void gguf_file_set_text(gguf_file *file, const char *key, const char *text);

/* A tensor of zeros. */
void gguf_file_add(gguf_file *file, const char *name, int columns, int rows);

/* path: a template of mkstemp, which becomes the name. */
void gguf_file_write(const gguf_file *file, char *path);

/* Writes the file, reads its geometry and removes it (gguf_file_read.c). */
tkv_status gguf_file_read(const gguf_file *file, tkv_geometry *geometry, tkv_error *error);

#endif
