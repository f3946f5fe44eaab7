#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT_SIZE (1 << 20)

char *read_all(int file)
{
    char *text = allocate(OUTPUT_SIZE);
    size_t used = 0;
    ssize_t n;
    while (used + 1 < OUTPUT_SIZE && ((n = read(file, text + used, OUTPUT_SIZE - 1 - used)) > 0 ||
                                      (n < 0 && errno == EINTR))) {
        used += n > 0 ? (size_t)n : 0;
    }
    close(file);
    return text;
}

/* Starts a program with both outputs in pipes, and nothing to read. */
static pid_t start_program(const char *path, char *const *argv, int *out, int *err)
{
    int pipes[2][2];
    assert_int_equal(pipe(pipes[0]), 0);
    assert_int_equal(pipe(pipes[1]), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, STDIN_FILENO);
        dup2(pipes[0][1], STDOUT_FILENO);
        dup2(pipes[1][1], STDERR_FILENO);
        for (int i = 0; i < 4; i++) {
            close(pipes[i / 2][i % 2]);
        }
        execv(path, argv);
        _exit(127);
    }
    close(pipes[0][1]);
    close(pipes[1][1]);
    *out = pipes[0][0];
    *err = pipes[1][0];
    return child;
}

pid_t start(const char *const *arguments, int *out, int *err)
{
    const char *argv[32] = {TKV_PROGRAM};
    for (int i = 0; arguments[i]; i++) {
        argv[i + 1] = arguments[i];
    }
    return start_program(TKV_PROGRAM, (char **)(uintptr_t)argv, out, err);
}

int wait_for(pid_t child)
{
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        assert_int_equal(errno, EINTR);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static outcome finish(pid_t child, int out, int err)
{
    outcome o = {.out = read_all(out), .err = read_all(err)};
    o.status = wait_for(child);
    return o;
}

outcome run_with(const char *const *arguments)
{
    int out;
    int err;
    const pid_t child = start(arguments, &out, &err);
    return finish(child, out, err);
}

outcome run_script(const char *script)
{
    int out;
    int err;
    const char *const argv[] = {"sh", "-c", script, NULL};
    assert_int_equal(setenv("TURBOKV", TKV_PROGRAM, 1), 0);
    const pid_t child = start_program("/bin/sh", (char **)(uintptr_t)argv, &out, &err);
    return finish(child, out, err);
}

void done(outcome *o)
{
    free(o->out);
    free(o->err);
}

void assert_outcome(outcome o, int status, const char *out_part, const char *err_part)
{
    if (o.status != status || !strstr(o.out, out_part) || !strstr(o.err, err_part)) {
        fail_msg("status %d, out '%.400s', err '%.400s': expected %d, '%s', '%s'", o.status, o.out,
                 o.err, status, out_part, err_part);
    }
    done(&o);
}

cJSON *run_json(const char *const *arguments)
{
    outcome o = run_with(arguments);
    if (o.status != 0) {
        fail_msg("status %d: %s", o.status, o.err);
    }
    cJSON *json = cJSON_Parse(o.out);
    assert_non_null(json);
    done(&o);
    return json;
}

double number_of(const cJSON *json, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(json, name);
    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

const char *text_of(const cJSON *json, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(json, name);
    assert_true(cJSON_IsString(item));
    return item->valuestring;
}
