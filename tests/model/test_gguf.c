/* The GGUF reader on a small valid file, and on every way in which such a file can be broken. */
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "support/support.h"

#include <unistd.h>

/* A file under construction, with the places of fields that tests overwrite. */
typedef struct image {
    uint8_t bytes[4096];
    size_t size;
    size_t at_tensor_count;
    size_t at_value_count;
    size_t at_key_length;
    size_t at_value_type;
    size_t at_array_type;
    size_t at_array_length;
    size_t at_string_length;
    size_t at_alignment;
    size_t at_dimension_count;
    size_t at_dimension;
    size_t at_tensor_type;
    size_t at_offset;
    size_t at_data;
} image;

static void put(image *f, const void *data, size_t size)
{
    assert_true(f->size + size <= sizeof f->bytes);
    memcpy(f->bytes + f->size, data, size);
    f->size += size;
}

static void put_u32(image *f, uint32_t value)
{
    put(f, &value, sizeof value);
}

static void put_u64(image *f, uint64_t value)
{
    put(f, &value, sizeof value);
}

static void put_text(image *f, const char *text)
{
    put_u64(f, strlen(text));
    put(f, text, strlen(text));
}

static void put_scalar(image *f, const char *key, uint32_t type, const void *value, size_t size)
{
    put_text(f, key);
    put_u32(f, type);
    put(f, value, size);
}

static void put_tensor(image *f, const char *name, uint32_t type, uint64_t dim, uint64_t offset)
{
    put_text(f, name);
    f->at_dimension_count = f->size;
    put_u32(f, 2);
    f->at_dimension = f->size;
    put_u64(f, dim);
    put_u64(f, 2);
    f->at_tensor_type = f->size;
    put_u32(f, type);
    f->at_offset = f->size;
    put_u64(f, offset);
}

static void put_metadata(image *f)
{
    const float number = 1.5f;
    const int32_t integer = -7;
    const uint32_t alignment = 64;
    const uint64_t large = UINT64_MAX;
    f->at_key_length = f->size;
    put_text(f, "a.number");
    f->at_value_type = f->size;
    put_u32(f, TKV_GGUF_FLOAT32);
    put(f, &number, sizeof number);
    put_scalar(f, "an.integer", TKV_GGUF_INT32, &integer, sizeof integer);
    put_scalar(f, "large", TKV_GGUF_UINT64, &large, sizeof large);
    put_text(f, "general.alignment");
    put_u32(f, TKV_GGUF_UINT32);
    f->at_alignment = f->size;
    put(f, &alignment, sizeof alignment);
    put_text(f, "texts");
    put_u32(f, TKV_GGUF_ARRAY);
    f->at_array_type = f->size;
    put_u32(f, TKV_GGUF_STRING);
    f->at_array_length = f->size;
    put_u64(f, 3);
    put_text(f, "one");
    f->at_string_length = f->size;
    put_text(f, "two words");
    put_text(f, "");
}

static image valid_image(void)
{
    image f = {.size = 0};
    put(&f, "GGUF", 4);
    put_u32(&f, 3);
    f.at_tensor_count = f.size;
    put_u64(&f, 2);
    f.at_value_count = f.size;
    put_u64(&f, 5);
    put_metadata(&f);
    put_tensor(&f, "first", 0, 4, 0);
    put_tensor(&f, "second", 8, 32, 64);
    while (f.size % 64) {
        put(&f, "", 1);
    }
    f.at_data = f.size;
    for (int i = 0; i < 64 + 68; i++) {
        put(&f, &(uint8_t){(uint8_t)i}, 1);
    }
    return f;
}

static tkv_status open_bytes(const uint8_t *bytes, size_t size, tkv_gguf **gguf, tkv_error *error)
{
    char path[] = "/tmp/turbokv-test-XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, bytes, size), size);
    close(file);
    const tkv_status status = tkv_gguf_open(path, gguf, error);
    unlink(path);
    return status;
}

