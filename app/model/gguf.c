#include "model/gguf.h"

#include "model/dequantise.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x46554747u /* "GGUF" */
#define DEFAULT_ALIGNMENT 32
#define MAX_ALIGNMENT (1u << 20)
#define MAX_NAME 4096
/* Fewest bytes that an entry takes: key length, type and a value of one byte; a tensor's name
 * length, dimension count, one dimension, type and offset. */
#define MIN_VALUE_BYTES 13
#define MIN_TENSOR_BYTES 32

struct tkv_gguf {
    char *path;
    const uint8_t *map;
    size_t n_bytes;
    uint64_t n_values;
    uint64_t n_tensors;
    tkv_gguf_value *values;   /* sorted by key */
    tkv_gguf_tensor *tensors; /* sorted by name */
};

/* A position in the file. After the first failure, which it keeps, reads give 0. */
typedef struct cursor {
    const tkv_gguf *gguf;
    size_t at;
    tkv_status status;
    tkv_error *error;
} cursor;

static void fail_at(cursor *c, const char *what)
{
    if (c->status == TKV_OK) {
        c->status = tkv_fail(c->error, TKV_ERR_FORMAT, "%s: %s at byte %zu of %zu", c->gguf->path,
                             what, c->at, c->gguf->n_bytes);
    }
}

/* `size` bytes, or NULL if the file ends before. */
static const uint8_t *take(cursor *c, uint64_t size, const char *what)
{
    if (c->status != TKV_OK) {
        return NULL;
    }
    if (size > c->gguf->n_bytes - c->at) {
        c->status = tkv_fail(c->error, TKV_ERR_FORMAT,
                             "%s: file is truncated: %s at byte %zu needs %" PRIu64
                             " bytes, the file has %zu",
                             c->gguf->path, what, c->at, size, c->gguf->n_bytes);
        return NULL;
    }
    const uint8_t *data = c->gguf->map + c->at;
    c->at += (size_t)size;
    return data;
}

static uint32_t take_u32(cursor *c, const char *what)
{
    uint32_t value = 0;
    const uint8_t *data = take(c, sizeof value, what);
    if (data) {
        memcpy(&value, data, sizeof value);
    }
    return value;
}

static uint64_t take_u64(cursor *c, const char *what)
{
    uint64_t value = 0;
    const uint8_t *data = take(c, sizeof value, what);
    if (data) {
        memcpy(&value, data, sizeof value);
    }
    return value;
}

static tkv_gguf_text take_text(cursor *c, const char *what)
{
    const uint64_t length = take_u64(c, what);
    const uint8_t *data = take(c, length, what);
    return (tkv_gguf_text){(const char *)data, data ? (size_t)length : 0};
}

