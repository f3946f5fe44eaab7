/* turbokv eval: results, the state file, the report, mistakes. */
#include "process.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT TKV_SOURCE_DIR "/LICENSE"

/* Files of one test, removed at its end. */
typedef struct files {
    char directory[64];
    char state[96];
    char report[96];
    char policy[96];
} files;

static files make_files(void)
{
    files f;
    snprintf(f.directory, sizeof f.directory, "/tmp/tkv_test_eval_XXXXXX");
    assert_non_null(mkdtemp(f.directory));
    snprintf(f.state, sizeof f.state, "%s/state.json", f.directory);
    snprintf(f.report, sizeof f.report, "%s/report.html", f.directory);
    snprintf(f.policy, sizeof f.policy, "%s/policy.txt", f.directory);
    return f;
}

static void remove_files(const files *f)
{
    unlink(f->state);
    unlink(f->report);
    unlink(f->policy);
    assert_int_equal(rmdir(f->directory), 0);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    struct stat info;
    assert_int_equal(fstat(fileno(file), &info), 0);
    char *text = allocate((size_t)info.st_size + 1);
    assert_int_equal(fread(text, 1, (size_t)info.st_size, file), info.st_size);
    fclose(file);
    return text;
}

/* A small evaluation and more arguments. */
#define evaluate(...) run("eval", "-f", TEXT, "-c", "64", "--chunks", "2", "-t", "1", __VA_ARGS__)

static void divergences_are_measured(void **state)
{
    (void)state;
    cJSON *json = run_json((const char *const[]){
        "eval", "-f", TEXT, "-c", "64", "--chunks", "2", "-t", "1", "--json", "-P",
        "k=turbo8 v=turbo8,k=turbo4 v=turbo3,k=turbo3 v=turbo2 sinks=4 recent=16 sparse-v=0.01",
        NULL});
    const cJSON *rows = cJSON_GetObjectItem(json, "policies");
    assert_int_equal(cJSON_GetArraySize(rows), 3);
    assert_true(number_of(cJSON_GetArrayItem(rows, 0), "mean_kl") <
                number_of(cJSON_GetArrayItem(rows, 1), "mean_kl"));
    assert_true(number_of(cJSON_GetArrayItem(rows, 2), "values_skipped") > 0.0);
    assert_true(number_of(cJSON_GetArrayItem(rows, 1), "positions") == 62);
    cJSON_Delete(json);
}

static void needles_are_counted(void **state)
{
    (void)state;
    cJSON *json = run_json((const char *const[]){
        "eval", "-f", TEXT, "--chunks", "0", "--needles", "--needle-lengths", "160,180",
        "--needle-facts", "2", "--needle-prompts", "3", "-P", "turbo8", "-t", "1", "--json", NULL});
    const cJSON *needles = cJSON_GetObjectItem(json, "needles");
    const cJSON *rows = cJSON_GetObjectItem(needles, "policies");
    assert_int_equal(cJSON_GetArraySize(rows), 4);
    const cJSON *exact = cJSON_GetArrayItem(rows, 0);
    assert_string_equal(text_of(exact, "policy"), "f16");
    assert_true(number_of(exact, "length") == 160);
    assert_true(number_of(exact, "recall") > 0.6);
    assert_true(number_of(exact, "bits_per_value") >= 16.0);
    const cJSON *coded = cJSON_GetArrayItem(rows, 3);
    assert_true(number_of(coded, "length") == 180);
    assert_true(number_of(coded, "bits_per_value") < number_of(exact, "bits_per_value"));
    assert_null(cJSON_GetObjectItem(json, "policies"));
    cJSON_Delete(json);
    assert_outcome(run("eval", "-f", TEXT, "--chunks", "0", "--needles", "--needle-lengths", "160",
                       "--needle-facts", "2", "--needle-prompts", "1", "-P", "turbo8"),
                   0, "of f16", "");
}

