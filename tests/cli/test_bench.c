/* turbokv bench: what it prints, and mistakes. */
#include "process.h"

#include <unistd.h>

static void codecs_are_measured(void **state)
{
    (void)state;
    assert_outcome(run("bench", "codec", "-n", "64", "-q", "4", "-T", "turbo3,trellis2"), 0,
                   "trellis2", "");
    cJSON *json = run_json((const char *const[]){"bench", "codec", "-n", "256", "-q", "4", "-d",
                                                 "64,80", "-T", "turbo4,turbo2", "--json", NULL});
    const cJSON *rows = cJSON_GetObjectItem(json, "types");
    assert_int_equal(cJSON_GetArraySize(rows), 4);
    const cJSON *last = cJSON_GetArrayItem(rows, 3);
    assert_string_equal(text_of(last, "type"), "turbo2");
    assert_true(number_of(last, "head_dim") == 80);
    assert_float_equal(number_of(last, "nmse"), 0.13, 0.01);
    assert_true(number_of(last, "encode_key_seconds") > 0.0);
    assert_true(number_of(json, "read_bytes_per_second") > 0.0);
    cJSON_Delete(json);
}

static void kernels_are_measured(void **state)
{
    (void)state;
    assert_outcome(
        run("bench", "kernels", "-d", "64", "-T", "turbo3", "-o", "scores,softmax", "--time", "1"),
        0, "scores, bound by memory", "");
    cJSON *json = run_json(
        (const char *const[]){"bench", "kernels", "-d", "16,80", "-T", "turbo4,f16", "-o",
                              "rotate,prepare_queries,decode", "--time", "1", "--json", NULL});
    const cJSON *rows = cJSON_GetObjectItem(json, "kernels");
    const int n_sets = cJSON_GetArraySize(rows) / (2 + 4 + 4);
    assert_int_equal(cJSON_GetArraySize(rows), 10 * n_sets);
    const cJSON *first = cJSON_GetArrayItem(rows, 0);
    assert_string_equal(text_of(first, "kernels"), "scalar");
    assert_string_equal(text_of(first, "operation"), "rotate");
    assert_string_equal(text_of(first, "bound"), "cache");
    assert_true(number_of(first, "speed_against_first") == 1.0);
    const cJSON *row;
    cJSON_ArrayForEach(row, rows)
    {
        assert_true(cJSON_IsTrue(cJSON_GetObjectItem(row, "right")));
        assert_true(number_of(row, "seconds") > 0.0 && number_of(row, "bound_seconds") > 0.0);
    }
    assert_string_equal(text_of(cJSON_GetArrayItem(rows, 10 * n_sets - 1), "type"), "f16");
    assert_true(number_of(json, "memory_copy_bytes_per_second") > 0.0);
    cJSON_Delete(json);
}

static void models_are_measured(void **state)
{
    (void)state;
    assert_outcome(
        run("bench", "model", "-T", "turbo3", "-d", "70", "-p", "0", "-n", "1", "-r", "1"), 0,
        "turbo3", "");
    cJSON *json =
        run_json((const char *const[]){"bench", "model", "-T", "f16,turbo4/turbo2,3bit", "-d",
                                       "640,0", "-p", "5", "-n", "2", "-r", "2", "--json", NULL});
    const cJSON *rows = cJSON_GetObjectItem(json, "results");
    assert_int_equal(cJSON_GetArraySize(rows), 6);
    const cJSON *first = cJSON_GetArrayItem(rows, 0);
    assert_true(number_of(first, "depth") == 0);
    assert_true(number_of(first, "decode_tokens_per_second") > 0.0);
    const cJSON *pair = cJSON_GetArrayItem(rows, 4);
    assert_string_equal(text_of(pair, "type"), "turbo4/turbo2");
    assert_true(number_of(pair, "depth") == 640);
    const double bits = number_of(pair, "bits_per_value");
    assert_true(bits >= (4.125 + 2.125) / 2.0 && bits < 5.0);
    assert_true(number_of(pair, "prefill_tokens_per_second_best") >=
                number_of(pair, "prefill_tokens_per_second"));
    cJSON_Delete(json);
}

/* Two heads of four vectors; with the mean of all taken off, nothing is left of constant rows. */
static void vectors_come_from_files(void **state)
{
    (void)state;
    char path[] = "/tmp/tkv_test_bench_XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    uint16_t halves[2 * 4 * 32];
    for (int i = 0; i < 2 * 4 * 32; i++) {
        halves[i] = (uint16_t)(0x3c00 + i % 32 * 16 + i / 32 % 2); /* 1 to 1.5, a pattern */
    }
    assert_int_equal(write(file, halves, sizeof halves), sizeof halves);
    close(file);
    cJSON *json =
        run_json((const char *const[]){"bench", "codec", "--data", path, "-n", "4", "-d", "32",
                                       "-T", "turbo4", "--centre", "4", "--json", NULL});
    const cJSON *row = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "types"), 0);
    assert_true(number_of(row, "nmse") < 1e-6);
    cJSON_Delete(json);
    assert_outcome(run("bench", "codec", "--data", path, "-n", "3", "-d", "32"), 1, "",
                   "expected whole heads of 3 vectors of 32 fp16 values (192 bytes), found 2 and "
                   "128 bytes");
    unlink(path);
    assert_outcome(run("bench", "codec", "--data", path), 1, "", path);
}

