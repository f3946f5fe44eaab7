#include "cli/command.h"

#include "cli/open_context.h"
#include "common/try.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#define SHIPPED_MODEL "models/tiny-q8_0.gguf"
#define MAX_PATH 4096
#define MAX_TEXT_BYTES (1 << 30)

int command_fail(const tkv_error *error)
{
    if (error->status == TKV_ERR_INTERRUPTED) {
        fprintf(stderr, "turbokv: interrupted\n");
        return command_interrupted_code();
    }
    fprintf(stderr, "turbokv: %s\n", error->message);
    return EXIT_RUNTIME;
}

int command_print_json(cJSON *json)
{
    char *text = json ? cJSON_Print(json) : NULL;
    cJSON_Delete(json);
    if (!text) {
        fprintf(stderr, "turbokv: no memory for the JSON output\n");
        return EXIT_RUNTIME;
    }
    puts(text);
    free(text);
    return EXIT_OK;
}

bool command_flush_output(void)
{
    return fflush(stdout) == 0 && !ferror(stdout);
}

/* Why nothing can be written to stdout any more. When a write failed some time ago the reason is
 * gone, so another byte is tried; 0 if that one can be written. */
static int output_error(void)
{
    clearerr(stdout);
    errno = 0;
    return putchar('\n') == EOF || fflush(stdout) != 0 ? errno : 0;
}

int command_end(int code)
{
    errno = 0;
    if (command_flush_output()) {
        return code;
    }
    const int reason = errno ? errno : output_error();
    if (reason == EPIPE) {
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    fprintf(stderr, "turbokv: cannot write the output%s%s\n", reason ? ": " : "",
            reason ? strerror(reason) : "");
    return EXIT_RUNTIME;
}

/* Length of the valid UTF-8 sequence at `text`, or 0. */
static size_t valid_sequence(const unsigned char *text, size_t length)
{
    const unsigned char c = text[0];
    const size_t size = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c == 0 || (c >= 0x80 && c < 0xc2) || c > 0xf4 || size > length) {
        return 0;
    }
    for (size_t i = 1; i < size; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    /* Overlong forms, surrogates and what lies beyond U+10FFFF. */
    if ((c == 0xe0 && text[1] < 0xa0) || (c == 0xed && text[1] > 0x9f) ||
        (c == 0xf0 && text[1] < 0x90) || (c == 0xf4 && text[1] > 0x8f)) {
        return 0;
    }
    return size;
}

void command_add_text(cJSON *object, const char *name, const char *text, size_t length)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *clean = malloc(3 * length + 1);
    size_t used = 0;
    for (size_t at = 0; clean && at < length;) {
        const size_t size = valid_sequence((const unsigned char *)text + at, length - at);
        memcpy(clean + used, size ? text + at : replacement, size ? size : 3);
        used += size ? size : 3;
        at += size ? size : 1;
    }
    if (clean) {
        clean[used] = '\0';
        cJSON_AddStringToObject(object, name, clean);
    }
    free(clean);
}

/* The directory of this program, without a slash at its end; empty if unknown. */
static void program_directory(char directory[MAX_PATH])
{
    directory[0] = '\0';
#ifdef __APPLE__
    uint32_t size = MAX_PATH;
    if (_NSGetExecutablePath(directory, &size) != 0) {
        directory[0] = '\0';
    }
#else
    const ssize_t length = readlink("/proc/self/exe", directory, MAX_PATH - 1);
    directory[length > 0 ? length : 0] = '\0';
#endif
    char *slash = strrchr(directory, '/');
    if (slash) {
        *slash = '\0';
    }
}

/* Finds a file that is shipped with the program: beside an installed program, in the install prefix
 * or in the source tree. */
static tkv_status find_shipped(const char *name, char path[MAX_PATH], tkv_error *error)
{
    char directory[MAX_PATH];
    program_directory(directory);
    char beside[MAX_PATH + 32];
    snprintf(beside, sizeof beside, "%s/../share/turbokv", directory);
    const char *const places[] = {beside, TKV_INSTALLED_DATA, TKV_SOURCE_DATA};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const int length = snprintf(path, MAX_PATH, "%s/%s", places[i], name);
        if (length > 0 && length < MAX_PATH && access(path, R_OK) == 0) {
            return TKV_OK;
        }
    }
    return tkv_fail(error, TKV_ERR_IO, "%s, which is shipped with turbokv, is not in %s", name,
                    TKV_INSTALLED_DATA);
}

/* The shipped model's path. */
static tkv_status find_shipped_model(char path[MAX_PATH], tkv_error *error)
{
    tkv_error reason;
    const tkv_status status = find_shipped(SHIPPED_MODEL, path, &reason);
    return status == TKV_OK ? TKV_OK
                            : tkv_fail(error, status, "%s: name a model with -m", reason.message);
}

