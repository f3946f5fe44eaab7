/* Contexts by the name of a device, and memory where they compute. */
#include "device/context.h"
#include "support/reference_device.h"
#include "support/support.h"

static tkv_status create(const char *device, tkv_context **context, tkv_error *error)
{
    const tkv_context_params params = {.n_threads = 1, .device = device};
    return tkv_context_create(&params, context, error);
}

static void names_of_devices(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(create("cpu", &context, &error));
    assert_string_equal(tkv_context_device(context), "cpu");
    assert_ok(tkv_context_wait(context, &error));
    tkv_context_free(context);
    context = NULL;
    assert_fails(create("tpu", &context, &error), TKV_ERR_UNSUPPORTED, "this build has cpu");
    assert_fails(create("cpu:1", &context, &error), TKV_ERR_UNSUPPORTED, "cpu:1");
    assert_fails(create("cuda:", &context, &error), TKV_ERR_INVALID_ARGUMENT, "NAME:NUMBER");
    assert_fails(create("cuda:-1", &context, &error), TKV_ERR_INVALID_ARGUMENT, "NAME:NUMBER");
    assert_fails(create("cuda:1x", &context, &error), TKV_ERR_INVALID_ARGUMENT, "NAME:NUMBER");
    assert_fails(create("", &context, &error), TKV_ERR_UNSUPPORTED, "''");
    assert_null(context);
}

/* A build without a kind of device says so, one with it works or says why it does not. */
static void devices_are_there_or_explained(void **state)
{
    (void)state;
    const char *names[] = {"cuda", "metal"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        tkv_context *context = NULL;
        tkv_error error = {TKV_OK, ""};
        const tkv_status status = create(names[i], &context, &error);
        if (status == TKV_OK) {
            assert_string_equal(tkv_context_kernels(context), names[i]);
            tkv_context_free(context);
        } else {
            assert_int_equal(status, TKV_ERR_UNSUPPORTED);
            assert_non_null(strstr(error.message, names[i]));
            print_message("%s\n", error.message);
        }
    }
    tkv_context *context = NULL;
    assert_fails(tkv_context_create_on(&reference_device_table, 2, NULL, &context, &error),
                 TKV_ERR_UNSUPPORTED, "reference:2: the last of this machine is 1");
}

static void check_memory(tkv_context *context)
{
    enum { N = 1000 };
    uint8_t bytes[N];
    uint8_t copied[N];
    uint8_t zeros[N] = {0};
    void *memory = NULL;
    for (int i = 0; i < N; i++) {
        bytes[i] = (uint8_t)(i * 7);
    }
    assert_fails(tkv_memory_allocate(context, 0, &memory, &error), TKV_ERR_INVALID_ARGUMENT,
                 "at least 1");
    assert_ok(tkv_memory_allocate(context, N, &memory, &error));
    assert_ok(tkv_memory_download(context, copied, memory, N, &error));
    assert_memory_equal(copied, zeros, N);
    assert_ok(tkv_memory_upload(context, (uint8_t *)memory + 10, bytes, N - 10, &error));
    assert_ok(tkv_memory_download(context, copied, (uint8_t *)memory + 20, N - 20, &error));
    assert_memory_equal(copied, bytes + 10, N - 20);
    assert_fails(tkv_memory_upload(context, memory, NULL, 1, &error), TKV_ERR_INVALID_ARGUMENT,
                 "NULL");
    tkv_memory_free(context, memory);
    tkv_memory_free(context, NULL);
    tkv_context_free(context);
}

static void memory(void **state)
{
    (void)state;
    tkv_context *context = NULL;
    assert_ok(create(NULL, &context, &error));
    check_memory(context);
    check_memory(create_reference_context());
    assert_int_equal(reference_device_bytes(), 0);
    context = NULL;
    if (create("cuda", &context, NULL) == TKV_OK) {
        check_memory(context);
    }
}

/* Workspaces grow beside the ones that captured graphs may hold. */
static void workspaces(void **state)
{
    (void)state;
    tkv_context *context = create_reference_context();
    uint64_t first = 0;
    uint64_t again = 0;
    uint64_t larger = 0;
    const tkv_device_workspace *rows = &context->workspaces[TKV_WORKSPACE_ROWS];
    assert_ok(tkv_context_workspace(context, TKV_WORKSPACE_ROWS, 100, &first, &error));
    assert_ok(tkv_context_workspace(context, TKV_WORKSPACE_ROWS, rows->bytes, &again, &error));
    assert_true(first == again);
    const size_t before = reference_device_bytes();
    reference_device_fail(0, true);
    assert_fails(
        tkv_context_workspace(context, TKV_WORKSPACE_ROWS, rows->bytes + 1, &larger, &error),
        TKV_ERR_OUT_OF_MEMORY, "allocate");
    reference_device_recover();
    assert_ok(tkv_context_workspace(context, TKV_WORKSPACE_ROWS, rows->bytes + 1, &larger, &error));
    assert_true(larger != first);
    assert_true(reference_device_bytes() >= 3 * before);
    assert_ok(tkv_context_workspace(context, TKV_WORKSPACE_ATTEND, 100, &again, &error));
    assert_true(again != first && again != larger);
    tkv_context_free(context);
    assert_int_equal(reference_device_bytes(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_of_devices),
                                       cmocka_unit_test(devices_are_there_or_explained),
                                       cmocka_unit_test(memory), cmocka_unit_test(workspaces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
