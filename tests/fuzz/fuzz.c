#include "fuzz/fuzz.h"

#include "turbokv.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void fuzz_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

void fuzz_check_error(int status, const tkv_error *error)
{
    if (status == TKV_OK) {
        return;
    }
    if (error->status != (tkv_status)status) {
        fuzz_fail("status %d, but the error says %d", status, (int)error->status);
    }
    if (!error->message[0] || !memchr(error->message, '\0', sizeof error->message) ||
        strchr(error->message, '\n')) {
        fuzz_fail("a message that is empty or has several lines: '%.200s'", error->message);
    }
}

static char path[256];

static void remove_file(void)
{
    unlink(path);
}

const char *fuzz_file(void)
{
    static bool is_made = false;
    if (!is_made) {
        const char *folder = getenv("TMPDIR");
        snprintf(path, sizeof path, "%.200s/tkv_fuzz_XXXXXX", folder ? folder : "/tmp");
        const int file = mkstemp(path);
        if (file < 0) {
            fuzz_fail("cannot make %s", path);
        }
        close(file);
        atexit(remove_file);
        is_made = true;
    }
    return path;
}

void fuzz_write_file(const char *name, const uint8_t *data, size_t size)
{
    FILE *file = fopen(name, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        fuzz_fail("cannot write %s", name);
    }
}

size_t fuzz_read_file(const char *name, uint8_t data[FUZZ_MAX_INPUT])
{
    FILE *file = fopen(name, "rb");
    if (!file) {
        fuzz_fail("cannot read %s", name);
    }
    const size_t size = fread(data, 1, FUZZ_MAX_INPUT, file);
    fclose(file);
    return size;
}
