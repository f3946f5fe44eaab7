/* The gate of a machine: planted defects are found, dying kernels are results, decisions follow,
 * and results are kept. */
#include "device/context.h"
#include "gate/isolate.h"
#include "gate/machine.h"
#include "gate/record.h"
#include "support/support.h"

#include <signal.h>
#include <unistd.h>

/* The self-test of a table of kernels. */
static tkv_status run_self_test(const tkv_kernels *kernels, tkv_self_test *test, tkv_error *failure)
{
    tkv_context *context = NULL;
    assert_ok(tkv_context_create(NULL, &context, &error));
    context->kernels = kernels;
    const tkv_status status = tkv_self_test_run(context, TKV_SELF_TEST_OF_CPU, 0, test, failure);
    tkv_context_free(context);
    return status;
}

static void every_table_passes(void **state)
{
    (void)state;
    tkv_self_test *test = allocate(sizeof *test);
    const tkv_kernels *kernels;
    for (int i = 0; (kernels = tkv_kernels_available(i)); i++) {
        assert_ok(run_self_test(kernels, test, &error));
        if (!tkv_self_test_passed(test, TKV_TYPE_COUNT)) {
            for (int j = 0; j < TKV_OPERATION_COUNT * TKV_TYPE_COUNT; j++) {
                print_message("%s", test->results[j / TKV_TYPE_COUNT][j % TKV_TYPE_COUNT].reason);
            }
            fail_msg("%s failed", kernels->name);
        }
    }
    free(test);
}

static void wrong_rotate(int head_dim, int n_rows, float *x)
{
    tkv_kernels_scalar.rotate(head_dim, n_rows, x);
    x[head_dim - 1] = -x[head_dim - 1];
}

static void wrong_encode(const tkv_page_span *span, const float *x, size_t stride, void *page)
{
    tkv_kernels_scalar.encode(span, x, stride, page);
    if (span->type == TKV_TYPE_TURBO3) {
        ((uint8_t *)page)[7] ^= 4;
    }
}

static void wrong_decode(const tkv_page_span *span, const void *page, float *x, size_t stride)
{
    tkv_kernels_scalar.decode(span, page, x, stride);
    if (span->type == TKV_TYPE_TRELLIS2 && span->head_dim == 576) {
        x[575] = nextafterf(x[575], 1e30f);
    }
}

/* Loses the last query, as a kernel that forgets a remainder does. */
static void wrong_scores(const tkv_page_read *read, int n_rows, const void *prepared, float *scores,
                         void *scratch)
{
    tkv_kernels_scalar.scores(read, n_rows, prepared, scores, scratch);
    if (read->type == TKV_TYPE_TURBO4 && n_rows % 4 != 0) {
        scores[(n_rows - 1) * TKV_PAGE_TOKENS] = NAN;
    }
}

static void wrong_accumulate(const tkv_page_read *read, int n_rows, const float *weights,
                             const float *rescale, float *sums, void *scratch)
{
    tkv_kernels_scalar.accumulate(read, n_rows, weights, rescale, sums, scratch);
    if (read->type == TKV_TYPE_F16) {
        sums[3] *= 1.001f;
    }
}

static void wrong_softmax(const tkv_softmax_span *span, float *scores, float *maximum, float *sum,
                          float *rescale)
{
    tkv_kernels_scalar.softmax(span, scores, maximum, sum, rescale);
    sum[0] *= 1.0f + 1e-3f;
}

static void assert_found(const tkv_kernels *kernels, tkv_operation operation, tkv_type type,
                         const char *reason)
{
    tkv_self_test *test = allocate(sizeof *test);
    assert_ok(run_self_test(kernels, test, &error));
    assert_false(tkv_self_test_passed(test, TKV_TYPE_COUNT));
    for (int i = 0; i < TKV_OPERATION_COUNT * TKV_TYPE_COUNT; i++) {
        const tkv_operation_result *result = &test->results[i / TKV_TYPE_COUNT][i % TKV_TYPE_COUNT];
        const bool is_planted =
            i / TKV_TYPE_COUNT == (int)operation && i % TKV_TYPE_COUNT == (int)type;
        assert_int_equal(result->n_failed > 0, is_planted);
        if (is_planted && !strstr(result->reason, reason)) {
            fail_msg("reason '%s' lacks '%s'", result->reason, reason);
        }
    }
    if (tkv_operation_has_types(operation)) {
        assert_false(tkv_self_test_passed(test, type));
        assert_true(tkv_self_test_passed(test, TKV_TYPE_TURBO2));
    }
    free(test);
}

