/* turbokv gate as a process. */
#include "process.h"

#include "gate/record.h"

#include <sys/stat.h>
#include <unistd.h>

static char directory[] = "/tmp/tkv-gate-XXXXXX";

/* Results go to a directory of the test's. */
static int set_up(void **state)
{
    (void)state;
    return mkdtemp(directory) ? setenv("XDG_CACHE_HOME", directory, 1) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    assert_outcome(run("gate", "--help"), 0, "3 the gate itself could not be run", "");
    assert_outcome(run("gate", "--speed"), 3, "", "--cached");
    assert_outcome(run("gate", "-t", "0"), 3, "", "whole number from 1 to 1024");
    assert_outcome(run("gate", "stray"), 3, "", "unexpected argument 'stray'");
    assert_outcome(run("gate", "--cached"), 3, "", "no gate result of version");
}

static const cJSON *find_backend(const cJSON *json, const char *device, const char *kernels)
{
    const cJSON *backend;
    cJSON_ArrayForEach(backend, cJSON_GetObjectItem(json, "back_ends"))
    {
        if (strcmp(text_of(backend, "device"), device) == 0 &&
            strcmp(text_of(backend, "kernels"), kernels) == 0) {
            return backend;
        }
    }
    return NULL;
}

static cJSON *parse(outcome *o)
{
    cJSON *json = cJSON_Parse(o->out);
    if (!json) {
        fail_msg("no JSON: '%.200s' '%.200s'", o->out, o->err);
    }
    done(o);
    return json;
}

/* The kernels that the commands compute on here. */
static char *kernels_in_use(void)
{
    cJSON *json = run_json(
        (const char *const[]){"run", "-p", "x", "-n", "1", "--ignore-gate", "--json", NULL});
    char *kernels = strdup(text_of(json, "kernels"));
    cJSON_Delete(json);
    return kernels;
}

static void add_backend(tkv_gate *gate, const char *device, const char *name, const char *failed)
{
    tkv_gate_backend *backend = &gate->backends[gate->n_backends++];
    snprintf(backend->device, sizeof backend->device, "%s", device);
    snprintf(backend->name, sizeof backend->name, "%s", name);
    backend->state = strcmp(name, failed) == 0 ? TKV_BACKEND_FAILED : TKV_BACKEND_PASSED;
    backend->n_cases = 100;
    backend->probe.n_tokens = 1024;
    for (int type = 0; type < TKV_TYPE_COUNT; type++) {
        backend->probe.microseconds[type] = 1.0;
    }
}

/* The record of a machine with other kernels for its CPU, those in use, and a GPU, of which the
 * ones called `failed` are wrong. */
static void keep_record(const char *kernels, const char *failed)
{
    char path[256];
    tkv_gate gate = {.n_backends = 0};
    tkv_gate_describe_machine(gate.machine);
    add_backend(&gate, "cpu", "others", failed);
    add_backend(&gate, "cpu", kernels, failed);
    add_backend(&gate, "cuda", "cuda", failed);
    tkv_gate_decide(&gate);
    assert_ok(tkv_gate_save(&gate, path, sizeof path, &error));
}

/* Every command that computes. */
static const char *const computing[][16] = {
    {"run", "-p", "x", "-n", "2"},
    {"eval", "-f", TKV_SOURCE_DIR "/LICENSE", "-c", "16", "--chunks", "1", "-P", "turbo4"},
    {"bench", "model", "-d", "0", "-p", "4", "-n", "1", "-r", "1", "-T", "turbo4"},
    {"bench", "codec", "-n", "64", "-q", "1", "-T", "turbo4"},
    {"bench", "attention", "-n", "128", "-r", "1", "-T", "turbo4"},
    {"demo"},
};

static outcome compute(size_t command, const char *more)
{
    const char *arguments[17] = {NULL};
    int n = 0;
    for (; computing[command][n]; n++) {
        arguments[n] = computing[command][n];
    }
    arguments[n] = more;
    return run_with(arguments);
}

static void every_command_asks_the_record(void **state)
{
    (void)state;
    char *kernels = kernels_in_use();
    keep_record(kernels, kernels);
    for (size_t i = 0; i < sizeof computing / sizeof *computing; i++) {
        outcome o = compute(i, NULL);
        assert_string_equal(o.out, "");
        assert_outcome(o, 1, "", "failed their self-test");
        assert_outcome(compute(i, NULL), 1, "", "(no reason is recorded): set TKV_CPU=others");
        assert_outcome(compute(i, "--help"), 0, "--ignore-gate", "");
        if (strcmp(computing[i][0], "demo") != 0) { /* which takes long */
            assert_outcome(compute(i, "--ignore-gate"), 0, "", "");
        }
    }
    free(kernels);
}

/* On a machine with a GPU, which the gate advises to use; commands without --device compute on the
 * CPU. */
static void a_record_counts_where_the_command_computes(void **state)
{
    (void)state;
    char *kernels = kernels_in_use();
    keep_record(kernels, "");
    cJSON *json = run_json((const char *const[]){"gate", "--cached", "--json", NULL});
    assert_string_equal(text_of(json, "use"), "cuda");
    cJSON_Delete(json);
    keep_record(kernels, "cuda");
    assert_outcome(run("run", "-p", "x", "-n", "2"), 0, "", "bits a value");
    keep_record(kernels, kernels);
    assert_outcome(run("gate", "--cached"), 0, "decision: go", "");
    assert_outcome(run("run", "-p", "x", "-n", "2"), 1, "", "failed their self-test");
    free(kernels);
}