static const uint8_t element_bytes[TKV_GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

const char *tkv_gguf_type_name(tkv_gguf_type type)
{
    static const char *const names[TKV_GGUF_TYPE_COUNT] = {
        "uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
        "bool",  "string", "array",  "uint64", "int64",  "float64"};
    return (unsigned)type < TKV_GGUF_TYPE_COUNT ? names[type] : "unknown type";
}

/* Walks over the strings of a value and notes where each begins. */
static void take_strings(cursor *c, tkv_gguf_value *value)
{
    value->data = c->gguf->map + c->at;
    if (c->status == TKV_OK && value->n_elements > (c->gguf->n_bytes - c->at) / sizeof(uint64_t)) {
        fail_at(c, "an array has more strings than the file has room for");
    }
    if (c->status != TKV_OK) {
        return;
    }
    const size_t start = c->at;
    value->string_offsets = malloc((size_t)value->n_elements * sizeof(uint64_t) + 1);
    if (!value->string_offsets) {
        c->status = tkv_fail(c->error, TKV_ERR_OUT_OF_MEMORY,
                             "%s: no memory for an array of %" PRIu64 " strings", c->gguf->path,
                             value->n_elements);
        return;
    }
    for (uint64_t i = 0; i < value->n_elements && c->status == TKV_OK; i++) {
        value->string_offsets[i] = c->at - start;
        take_text(c, "a string");
    }
}

static void take_elements(cursor *c, tkv_gguf_value *value)
{
    if ((unsigned)value->type >= TKV_GGUF_TYPE_COUNT) {
        fail_at(c, "a metadata value has an unknown type");
    } else if (value->type == TKV_GGUF_ARRAY) {
        fail_at(c, "an array of arrays, which is not supported,");
    } else if (value->type == TKV_GGUF_STRING) {
        take_strings(c, value);
    } else if (c->status == TKV_OK) {
        const uint64_t size = element_bytes[value->type];
        if (value->n_elements > c->gguf->n_bytes / size) {
            fail_at(c, "an array is longer than the file");
            return;
        }
        value->data = take(c, value->n_elements * size, "a metadata value");
    }
}

static void take_value(cursor *c, tkv_gguf_value *value)
{
    *value = (tkv_gguf_value){.key = take_text(c, "a metadata key"), .n_elements = 1};
    if (c->status == TKV_OK && (value->key.length == 0 || value->key.length > MAX_NAME)) {
        fail_at(c, "a metadata key is empty or overlong");
    }
    value->type = (tkv_gguf_type)take_u32(c, "a metadata type");
    if (value->type == TKV_GGUF_ARRAY) {
        value->is_array = true;
        value->type = (tkv_gguf_type)take_u32(c, "an array's type");
        value->n_elements = take_u64(c, "an array's length");
    }
    if (c->status == TKV_OK) {
        take_elements(c, value);
    }
}

/* Bytes of a tensor's data from its shape; 0 with a failure if they overflow or do not fit the
 * type's blocks. Unknown types pass: their size cannot be known. */
static size_t tensor_bytes(cursor *c, const tkv_gguf_tensor *tensor)
{
    uint64_t n_values = 1;
    for (int i = 0; i < 4; i++) {
        if (tensor->dims[i] == 0 || n_values > INT64_MAX / tensor->dims[i]) {
            fail_at(c, "a tensor's shape has a zero or overflows");
            return 0;
        }
        n_values *= tensor->dims[i];
    }
    const tkv_weight_format *format = tkv_weight_format_get(tensor->type);
    if (!format) {
        return 0;
    }
    if (tensor->dims[0] % format->block_length != 0) {
        fail_at(c, "a tensor's rows are no whole number of blocks of its type");
        return 0;
    }
    const uint64_t n_blocks = n_values / format->block_length;
    if (n_blocks > c->gguf->n_bytes / format->block_bytes) {
        c->status = tkv_fail(
            c->error, TKV_ERR_FORMAT,
            "%s: tensor %.64s needs %" PRIu64 " blocks of %u bytes, the file has %zu bytes",
            c->gguf->path, tensor->name, n_blocks, format->block_bytes, c->gguf->n_bytes);
        return 0;
    }
    return (size_t)n_blocks * format->block_bytes;
}

/* Reads a directory entry; data is the offset in the data section until place_tensors. */
static void take_tensor(cursor *c, tkv_gguf_tensor *tensor, uint64_t *offset)
{
    const tkv_gguf_text name = take_text(c, "a tensor's name");
    if (c->status == TKV_OK && (name.length == 0 || name.length > MAX_NAME)) {
        fail_at(c, "a tensor's name is empty or overlong");
    }
    *tensor = (tkv_gguf_tensor){.dims = {1, 1, 1, 1}};
    tensor->n_dims = take_u32(c, "a tensor's dimension count");
    if (c->status == TKV_OK && (tensor->n_dims < 1 || tensor->n_dims > 4)) {
        fail_at(c, "a tensor has no or more than 4 dimensions");
    }
    for (uint32_t i = 0; c->status == TKV_OK && i < tensor->n_dims; i++) {
        tensor->dims[i] = take_u64(c, "a tensor's shape");
    }
    tensor->type = take_u32(c, "a tensor's type");
    *offset = take_u64(c, "a tensor's offset");
    if (c->status != TKV_OK) {
        return;
    }
    char *copy = malloc(name.length + 1);
    if (!copy) {
        c->status = tkv_fail(c->error, TKV_ERR_OUT_OF_MEMORY, "%s: no memory for a tensor's name",
                             c->gguf->path);
        return;
    }
    memcpy(copy, name.data, name.length);
    copy[name.length] = '\0';
    tensor->name = copy;
    tensor->n_bytes = tensor_bytes(c, tensor);
}

static int compare_text(tkv_gguf_text a, tkv_gguf_text b)
{
    const int order = memcmp(a.data, b.data, a.length < b.length ? a.length : b.length);
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

static int compare_values(const void *a, const void *b)
{
    return compare_text(((const tkv_gguf_value *)a)->key, ((const tkv_gguf_value *)b)->key);
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const tkv_gguf_tensor *)a)->name, ((const tkv_gguf_tensor *)b)->name);
}

static int compare_places(const void *a, const void *b)
{
    const char *x = ((const tkv_gguf_tensor *)a)->data;
    const char *y = ((const tkv_gguf_tensor *)b)->data;
    return (x > y) - (x < y);
}