/* What no machine has room for is refused before anything is measured. */
static void sizes_are_checked_first(void **state)
{
    (void)state;
    assert_outcome(run("bench", "model", "-d", "99999999"), 2, "",
                   "--depths: 99999999 tokens, but the model was trained for 8192");
    assert_outcome(run("bench", "model", "-d", "0", "-p", "8193"), 2, "", "--prompt: 8193 tokens");
    assert_outcome(run("bench", "model", "-d", "0", "-n", "8193"), 2, "", "--predict: 8193 tokens");
    assert_outcome(run("bench", "model", "-d", "99999999", "--beyond-context", "-T",
                       "f16,f16,f16,f16,f16,f16,f16,f16,f16,f16,f16,f16,f16,f16,f16,f16"),
                   1, "", "KV caches of 100000511 tokens for 16 policies");
    assert_outcome(run("bench", "attention", "-n", "10000000", "--kv-heads", "1024"), 1, "",
                   "GB of memory");
    assert_outcome(run("bench", "attention", "-n", "1000000", "-q", "1000000", "--group", "1024",
                       "-T", "turbo2"),
                   1, "", "and 1000000 queries of 2 types");
    char path[] = "/tmp/tkv_test_bench_XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(ftruncate(file, (off_t)1 << 40), 0); /* without a block on the disk */
    close(file);
    assert_outcome(run("bench", "codec", "--data", path, "-d", "64,128"), 1, "", "GB of memory");
    unlink(path);
}

/* Depths of the default that are beyond the context are left out. */
static void depths_end_with_the_context(void **state)
{
    (void)state;
    outcome o = run("bench", "model", "-p", "0", "-n", "1", "-r", "1", "-T", "turbo4", "--json");
    assert_int_equal(o.status, 0);
    assert_non_null(strstr(o.err, "depth 32768 is left out"));
    cJSON *json = cJSON_Parse(o.out);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "results")), 3);
    cJSON_Delete(json);
    done(&o);
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    assert_outcome(run("bench"), 2, "", "benchmarks:");
    assert_outcome(run("bench", "--help"), 0, "codec", "");
    assert_outcome(run("bench", "flight"), 2, "", "no benchmark 'flight'");
    assert_outcome(run("bench", "codec", "--help"), 0, "--head-dim", "");
    assert_outcome(run("bench", "codec", "--device", "abacus"), 1, "",
                   "device 'abacus': this build has cpu");
    assert_outcome(run("bench", "codec", "--device", "cuda:99"), 1, "", "cuda");
    assert_outcome(run("bench", "codec", "-T", "turbo4,q4_0"), 2, "", "turbo4, turbo3");
    assert_outcome(run("bench", "codec", "-d", "128,x"), 2, "", "found 'x'");
    assert_outcome(run("bench", "codec", "-d", "99"), 2, "", "even number");
    assert_outcome(run("bench", "codec", "-n", "10", "--centre", "11"), 1, "", "the first 11");
    assert_outcome(run("bench", "attention", "--device", "abacus"), 1, "",
                   "device 'abacus': this build has cpu");
    assert_outcome(run("bench", "attention", "--device", "cuda:99"), 1, "", "cuda");
    assert_outcome(run("bench", "attention", "--device", "cuda:"), 1, "", "NAME:NUMBER");
    assert_outcome(run("bench", "attention", "--batch", "2"), 2, "", "expected 1 on the CPU");
    assert_outcome(run("bench", "kernels", "-o", "scores,fly"), 2, "", "none is 'fly'");
    assert_outcome(run("bench", "kernels", "-d", "100"), 1, "", "multiple of 16");
    assert_outcome(run("bench", "kernels", "--device", "cuda:99"), 1, "", "cuda");
    assert_outcome(run("bench", "model", "--device", "cuda:99"), 1, "", "cuda");
    assert_outcome(run("bench", "model", "-T", "f16,q4_0"), 2, "", "q4_0");
    assert_outcome(run("bench", "model", "-T", "f16,"), 2, "", "KV type");
    assert_outcome(run("bench", "model", "-d", "0,-1"), 2, "", "found '-1'");
    assert_outcome(run("bench", "model", "-m", "/nonexistent.gguf"), 1, "", "/nonexistent.gguf");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_are_measured),    cmocka_unit_test(codecs_are_measured),
        cmocka_unit_test(models_are_measured),     cmocka_unit_test(vectors_come_from_files),
        cmocka_unit_test(sizes_are_checked_first), cmocka_unit_test(depths_end_with_the_context),
        cmocka_unit_test(mistakes_are_explained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
