/* The pre-flight check of MLX, with programs in Python's place and modules in MLX's place. */
#include "gate/mlx.h"
#include "support/support.h"

#include <cjson/cJSON.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[] = "/tmp/tkv-mlx-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    return mkdtemp(root) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

/* Writes a file; the path is in static storage. */
static const char *write_file(const char *name, const char *text)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    mkdir(path, 0755);
    *slash = '/';
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path, 0755), 0);
    return path;
}

#define SAY(step, ok) "echo '{\"step\": \"" step "\", \"ok\": " ok ", \"detail\": \"d\"}'\n"
#define FINE                                                                                       \
    "#!/bin/sh\ncat >/dev/null\n" SAY("python", "true") SAY("mlx", "true") SAY("mlx-lm", "true")   \
        SAY("calls: arrays", "true")

static tkv_mlx_gate check(const char *script, int timeout_seconds)
{
    tkv_mlx_gate gate;
    assert_ok(tkv_mlx_gate_run(write_file("python", script), timeout_seconds, &gate, &error));
    return gate;
}

static void assert_verdict(const char *script, tkv_mlx_verdict verdict, const char *reason)
{
    const tkv_mlx_gate gate = check(script, 20);
    if (gate.verdict != verdict || !strstr(gate.reason, reason)) {
        fail_msg("verdict %s, reason '%s': expected '%s'", tkv_mlx_verdict_name(gate.verdict),
                 gate.reason, reason);
    }
}

static void verdicts_follow_from_steps(void **state)
{
    (void)state;
    assert_verdict(FINE SAY("metal", "true") SAY("rotation", "true") SAY("end", "true"),
                   TKV_MLX_READY, "everything");
    assert_verdict(FINE SAY("metal", "false") SAY("rotation", "true") SAY("end", "true"),
                   TKV_MLX_PARTLY, "metal: d");
    assert_verdict(FINE SAY("metal", "true") SAY("rotation", "false") SAY("end", "true"),
                   TKV_MLX_UNUSABLE, "rotation: d");
    assert_verdict(FINE SAY("metal", "false") SAY("rotation", "false") SAY("end", "true"),
                   TKV_MLX_UNUSABLE, "rotation: d");
    assert_verdict("#!/bin/sh\n" SAY("python", "true") SAY("mlx", "false"), TKV_MLX_UNUSABLE,
                   "mlx: d");
}

static void broken_programs_are_results(void **state)
{
    (void)state;
    tkv_mlx_gate gate;
    assert_ok(tkv_mlx_gate_run("/nowhere/python3", 20, &gate, &error));
    assert_int_equal(gate.verdict, TKV_MLX_UNUSABLE);
    assert_non_null(strstr(gate.reason, "cannot start '/nowhere/python3': No such file"));
    assert_verdict("#!/bin/sh\n", TKV_MLX_UNUSABLE, "python: ended with status 0");
    assert_verdict("#!/bin/sh\necho one >&2\necho boom >&2\nexit 3\n", TKV_MLX_UNUSABLE,
                   "ended with status 3: boom");
    assert_verdict("#!/bin/sh\n" SAY("python", "true") "echo '{\"step\": \"begin\", \"ok\": true, "
                                                       "\"detail\": \"mlx\"}'\nkill -SEGV $$\n",
                   TKV_MLX_UNUSABLE, "mlx: Python ended with signal 11");
    assert_verdict(FINE, TKV_MLX_UNUSABLE, "check: ended with status 0");
    assert_verdict("#!/bin/sh\nyes '{\"step\":' | head -c 300000\n", TKV_MLX_UNUSABLE,
                   "ended with");
    gate = check("#!/bin/sh\nsleep 30 &\nsleep 30\n", 1);
    assert_non_null(strstr(gate.reason, "not done after 1 seconds"));
}

/* The real program, if there is a Python, with modules that are not MLX. */
static void wrong_modules_are_told_apart(void **state)
{
    (void)state;
    tkv_mlx_gate gate;
    if (system("command -v python3 >/dev/null") != 0) {
        skip();
    }
    assert_int_equal(setenv("PYTHONPATH", root, 1), 0);
    write_file("mlx/__init__.py", "");
    write_file("mlx/core.py", "raise OSError('no libmlx')\n");
    assert_ok(tkv_mlx_gate_run("python3", 60, &gate, &error));
    assert_int_equal(gate.verdict, TKV_MLX_UNUSABLE);
    assert_non_null(strstr(gate.reason, "OSError: no libmlx"));
    assert_non_null(strstr(gate.reason, "pip install mlx"));

    write_file("mlx/core.py", "__version__ = '0.1'\n");
    write_file("mlx_lm/__init__.py", "raise ImportError('too old')\n");
    assert_ok(tkv_mlx_gate_run("python3", 60, &gate, &error));
    assert_int_equal(gate.verdict, TKV_MLX_UNUSABLE);
    bool is_lm_said = false;
    bool is_call_said = false;
    for (int i = 0; i < gate.n_steps; i++) {
        is_lm_said = is_lm_said || strstr(gate.steps[i].detail, "ImportError: too old");
        is_call_said = is_call_said || strstr(gate.steps[i].detail, "fast.metal_kernel");
        assert_true(gate.steps[i].has_passed == (i < 2));
    }
    assert_true(is_lm_said && is_call_said);

    write_file("mlx/core.py", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n");
    assert_ok(tkv_mlx_gate_run("python3", 60, &gate, &error));
    assert_non_null(strstr(gate.reason, "mlx: Python ended with signal 4"));
    unsetenv("PYTHONPATH");
}

static const cJSON *at(const cJSON *array, int i, int j)
{
    return cJSON_GetArrayItem(cJSON_GetArrayItem(array, i), j);
}

static void known_answers_are_the_librarys(void **state)
{
    (void)state;
    char *text = NULL;
    assert_ok(tkv_mlx_known_answers(&text, &error));
    cJSON *known = cJSON_Parse(text);
    assert_non_null(known);
    const cJSON *rotation = cJSON_GetArrayItem(cJSON_GetObjectItem(known, "rotation"), 1);
    float x[80];
    for (int j = 0; j < 80; j++) {
        x[j] = (float)at(cJSON_GetObjectItem(rotation, "x"), 0, j)->valuedouble;
    }
    assert_ok(tkv_rotate(NULL, 80, 1, x, &error));
    for (int j = 0; j < 80; j++) {
        assert_true(x[j] == (float)at(cJSON_GetObjectItem(rotation, "y"), 0, j)->valuedouble);
    }
    const cJSON *rows = cJSON_GetObjectItem(known, "rows");
    assert_int_equal(cJSON_GetArraySize(rows), 3);
    const cJSON *codes = cJSON_GetObjectItem(cJSON_GetArrayItem(rows, 0), "codes");
    const cJSON *words = cJSON_GetObjectItem(known, "words");
    for (int j = 0; j < 128; j++) {
        const uint32_t word =
            (uint32_t)cJSON_GetArrayItem(cJSON_GetObjectItem(words, "words"), j / 32 * 4 + j % 4)
                ->valuedouble;
        assert_int_equal(word >> 4 * (j % 32 / 4) & 15u, at(codes, 0, j)->valueint);
    }
    cJSON_Delete(known);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(verdicts_follow_from_steps),
                                       cmocka_unit_test(broken_programs_are_results),
                                       cmocka_unit_test(wrong_modules_are_told_apart),
                                       cmocka_unit_test(known_answers_are_the_librarys)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
