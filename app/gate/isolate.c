#include "gate/isolate.h"

#include "eval/clock.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What comes through the pipe before the result. */
typedef struct outcome {
    tkv_status status;
    tkv_error error;
} outcome;

static bool write_all(int file, const void *data, size_t n)
{
    const char *bytes = data;
    while (n > 0) {
        const ssize_t written = write(file, bytes, n);
        if (written <= 0 && errno != EINTR) {
            return false;
        }
        bytes += written > 0 ? written : 0;
        n -= written > 0 ? (size_t)written : 0;
    }
    return true;
}

/* False if the other side ended first, or at the deadline, which *is_late says. */
static bool read_all(int file, void *data, size_t n, double deadline, bool *is_late)
{
    char *bytes = data;
    while (n > 0) {
        const double left = deadline - tkv_clock();
        struct pollfd ready = {.fd = file, .events = POLLIN};
        const int n_ready = left > 0.0 ? poll(&ready, 1, (int)(1e3 * left) + 1) : 0;
        if (n_ready < 0 && errno == EINTR) {
            continue;
        }
        if (n_ready == 0) {
            *is_late = true;
            return false;
        }
        const ssize_t n_read = n_ready > 0 ? read(file, bytes, n) : -1;
        if (n_read <= 0 && (n_read == 0 || errno != EINTR)) {
            return false;
        }
        bytes += n_read > 0 ? n_read : 0;
        n -= n_read > 0 ? (size_t)n_read : 0;
    }
    return true;
}

static void work_as_child(tkv_isolated_work work, void *argument, void *result, size_t n_bytes,
                          int file)
{
    outcome o = {.error = {TKV_OK, ""}};
    o.status = work(argument, result, &o.error);
    const bool is_written = write_all(file, &o, sizeof o) && write_all(file, result, n_bytes);
    _exit(is_written ? 0 : 1);
}

/* Says how the child ended without a result. */
static tkv_status fail_as_ended(int status, bool is_late, int timeout_seconds, tkv_error *error)
{
    if (is_late) {
        return tkv_fail(error, TKV_ERR_DEVICE, "was not done after %d seconds", timeout_seconds);
    }
    if (WIFSIGNALED(status)) {
        return tkv_fail(error, TKV_ERR_DEVICE, "ended with signal %d (%s)", WTERMSIG(status),
                        strsignal(WTERMSIG(status)));
    }
    return tkv_fail(error, TKV_ERR_DEVICE, "ended with status %d and no result",
                    WEXITSTATUS(status));
}

tkv_status tkv_isolate(tkv_isolated_work work, void *argument, void *result, size_t n_bytes,
                       int timeout_seconds, tkv_error *error)
{
    int pipes[2];
    if (pipe(pipes) != 0) {
        return tkv_fail(error, TKV_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    }
    const pid_t child = fork();
    if (child < 0) {
        close(pipes[0]);
        close(pipes[1]);
        return tkv_fail(error, TKV_ERR_IO, "cannot start a process: %s", strerror(errno));
    }
    if (child == 0) {
        close(pipes[0]);
        work_as_child(work, argument, result, n_bytes, pipes[1]);
    }
    close(pipes[1]);
    outcome o = {.error = {TKV_OK, ""}};
    bool is_late = false;
    const double deadline = tkv_clock() + timeout_seconds;
    const bool is_done = read_all(pipes[0], &o, sizeof o, deadline, &is_late) &&
                         read_all(pipes[0], result, n_bytes, deadline, &is_late);
    close(pipes[0]);
    if (!is_done) {
        kill(child, SIGKILL);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!is_done) {
        return fail_as_ended(status, is_late, timeout_seconds, error);
    }
    return o.status == TKV_OK ? TKV_OK : tkv_fail(error, o.status, "%s", o.error.message);
}
