/* What becomes of a command whose output cannot be written, that is interrupted, or that has little
 * memory. */
#include "process.h"

#include <signal.h>
#include <unistd.h>

#define LONG_TEXT TKV_SOURCE_DIR "/README.md"
#define SHORT_EVAL "eval -f " LONG_TEXT " --bytes 900 -c 64 --chunks 1 -t 1 -P turbo4"

/* A disk that is full from the first byte on, for everything that prints. */
static void a_full_disk_is_told(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        skip();
    }
    const char *const commands[] = {
        "--help",
        "--version",
        "help run",
        "help --dump",
        "bench --help",
        "bench codec --help",
        "types",
        "types --json",
        "plan --layers 4 --kv-heads 2 -d 64 --memory 4G -c 4096",
        "plan --layers 4 --kv-heads 2 -d 64 --memory 4G -c 4096 --json",
        "bench codec -T turbo4 -d 64 -n 64 -q 1",
        "bench codec -T turbo4 -d 64 -n 64 -q 1 --json",
        "bench attention -T turbo4 -d 64 -n 128 -r 1 --kv-heads 1 -t 1",
        "bench model -T f16 -d 0 -p 4 -n 2 -r 1 -t 1 --json",
        "gate --mlx --python /bin/false",
        "run -p Once -n 3 -t 1",
        "run -p Once -n 3 -t 1 --json",
        SHORT_EVAL,
        SHORT_EVAL " --json",
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char script[512];
        snprintf(script, sizeof script, "\"$TURBOKV\" %s >/dev/full", commands[i]);
        assert_outcome(run_script(script), 1, "",
                       "cannot write the output: No space left on device");
    }
}

/* Files that a command is asked for are outputs too. */
static void files_on_a_full_disk_are_told(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        skip();
    }
    assert_outcome(run("plan", "--layers", "4", "--kv-heads", "2", "-d", "64", "--memory", "4G",
                       "--report", "/dev/full"),
                   1, "", "cannot write /dev/full: No space left on device");
    assert_outcome(run("eval", "-f", LONG_TEXT, "--bytes", "900", "-c", "64", "--chunks", "1", "-P",
                       "turbo4", "--report", "/dev/full"),
                   1, "", "cannot write /dev/full: No space left on device");
}

/* As other programs: by SIGPIPE, without a word. */
static void a_closed_pipe_ends_it(void **state)
{
    (void)state;
    int out;
    int err;
    const pid_t child = start(
        (const char *const[]){"run", "-p", "Once upon a time", "-n", "2000", "--temp", "0.9", NULL},
        &out, &err);
    char byte;
    assert_int_equal(read(out, &byte, 1), 1);
    close(out);
    char *message = read_all(err);
    assert_int_equal(wait_for(child), 1000 + SIGPIPE);
    assert_string_equal(message, "");
    free(message);
    outcome o = run_script("\"$TURBOKV\" help --dump | head -c 1");
    assert_int_equal(o.status, 0);
    assert_string_equal(o.err, "");
    done(&o);
}

static void interrupt_ends_it_cleanly(void **state)
{
    (void)state;
    int out;
    int err;
    const pid_t child = start(
        (const char *const[]){"run", "-p", "Once upon a time", "-n", "7000", "--temp", "0.9", NULL},
        &out, &err);
    char byte;
    assert_int_equal(read(out, &byte, 1), 1);
    kill(child, SIGINT);
    char *text = read_all(out);
    char *summary = read_all(err);
    assert_int_equal(wait_for(child), 130);
    assert_true(strlen(text) > 0 && text[strlen(text) - 1] == '\n');
    assert_non_null(strstr(summary, "bits a value"));
    free(text);
    free(summary);
}

/* Whether a process has a handler for a signal; Linux tells. */
static bool catches(pid_t process, int signal_number)
{
    char path[64];
    char line[256];
    unsigned long long caught = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)process);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "SigCgt: %llx", &caught);
    }
    if (file) {
        fclose(file);
    }
    return caught >> (signal_number - 1) & 1;
}

/* A prefill of a long prompt ends within it, and what was done of it is what is told. */
static void a_prefill_is_interrupted(void **state)
{
    (void)state;
    if (access("/proc/self/status", R_OK) != 0) {
        skip();
    }
    const int signals[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        int out;
        int err;
        const pid_t child = start((const char *const[]){"run", "-f", LONG_TEXT, "-c", "60000", "-n",
                                                        "2", "-t", "1", NULL},
                                  &out, &err);
        while (!catches(child, signals[i])) {
            usleep(1000);
        }
        kill(child, signals[i]);
        char *text = read_all(out);
        char *summary = read_all(err);
        assert_int_equal(wait_for(child), 128 + signals[i]);
        int n_done = -1;
        const char *prefill = strstr(summary, "prefill ");
        assert_non_null(prefill);
        assert_int_equal(sscanf(prefill, "prefill %d tokens", &n_done), 1);
        assert_int_equal(n_done % 512, 0); /* whole batches */
        assert_string_equal(text, "\n");
        free(text);
        free(summary);
    }
}

static void an_evaluation_is_interrupted(void **state)
{
    (void)state;
    if (access("/proc/self/status", R_OK) != 0) {
        skip();
    }
    int out;
    int err;
    const pid_t child =
        start((const char *const[]){"eval", "-f", LONG_TEXT, "-c", "4096", "--chunks", "1", "-t",
                                    "1", "-P", "2bit,3bit,turbo2", NULL},
              &out, &err);
    while (!catches(child, SIGTERM)) {
        usleep(1000);
    }
    kill(child, SIGTERM);
    char *text = read_all(out);
    char *message = read_all(err);
    assert_int_equal(wait_for(child), 128 + SIGTERM);
    assert_string_equal(text, "");
    assert_non_null(strstr(message, "turbokv: interrupted"));
    free(text);
    free(message);
}

/* Whatever the limit, a command ends: it does its work or says what it lacks. */
static void little_memory_is_an_error(void **state)
{
    (void)state;
#if defined(TKV_SANITIZED) || !defined(__linux__)
    print_message("skipped: a limit of addresses needs Linux and no sanitizer\n");
    skip();
#else
    for (int limit = 40000; limit <= 640000; limit *= 2) {
        char script[256];
        snprintf(script, sizeof script, "ulimit -v %d; \"$TURBOKV\" types", limit);
        assert_outcome(run_script(script), 0, "turbo4", "");
        snprintf(script, sizeof script,
                 "ulimit -v %d; \"$TURBOKV\" run -t 2 -n 2 -p 'one two three four five six seven "
                 "eight nine ten'",
                 limit);
        outcome o = run_script(script);
        assert_true(o.status == 0 || (o.status == 1 && strstr(o.err, "turbokv: ")));
        done(&o);
    }
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_is_told),      cmocka_unit_test(files_on_a_full_disk_are_told),
        cmocka_unit_test(a_closed_pipe_ends_it),    cmocka_unit_test(interrupt_ends_it_cleanly),
        cmocka_unit_test(a_prefill_is_interrupted), cmocka_unit_test(an_evaluation_is_interrupted),
        cmocka_unit_test(little_memory_is_an_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