tkv_status loaded_model_open(loaded_model *loaded, const char *path,
                             const tkv_context_params *params, bool ignores_gate, tkv_error *error)
{
    *loaded = (loaded_model){0};
    char shipped[MAX_PATH];
    TKV_TRY(path ? TKV_OK : find_shipped_model(shipped, error));
    TKV_TRY(tkv_gguf_open(path ? path : shipped, &loaded->gguf, error));
    TKV_TRY(tkv_model_create(loaded->gguf, &loaded->model, error));
    TKV_TRY(tkv_tokenizer_from_gguf(loaded->gguf, &loaded->tokenizer, error));
    const char *warning;
    for (int i = 0; (warning = tkv_tokenizer_warning(loaded->tokenizer, i)); i++) {
        fprintf(stderr, "turbokv: warning: %s\n", warning);
    }
    const int n_vocabulary = tkv_model_get_config(loaded->model)->vocabulary_size;
    if (tkv_tokenizer_size(loaded->tokenizer) > n_vocabulary) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "the tokenizer has %d tokens, the model's embedding only %d",
                        (int)tkv_tokenizer_size(loaded->tokenizer), n_vocabulary);
    }
    return command_open_context(params, ignores_gate, &loaded->context, error);
}

int command_with_model(const char *path, const tkv_context_params *params, bool ignores_gate,
                       const model_command *command, void *user)
{
    tkv_error error;
    loaded_model loaded;
    tkv_status status = loaded_model_open(&loaded, path, params, ignores_gate, &error);
    if (status == TKV_OK) {
        status = command->measure(&loaded, user, &error);
    }
    int code = status == TKV_OK ? command->show(&loaded, user) : command_fail(&error);
    if (status == TKV_ERR_INVALID_ARGUMENT && command->blames_options) {
        code = EXIT_USAGE;
    }
    loaded_model_free(&loaded);
    return code;
}

void command_warn_of_context(const loaded_model *loaded, int n_tokens)
{
    const int trained = tkv_model_get_config(loaded->model)->context_length;
    if (n_tokens > trained) {
        fprintf(stderr,
                "turbokv: warning: a context of %d tokens: the model was trained for %d, and what "
                "it says further on may make no sense\n",
                n_tokens, trained);
    }
}

void loaded_model_free(loaded_model *loaded)
{
    tkv_context_free(loaded->context);
    tkv_tokenizer_free(loaded->tokenizer);
    tkv_model_free(loaded->model);
    tkv_gguf_close(loaded->gguf);
    *loaded = (loaded_model){0};
}

/* Reads to the end of a stream. */
static tkv_status read_stream(FILE *file, const char *path, char **text, size_t *length,
                              tkv_error *error)
{
    size_t capacity = 1 << 16;
    size_t used = 0;
    char *buffer = malloc(capacity);
    while (buffer) {
        const size_t n = fread(buffer + used, 1, capacity - used - 1, file);
        /* At once, for a device may have no end. */
        if (memchr(buffer + used, '\0', n) || used + n > MAX_TEXT_BYTES) {
            free(buffer);
            return tkv_fail(error, TKV_ERR_FORMAT,
                            "%s holds NUL bytes or more than %d MiB: expected a text", path,
                            MAX_TEXT_BYTES >> 20);
        }
        used += n;
        if (used + 1 < capacity) {
            break;
        }
        capacity *= 2;
        char *larger = realloc(buffer, capacity);
        if (!larger) {
            free(buffer);
        }
        buffer = larger;
    }
    if (!buffer) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory to read %s", path);
    }
    if (ferror(file)) {
        free(buffer);
        return tkv_fail(error, TKV_ERR_IO, "cannot read %s: %s", path, strerror(errno));
    }
    buffer[used] = '\0';
    *text = buffer;
    *length = used;
    return TKV_OK;
}

tkv_status command_read_text(const char *path, char **text, size_t *length, tkv_error *error)
{
    const bool is_standard_input = strcmp(path, "-") == 0;
    FILE *file = is_standard_input ? stdin : fopen(path, "rb");
    if (!file) {
        return tkv_fail(error, TKV_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    }
    tkv_status status = read_stream(file, path, text, length, error);
    if (!is_standard_input) {
        fclose(file);
    }
    return status;
}

tkv_status command_read_shipped(const char *name, char **text, size_t *length, tkv_error *error)
{
    char path[MAX_PATH];
    TKV_TRY(find_shipped(name, path, error));
    return command_read_text(path, text, length, error);
}

tkv_status command_read_policy(const char *path, tkv_policy *policy, tkv_error *error)
{
    char *text = NULL;
    size_t length = 0;
    tkv_error reason;
    tkv_status status = command_read_text(path, &text, &length, error);
    if (status == TKV_OK && tkv_policy_parse(text, policy, &reason) != TKV_OK) {
        status = tkv_fail(error, reason.status, "%s: %s", path, reason.message);
    }
    free(text);
    return status;
}

/* The signal's number, or 0. Lock-free, as handlers need it; read by all threads of a context. */
static atomic_int interrupted;

static void on_interrupt(int number)
{
    interrupted = number;
}

void command_catch_interrupt(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)SA_RESETHAND;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool command_is_interrupted(void)
{
    return interrupted != 0;
}

int command_interrupted_code(void)
{
    return 128 + interrupted;
}

bool command_stops(void *user)
{
    (void)user;
    return interrupted != 0;
}
