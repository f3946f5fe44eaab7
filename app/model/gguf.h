/* Reading GGUF files (versions 2 and 3, little-endian): metadata and a directory of tensors whose
 * data stays where the file is mapped. Every count, length and offset is checked against the file's
 * size before it is used.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef TKV_MODEL_GGUF_H
#define TKV_MODEL_GGUF_H

#include "turbokv.h"

/* Types of metadata values, as numbered in the file. */
typedef enum tkv_gguf_type {
    TKV_GGUF_UINT8 = 0,
    TKV_GGUF_INT8,
    TKV_GGUF_UINT16,
    TKV_GGUF_INT16,
    TKV_GGUF_UINT32,
    TKV_GGUF_INT32,
    TKV_GGUF_FLOAT32,
    TKV_GGUF_BOOL,
    TKV_GGUF_STRING,
    TKV_GGUF_ARRAY,
    TKV_GGUF_UINT64,
    TKV_GGUF_INT64,
    TKV_GGUF_FLOAT64,
    TKV_GGUF_TYPE_COUNT
} tkv_gguf_type;

/* A range of bytes in the mapped file; not NUL-terminated. */
typedef struct tkv_gguf_text {
    const char *data;
    size_t length;
} tkv_gguf_text;

/* One metadata value: an array, or a scalar, which is treated as an array of one. */
typedef struct tkv_gguf_value {
    tkv_gguf_text key;
    bool is_array;
    tkv_gguf_type type;       /* of the elements */
    uint64_t n_elements;      /* 1 for a scalar */
    const uint8_t *data;      /* the elements in the file */
    uint64_t *string_offsets; /* strings: where each begins, from data; NULL otherwise */
} tkv_gguf_value;

/* One tensor. dims[0] is the length of a row (the fastest index); unused dims are 1. */
typedef struct tkv_gguf_tensor {
    const char *name; /* NUL-terminated */
    uint32_t type;    /* ggml type number; may be one that dequantise.h does not know */
    uint32_t n_dims;
    uint64_t dims[4];
    const void *data;
    size_t n_bytes; /* 0 if the type is unknown */
} tkv_gguf_tensor;

typedef struct tkv_gguf tkv_gguf;

/* Maps and checks a file. The caller closes it with tkv_gguf_close; values and tensors live until
 * then. Errors: TKV_ERR_IO, TKV_ERR_FORMAT (what is wrong and at which byte), TKV_ERR_UNSUPPORTED
 * (other versions, big-endian), TKV_ERR_OUT_OF_MEMORY. */
tkv_status tkv_gguf_open(const char *path, tkv_gguf **gguf, tkv_error *error);
void tkv_gguf_close(tkv_gguf *gguf);

const char *tkv_gguf_path(const tkv_gguf *gguf);
uint64_t tkv_gguf_file_bytes(const tkv_gguf *gguf);

/* By name; NULL if the file does not have it. */
const tkv_gguf_value *tkv_gguf_find(const tkv_gguf *gguf, const char *key);
const tkv_gguf_tensor *tkv_gguf_find_tensor(const tkv_gguf *gguf, const char *name);

/* Elements of an array; 1 for a scalar. */
uint64_t tkv_gguf_array_length(const tkv_gguf_value *value);

/* Element `index` (0 for a scalar) converted; false if it has another type, does not fit or lies
 * beyond the end. Integers: any integer type and bool. Numbers: these and floats. */
bool tkv_gguf_integer(const tkv_gguf_value *value, uint64_t index, int64_t *result);
bool tkv_gguf_number(const tkv_gguf_value *value, uint64_t index, double *result);
bool tkv_gguf_text_at(const tkv_gguf_value *value, uint64_t index, tkv_gguf_text *result);

/* "int32", "array of string", ... for messages. Static storage. */
const char *tkv_gguf_type_name(tkv_gguf_type type);

/* Scalars by key. If the key is absent, *result stays as it was: fill it with the default, or ask
 * for `required`, which makes absence an error. Another type is always an error. */
tkv_status tkv_gguf_get_integer(const tkv_gguf *gguf, const char *key, bool required,
                                int64_t *result, tkv_error *error);
tkv_status tkv_gguf_get_number(const tkv_gguf *gguf, const char *key, bool required, double *result,
                               tkv_error *error);
tkv_status tkv_gguf_get_text(const tkv_gguf *gguf, const char *key, bool required,
                             tkv_gguf_text *result, tkv_error *error);

#endif