static void planted_defects_are_found(void **state)
{
    (void)state;
    tkv_kernels kernels = tkv_kernels_scalar;
    kernels.rotate = wrong_rotate;
    assert_found(&kernels, TKV_OPERATION_ROTATE, 0, "rotate, head_dim 64");
    kernels = tkv_kernels_scalar;
    kernels.softmax = wrong_softmax;
    assert_found(&kernels, TKV_OPERATION_SOFTMAX, 0, "softmax, random scores 0: error");
    kernels = tkv_kernels_scalar;
    kernels.encode = wrong_encode;
    assert_found(&kernels, TKV_OPERATION_ENCODE, TKV_TYPE_TURBO3, "encode of turbo3, head_dim 64");
    kernels = tkv_kernels_scalar;
    kernels.decode = wrong_decode;
    assert_found(&kernels, TKV_OPERATION_DECODE, TKV_TYPE_TRELLIS2,
                 "decode of trellis2, head_dim 576");
    kernels = tkv_kernels_scalar;
    kernels.scores = wrong_scores;
    assert_found(&kernels, TKV_OPERATION_SCORES, TKV_TYPE_TURBO4, "scores of turbo4");
    kernels = tkv_kernels_scalar;
    kernels.accumulate = wrong_accumulate;
    assert_found(&kernels, TKV_OPERATION_ACCUMULATE, TKV_TYPE_F16, "accumulate of f16");
    kernels = tkv_kernels_scalar;
    kernels.scores = NULL;
    tkv_self_test *test = allocate(sizeof *test);
    assert_fails(run_self_test(&kernels, test, &error), TKV_ERR_UNSUPPORTED, "not complete");
    free(test);
}

/* A reference that was compiled wrongly agrees with itself, but not with the known answers. */
static void the_reference_is_tested_too(void **state)
{
    (void)state;
    tkv_kernels kernels = tkv_kernels_scalar;
    kernels.encode = wrong_encode;
    tkv_self_test *test = allocate(sizeof *test);
    assert_ok(run_self_test(&kernels, test, &error));
    /* 18 pages differ, and so does the digest over them. */
    assert_int_equal(test->results[TKV_OPERATION_ENCODE][TKV_TYPE_TURBO3].n_failed, 19);
    free(test);
}

static tkv_status work_well(void *argument, void *result, tkv_error *error)
{
    (void)error;
    *(int *)result = 2 * *(int *)argument;
    return TKV_OK;
}

static tkv_status work_badly(void *argument, void *result, tkv_error *error)
{
    (void)argument;
    (void)result;
    *error = (tkv_error){TKV_ERR_UNSUPPORTED, "no such thing"};
    return TKV_ERR_UNSUPPORTED;
}

static tkv_status work_and_die(void *argument, void *result, tkv_error *error)
{
    (void)result;
    (void)error;
    signal(SIGILL, SIG_DFL);
    raise(*(int *)argument);
    return TKV_OK;
}

static tkv_status work_for_long(void *argument, void *result, tkv_error *error)
{
    (void)argument;
    (void)result;
    (void)error;
    sleep(60);
    return TKV_OK;
}

static void what_dies_is_a_result(void **state)
{
    (void)state;
    int argument = 21;
    int result = 0;
    assert_ok(tkv_isolate(work_well, &argument, &result, sizeof result, 10, &error));
    assert_int_equal(result, 42);
    assert_fails(tkv_isolate(work_badly, &argument, &result, sizeof result, 10, &error),
                 TKV_ERR_UNSUPPORTED, "no such thing");
    argument = SIGKILL;
    assert_fails(tkv_isolate(work_and_die, &argument, &result, sizeof result, 10, &error),
                 TKV_ERR_DEVICE, "signal 9");
    assert_fails(tkv_isolate(work_for_long, &argument, &result, sizeof result, 1, &error),
                 TKV_ERR_DEVICE, "not done after 1 seconds");
}

static tkv_gate_backend backend(const char *name, tkv_backend_state backend_state, double speed)
{
    tkv_gate_backend b = {.device = "cpu", .state = backend_state, .n_cases = 100};
    snprintf(b.name, sizeof b.name, "%s", name);
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        b.type_passed[type] = backend_state == TKV_BACKEND_PASSED;
        const double time = speed > 0.0 ? 100.0 / speed : 0.0;
        b.probe.microseconds[type] = type == TKV_TYPE_F16 ? 100.0 : time;
    }
    b.probe.n_tokens = backend_state == TKV_BACKEND_PASSED ? 1024 : 0;
    b.n_failed = backend_state == TKV_BACKEND_FAILED ? 3 : 0;
    if (backend_state == TKV_BACKEND_FAILED) {
        snprintf(b.reason, sizeof b.reason, "scores of turbo4, head_dim 64: wrong");
    }
    return b;
}

static bool has_reason(const tkv_gate *gate, const char *part)
{
    bool is_there = false;
    for (int i = 0; i < gate->n_reasons; i++) {
        is_there = is_there || strstr(gate->reasons[i], part);
    }
    return is_there;
}

