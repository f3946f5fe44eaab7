/* turbokv plan as a process, its figures against those of a run. */
#include "process.h"

#include "eval/gguf_file.h"

#include <unistd.h>

#define TINY TKV_SOURCE_DIR "/models/tiny-q8_0.gguf"
#define UNIFORM "--layers", "32", "--kv-heads", "8", "--head-dim", "128"

static void wrong_options_are_refused(void **state)
{
    (void)state;
    assert_outcome(run("plan"), 2, "", "either -m MODEL or --layers");
    assert_outcome(run("plan", "--layers", "3"), 2, "", "either -m MODEL or --layers");
    assert_outcome(run("plan", UNIFORM, "-m", "x"), 2, "", "either -m MODEL or --layers");
    assert_outcome(run("plan", UNIFORM, "--memory", "lots"), 2, "", "as 4096, 512M or 1.5G");
    assert_outcome(run("plan", UNIFORM, "--memory", "3Gx"), 2, "", "as 4096, 512M or 1.5G");
    assert_outcome(run("plan", UNIFORM, "--memory", "-3G"), 2, "", "as 4096, 512M or 1.5G");
    assert_outcome(run("plan", UNIFORM, "--contexts", "4K,x"), 1, "", "--contexts at 'x'");
    assert_outcome(run("plan", UNIFORM, "--contexts", "0"), 1, "", "expected 1 to 16777216");
    assert_outcome(run("plan", UNIFORM, "-P", "q4_0"), 1, "", "turbo4, turbo3");
    assert_outcome(run("plan", "--layers", "2", "--kv-heads", "8", "--head-dim", "41"), 1, "",
                   "head_dim 41: expected an even number");
    assert_outcome(run("plan", UNIFORM, "--parallel", "0"), 2, "", "from 1 to 4096");
    assert_outcome(run("plan", UNIFORM, "--window", "0"), 2, "", "--window");
    assert_outcome(run("plan", UNIFORM, "--head-dim-v", "2000"), 2, "", "from 0 to 1024");
    assert_outcome(run("plan", "-m", TINY, "--window", "5"), 2, "", "either -m MODEL or --layers");
    assert_outcome(run("plan", "-m", TINY, "--head-dim-v", "0"), 2, "", "either -m MODEL");
    assert_outcome(run("plan", "-m", "/no/model.gguf"), 1, "", "/no/model.gguf");
    assert_outcome(run("plan", "-m", TKV_SOURCE_DIR "/README.md"), 1, "", "not a GGUF file");
}

static void a_table_names_what_fits(void **state)
{
    (void)state;
    assert_outcome(run("plan", UNIFORM, "--memory", "16G", "--weights", "4.7GiB", "-c", "131072"),
                   0, "recommended: -c 131072 --kv 8bit", "");
    assert_outcome(run("plan", UNIFORM, "--memory", "1G", "--weights", "2G"), 1, "nothing fits",
                   "");
    assert_outcome(run("plan", "-m", TKV_SOURCE_DIR "/models/tiny-q8_0.gguf"), 0, "recommended",
                   "");
}

/* A run's bytes at the number of tokens it ended with, within 5 %. */
static void figures_are_those_of_a_run(void **state)
{
    (void)state;
    const char *const policies[][2] = {
        {"-ctk", "turbo4"}, {"-ctk", "trellis3"}, {"--kv", "f16"}, {"--kv", "3bit"}};
    const char *const names[] = {"turbo4/f16", "trellis3/f16", "f16", "3bit"};
    for (int i = 0; i < 4; i++) {
        cJSON *ran = run_json((const char *const[]){"run", "-f", TKV_SOURCE_DIR "/docs/FORMAT.md",
                                                    "-n", "3", "--temp", "0", policies[i][0],
                                                    policies[i][1], "--json", NULL});
        char context[16];
        snprintf(context, sizeof context, "%.0f", number_of(ran, "cached_tokens"));
        cJSON *planned =
            run_json((const char *const[]){"plan", "-m", TKV_SOURCE_DIR "/models/tiny-q8_0.gguf",
                                           "--contexts", context, "-P", names[i], "--json", NULL});
        const cJSON *row = cJSON_GetArrayItem(cJSON_GetObjectItem(planned, "policies"), 0);
        const double figure =
            cJSON_GetArrayItem(cJSON_GetObjectItem(row, "kv_bytes"), 0)->valuedouble;
        const double measured = number_of(ran, "kv_bytes");
        if (fabs(figure - measured) > 0.05 * measured) {
            fail_msg("%s at %s tokens: planned %.0f, measured %.0f", names[i], context, figure,
                     measured);
        }
        assert_true(number_of(planned, "weight_bytes") > 1e6);
        assert_true(number_of(row, "longest_context") > 1000);
        cJSON_Delete(ran);
        cJSON_Delete(planned);
    }
}