static void steps_are_kept_and_reused(void **state)
{
    (void)state;
    const files f = make_files();
    outcome first = evaluate("-P", "turbo4", "--resume", f.state, "--json");
    assert_int_equal(first.status, 0);

    /* Another policy is added; what was measured stays, seconds included. */
    cJSON *json =
        run_json((const char *const[]){"eval", "-f", TEXT, "-c", "64", "--chunks", "2", "-t", "1",
                                       "-P", "turbo4,turbo3", "--resume", f.state, "--json", NULL});
    cJSON *before = cJSON_Parse(first.out);
    const cJSON *kept = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "policies"), 0);
    const cJSON *original = cJSON_GetArrayItem(cJSON_GetObjectItem(before, "policies"), 0);
    for (const cJSON *item = original->child; item; item = item->next) {
        if (cJSON_IsNumber(item)) {
            const double value = item->valuedouble;
            assert_true(fabs(number_of(kept, item->string) - value) <= 1e-12 * fabs(value));
        }
    }
    char *text = read_file(f.state);
    cJSON *saved = cJSON_Parse(text);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(saved, "steps")), 4);
    free(text);
    cJSON_Delete(saved);
    cJSON_Delete(before);
    cJSON_Delete(json);
    done(&first);

    assert_outcome(evaluate("-P", "turbo4", "--resume", f.state, "--mode", "decode"), 1, "",
                   "its mode is \"prefill\", expected \"decode\"");
    assert_outcome(evaluate("-P", "turbo4", "--resume", f.state, "--effort", "best"), 1, "",
                   "its effort is 0, expected 2");
    assert_outcome(evaluate("-P", "turbo4", "--resume", f.state, "--bytes", "900"), 1, "",
                   "its tokens_hash is");
    write_file(f.state, "[1, 2]");
    assert_outcome(evaluate("-P", "turbo4", "--resume", f.state), 1, "", "no saved evaluation");
    /* What is there is said, and stays. */
    const char *const others[][2] = {{"", "found an empty file"},
                                     {"{\"steps\": {}}", "found other JSON"},
                                     {"{\"steps\": ", "found something else"}};
    for (int i = 0; i < 3; i++) {
        write_file(f.state, others[i][0]);
        assert_outcome(evaluate("-P", "turbo4", "--resume", f.state), 1, "", others[i][1]);
        assert_outcome(evaluate("-P", "turbo4", "--resume", f.state), 1, "",
                       "name another file or remove it");
        char *left = read_file(f.state);
        assert_string_equal(left, others[i][0]);
        free(left);
    }
    assert_outcome(evaluate("-P", "turbo4", "--resume", "/no/state"), 1, "", "cannot write");
    remove_files(&f);
}

/* A state that can no longer be written, at the beginning or after a step, is told and keeps all
 * steps that it had. Devices that take nothing are no places for one. */
static void a_state_that_cannot_be_written_is_kept(void **state)
{
    (void)state;
    const files f = make_files();
    assert_outcome(evaluate("-P", "turbo4", "--resume", f.state), 0, "turbo4", "");
    char *before = read_file(f.state);
    const size_t blocks[] = {1, strlen(before) / 512 + 1}; /* of 512 bytes, as sh counts */
    for (int i = 0; i < 2; i++) {
        char script[512];
        snprintf(script, sizeof script,
                 "trap '' XFSZ; ulimit -f %zu; exec \"$TURBOKV\" eval -f '%s' -c 64 --chunks 2 "
                 "-t 1 -P turbo4,turbo3,turbo2 --resume %s",
                 blocks[i], TEXT, f.state);
        char expected[160];
        snprintf(expected, sizeof expected, "cannot write %s: File too large", f.state);
        assert_outcome(run_script(script), 1, "", expected);
        char *after = read_file(f.state);
        assert_memory_equal(after, before, strlen(before) - strlen("}}"));
        assert_true(i > 0 || strcmp(after, before) == 0);
        cJSON *json = cJSON_Parse(after);
        assert_non_null(json);
        cJSON_Delete(json);
        free(after);
    }
    free(before);
    const char *const devices[] = {"/dev/full", "/dev/null"};
    for (int i = 0; i < 2; i++) {
        assert_outcome(evaluate("-P", "turbo4", "--resume", devices[i]), 1, "",
                       "is a device: expected a file that steps can be kept in");
    }
    remove_files(&f);
}