static void a_valid_file_is_read(void **state)
{
    (void)state;
    const image f = valid_image();
    tkv_gguf *gguf = NULL;
    assert_ok(open_bytes(f.bytes, f.size, &gguf, &error));
    int64_t integer = 0;
    double number = 0.0;
    tkv_gguf_text text = {NULL, 0};
    assert_ok(tkv_gguf_get_integer(gguf, "an.integer", true, &integer, &error));
    assert_int_equal(integer, -7);
    assert_ok(tkv_gguf_get_number(gguf, "a.number", true, &number, &error));
    assert_true(number == 1.5);
    assert_ok(tkv_gguf_get_number(gguf, "an.integer", true, &number, &error));
    assert_true(number == -7.0);
    integer = 99;
    assert_ok(tkv_gguf_get_integer(gguf, "absent", false, &integer, &error));
    assert_int_equal(integer, 99);
    assert_fails(tkv_gguf_get_integer(gguf, "absent", true, &integer, &error), TKV_ERR_FORMAT,
                 "absent is missing");
    assert_fails(tkv_gguf_get_integer(gguf, "a.number", true, &integer, &error), TKV_ERR_FORMAT,
                 "is float32: expected an integer");
    assert_fails(tkv_gguf_get_integer(gguf, "large", true, &integer, &error), TKV_ERR_FORMAT,
                 "2^63");
    assert_fails(tkv_gguf_get_text(gguf, "texts", true, &text, &error), TKV_ERR_FORMAT,
                 "array of string");
    const tkv_gguf_value *texts = tkv_gguf_find(gguf, "texts");
    assert_non_null(texts);
    assert_int_equal(tkv_gguf_array_length(texts), 3);
    assert_true(tkv_gguf_text_at(texts, 1, &text));
    assert_int_equal(text.length, 9);
    assert_memory_equal(text.data, "two words", 9);
    assert_true(tkv_gguf_text_at(texts, 2, &text));
    assert_int_equal(text.length, 0);
    assert_false(tkv_gguf_text_at(texts, 3, &text));
    const tkv_gguf_tensor *tensor = tkv_gguf_find_tensor(gguf, "second");
    assert_non_null(tensor);
    assert_int_equal(tensor->n_bytes, 68);
    assert_int_equal(tensor->dims[0], 32);
    assert_int_equal(tensor->dims[1], 2);
    assert_int_equal(tensor->dims[2], 1);
    assert_int_equal(*(const uint8_t *)tensor->data, 64);
    assert_null(tkv_gguf_find_tensor(gguf, "third"));
    assert_int_equal(tkv_gguf_file_bytes(gguf), f.size);
    tkv_gguf_close(gguf);
}

static void every_truncation_is_an_error(void **state)
{
    (void)state;
    const image f = valid_image();
    for (size_t size = 0; size < f.size; size++) {
        tkv_gguf *gguf = NULL;
        tkv_error error = {TKV_OK, ""};
        assert_int_equal(open_bytes(f.bytes, size, &gguf, &error), TKV_ERR_FORMAT);
        assert_null(gguf);
        assert_true(strlen(error.message) > 10);
    }
}

typedef struct mutation {
    const char *what;
    size_t at;
    size_t size;
    uint64_t value;
    tkv_status status;
    const char *message;
} mutation;

