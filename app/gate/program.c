/* Running another program with a time limit. */
#include "eval/clock.h"
#include "gate/mlx.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What goes in and what comes out. */
typedef struct talk {
    int files[3]; /* its input, output and errors; -1: closed */
    const char *input;
    size_t n_sent;
    char *texts[2];
    size_t n_read[2];
    size_t size;
} talk;

static void close_file(int *file)
{
    if (*file >= 0) {
        close(*file);
        *file = -1;
    }
}

/* In the child, where only calls that are safe after fork may be made. */
static void become(const char *const *argv, int pipes[4][2])
{
    dup2(pipes[0][0], STDIN_FILENO);
    dup2(pipes[1][1], STDOUT_FILENO);
    dup2(pipes[2][1], STDERR_FILENO);
    for (int i = 0; i < 8; i++) {
        if (i != 7) {
            close(pipes[i / 2][i % 2]);
        }
    }
    setpgid(0, 0); /* so that it can be ended with what it has started */
    signal(SIGPIPE, SIG_DFL);
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    const int reason = errno;
    const ssize_t written = write(pipes[3][1], &reason, sizeof reason);
    _exit(written > 0 ? 127 : 126);
}

static void send_some(talk *t)
{
    const size_t left = strlen(t->input) - t->n_sent;
    const ssize_t n = left ? write(t->files[0], t->input + t->n_sent, left) : 0;
    t->n_sent += n > 0 ? (size_t)n : 0;
    if (n <= 0 && !(n < 0 && (errno == EAGAIN || errno == EINTR))) {
        close_file(&t->files[0]);
    }
}

/* Beyond `size` what it says is read and forgotten. */
static void read_some(talk *t, int i)
{
    char rest[512];
    const size_t room = t->size - 1 - t->n_read[i];
    const ssize_t n = room ? read(t->files[1 + i], t->texts[i] + t->n_read[i], room)
                           : read(t->files[1 + i], rest, sizeof rest);
    t->n_read[i] += room && n > 0 ? (size_t)n : 0;
    t->texts[i][t->n_read[i]] = '\0';
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        close_file(&t->files[1 + i]);
    }
}

/* Until both outputs are closed; false at the deadline. */
static bool speak(talk *t, double deadline)
{
    while (t->files[1] >= 0 || t->files[2] >= 0) {
        const double left = deadline - tkv_clock();
        struct pollfd ready[3];
        for (int i = 0; i < 3; i++) {
            ready[i] = (struct pollfd){.fd = t->files[i], .events = i ? POLLIN : POLLOUT};
        }
        if (left <= 0.0) {
            return false;
        }
        if (poll(ready, 3, (int)(1e3 * left) + 1) <= 0) {
            continue;
        }
        if (ready[0].revents) {
            send_some(t);
        }
        for (int i = 0; i < 2; i++) {
            if (ready[1 + i].revents) {
                read_some(t, i);
            }
        }
    }
    return true;
}

static bool make_pipes(int pipes[4][2])
{
    bool are_made = true;
    for (int i = 0; i < 4; i++) {
        pipes[i][0] = pipes[i][1] = -1;
        are_made = are_made && pipe(pipes[i]) == 0;
    }
    return are_made && fcntl(pipes[3][1], F_SETFD, FD_CLOEXEC) == 0 &&
           fcntl(pipes[0][1], F_SETFL, O_NONBLOCK) == 0;
}

static tkv_status fail_to_start(const char *name, int reason, int pipes[4][2], tkv_error *error)
{
    for (int i = 0; i < 8; i++) {
        close_file(&pipes[i / 2][i % 2]);
    }
    return tkv_fail(error, TKV_ERR_IO, "cannot start '%.200s': %s", name, strerror(reason));
}

tkv_status tkv_run_program(const char *const *argv, const char *input, int timeout_seconds,
                           char *out, char *err, size_t size, int *status, bool *is_late,
                           tkv_error *error)
{
    int pipes[4][2];
    int reason = 0;
    out[0] = err[0] = '\0';
    const double deadline = tkv_clock() + timeout_seconds;
    const pid_t child = make_pipes(pipes) ? fork() : -1;
    if (child < 0) {
        return fail_to_start(argv[0], errno, pipes, error);
    }
    if (child == 0) {
        become(argv, pipes);
    }
    close_file(&pipes[0][0]);
    close_file(&pipes[1][1]);
    close_file(&pipes[2][1]);
    close_file(&pipes[3][1]);
    /* Closed by a program that has started; else the reason comes first. */
    const bool has_started = read(pipes[3][0], &reason, sizeof reason) <= 0;
    talk t = {.files = {pipes[0][1], pipes[1][0], pipes[2][0]},
              .input = input,
              .texts = {out, err},
              .size = size};
    *is_late = has_started && !speak(&t, deadline);
    if (*is_late) {
        kill(-child, SIGKILL);
    }
    while (waitpid(child, status, 0) < 0 && errno == EINTR) {
    }
    for (int i = 0; i < 3; i++) {
        close_file(&t.files[i]);
    }
    close_file(&pipes[3][0]);
    return has_started ? TKV_OK
                       : tkv_fail(error, TKV_ERR_IO, "cannot start '%.200s': %s", argv[0],
                                  strerror(reason));
}
