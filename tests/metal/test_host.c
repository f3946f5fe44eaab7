/* The host code of the Metal back end: memory, order of work, and what it says when Metal fails.
 * The failures are the fake Metal's; on a Mac these tests are left out. */
#include "device/metal/metal.h"
#include "support/support.h"

#include <unistd.h>

#ifndef __APPLE__
#include "metal/runtime/objc.h"
#endif

static tkv_error problem;

static const tkv_device_table *const table = &tkv_device_table_metal;

static tkv_device *open_device(void)
{
    tkv_device *device = NULL;
    assert_ok(table->open(0, NULL, &device, &error));
    assert_non_null(device);
    return device;
}

static uint64_t allocate_on(tkv_device *device, size_t bytes)
{
    uint64_t address = 0;
    assert_ok(table->allocate(device, bytes, &address, &error));
    assert_int_equal(address % 256, 0);
    return address;
}

static uint8_t byte_of(int i)
{
    return (uint8_t)(7 * i + i / 251);
}

/* Allocations of many sizes lie apart, hold what was put there and are zero at first, also where
 * something was freed. */
static void memory_is_zeroed_and_apart(void **state)
{
    (void)state;
    enum { N = 200 };
    tkv_device *device = open_device();
    uint64_t addresses[N];
    uint8_t bytes[5000];
    uint64_t seed = 3;
    size_t sizes[N];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            if (round > 0 && random_below(&seed, 2)) {
                continue;
            }
            if (round > 0) {
                table->release(device, addresses[i]);
            }
            sizes[i] = 1 + (size_t)random_below(&seed, 5000);
            addresses[i] = allocate_on(device, sizes[i]);
            assert_ok(table->download(device, bytes, addresses[i], sizes[i], &error));
            for (size_t j = 0; j < sizes[i]; j++) {
                assert_int_equal(bytes[j], 0);
            }
            memset(bytes, byte_of(i), sizes[i]);
            assert_ok(table->upload(device, addresses[i], bytes, sizes[i], &error));
        }
        for (int i = 0; i < N; i++) {
            assert_ok(table->download(device, bytes, addresses[i], sizes[i], &error));
            for (size_t j = 0; j < sizes[i]; j++) {
                assert_int_equal(bytes[j], byte_of(i));
            }
        }
    }
    table->close(device);
}

/* Uploads and copies happen after the kernels that were asked for before them, and freed memory is
 * not given to others before the kernels that use it have run. */
static void work_happens_in_order(void **state)
{
    (void)state;
    enum { HEAD_DIM = 64, BYTES = HEAD_DIM * (int)sizeof(float) };
    tkv_device *device = open_device();
    float spike[HEAD_DIM] = {1.0f};
    float rotated[HEAD_DIM];
    float other[HEAD_DIM] = {[5] = 3.0f};
    const uint64_t x = allocate_on(device, BYTES);
    const uint64_t y = allocate_on(device, BYTES);
    assert_ok(table->upload(device, x, spike, BYTES, &error));
    assert_ok(table->rotate(device, HEAD_DIM, 1, x, false, &error));
    assert_ok(table->copy(device, y, x, BYTES, &error));
    assert_ok(table->upload(device, x, other, BYTES, &error));
    table->release(device, x);
    const uint64_t reused = allocate_on(device, BYTES);
    assert_ok(table->download(device, rotated, y, BYTES, &error));
    for (int j = 0; j < HEAD_DIM; j++) {
        assert_true(rotated[j] != 0.0f);
    }
    assert_ok(table->rotate(device, HEAD_DIM, 1, y, true, &error));
    assert_ok(table->download(device, rotated, y, BYTES, &error));
    assert_true(fabsf(rotated[0] - 1.0f) < 1e-6f && fabsf(rotated[1]) < 1e-6f);
    assert_ok(table->download(device, rotated, reused, BYTES, &error));
    assert_true(rotated[5] == 0.0f);
    table->close(device);
}