/* Allocates a table whose length the file states, once the file is seen to have room for it. */
static void *allocate_table(cursor *c, uint64_t count, size_t min_bytes, size_t entry_bytes,
                            const char *what)
{
    if (c->status != TKV_OK) {
        return NULL;
    }
    if (count > c->gguf->n_bytes / min_bytes) {
        c->status =
            tkv_fail(c->error, TKV_ERR_FORMAT, "%s: %" PRIu64 " %s do not fit a file of %zu bytes",
                     c->gguf->path, count, what, c->gguf->n_bytes);
        return NULL;
    }
    void *table = calloc((size_t)count + 1, entry_bytes);
    if (!table) {
        c->status = tkv_fail(c->error, TKV_ERR_OUT_OF_MEMORY, "%s: no memory for %" PRIu64 " %s",
                             c->gguf->path, count, what);
    }
    return table;
}

static void check_duplicates(cursor *c)
{
    const tkv_gguf *gguf = c->gguf;
    for (uint64_t i = 1; i < gguf->n_values && c->status == TKV_OK; i++) {
        if (compare_values(&gguf->values[i - 1], &gguf->values[i]) == 0) {
            c->status =
                tkv_fail(c->error, TKV_ERR_FORMAT, "%s: metadata key %.*s occurs twice", gguf->path,
                         (int)gguf->values[i].key.length, gguf->values[i].key.data);
        }
    }
    for (uint64_t i = 1; i < gguf->n_tensors && c->status == TKV_OK; i++) {
        if (compare_tensors(&gguf->tensors[i - 1], &gguf->tensors[i]) == 0) {
            c->status = tkv_fail(c->error, TKV_ERR_FORMAT, "%s: tensor %.64s occurs twice",
                                 gguf->path, gguf->tensors[i].name);
        }
    }
}

static uint64_t read_alignment(cursor *c)
{
    int64_t alignment = DEFAULT_ALIGNMENT;
    if (c->status == TKV_OK) {
        c->status = tkv_gguf_get_integer(c->gguf, "general.alignment", false, &alignment, c->error);
    }
    if (c->status == TKV_OK &&
        (alignment < 1 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0)) {
        c->status =
            tkv_fail(c->error, TKV_ERR_FORMAT,
                     "%s: general.alignment is %" PRId64 ": expected a power of two up to %u",
                     c->gguf->path, alignment, MAX_ALIGNMENT);
    }
    return (uint64_t)alignment;
}

/* Turns offsets into pointers; tensors must lie in the file, aligned, and not overlap. */
static void place_tensors(cursor *c, tkv_gguf *gguf, const uint64_t *offsets, uint64_t alignment)
{
    if (c->status != TKV_OK) {
        return;
    }
    const size_t start = (c->at + alignment - 1) / alignment * alignment;
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        tkv_gguf_tensor *tensor = &gguf->tensors[i];
        const size_t space = start <= gguf->n_bytes ? gguf->n_bytes - start : 0;
        if (offsets[i] % alignment != 0 || offsets[i] > space ||
            tensor->n_bytes > space - offsets[i]) {
            c->status =
                tkv_fail(c->error, TKV_ERR_FORMAT,
                         "%s: tensor %.64s: %zu bytes at offset %" PRIu64
                         ": expected a multiple of %" PRIu64 " within the %zu data bytes",
                         gguf->path, tensor->name, tensor->n_bytes, offsets[i], alignment, space);
            return;
        }
        tensor->data = gguf->map + start + offsets[i];
    }
    qsort(gguf->tensors, (size_t)gguf->n_tensors, sizeof *gguf->tensors, compare_places);
    for (uint64_t i = 1; i < gguf->n_tensors; i++) {
        const tkv_gguf_tensor *before = &gguf->tensors[i - 1];
        if ((const char *)before->data + before->n_bytes > (const char *)gguf->tensors[i].data) {
            c->status = tkv_fail(c->error, TKV_ERR_FORMAT, "%s: tensors %.64s and %.64s overlap",
                                 gguf->path, before->name, gguf->tensors[i].name);
            return;
        }
    }
}

static void read_directory(cursor *c, tkv_gguf *gguf)
{
    uint64_t *offsets =
        allocate_table(c, gguf->n_tensors, MIN_TENSOR_BYTES, sizeof *offsets, "tensors");
    for (uint64_t i = 0; i < gguf->n_tensors && c->status == TKV_OK; i++) {
        take_tensor(c, &gguf->tensors[i], &offsets[i]);
    }
    place_tensors(c, gguf, offsets, read_alignment(c));
    free(offsets);
}

static void check_header(cursor *c)
{
    const uint32_t magic = take_u32(c, "the magic number");
    const uint32_t version = take_u32(c, "the version");
    if (c->status != TKV_OK) {
        return;
    }
    if (magic != MAGIC) {
        c->status = tkv_fail(c->error, TKV_ERR_FORMAT,
                             "%s: not a GGUF file: it begins with 0x%08" PRIx32 ", expected 0x%08x",
                             c->gguf->path, magic, MAGIC);
    } else if (version != 2 && version != 3) {
        c->status = tkv_fail(
            c->error, TKV_ERR_UNSUPPORTED,
            "%s: GGUF version %" PRIu32 "%s: this build reads versions 2 and 3, little-endian",
            c->gguf->path, version, (version & 0xffffu) == 0 ? " (a big-endian file)" : "");
    }
}