/* Steps in a state file; 0 while there is none. */
static int count_steps(const char *path)
{
    if (access(path, F_OK) != 0) {
        return 0;
    }
    char *text = read_file(path);
    cJSON *saved = cJSON_Parse(text);
    assert_non_null(saved); /* never half a file */
    const int n = cJSON_GetArraySize(cJSON_GetObjectItem(saved, "steps"));
    cJSON_Delete(saved);
    free(text);
    return n;
}

/* One chunk with more policies than are measured before a test acts. */
#define MANY_POLICIES                                                                              \
    "turbo8,turbo4,turbo3,turbo2,trellis3,trellis2,turbo8/turbo4,turbo8/turbo3,turbo8/turbo2,"     \
    "turbo4/turbo3,turbo4/turbo2,turbo3/turbo2"
enum { N_MANY = 12 };
#define MANY(...)                                                                                  \
    "eval", "-f", TEXT, "-c", "384", "--chunks", "1", "-t", "1", "--mode", "decode", "-P",         \
        MANY_POLICIES, __VA_ARGS__, NULL

/* Starts the long evaluation and waits until it has kept a step. */
static pid_t start_many(const files *f, int *out, int *err)
{
    const pid_t child = start((const char *const[]){MANY("--resume", f->state)}, out, err);
    for (int i = 0; i < 6000 && count_steps(f->state) == 0; i++) {
        usleep(10000);
    }
    assert_true(count_steps(f->state) > 0);
    return child;
}

static void assert_same_policies(const cJSON *a, const cJSON *b)
{
    a = cJSON_GetObjectItem(a, "policies");
    b = cJSON_GetObjectItem(b, "policies");
    assert_int_equal(cJSON_GetArraySize(a), N_MANY);
    assert_int_equal(cJSON_GetArraySize(b), N_MANY);
    for (int i = 0; i < N_MANY; i++) {
        const double expected = number_of(cJSON_GetArrayItem(a, i), "mean_kl");
        const double found = number_of(cJSON_GetArrayItem(b, i), "mean_kl");
        assert_true(expected > 0.0 && fabs(found - expected) <= 1e-12 * expected);
    }
}

/* Killed in the middle of a chunk: what its policies had measured is there. */
static void a_killed_evaluation_goes_on(void **state)
{
    (void)state;
    const files f = make_files();
    int out;
    int err;
    const pid_t child = start_many(&f, &out, &err);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(wait_for(child), 1000 + SIGKILL);
    free(read_all(out));
    free(read_all(err));
    const int n_kept = count_steps(f.state);
    assert_true(n_kept > 0 && n_kept < N_MANY);
    cJSON *resumed = run_json((const char *const[]){MANY("--json", "--resume", f.state)});
    assert_int_equal(count_steps(f.state), N_MANY);
    cJSON *whole = run_json((const char *const[]){MANY("--json")});
    assert_same_policies(whole, resumed);
    cJSON_Delete(whole);
    cJSON_Delete(resumed);
    remove_files(&f);
}

static void one_process_at_a_time_has_the_state(void **state)
{
    (void)state;
    const files f = make_files();
    int out;
    int err;
    char process[32];
    const pid_t child = start_many(&f, &out, &err);
    snprintf(process, sizeof process, "process %d", (int)child);
    outcome second = evaluate("-P", "turbo4", "--resume", f.state);
    assert_non_null(strstr(second.err, f.state));
    assert_non_null(strstr(second.err, process));
    assert_outcome(second, 1, "", "is in use by another turbokv");
    /* By another name, too. */
    assert_int_equal(symlink(f.state, f.policy), 0);
    assert_outcome(evaluate("-P", "turbo4", "--resume", f.policy), 1, "", "is in use by another");
    char *first = read_all(out);
    assert_int_equal(wait_for(child), 0);
    assert_non_null(strstr(first, "turbo3/turbo2"));
    free(first);
    free(read_all(err));
    assert_int_equal(count_steps(f.state), N_MANY);
    remove_files(&f); /* no lock is left */
}

