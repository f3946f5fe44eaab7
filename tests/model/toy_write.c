#include "model/gguf.h"
#include "model/toy_model.h"
#include "support/support.h"

#define ALIGNMENT 32
#define TYPE_F32 0

static void put(FILE *file, const void *data, size_t size)
{
    assert_int_equal(fwrite(data, 1, size, file), size);
}

static void put_u32(FILE *file, uint32_t value)
{
    put(file, &value, sizeof value);
}

static void put_u64(FILE *file, uint64_t value)
{
    put(file, &value, sizeof value);
}

static void put_text(FILE *file, const char *text)
{
    put_u64(file, strlen(text));
    put(file, text, strlen(text));
}

static void pad(FILE *file)
{
    while (ftell(file) % ALIGNMENT != 0) {
        put(file, "", 1);
    }
}

static void put_metadata(FILE *file, const toy_metadata *metadata)
{
    put_text(file, metadata->key);
    switch (metadata->kind) {
    case TOY_INTEGER:
        put_u32(file, TKV_GGUF_INT64);
        put(file, &metadata->integer, sizeof metadata->integer);
        break;
    case TOY_NUMBER:
        put_u32(file, TKV_GGUF_FLOAT64);
        put(file, &metadata->number, sizeof metadata->number);
        break;
    case TOY_TEXT:
        put_u32(file, TKV_GGUF_STRING);
        put_text(file, metadata->text);
        break;
    case TOY_BOOL:
        put_u32(file, TKV_GGUF_BOOL);
        put(file, metadata->integer ? "\1" : "\0", 1);
        break;
    case TOY_INTEGERS:
        put_u32(file, TKV_GGUF_ARRAY);
        put_u32(file, TKV_GGUF_INT32);
        put_u64(file, (uint64_t)metadata->n_integers);
        put(file, metadata->integers, (size_t)metadata->n_integers * sizeof(int32_t));
        break;
    case TOY_TEXTS:
        put_u32(file, TKV_GGUF_ARRAY);
        put_u32(file, TKV_GGUF_STRING);
        put_u64(file, (uint64_t)metadata->n_items);
        for (int i = 0; i < metadata->n_items; i++) {
            put_text(file, metadata->texts[i]);
        }
        break;
    case TOY_LIST:
        put_u32(file, TKV_GGUF_ARRAY);
        put_u32(file, TKV_GGUF_INT32);
        put_u64(file, (uint64_t)metadata->n_items);
        put(file, metadata->list, (size_t)metadata->n_items * sizeof(int32_t));
        break;
    }
}

static size_t tensor_bytes(const toy_tensor *tensor)
{
    return (size_t)(tensor->dims[0] * tensor->dims[1]) * sizeof(float);
}

void toy_model_write(const toy_model *model, const char *path)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    put(file, "GGUF", 4);
    put_u32(file, 3);
    put_u64(file, model->n_tensors);
    put_u64(file, model->n_metadata);
    for (size_t i = 0; i < model->n_metadata; i++) {
        put_metadata(file, &model->metadata[i]);
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const toy_tensor *tensor = &model->tensors[i];
        put_text(file, tensor->name);
        put_u32(file, (uint32_t)tensor->n_dims);
        put(file, tensor->dims, (size_t)tensor->n_dims * sizeof *tensor->dims);
        put_u32(file, TYPE_F32);
        put_u64(file, offset);
        offset += (tensor_bytes(tensor) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    pad(file);
    for (size_t i = 0; i < model->n_tensors; i++) {
        put(file, model->tensors[i].values, tensor_bytes(&model->tensors[i]));
        pad(file);
    }
    assert_int_equal(fclose(file), 0);
}