/* Bytes of f16 at 8192 tokens. */
static double f16_bytes(const char *const *arguments)
{
    const char *all[24] = {"plan", "-P", "f16", "--contexts", "8192", "--memory", "64G", "--json"};
    for (int i = 0; arguments[i]; i++) {
        all[8 + i] = arguments[i];
    }
    cJSON *planned = run_json(all);
    const cJSON *row = cJSON_GetArrayItem(cJSON_GetObjectItem(planned, "policies"), 0);
    const double bytes = cJSON_GetArrayItem(cJSON_GetObjectItem(row, "kv_bytes"), 0)->valuedouble;
    cJSON_Delete(planned);
    return bytes;
}

#define F16_BYTES(...) f16_bytes((const char *const[]){__VA_ARGS__, NULL})

static void assert_share(double part, double whole, double share)
{
    if (fabs(part / whole - share) > 0.01 * share) {
        fail_msg("%.0f of %.0f bytes: expected %.4f of them", part, whole, share);
    }
}

static void shapes_have_values_windows_and_sequences(void **state)
{
    (void)state;
    const double whole = F16_BYTES(UNIFORM);
    assert_share(whole, 8192.0 * 32 * 8 * 256 * 2, 1.0);
    assert_share(F16_BYTES(UNIFORM, "--head-dim-v", "64"), whole, 0.75);
    assert_share(F16_BYTES(UNIFORM, "--head-dim-v", "0"), whole, 0.5);
    assert_share(F16_BYTES(UNIFORM, "--window", "960"), whole, 0.125);
    assert_share(F16_BYTES(UNIFORM, "--window", "960", "--swa-full"), whole, 1.0);
    assert_share(F16_BYTES(UNIFORM, "--parallel", "4"), whole, 4.0);
    assert_share(F16_BYTES(UNIFORM, "-np", "4", "--window", "960"), whole, 0.5);
    assert_outcome(run("plan", UNIFORM, "-np", "4"), 0, "4 sequences, each with the context", "");
    assert_share(F16_BYTES("--layers", "3", "--kv-heads", "2", "--head-dim", "14"),
                 8192.0 * 3 * 2 * 32 * 2, 1.0);
}

static void a_model_needs_no_option(void **state)
{
    (void)state;
    outcome by_name = run("plan", "-m", TINY, "--memory", "8G");
    outcome bare = run("plan", TINY, "--memory", "8G");
    outcome last = run("plan", "--memory", "8G", TINY);
    assert_int_equal(bare.status, 0);
    assert_string_equal(bare.out, by_name.out);
    assert_string_equal(last.out, by_name.out);
    done(&by_name);
    done(&bare);
    done(&last);
}