static void decisions_follow_from_tests(void **state)
{
    (void)state;
    tkv_gate gate = {.n_backends = 3};
    gate.backends[0] = backend("scalar", TKV_BACKEND_PASSED, 0.5);
    gate.backends[1] = backend("fast", TKV_BACKEND_PASSED, 1.5);
    gate.backends[2] = backend("", TKV_BACKEND_ABSENT, 0.0);
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_GO);
    assert_int_equal(gate.chosen, 1);
    assert_true(has_reason(&gate, "turbo4 (1.50x)"));

    gate.backends[2] = backend("faster", TKV_BACKEND_FAILED, 0.0);
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_FALLBACK);
    assert_int_equal(gate.chosen, 1);
    assert_true(has_reason(&gate, "faster falls back to fast: scores of turbo4"));

    gate.backends[1] = backend("fast", TKV_BACKEND_FAILED, 0.0);
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_FALLBACK);
    assert_int_equal(gate.chosen, 0);
    assert_true(has_reason(&gate, "portable C"));

    gate.backends[0] = backend("scalar", TKV_BACKEND_FAILED, 0.0);
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_NO_GO);
    assert_int_equal(gate.chosen, -1);
    assert_true(has_reason(&gate, "no back end"));

    gate.n_backends = 1;
    gate.backends[0] = backend("slow", TKV_BACKEND_PASSED, 0.25);
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_FALLBACK);
    assert_true(has_reason(&gate, "4.0 times f16's"));
}

static void devices_are_chosen_first(void **state)
{
    (void)state;
    tkv_gate gate = {.n_backends = 3};
    gate.backends[0] = backend("scalar", TKV_BACKEND_PASSED, 0.5);
    gate.backends[1] = backend("cuda", TKV_BACKEND_PASSED, 3.0);
    gate.backends[2] = backend("cuda:1", TKV_BACKEND_PASSED, 3.0);
    for (int i = 1; i < 3; i++) {
        snprintf(gate.backends[i].device, sizeof gate.backends[i].device, "cuda");
    }
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_GO);
    assert_int_equal(gate.chosen, 1);

    gate.backends[1].state = TKV_BACKEND_FAILED;
    tkv_gate_decide(&gate);
    assert_int_equal(gate.chosen, 2);
    assert_true(has_reason(&gate, "cuda must not be used"));

    gate.backends[2].state = TKV_BACKEND_FAILED;
    tkv_gate_decide(&gate);
    assert_int_equal(gate.verdict, TKV_GATE_FALLBACK);
    assert_int_equal(gate.chosen, 0);
    assert_true(has_reason(&gate, "cuda:1 falls back to scalar"));
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* Of a failure whose record says nothing, nothing is put in brackets or after a colon. */
static void a_failure_always_has_a_reason(void **state)
{
    (void)state;
    const char *const blanks[] = {NULL, "", " \n"};
    char directory[] = "/tmp/tkv-gate-XXXXXX";
    char path[4096];
    assert_non_null(mkdtemp(directory));
    assert_int_equal(setenv("XDG_CACHE_HOME", directory, 1), 0);
    for (size_t i = 0; i < sizeof blanks / sizeof *blanks; i++) {
        tkv_gate gate = {.n_backends = 2};
        tkv_gate_describe_machine(gate.machine);
        gate.backends[0] = backend("scalar", TKV_BACKEND_PASSED, 0.75);
        gate.backends[1] = backend("fast", TKV_BACKEND_FAILED, 0.0);
        assert_ok(tkv_gate_save(&gate, path, sizeof path, &error));
        cJSON *json = tkv_gate_to_json(&gate);
        cJSON *failed = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "back_ends"), 1);
        cJSON_DeleteItemFromObject(failed, "reason");
        if (blanks[i]) {
            cJSON_AddStringToObject(failed, "reason", blanks[i]);
        }
        char *text = cJSON_PrintUnformatted(json);
        write_text(path, text);
        free(text);
        cJSON_Delete(json);
        assert_ok(tkv_gate_load(&gate, &error));
        assert_true(has_reason(&gate, "fast falls back to scalar: no reason is recorded"));
        assert_fails(tkv_gate_check("fast", &error), TKV_ERR_DEVICE,
                     "failed their self-test on this machine (no reason is recorded): set TKV_CPU");
        assert_int_equal(unlink(path), 0);
    }
    *strrchr(path, '/') = '\0';
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