/* Where nobody sees a bar, a line says how far it is. */
static void chunks_are_reported_in_lines(void **state)
{
    (void)state;
    outcome o = evaluate("-P", "turbo4,turbo3", "--needles", "--needle-lengths", "160",
                         "--needle-facts", "2", "--needle-prompts", "1");
    assert_int_equal(o.status, 0);
    assert_non_null(strstr(o.err, "eval: chunk 1 of 2 done, "));
    assert_non_null(strstr(o.err, "eval: chunk 2 of 2 done, "));
    assert_non_null(strstr(o.err, "eval: needles in 160 tokens, prompt 1 of 1 done, 0 s left\n"));
    done(&o);
}

/* Puts `json` in place of a member of a step. */
static void damage(cJSON *step, const char *name, const char *json)
{
    cJSON_DeleteItemFromObject(step, name);
    if (json) {
        cJSON_AddItemToObject(step, name, cJSON_Parse(json));
    }
}

/* A step that was damaged by hand is an error, not a wrong result. */
static void damaged_steps_are_found(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        const char *json;
    } damages[] = {
        {"kl", NULL},        {"kl", "[]"},          {"kl", "[0.1, \"x\"]"},  {"kl", "[0.1, -0.5]"},
        {"same_top", "1e9"}, {"kv_bytes", "1e300"}, {"weights", "\"many\""}, {"skipped", "7"},
        {"nll", "null"},     {"seconds", "1e999"}};
    const files f = make_files();
    assert_outcome(evaluate("-P", "turbo4", "--resume", f.state), 0, "turbo4", "");
    char *text = read_file(f.state);
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        cJSON *json = cJSON_Parse(text);
        damage(cJSON_GetArrayItem(cJSON_GetObjectItem(json, "steps"), 1), damages[i].name,
               damages[i].json);
        char *damaged = cJSON_Print(json);
        char expected[64];
        snprintf(expected, sizeof expected, "is damaged: '%s'", damages[i].name);
        write_file(f.state, damaged);
        assert_outcome(evaluate("-P", "turbo4", "--resume", f.state), 1, "", expected);
        free(damaged);
        cJSON_Delete(json);
    }
    free(text);
    remove_files(&f);
}

static int count_parts(const char *text, const char *part)
{
    int n = 0;
    for (; (text = strstr(text, part)); text++) {
        n++;
    }
    return n;
}

static void the_report_has_tables_and_plots(void **state)
{
    (void)state;
    const files f = make_files();
    assert_outcome(evaluate("-P", "k=turbo4 v=turbo4,k=turbo3 v=turbo2 sinks=4", "--needles",
                            "--needle-lengths", "160", "--needle-facts", "2", "--needle-prompts",
                            "1", "--report", f.report),
                   0, "turbo4", "");
    char *page = read_file(f.report);
    assert_int_equal(count_parts(page, "<svg"), 4); /* divergence, and f16 and two policies */
    assert_int_equal(count_parts(page, "<svg"), count_parts(page, "</svg>"));
    assert_int_equal(count_parts(page, "<circle"), 2);
    assert_int_equal(count_parts(page, "<rect"), 6);
    assert_null(strstr(page, "http://"));
    assert_null(strstr(page, "src="));
    assert_non_null(strstr(page, "</html>"));
    free(page);
    outcome o = evaluate("-P", "turbo4", "--report", "/no/report.html");
    assert_int_equal(o.status, 1);
    assert_non_null(strstr(o.err, "cannot write /no/report.html"));
    assert_string_equal(o.out, ""); /* said before anything is measured */
    done(&o);

    /* An older report is replaced, any other file is not. */
    assert_outcome(evaluate("-P", "turbo4", "--report", f.report), 0, "turbo4", "");
    write_file(f.policy, "k turbo4\n");
    assert_outcome(evaluate("-P", "turbo4", "--report", f.policy), 1, "",
                   "is there and is no HTML page");
    assert_outcome(evaluate("-P", "turbo4", "--report", f.state, "--resume", f.state), 1, "",
                   "no saved evaluation");
    char *kept = read_file(f.policy);
    assert_string_equal(kept, "k turbo4\n");
    free(kept);
    remove_files(&f);
}

