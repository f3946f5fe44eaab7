/* Reading a directory of sources, or an installation. Links are not followed: what they lead to is
 * either in the tree, or not of it. */
#include "common/try.h"
#include "gate/llama_tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_PATH 4096
#define MAX_DEPTH 40

typedef struct walk {
    tkv_llama_snapshot *snapshot; /* NULL: a survey */
    tkv_source_report *survey;
    bool is_installation;
    size_t root_length;
    int n_known;
    tkv_error *error;
} walk;

/* The whole file; NULL with errno, or 0 if it is too large, if it cannot be had. */
static char *read_file(const char *path, size_t limit, size_t *size)
{
    struct stat info;
    const int file = open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0) {
        return NULL;
    }
    char *bytes = NULL;
    errno = 0;
    if (fstat(file, &info) == 0 && S_ISREG(info.st_mode) && (uint64_t)info.st_size <= limit) {
        bytes = malloc((size_t)info.st_size + 1);
        ssize_t n = 1;
        *size = 0;
        while (bytes && n > 0 && *size < (size_t)info.st_size) {
            n = read(file, bytes + *size, (size_t)info.st_size - *size);
            *size += n > 0 ? (size_t)n : 0;
        }
        if (n < 0) {
            free(bytes);
            bytes = NULL;
        }
    }
    const int reason = errno;
    close(file);
    errno = reason;
    return bytes;
}

/* Unread files are counted in a snapshot; a survey does without them. */
static void skip(walk *w, const char *name, bool is_unreadable, const char *reason)
{
    if (w->snapshot) {
        tkv_llama_snapshot_skip(w->snapshot, name, is_unreadable, reason);
    }
}

static tkv_status scan_bytes(walk *w, const char *name, bool is_binary, const char *bytes,
                             size_t size)
{
    tkv_source_report report;
    if (!w->snapshot) {
        return is_binary ? tkv_binary_survey(bytes, size, w->survey, w->error)
                         : tkv_source_survey(bytes, size, w->survey, w->error);
    }
    TKV_TRY(is_binary ? tkv_binary_scan(bytes, size, w->snapshot->words, &report, w->error)
                      : tkv_source_scan(bytes, size, w->snapshot->words, &report, w->error));
    const tkv_status status = tkv_llama_snapshot_add(w->snapshot, name, &report, w->error);
    tkv_source_report_free(&report);
    return status;
}

static tkv_status look_at_file(walk *w, const char *path)
{
    const char *name = path + w->root_length + 1;
    bool is_binary = false;
    if (!(w->is_installation ? tkv_llama_is_installed(name, &is_binary)
                             : tkv_llama_is_source(name))) {
        return TKV_OK;
    }
    size_t size = 0;
    w->n_known += strstr(name, "ggml") || strstr(name, "llama");
    char *bytes = read_file(path, is_binary ? TKV_LLAMA_MAX_BINARY : TKV_LLAMA_MAX_SOURCE, &size);
    if (!bytes) {
        skip(w, name, errno != 0, errno ? strerror(errno) : "too large, or no ordinary file");
        return TKV_OK;
    }
    const tkv_status status = scan_bytes(w, name, is_binary, bytes, size);
    free(bytes);
    return status;
}

/* A folder that CMake built in holds copies of sources. */
static bool is_build(const char *path)
{
    char cache[MAX_PATH + 32];
    snprintf(cache, sizeof cache, "%s/CMakeCache.txt", path);
    return access(cache, F_OK) == 0;
}

static tkv_status look_at_folder(walk *w, const char *path, int depth);

static tkv_status look_at_entry(walk *w, const char *folder, const char *name, int depth)
{
    char path[MAX_PATH];
    struct stat info;
    if (name[0] == '.') {
        return TKV_OK;
    }
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (length >= (int)sizeof path || lstat(path, &info) != 0) {
        skip(w, name, true, "cannot be looked at");
        return TKV_OK;
    }
    if (S_ISREG(info.st_mode)) {
        return look_at_file(w, path);
    }
    if (S_ISDIR(info.st_mode) && depth < MAX_DEPTH && !is_build(path)) {
        return look_at_folder(w, path, depth + 1);
    }
    return TKV_OK;
}

static tkv_status look_at_folder(walk *w, const char *path, int depth)
{
    DIR *folder = opendir(path);
    if (!folder) {
        const char *name = path[w->root_length] ? path + w->root_length + 1 : path;
        if (depth == 0) {
            return tkv_fail(w->error, TKV_ERR_IO, "%.200s: %s", path, strerror(errno));
        }
        skip(w, name, true, strerror(errno));
        return TKV_OK;
    }
    struct dirent **entries = NULL;
    closedir(folder);
    /* In the order of names, so that the same tree gives the same report. */
    const int n = scandir(path, &entries, NULL, alphasort);
    tkv_status status = TKV_OK;
    for (int i = 0; i < n; i++) {
        if (status == TKV_OK) {
            status = look_at_entry(w, path, entries[i]->d_name, depth);
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

static tkv_status walk_directory(walk *w, const char *path)
{
    char root[MAX_PATH];
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') {
        length--;
    }
    if (length >= MAX_PATH / 2) {
        return tkv_fail(w->error, TKV_ERR_INVALID_ARGUMENT, "the directory's path is too long");
    }
    snprintf(root, sizeof root, "%.*s", (int)length, path);
    w->root_length = strcmp(root, "/") == 0 ? 0 : length;
    return look_at_folder(w, root, 0);
}

tkv_status tkv_llama_read_directory(const char *path, bool is_installation,
                                    tkv_llama_snapshot *snapshot, int *n_known, tkv_error *error)
{
    walk w = {.snapshot = snapshot, .is_installation = is_installation, .error = error};
    const tkv_status status = walk_directory(&w, path);
    *n_known = w.n_known;
    return status;
}

tkv_status tkv_llama_survey_directory(const char *path, bool is_installation,
                                      tkv_source_report *survey, tkv_error *error)
{
    walk w = {.survey = survey, .is_installation = is_installation, .error = error};
    return walk_directory(&w, path);
}