static void results_are_kept(void **state)
{
    (void)state;
    char directory[] = "/tmp/tkv-gate-XXXXXX";
    char path[4096];
    char other[4200];
    assert_non_null(mkdtemp(directory));
    assert_int_equal(setenv("XDG_CACHE_HOME", directory, 1), 0);
    tkv_gate gate = {.n_backends = 2};
    tkv_gate read;
    tkv_gate_describe_machine(gate.machine);
    gate.backends[0] = backend("scalar", TKV_BACKEND_PASSED, 0.75);
    gate.backends[1] = backend("fast", TKV_BACKEND_FAILED, 0.0);
    tkv_gate_decide(&gate);

    assert_fails(tkv_gate_load(&read, &error), TKV_ERR_IO, "no gate result of version");
    assert_ok(tkv_gate_check("fast", &error));
    assert_ok(tkv_gate_save(&gate, path, sizeof path, &error));
    assert_ok(tkv_gate_load(&read, &error));
    assert_int_equal(read.verdict, gate.verdict);
    assert_string_equal(read.machine, gate.machine);
    assert_int_equal(read.backends[1].state, TKV_BACKEND_FAILED);
    assert_int_equal(read.backends[0].n_cases, 100);
    assert_true(fabs(tkv_gate_speed(&read.backends[0], TKV_TYPE_TURBO3) - 0.75) < 1e-9);
    assert_ok(tkv_gate_check("scalar", &error));
    assert_ok(tkv_gate_check("unheard-of", &error));
    assert_fails(tkv_gate_check("fast", &error), TKV_ERR_DEVICE, "set TKV_CPU=scalar");
    assert_ok(tkv_gate_check_device("fast", "another device in its place", &error));
    assert_fails(tkv_gate_check_device("fast:0", "", &error), TKV_ERR_DEVICE, "'fast' failed");
    assert_fails(tkv_gate_check_device("fast:00", "", &error), TKV_ERR_DEVICE, "'fast' failed");
    assert_ok(tkv_gate_check_device("fast:1", "", &error));

    /* Instead of a CPU's kernels others of the CPU, instead of a device the CPU. */
    gate.backends[2] = backend("cuda", TKV_BACKEND_PASSED, 3.0);
    gate.backends[3] = backend("cuda:1", TKV_BACKEND_FAILED, 3.0);
    for (int i = 2; i < 4; i++) {
        snprintf(gate.backends[i].device, sizeof gate.backends[i].device, "cuda");
    }
    gate.n_backends = 4;
    tkv_gate_decide(&gate);
    assert_ok(tkv_gate_save(&gate, path, sizeof path, &error));
    assert_fails(tkv_gate_check("fast", &error), TKV_ERR_DEVICE, "set TKV_CPU=scalar");
    assert_fails(tkv_gate_check_device("cuda:01", "", &error), TKV_ERR_DEVICE, "--device cuda,");
    gate.backends[2].state = TKV_BACKEND_FAILED;
    tkv_gate_decide(&gate);
    assert_ok(tkv_gate_save(&gate, path, sizeof path, &error));
    assert_fails(tkv_gate_check_device("cuda", "", &error), TKV_ERR_DEVICE, "--device cpu,");

    /* What cannot be read does no harm. */
    write_text(path, "{\"version\": \"0.0.1\", \"back_ends\": [{}]}");
    assert_fails(tkv_gate_load(&read, &error), TKV_ERR_FORMAT, "of version '0.0.1'");
    assert_ok(tkv_gate_check("fast", &error));
    write_text(path, "{\"back_ends\"");
    assert_fails(tkv_gate_load(&read, &error), TKV_ERR_FORMAT, "cannot be read");
    write_text(path, "[]");
    assert_fails(tkv_gate_load(&read, &error), TKV_ERR_FORMAT, "expected the result of a gate");

    /* A result of another version is named. */
    const char *digits = strrchr(path, '-');
    snprintf(other, sizeof other, "%s/turbokv/gate-9.8.7%s", directory, digits);
    assert_int_equal(rename(path, other), 0);
    assert_fails(tkv_gate_load(&read, &error), TKV_ERR_IO, "only one of version 9.8.7");
    unlink(other);
    snprintf(other, sizeof other, "%s/turbokv", directory);
    rmdir(other);
    rmdir(directory);

    assert_int_equal(setenv("XDG_CACHE_HOME", "/proc/none", 1), 0);
    assert_fails(tkv_gate_save(&gate, path, sizeof path, &error), TKV_ERR_IO, "/proc/none");
    assert_int_equal(setenv("XDG_CACHE_HOME", "relative", 1), 0);
    assert_int_equal(unsetenv("HOME"), 0);
    assert_fails(tkv_gate_load(&read, &error), TKV_ERR_IO, "absolute XDG_CACHE_HOME");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_dies_is_a_result),
                                       cmocka_unit_test(every_table_passes),
                                       cmocka_unit_test(planted_defects_are_found),
                                       cmocka_unit_test(the_reference_is_tested_too),
                                       cmocka_unit_test(decisions_follow_from_tests),
                                       cmocka_unit_test(devices_are_chosen_first),
                                       cmocka_unit_test(a_failure_always_has_a_reason),
                                       cmocka_unit_test(results_are_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