static void impossible_fields_are_explained(void **state)
{
    (void)state;
    const image f = valid_image();
    const mutation mutations[] = {
        {"magic", 0, 4, 0x46554746, TKV_ERR_FORMAT, "not a GGUF file"},
        {"version 1", 4, 4, 1, TKV_ERR_UNSUPPORTED, "version 1"},
        {"big-endian", 4, 4, 3u << 24, TKV_ERR_UNSUPPORTED, "big-endian"},
        {"tensor count", f.at_tensor_count, 8, UINT64_MAX, TKV_ERR_FORMAT, "do not fit"},
        {"tensor count", f.at_tensor_count, 8, 10, TKV_ERR_FORMAT, "at byte"},
        {"value count", f.at_value_count, 8, 1ull << 61, TKV_ERR_FORMAT, "do not fit"},
        {"value count", f.at_value_count, 8, 6, TKV_ERR_FORMAT, "at byte"},
        {"key length", f.at_key_length, 8, UINT64_MAX - 3, TKV_ERR_FORMAT, "truncated"},
        {"empty key", f.at_key_length, 8, 0, TKV_ERR_FORMAT, "empty or overlong"},
        {"value type", f.at_value_type, 4, 13, TKV_ERR_FORMAT, "unknown type"},
        {"array of arrays", f.at_array_type, 4, 9, TKV_ERR_FORMAT, "array of arrays"},
        {"array type", f.at_array_type, 4, 77, TKV_ERR_FORMAT, "unknown type"},
        {"array length", f.at_array_length, 8, 1ull << 60, TKV_ERR_FORMAT, "more strings"},
        {"array length", f.at_array_length, 8, 30, TKV_ERR_FORMAT, "truncated"},
        {"string length", f.at_string_length, 8, 1ull << 40, TKV_ERR_FORMAT, "truncated"},
        {"alignment 0", f.at_alignment, 4, 0, TKV_ERR_FORMAT, "power of two"},
        {"alignment 48", f.at_alignment, 4, 48, TKV_ERR_FORMAT, "power of two"},
        {"huge alignment", f.at_alignment, 4, 1u << 31, TKV_ERR_FORMAT, "power of two"},
        {"no dimensions", f.at_dimension_count, 4, 0, TKV_ERR_FORMAT, "4 dimensions"},
        {"dimensions", f.at_dimension_count, 4, 5, TKV_ERR_FORMAT, "4 dimensions"},
        {"zero dimension", f.at_dimension, 8, 0, TKV_ERR_FORMAT, "zero"},
        {"overflow", f.at_dimension, 8, 1ull << 62, TKV_ERR_FORMAT, "overflows"},
        {"blocks", f.at_dimension, 8, 33, TKV_ERR_FORMAT, "whole number of blocks"},
        {"too large", f.at_dimension, 8, 3200, TKV_ERR_FORMAT, "second"},
        {"offset", f.at_offset, 8, 65, TKV_ERR_FORMAT, "multiple of 64"},
        {"offset", f.at_offset, 8, 1ull << 63, TKV_ERR_FORMAT, "second"},
        {"offset", f.at_offset, 8, 128, TKV_ERR_FORMAT, "second"},
        {"overlap", f.at_offset, 8, 0, TKV_ERR_FORMAT, "overlap"}};
    for (size_t i = 0; i < sizeof mutations / sizeof *mutations; i++) {
        const mutation *m = &mutations[i];
        image broken = f;
        memcpy(broken.bytes + m->at, &m->value, m->size);
        tkv_gguf *gguf = NULL;
        tkv_error error = {TKV_OK, ""};
        const tkv_status status = open_bytes(broken.bytes, broken.size, &gguf, &error);
        if (status != m->status || !strstr(error.message, m->message)) {
            fail_msg("%s: status %d, '%s'", m->what, (int)status, error.message);
        }
        assert_null(gguf);
    }
}

static void repeated_names_are_refused(void **state)
{
    (void)state;
    image f = valid_image();
    memcpy(f.bytes + f.at_key_length + 8, "an.integ", 8);
    image same_tensor = valid_image();
    for (size_t i = 0; i + 6 < same_tensor.size; i++) {
        if (memcmp(same_tensor.bytes + i, "second", 6) == 0) {
            /* "second" becomes "first" of length 5, its last byte a part of what follows: shift. */
            const uint64_t length = 5;
            memcpy(same_tensor.bytes + i - 8, &length, 8);
            memcpy(same_tensor.bytes + i, "first", 5);
            memmove(same_tensor.bytes + i + 5, same_tensor.bytes + i + 6,
                    same_tensor.at_data - i - 6);
            break;
        }
    }
    tkv_gguf *gguf = NULL;
    assert_fails(open_bytes(same_tensor.bytes, same_tensor.size, &gguf, &error), TKV_ERR_FORMAT,
                 "first occurs twice");
    image twice = valid_image();
    /* "large" (5) and "texts" (5) get one name. */
    for (size_t i = 0; i + 5 < twice.size; i++) {
        if (memcmp(twice.bytes + i, "texts", 5) == 0) {
            memcpy(twice.bytes + i, "large", 5);
        }
    }
    assert_fails(open_bytes(twice.bytes, twice.size, &gguf, &error), TKV_ERR_FORMAT,
                 "large occurs twice");
}