/* A hybrid with an indexer in the layers that attend, of an architecture that nobody knows. */
static void what_is_kept_is_told(void **state)
{
    (void)state;
    gguf_file file;
    char model[] = "/tmp/tkv-plan-XXXXXX";
    char page[] = "/tmp/tkv-plan-XXXXXX";
    gguf_file_init(&file, "unheard-of");
    gguf_file_set(&file, "block_count", 8);
    gguf_file_set(&file, "embedding_length", 1024);
    gguf_file_set(&file, "attention.head_count", 8);
    gguf_file_set(&file, "attention.head_count_kv", 2);
    gguf_file_set(&file, "full_attention_interval", 4);
    gguf_file_set(&file, "attention.sliding_window", 512);
    gguf_file_set(&file, "attention.indexer.key_length", 64);
    gguf_file_set(&file, "ssm.conv_kernel", 4);
    gguf_file_set(&file, "ssm.inner_size", 2048);
    gguf_file_set(&file, "ssm.state_size", 128);
    gguf_file_write(&file, model);
    const double state_bytes = 6 * 4 * (3 * 2048 + 128 * 2048);
    cJSON *json = run_json((const char *const[]){"plan", model, "--memory", "8G", "--weights", "1G",
                                                 "-P", "f16", "-np", "2", "--json", NULL});
    assert_int_equal(number_of(json, "layers_with_kv"), 2);
    assert_int_equal(number_of(json, "layers_with_state"), 6);
    assert_int_equal(number_of(json, "layers_with_more_keys"), 2);
    assert_int_equal(number_of(json, "sequences"), 2);
    assert_true(number_of(json, "recurrent_state_bytes") == 2 * state_bytes);
    assert_true(number_of(json, "kv_budget_bytes") ==
                0x1p30 * 7 - 2 * state_bytes - number_of(json, "workspace_bytes"));
    assert_non_null(strstr(text_of(json, "note"), "a window of 512 tokens"));
    cJSON_Delete(json);
    assert_share(F16_BYTES(model), 8192.0 * 2 * (2 * 256 + 64) * 2, 1.0);
    const int descriptor = mkstemp(page);
    assert_true(descriptor >= 0);
    outcome o = run("plan", model, "--memory", "8G", "--weights", "1G", "--report", page);
    char *html = read_all(descriptor);
    const char *const told[] = {"recurrent state of 6 layers: 6.1 MiB, whatever the context",
                                "2 layers keep keys of an indexer", "0.01 recurrent state",
                                "note: the file has a window of 512 tokens",
                                "while a batch of 512 tokens is read"};
    const char *const shown[] = {"6.1 MiB in 6 layers", "in 2 layers keys of an indexer",
                                 "a window of 512 tokens and does not say",
                                 "more while a batch of 512 tokens is read"};
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        if (!strstr(o.out, told[i])) {
            fail_msg("the output lacks '%s':\n%s", told[i], o.out);
        }
    }
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        if (!strstr(html, shown[i])) {
            fail_msg("the page lacks '%s'", shown[i]);
        }
    }
    free(html);
    done(&o);
    unlink(model);
    unlink(page);
}

/* Files of a model that is split; one without layers that keep anything. */
static void unusual_files_are_explained(void **state)
{
    (void)state;
    gguf_file file;
    char other[] = "/tmp/tkv-plan-XXXXXX";
    char mamba[] = "/tmp/tkv-plan-XXXXXX";
    gguf_file_init(&file, NULL);
    gguf_file_set(&file, "split.no", 1);
    gguf_file_set(&file, "split.count", 2);
    gguf_file_write(&file, other);
    assert_outcome(run("plan", other), 1, "", "this is file 2 of 2 of a model");
    gguf_file_init(&file, "mamba");
    gguf_file_set(&file, "block_count", 4);
    gguf_file_set(&file, "embedding_length", 64);
    gguf_file_write(&file, mamba);
    assert_outcome(run("plan", mamba, "--memory", "1G", "--report", "/dev/null"), 0,
                   "4 layers, 0 of them keep keys and values", "");
    unlink(other);
    unlink(mamba);
}

static void a_report_has_a_plot(void **state)
{
    (void)state;
    char path[] = "/tmp/tkv-plan-XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    assert_outcome(run("plan", UNIFORM, "--memory", "16G", "--weights", "4G", "--report", path), 0,
                   "recommended", "");
    char *page = read_all(file);
    const char *const parts[] = {"<svg viewBox",          "class=\"limit\"",
                                 "turbo4, turbo4q, 4bit", "<td><code>16387.5</code></td>",
                                 "-c 131072 --kv 8bit",   "</html>"};
    int n_curves = 0;
    for (const char *at = page; (at = strstr(at, "<polyline")); at++) {
        n_curves++;
    }
    assert_int_equal(n_curves, 13);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!strstr(page, parts[i])) {
            fail_msg("the page lacks '%s'", parts[i]);
        }
    }
    free(page);
    /* One context, and nothing that fits. */
    assert_outcome(run("plan", UNIFORM, "--memory", "1G", "--weights", "2G", "--contexts", "4K",
                       "--report", path),
                   1, "nothing fits", "");
    unlink(path);
    assert_outcome(run("plan", UNIFORM, "--memory", "16G", "--report", "/no/page.html"), 1, "",
                   "cannot write /no/page.html");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(wrong_options_are_refused),
                                       cmocka_unit_test(a_table_names_what_fits),
                                       cmocka_unit_test(a_report_has_a_plot),
                                       cmocka_unit_test(shapes_have_values_windows_and_sequences),
                                       cmocka_unit_test(a_model_needs_no_option),
                                       cmocka_unit_test(what_is_kept_is_told),
                                       cmocka_unit_test(unusual_files_are_explained),
                                       cmocka_unit_test(figures_are_those_of_a_run)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