static void copies_of_any_length(void **state)
{
    (void)state;
    tkv_device *device = open_device();
    uint8_t bytes[1100];
    for (int i = 0; i < 1000; i++) {
        bytes[i] = byte_of(i);
    }
    const uint64_t from = allocate_on(device, sizeof bytes);
    const uint64_t to = allocate_on(device, sizeof bytes);
    assert_ok(table->upload(device, from, bytes, 1000, &error));
    const int places[][3] = {{0, 0, 1000}, {4, 8, 12}, {1, 0, 7}, {3, 3, 901}, {0, 0, 0}};
    for (int i = 0; i < 5; i++) {
        const uint64_t at = to + (uint64_t)places[i][0];
        memset(bytes, 0xa5, sizeof bytes);
        assert_ok(table->upload(device, to, bytes, sizeof bytes, &error));
        assert_ok(
            table->copy(device, at, from + (uint64_t)places[i][1], (size_t)places[i][2], &error));
        assert_ok(table->download(device, bytes, to, sizeof bytes, &error));
        for (int j = 0; j < (int)sizeof bytes; j++) {
            const int k = j - places[i][0];
            assert_int_equal(bytes[j],
                             k >= 0 && k < places[i][2] ? byte_of(k + places[i][1]) : 0xa5);
        }
    }
    table->close(device);
}

/* Addresses that are nobody's are refused, not followed. */
static void foreign_addresses_are_refused(void **state)
{
    (void)state;
    tkv_device *device = open_device();
    char byte = 0;
    const uint64_t x = allocate_on(device, 100);
    assert_int_equal(table->upload(device, 4096, &byte, 1, &problem), TKV_ERR_INVALID_ARGUMENT);
    assert_int_equal(table->download(device, &byte, 4096, 1, &problem), TKV_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(problem.message, "in no Metal buffer"));
    assert_int_equal(table->download(device, &byte, x, (size_t)1 << 40, &problem),
                     TKV_ERR_INVALID_ARGUMENT);
    table->release(device, 0);
    table->release(device, 4096);
    table->release(device, x);
    table->release(device, x);
    table->close(device);
    table->close(NULL);
}

static void a_bad_choice_of_table_is_refused(void **state)
{
    (void)state;
    tkv_device *device = NULL;
    setenv("TKV_METAL_TABLE", "half", 1);
    assert_int_equal(table->open(0, NULL, &device, &problem), TKV_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(problem.message, "expected full or 4mag"));
    unsetenv("TKV_METAL_TABLE");
    assert_int_equal(table->open(1, NULL, &device, &problem), TKV_ERR_UNSUPPORTED);
    device = open_device();
    assert_non_null(strstr(table->description(device), "4-magnitude"));
    table->close(device);
}

#ifndef __APPLE__
static void a_missing_device_is_explained(void **state)
{
    (void)state;
    char reason[200] = "";
    tkv_device *device = NULL;
    assert_int_equal(table->count(reason, sizeof reason), 1);
    setenv("FAKE_METAL_FAMILY", "none", 1);
    assert_int_equal(table->count(reason, sizeof reason), 0);
    assert_non_null(strstr(reason, "no Metal device"));
    assert_int_equal(table->open(0, NULL, &device, &problem), TKV_ERR_UNSUPPORTED);
    setenv("FAKE_METAL_FAMILY", "apple6", 1);
    assert_int_equal(table->count(reason, sizeof reason), 0);
    assert_non_null(strstr(reason, "Apple7"));
    assert_int_equal(table->open(0, NULL, &device, &problem), TKV_ERR_UNSUPPORTED);
    setenv("TKV_METAL_ANY_GPU", "1", 1);
    assert_int_equal(table->count(reason, sizeof reason), 1);
    unsetenv("TKV_METAL_ANY_GPU");
    setenv("FAKE_METAL_FAMILY", "apple8", 1);
    device = open_device();
    assert_non_null(strstr(table->description(device), "Apple8"));
    table->close(device);
    unsetenv("FAKE_METAL_FAMILY");
}

