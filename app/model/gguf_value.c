/* Metadata values of a GGUF file as integers, numbers and text. */
#include "model/gguf.h"

#include <inttypes.h>
#include <string.h>

uint64_t tkv_gguf_array_length(const tkv_gguf_value *value)
{
    return value->n_elements;
}

/* Copies element `index`, which need not be aligned in the file. */
static void read_element(const tkv_gguf_value *value, uint64_t index, size_t size, void *element)
{
    memcpy(element, value->data + index * size, size);
}

bool tkv_gguf_integer(const tkv_gguf_value *value, uint64_t index, int64_t *result)
{
    if (index >= value->n_elements) {
        return false;
    }
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } e;
    switch (value->type) {
    case TKV_GGUF_BOOL:
    case TKV_GGUF_UINT8:
        read_element(value, index, 1, &e);
        *result = e.u8;
        return true;
    case TKV_GGUF_INT8:
        read_element(value, index, 1, &e);
        *result = e.i8;
        return true;
    case TKV_GGUF_UINT16:
        read_element(value, index, 2, &e);
        *result = e.u16;
        return true;
    case TKV_GGUF_INT16:
        read_element(value, index, 2, &e);
        *result = e.i16;
        return true;
    case TKV_GGUF_UINT32:
        read_element(value, index, 4, &e);
        *result = e.u32;
        return true;
    case TKV_GGUF_INT32:
        read_element(value, index, 4, &e);
        *result = e.i32;
        return true;
    case TKV_GGUF_INT64:
        read_element(value, index, 8, &e);
        *result = e.i64;
        return true;
    case TKV_GGUF_UINT64:
        read_element(value, index, 8, &e);
        *result = (int64_t)e.u64;
        return e.u64 <= INT64_MAX;
    default: return false;
    }
}

bool tkv_gguf_number(const tkv_gguf_value *value, uint64_t index, double *result)
{
    int64_t integer;
    if (tkv_gguf_integer(value, index, &integer)) {
        *result = (double)integer;
        return true;
    }
    if (index >= value->n_elements) {
        return false;
    }
    if (value->type == TKV_GGUF_FLOAT32) {
        float single;
        read_element(value, index, sizeof single, &single);
        *result = (double)single;
        return true;
    }
    if (value->type == TKV_GGUF_FLOAT64) {
        read_element(value, index, sizeof *result, result);
        return true;
    }
    return false;
}

bool tkv_gguf_text_at(const tkv_gguf_value *value, uint64_t index, tkv_gguf_text *result)
{
    if (value->type != TKV_GGUF_STRING || index >= value->n_elements) {
        return false;
    }
    const uint8_t *at = value->data + value->string_offsets[index];
    uint64_t length;
    memcpy(&length, at, sizeof length);
    *result = (tkv_gguf_text){(const char *)at + sizeof length, (size_t)length};
    return true;
}

static tkv_status fail_missing(const tkv_gguf *gguf, const char *key, tkv_error *error)
{
    return tkv_fail(error, TKV_ERR_FORMAT, "%s: metadata key %s is missing", tkv_gguf_path(gguf),
                    key);
}

static tkv_status fail_type(const tkv_gguf *gguf, const char *key, const tkv_gguf_value *value,
                            const char *expected, tkv_error *error)
{
    return tkv_fail(error, TKV_ERR_FORMAT, "%s: metadata key %s is %s%s: expected %s",
                    tkv_gguf_path(gguf), key, value->is_array ? "an array of " : "",
                    tkv_gguf_type_name(value->type), expected);
}

tkv_status tkv_gguf_get_integer(const tkv_gguf *gguf, const char *key, bool required,
                                int64_t *result, tkv_error *error)
{
    const tkv_gguf_value *value = tkv_gguf_find(gguf, key);
    if (!value) {
        return required ? fail_missing(gguf, key, error) : TKV_OK;
    }
    return !value->is_array && tkv_gguf_integer(value, 0, result)
               ? TKV_OK
               : fail_type(gguf, key, value, "an integer below 2^63", error);
}

tkv_status tkv_gguf_get_number(const tkv_gguf *gguf, const char *key, bool required, double *result,
                               tkv_error *error)
{
    const tkv_gguf_value *value = tkv_gguf_find(gguf, key);
    if (!value) {
        return required ? fail_missing(gguf, key, error) : TKV_OK;
    }
    return !value->is_array && tkv_gguf_number(value, 0, result)
               ? TKV_OK
               : fail_type(gguf, key, value, "a number", error);
}

tkv_status tkv_gguf_get_text(const tkv_gguf *gguf, const char *key, bool required,
                             tkv_gguf_text *result, tkv_error *error)
{
    const tkv_gguf_value *value = tkv_gguf_find(gguf, key);
    if (!value) {
        return required ? fail_missing(gguf, key, error) : TKV_OK;
    }
    return !value->is_array && tkv_gguf_text_at(value, 0, result)
               ? TKV_OK
               : fail_type(gguf, key, value, "a string", error);
}