static tkv_status read_file(tkv_gguf *gguf, tkv_error *error)
{
    cursor c = {.gguf = gguf, .error = error};
    check_header(&c);
    const uint64_t n_tensors = take_u64(&c, "the tensor count");
    const uint64_t n_values = take_u64(&c, "the metadata count");
    gguf->values =
        allocate_table(&c, n_values, MIN_VALUE_BYTES, sizeof *gguf->values, "metadata entries");
    gguf->tensors =
        allocate_table(&c, n_tensors, MIN_TENSOR_BYTES, sizeof *gguf->tensors, "tensors");
    if (c.status != TKV_OK) {
        return c.status;
    }
    gguf->n_values = n_values;
    gguf->n_tensors = n_tensors;
    for (uint64_t i = 0; i < n_values && c.status == TKV_OK; i++) {
        take_value(&c, &gguf->values[i]);
    }
    if (c.status != TKV_OK) {
        return c.status;
    }
    qsort(gguf->values, (size_t)n_values, sizeof *gguf->values, compare_values);
    read_directory(&c, gguf);
    if (c.status == TKV_OK) {
        qsort(gguf->tensors, (size_t)n_tensors, sizeof *gguf->tensors, compare_tensors);
        check_duplicates(&c);
    }
    return c.status;
}

static tkv_status map_file(tkv_gguf *gguf, tkv_error *error)
{
    const int file = open(gguf->path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return tkv_fail(error, TKV_ERR_IO, "cannot open %s: %s", gguf->path, strerror(errno));
    }
    struct stat info;
    tkv_status status = TKV_OK;
    if (fstat(file, &info) != 0) {
        status = tkv_fail(error, TKV_ERR_IO, "cannot read %s: %s", gguf->path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = tkv_fail(error, TKV_ERR_IO, "%s is not a regular file", gguf->path);
    } else if (info.st_size == 0) {
        status = tkv_fail(error, TKV_ERR_FORMAT, "%s is empty: expected a GGUF file", gguf->path);
    } else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (map == MAP_FAILED) {
            status = tkv_fail(error, TKV_ERR_IO, "cannot map %s: %s", gguf->path, strerror(errno));
        } else {
            gguf->map = map;
            gguf->n_bytes = (size_t)info.st_size;
        }
    }
    close(file);
    return status;
}

tkv_status tkv_gguf_open(const char *path, tkv_gguf **gguf, tkv_error *error)
{
    if (!path || !gguf) {
        return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "path or result is NULL");
    }
    tkv_gguf *opened = calloc(1, sizeof *opened);
    char *copy = strdup(path);
    if (!opened || !copy) {
        free(opened);
        free(copy);
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to open %s", path);
    }
    opened->path = copy;
    tkv_status status = map_file(opened, error);
    if (status == TKV_OK) {
        status = read_file(opened, error);
    }
    if (status != TKV_OK) {
        tkv_gguf_close(opened);
        return status;
    }
    *gguf = opened;
    return TKV_OK;
}

void tkv_gguf_close(tkv_gguf *gguf)
{
    if (!gguf) {
        return;
    }
    for (uint64_t i = 0; i < gguf->n_values; i++) {
        free(gguf->values[i].string_offsets);
    }
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        free((char *)gguf->tensors[i].name);
    }
    free(gguf->values);
    free(gguf->tensors);
    if (gguf->map) {
        munmap((void *)gguf->map, gguf->n_bytes);
    }
    free(gguf->path);
    free(gguf);
}

const char *tkv_gguf_path(const tkv_gguf *gguf)
{
    return gguf->path;
}

uint64_t tkv_gguf_file_bytes(const tkv_gguf *gguf)
{
    return gguf->n_bytes;
}

const tkv_gguf_value *tkv_gguf_find(const tkv_gguf *gguf, const char *key)
{
    const tkv_gguf_value wanted = {.key = {key, strlen(key)}};
    return bsearch(&wanted, gguf->values, (size_t)gguf->n_values, sizeof wanted, compare_values);
}

const tkv_gguf_tensor *tkv_gguf_find_tensor(const tkv_gguf *gguf, const char *name)
{
    const tkv_gguf_tensor wanted = {.name = name};
    return bsearch(&wanted, gguf->tensors, (size_t)gguf->n_tensors, sizeof wanted, compare_tensors);
}