static void a_machine_is_tested_and_remembered(void **state)
{
    (void)state;
    outcome o = run("gate", "--json");
    assert_true(o.status == 0 || o.status == 1);
    const int status = o.status;
    cJSON *json = parse(&o);
    assert_string_equal(text_of(json, "decision"), status ? "fallback" : "go");
    assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(json, "reasons")) >= 2);
    const cJSON *scalar = find_backend(json, "cpu", "scalar");
    assert_non_null(scalar);
    assert_string_equal(text_of(scalar, "state"), "passed");
    assert_true(number_of(scalar, "cases") > 400);
    assert_true(number_of(scalar, "failed") == 0);
    const cJSON *type;
    cJSON_ArrayForEach(type, cJSON_GetObjectItem(scalar, "types"))
    {
        assert_true(cJSON_IsTrue(cJSON_GetObjectItem(type, "right")));
        assert_true(number_of(type, "attend_us") > 0.0);
    }
    char *used = strdup(text_of(json, "use"));
    cJSON_Delete(json);

    o = run("gate", "--cached", "--json");
    assert_int_equal(o.status, status);
    json = parse(&o);
    assert_string_equal(text_of(json, "use"), used);
    cJSON_Delete(json);
    assert_outcome(run("gate", "--cached"), status, "known answers", "");

    assert_outcome(run("run", "-p", "x", "-n", "2"), 0, "", "bits a value");
    free(used);

    /* A record that nobody can read is said to be so, and stops nobody. */
    char command[256];
    snprintf(command, sizeof command, "for f in %s/turbokv/gate-*.json; do echo '{' > $f; done",
             directory);
    assert_int_equal(system(command), 0);
    assert_outcome(run("gate", "--cached"), 3, "", "cannot be read: run 'turbokv gate'");
    assert_outcome(run("run", "-p", "x", "-n", "2"), 0, "", "bits a value");
}

static void write_file(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void a_llama_tree_is_judged(void **state)
{
    (void)state;
    char tree[128];
    snprintf(tree, sizeof tree, "%s/llama", directory);
    assert_outcome(run("gate", "--llama-cpp", tree), 3, "", "No such file");
    assert_outcome(run("gate", "--ref", "main"), 3, "", "--ref needs --llama-cpp");
    assert_int_equal(mkdir(tree, 0755), 0);
    assert_outcome(run("gate", "--llama-cpp", tree), 3, "", "holds nothing of llama.cpp");
    write_file("llama/ggml-metal.metal", "kernel void kernel_soft_max(int x) { }\n");
    assert_outcome(run("gate", "--llama-cpp", tree), 1, "FALL BACK to MLX", "");
    assert_outcome(run("gate", "--llama-cpp", tree, "--ref", "main"), 3, "",
                   "is not a git repository");
    write_file("llama/ggml-metal.metal",
               "// turbo\n"
               "kernel void kernel_turbo_wht(int x) { }\n"
               "kernel void kernel_set_rows_turbo3(int x) { }\n"
               "kernel void kernel_turbo3_dequant_f16(int x) { }\n"
               "constant float turbo_centroids_1bit[2] = {-0.12f, 0.12f};\n"
               "kernel void kernel_flash_attn_ext_kturbo3_vturbo3_dk128_dv128(int x) { }\n");
    write_file("llama/ggml.h", "enum ggml_type { GGML_TYPE_TURBO3_0 = 41 };\n");
    assert_outcome(run("gate", "--llama-cpp", tree), 0, "PROCEED with the llama.cpp path", "");
    assert_outcome(run("gate", "--llama-cpp", tree), 0, "is not converged", "");
    cJSON *json = run_json((const char *const[]){"gate", "--llama-cpp", tree, "--json", NULL});
    assert_string_equal(text_of(json, "verdict"), "proceed");
    const cJSON *file = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "files"), 0);
    assert_string_equal(text_of(file, "path"), "ggml-metal.metal");
    assert_true(number_of(file, "turbo_lines") == 6.0);
    assert_true(number_of(file, "lines") == 6.0);
    const cJSON *words = cJSON_GetObjectItem(json, "type_words");
    assert_string_equal(cJSON_GetArrayItem(words, 0)->valuestring, "turbo");
    cJSON_Delete(json);
}

static void mlx_is_judged(void **state)
{
    (void)state;
    assert_outcome(run("gate", "--mlx", "--llama-cpp", "/x"), 3, "",
                   "one of --mlx and --llama-cpp");
    assert_outcome(run("gate", "--mlx", "--python", "/no/python3"), 2, "cannot start '/no/python3'",
                   "");
    outcome o = run("gate", "--mlx", "--python", "/no/python3", "--json");
    assert_int_equal(o.status, 2);
    cJSON *json = parse(&o);
    assert_string_equal(text_of(json, "verdict"), "unusable");
    cJSON_Delete(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(a_llama_tree_is_judged),
        cmocka_unit_test(mlx_is_judged),
        cmocka_unit_test(a_machine_is_tested_and_remembered),
        cmocka_unit_test(every_command_asks_the_record),
        cmocka_unit_test(a_record_counts_where_the_command_computes)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
