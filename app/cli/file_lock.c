#include "cli/file_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROCESS_SIZE 24

static tkv_status fail_in_use(int file, const char *path, tkv_error *error)
{
    char process[PROCESS_SIZE] = "";
    const ssize_t n = pread(file, process, sizeof process - 1, 0);
    process[n > 0 ? n : 0] = '\0';
    process[strcspn(process, " ")] = '\0';
    return tkv_fail(error, TKV_ERR_IO,
                    "%s is in use by another turbokv (process %s): wait until that has ended, or "
                    "name another file",
                    path, process[0] ? process : "unknown");
}

/* Whether the path still leads to the open file: who had the lock before may have removed it. */
static bool is_at(int file, const char *path)
{
    struct stat opened;
    struct stat named;
    return fstat(file, &opened) == 0 && stat(path, &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

static tkv_status lock_file(file_lock *lock, const char *path, tkv_error *error)
{
    for (;;) {
        lock->file = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (lock->file < 0) {
            return tkv_fail(error, TKV_ERR_IO, "cannot write %s: %s", path, strerror(errno));
        }
        if (flock(lock->file, LOCK_EX | LOCK_NB) != 0) {
            const int reason = errno;
            const tkv_status status =
                reason == EWOULDBLOCK
                    ? fail_in_use(lock->file, path, error)
                    : tkv_fail(error, TKV_ERR_IO, "cannot lock %s: %s", path, strerror(reason));
            close(lock->file);
            return status;
        }
        if (is_at(lock->file, lock->path)) {
            return TKV_OK;
        }
        close(lock->file);
    }
}

/* For the message alone: the lock holds without it. */
static void write_process(int file)
{
    char process[PROCESS_SIZE];
    const int n = snprintf(process, sizeof process, "%-*ld", PROCESS_SIZE - 1, (long)getpid());
    const ssize_t written = pwrite(file, process, (size_t)n, 0);
    (void)written; /* without it the message names no process */
}

tkv_status file_lock_take(file_lock *lock, const char *path, tkv_error *error)
{
    const size_t size = strlen(path) + sizeof ".lock";
    *lock = (file_lock){.path = malloc(size), .file = -1};
    if (!lock->path) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to lock %s", path);
    }
    snprintf(lock->path, size, "%s.lock", path);
    const tkv_status status = lock_file(lock, path, error);
    if (status != TKV_OK) {
        free(lock->path);
        lock->path = NULL;
        return status;
    }
    write_process(lock->file);
    return TKV_OK;
}

void file_lock_release(file_lock *lock)
{
    if (lock->path) {
        unlink(lock->path);
        close(lock->file);
        free(lock->path);
        lock->path = NULL;
    }
}