/* Random damage: any result but a crash. */
static void random_damage_is_survived(void **state)
{
    (void)state;
    const image f = valid_image();
    uint64_t seed = 2026;
    int n_opened = 0;
    for (int trial = 0; trial < 5000; trial++) {
        image broken = f;
        const int n = 1 + random_below(&seed, 4);
        for (int i = 0; i < n; i++) {
            broken.bytes[random_below(&seed, (int)f.at_data)] = (uint8_t)random_bits(&seed);
        }
        tkv_gguf *gguf = NULL;
        if (open_bytes(broken.bytes, broken.size, &gguf, NULL) == TKV_OK) {
            n_opened++;
            const tkv_gguf_value *texts = tkv_gguf_find(gguf, "texts");
            for (uint64_t t = 0; texts && t < tkv_gguf_array_length(texts); t++) {
                tkv_gguf_text text;
                int64_t integer;
                tkv_gguf_text_at(texts, t, &text);
                tkv_gguf_integer(texts, t, &integer);
            }
            tkv_gguf_close(gguf);
        }
    }
    assert_true(n_opened > 0 && n_opened < 5000);
}

static void missing_files_are_named(void **state)
{
    (void)state;
    tkv_gguf *gguf = NULL;
    assert_fails(tkv_gguf_open("/nonexistent/model.gguf", &gguf, &error), TKV_ERR_IO,
                 "/nonexistent/model.gguf");
    assert_fails(tkv_gguf_open("/tmp", &gguf, &error), TKV_ERR_IO, "regular file");
    assert_fails(tkv_gguf_open(NULL, &gguf, &error), TKV_ERR_INVALID_ARGUMENT, "NULL");
}

/* Three tokens, of which the second has this score. */
static image vocabulary_image(double score)
{
    image f = {.size = 0};
    const double scores[] = {0.0, score, 0.0};
    put(&f, "GGUF", 4);
    put_u32(&f, 3);
    put_u64(&f, 0);
    put_u64(&f, 3);
    put_text(&f, "tokenizer.ggml.model");
    put_u32(&f, TKV_GGUF_STRING);
    put_text(&f, "llama");
    put_text(&f, "tokenizer.ggml.tokens");
    put_u32(&f, TKV_GGUF_ARRAY);
    put_u32(&f, TKV_GGUF_STRING);
    put_u64(&f, 3);
    put_text(&f, "a");
    put_text(&f, "b");
    put_text(&f, "c");
    put_text(&f, "tokenizer.ggml.scores");
    put_u32(&f, TKV_GGUF_ARRAY);
    put_u32(&f, TKV_GGUF_FLOAT64);
    put_u64(&f, 3);
    put(&f, scores, sizeof scores);
    return f;
}

static void scores_that_no_float_holds_are_refused(void **state)
{
    (void)state;
    static const double refused[] = {1e300, -1e39, NAN};
    static const double taken[] = {3e38, -INFINITY, -1e4};
    tkv_gguf *gguf = NULL;
    tkv_tokenizer *tokenizer = NULL;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const image f = vocabulary_image(refused[i]);
        assert_ok(open_bytes(f.bytes, f.size, &gguf, &error));
        assert_fails(tkv_tokenizer_from_gguf(gguf, &tokenizer, &error), TKV_ERR_FORMAT,
                     "scores of token 1 is");
        tkv_gguf_close(gguf);
    }
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        const image f = vocabulary_image(taken[i]);
        assert_ok(open_bytes(f.bytes, f.size, &gguf, &error));
        assert_ok(tkv_tokenizer_from_gguf(gguf, &tokenizer, &error));
        tkv_tokenizer_free(tokenizer);
        tkv_gguf_close(gguf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(scores_that_no_float_holds_are_refused),
                                       cmocka_unit_test(a_valid_file_is_read),
                                       cmocka_unit_test(every_truncation_is_an_error),
                                       cmocka_unit_test(impossible_fields_are_explained),
                                       cmocka_unit_test(repeated_names_are_refused),
                                       cmocka_unit_test(random_damage_is_survived),
                                       cmocka_unit_test(missing_files_are_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