/* Asks for a rotation while a setting of the fake Metal makes it fail. */
static void check_failure(const char *setting, const char *value, tkv_status status,
                          const char *message)
{
    tkv_device *device = open_device();
    const uint64_t x = allocate_on(device, 128 * sizeof(float));
    setenv(setting, value, 1);
    tkv_status got = table->rotate(device, 128, 1, x, false, &problem);
    got = got == TKV_OK ? table->wait(device, &problem) : got;
    unsetenv(setting);
    assert_int_equal(got, status);
    assert_non_null(strstr(problem.message, message));
    assert_null(strchr(problem.message, '\n'));
    assert_ok(table->rotate(device, 128, 1, x, false, &error));
    assert_ok(table->wait(device, &error));
    table->close(device);
}

static void failures_are_reported_and_survived(void **state)
{
    (void)state;
    check_failure("FAKE_METAL_PIPELINES", "0", TKV_ERR_DEVICE, "tkv_rotate_rows");
    check_failure("FAKE_METAL_COMMITS", "0", TKV_ERR_DEVICE, "command buffer");
    check_failure("FAKE_METAL_MAX_THREADS", "64", TKV_ERR_UNSUPPORTED, "128");
}

/* What Apple's compiler says of a kernel is passed on, with the file and line of our source. */
static void compile_errors_name_file_and_line(void **state)
{
    (void)state;
    char path[] = "/tmp/tkv_test_metal_XXXXXX";
    tkv_device *device = NULL;
    const int file = mkstemp(path);
    assert_true(file >= 0);
    FILE *source = fdopen(file, "w");
    fputs("#include <metal_stdlib>\nusing namespace metal;\n#line 40 \"store.metal\"\n"
          "kernel void f(device float *x [[buffer(0)]])\n{\n    x[0] = nothing;\n}\n",
          source);
    fclose(source);
    setenv("FAKE_METAL_SOURCE", path, 1);
    assert_int_equal(table->open(0, NULL, &device, &problem), TKV_ERR_DEVICE);
    unsetenv("FAKE_METAL_SOURCE");
    unlink(path);
    assert_non_null(strstr(problem.message, "store.metal:42"));
    assert_non_null(strstr(problem.message, "nothing"));
    assert_null(strchr(problem.message, '\n'));
}

static void memory_may_run_out(void **state)
{
    (void)state;
    uint64_t address = 0;
    tkv_device *device = open_device();
    setenv("FAKE_METAL_BUFFERS", "0", 1);
    assert_int_equal(table->allocate(device, 1000, &address, &problem), TKV_ERR_OUT_OF_MEMORY);
    unsetenv("FAKE_METAL_BUFFERS");
    setenv("FAKE_METAL_MAX_BUFFER", "1000000", 1);
    assert_int_equal(table->allocate(device, 2000000, &address, &problem), TKV_ERR_OUT_OF_MEMORY);
    assert_non_null(strstr(problem.message, "2000000"));
    assert_ok(table->allocate(device, 900000, &address, &error));
    assert_ok(table->allocate(device, 1000, &address, &error));
    unsetenv("FAKE_METAL_MAX_BUFFER");
    table->close(device);
}

static void nothing_leaks(void **state)
{
    (void)state;
    table->close(open_device());
    const long before = fake_metal_live_objects();
    for (int i = 0; i < 3; i++) {
        tkv_device *device = open_device();
        const uint64_t x = allocate_on(device, 5 << 20);
        allocate_on(device, 100);
        assert_ok(table->rotate(device, 128, 10, x, false, &error));
        table->release(device, x);
        if (i) {
            assert_ok(table->wait(device, &error));
        }
        table->close(device);
        assert_int_equal(fake_metal_live_objects(), before);
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_and_apart),
        cmocka_unit_test(work_happens_in_order),
        cmocka_unit_test(copies_of_any_length),
        cmocka_unit_test(foreign_addresses_are_refused),
        cmocka_unit_test(a_bad_choice_of_table_is_refused),
#ifndef __APPLE__
        cmocka_unit_test(a_missing_device_is_explained),
        cmocka_unit_test(failures_are_reported_and_survived),
        cmocka_unit_test(compile_errors_name_file_and_line),
        cmocka_unit_test(memory_may_run_out),
        cmocka_unit_test(nothing_leaks),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