static void policy_files_are_read(void **state)
{
    (void)state;
    const files f = make_files();
    char entry[128];
    snprintf(entry, sizeof entry, "@%s", f.policy);
    write_file(f.policy, "# coarse values\nk turbo8\nv turbo2\nsinks 4\n");
    cJSON *json = run_json((const char *const[]){"eval", "-f", TEXT, "-c", "64", "--chunks", "1",
                                                 "-P", entry, "--json", NULL});
    const cJSON *row = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "policies"), 0);
    assert_string_equal(text_of(row, "policy_text"), "k=turbo8 v=turbo2 sinks=4");
    cJSON_Delete(json);
    assert_outcome(run("run", "-p", "Once", "-n", "2", "--policy", f.policy, "--json"), 0,
                   "\"cache_type_v\":\t\"turbo2\"", "");
    write_file(f.policy, "colour blue\n");
    assert_outcome(run("run", "-p", "Once", "--policy", f.policy), 2, "", "unknown key 'colour'");
    assert_outcome(evaluate("-P", entry), 2, "", f.policy);
    unlink(f.policy);
    assert_outcome(run("run", "-p", "Once", "--policy", f.policy), 2, "", f.policy);
    remove_files(&f);
}

static void mistakes_are_explained(void **state)
{
    (void)state;
    assert_outcome(run("eval"), 2, "", "-f FILE");
    assert_outcome(run("eval", "-f", "x", "--mode", "sideways"), 2, "", "prefill or decode");
    assert_outcome(run("eval", "-f", "x", "-P", "q4_0"), 2, "", "turbo4, turbo3");
    assert_outcome(run("eval", "-f", "x", "--chunks", "0"), 2, "", "nothing to measure");
    assert_outcome(run("eval", "-f", "x", "--effort", "most"), 2, "", "fast, default or best");
    assert_outcome(run("eval", "-f", "x", "--needles", "--needle-lengths", "12,x"), 2, "",
                   "found 'x'");
    assert_outcome(run("eval", "-f", TEXT, "-c", "4096"), 1, "",
                   "expected 6 chunks of 4096, 24576 in all: give a longer text");
    /* Found before the chunks are measured. */
    assert_outcome(evaluate("-P", "turbo4", "--needles"), 1, "", "a prompt of 2048 needs");
    assert_outcome(evaluate("-P", "turbo4", "--needles", "--needle-lengths", "20"), 1, "",
                   "the facts and a question alone");
    assert_outcome(run("eval", "-f", TEXT, "--chunks", "0", "--needles"), 1, "",
                   "a prompt of 2048 needs");
    assert_outcome(evaluate("-P", "k=turbo4 v=turbo4 sinks=65"), 1, "", "65 sinks");
    assert_outcome(evaluate("-P", "layers=3-9:turbo2"), 1, "", "layers 3-9");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(divergences_are_measured),
                                       cmocka_unit_test(needles_are_counted),
                                       cmocka_unit_test(steps_are_kept_and_reused),
                                       cmocka_unit_test(a_state_that_cannot_be_written_is_kept),
                                       cmocka_unit_test(a_killed_evaluation_goes_on),
                                       cmocka_unit_test(one_process_at_a_time_has_the_state),
                                       cmocka_unit_test(chunks_are_reported_in_lines),
                                       cmocka_unit_test(damaged_steps_are_found),
                                       cmocka_unit_test(the_report_has_tables_and_plots),
                                       cmocka_unit_test(policy_files_are_read),
                                       cmocka_unit_test(mistakes_are_explained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
