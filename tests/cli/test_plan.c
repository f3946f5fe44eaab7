/* turbokv plan as a process, its figures against those of a run. */
#include "process.h"

#include <unistd.h>

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
    assert_outcome(run("plan", "--layers", "2", "--kv-heads", "8", "--head-dim", "40"), 1, "",
                   "head_dim 40");
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
        cJSON *ran = run_json((const char *const[]){"run", "-f", TKV_SOURCE_DIR "/README.md", "-n",
                                                    "3", "--temp", "0", policies[i][0],
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
                                 "turbo4, turbo4q, 4bit", "<td><code>16388.5</code></td>",
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_options_are_refused), cmocka_unit_test(a_table_names_what_fits),
        cmocka_unit_test(a_report_has_a_plot), cmocka_unit_test(figures_are_those_of_a_run)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
