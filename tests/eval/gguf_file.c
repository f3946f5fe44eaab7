#include "gguf_file.h"

#include "support/support.h"

#include <unistd.h>

#define ALIGNMENT 32
#define TYPE_F32 0

void gguf_file_init(gguf_file *file, const char *architecture)
{
    *file = (gguf_file){.architecture = architecture};
}

static gguf_entry *entry_of(gguf_file *file, const char *key)
{
    char full[96];
    const bool is_general = strncmp(key, "general.", 8) == 0 || strncmp(key, "split.", 6) == 0 ||
                            strncmp(key, "tokenizer.", 10) == 0;
    snprintf(full, sizeof full, "%s%s%s", is_general ? "" : file->architecture,
             is_general ? "" : ".", key);
    int i = 0;
    while (i < file->n_entries && strcmp(file->entries[i].key, full) != 0) {
        i++;
    }
    if (i == file->n_entries) {
        assert_true(i < 32);
        file->n_entries++;
    }
    file->entries[i] = (gguf_entry){.n = 1};
    memcpy(file->entries[i].key, full, sizeof full);
    return &file->entries[i];
}

void gguf_file_set_array(gguf_file *file, const char *key, tkv_gguf_type type, int n,
                         const int32_t *values)
{
    gguf_entry *entry = entry_of(file, key);
    assert_true(n <= GGUF_FILE_MAX_ENTRIES);
    entry->type = type;
    entry->is_array = true;
    entry->n = n;
    memcpy(entry->values, values, (size_t)n * sizeof *values);
}

void gguf_file_set(gguf_file *file, const char *key, int value)
{
    gguf_entry *entry = entry_of(file, key);
    entry->type = TKV_GGUF_INT32;
    entry->values[0] = value;
}

void gguf_file_set_text(gguf_file *file, const char *key, const char *text)
{
    gguf_entry *entry = entry_of(file, key);
    entry->type = TKV_GGUF_STRING;
    snprintf(entry->text, sizeof entry->text, "%s", text);
}

void gguf_file_add(gguf_file *file, const char *name, int columns, int rows)
{
    assert_true(file->n_tensors < 400);
    gguf_shape *tensor = &file->tensors[file->n_tensors++];
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->columns = (uint64_t)columns;
    tensor->rows = (uint64_t)rows;
}

static void put(FILE *out, const void *data, size_t size)
{
    assert_int_equal(fwrite(data, 1, size, out), size);
}

static void put_u32(FILE *out, uint32_t value)
{
    put(out, &value, sizeof value);
}

static void put_u64(FILE *out, uint64_t value)
{
    put(out, &value, sizeof value);
}

static void put_text(FILE *out, const char *text)
{
    put_u64(out, strlen(text));
    put(out, text, strlen(text));
}

static void put_entry(FILE *out, const gguf_entry *entry)
{
    put_text(out, entry->key);
    if (entry->is_array) {
        put_u32(out, TKV_GGUF_ARRAY);
    }
    put_u32(out, entry->type);
    if (entry->is_array) {
        put_u64(out, (uint64_t)entry->n);
    }
    for (int i = 0; i < entry->n; i++) {
        if (entry->type == TKV_GGUF_STRING) {
            put_text(out, entry->text);
        } else if (entry->type == TKV_GGUF_BOOL) {
            put(out, entry->values[i] ? "\1" : "\0", 1);
        } else {
            put(out, &entry->values[i], sizeof entry->values[i]);
        }
    }
}

static uint64_t tensor_bytes(const gguf_shape *tensor)
{
    const uint64_t bytes = tensor->columns * tensor->rows * sizeof(float);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void write_entries(const gguf_file *file, FILE *out)
{
    uint64_t offset = 0;
    put(out, "GGUF", 4);
    put_u32(out, 3);
    put_u64(out, (uint64_t)file->n_tensors);
    put_u64(out, (uint64_t)file->n_entries + (file->architecture ? 1 : 0));
    if (file->architecture) {
        put_text(out, "general.architecture");
        put_u32(out, TKV_GGUF_STRING);
        put_text(out, file->architecture);
    }
    for (int i = 0; i < file->n_entries; i++) {
        put_entry(out, &file->entries[i]);
    }
    for (int i = 0; i < file->n_tensors; i++) {
        put_text(out, file->tensors[i].name);
        put_u32(out, 2);
        put_u64(out, file->tensors[i].columns);
        put_u64(out, file->tensors[i].rows);
        put_u32(out, TYPE_F32);
        put_u64(out, offset);
        offset += tensor_bytes(&file->tensors[i]);
    }
    while (ftell(out) % ALIGNMENT != 0) {
        put(out, "", 1);
    }
    assert_int_equal(fflush(out), 0);
    assert_int_equal(ftruncate(fileno(out), (off_t)((uint64_t)ftell(out) + offset)), 0);
}

void gguf_file_write(const gguf_file *file, char *path)
{
    const int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    FILE *out = fdopen(descriptor, "wb");
    assert_non_null(out);
    write_entries(file, out);
    assert_int_equal(fclose(out), 0);
}
