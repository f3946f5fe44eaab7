#include "gate/record.h"

#include "common/try.h"
#include "gate/json_number.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_PATH 4096
#define MAX_FILE (1 << 20)

static cJSON *backend_to_json(const tkv_gate_backend *b)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "device", b->device);
    cJSON_AddStringToObject(json, "kernels", b->name);
    cJSON_AddStringToObject(json, "description", b->description);
    cJSON_AddStringToObject(json, "state", tkv_backend_state_name(b->state));
    cJSON_AddStringToObject(json, "reason", b->reason);
    cJSON_AddNumberToObject(json, "cases", b->n_cases);
    cJSON_AddNumberToObject(json, "failed", b->n_failed);
    cJSON *operations = cJSON_AddObjectToObject(json, "kernels_right");
    for (int i = 0; i < TKV_OPERATION_COUNT; i++) {
        if (b->operations >> i & 1u) {
            cJSON_AddBoolToObject(operations, tkv_operation_name((tkv_operation)i),
                                  b->operation_passed[i]);
        }
    }
    cJSON_AddNumberToObject(json, "probe_tokens", b->probe.n_tokens);
    cJSON_AddNumberToObject(json, "probe_threads", b->probe.n_threads);
    cJSON *types = cJSON_AddArrayToObject(json, "types");
    for (int i = 0; i < TKV_TYPE_COUNT; i++) {
        cJSON *type = cJSON_CreateObject();
        cJSON_AddStringToObject(type, "type", tkv_type_get_info((tkv_type)i)->name);
        cJSON_AddBoolToObject(type, "right", b->type_passed[i]);
        cJSON_AddNumberToObject(type, "attend_us", b->probe.microseconds[i]);
        cJSON_AddNumberToObject(type, "speed_against_f16", tkv_gate_speed(b, (tkv_type)i));
        cJSON_AddItemToArray(types, type);
    }
    return json;
}

cJSON *tkv_gate_to_json(const tkv_gate *gate)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "version", tkv_version());
    cJSON_AddNumberToObject(json, "format", TKV_FORMAT_VERSION);
    cJSON_AddStringToObject(json, "machine", gate->machine);
    cJSON *backends = cJSON_AddArrayToObject(json, "back_ends");
    for (int i = 0; i < gate->n_backends; i++) {
        cJSON_AddItemToArray(backends, backend_to_json(&gate->backends[i]));
    }
    cJSON_AddStringToObject(json, "decision", tkv_gate_verdict_name(gate->verdict));
    cJSON_AddStringToObject(json, "use",
                            gate->chosen >= 0 ? gate->backends[gate->chosen].name : "");
    cJSON *reasons = cJSON_AddArrayToObject(json, "reasons");
    for (int i = 0; i < gate->n_reasons; i++) {
        cJSON_AddItemToArray(reasons, cJSON_CreateString(gate->reasons[i]));
    }
    return json;
}

static const char *text_of(const cJSON *json, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(json, name));
    return text ? text : "";
}

/* The largest time of a probe, a day. */
#define MAX_MICROSECONDS 86.4e9

static tkv_status counts_from_json(const cJSON *json, tkv_gate_backend *b, tkv_error *error)
{
    const struct {
        const char *name;
        int *count;
    } counts[] = {{"cases", &b->n_cases},
                  {"failed", &b->n_failed},
                  {"probe_tokens", &b->probe.n_tokens},
                  {"probe_threads", &b->probe.n_threads}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        TKV_TRY(tkv_json_count(json, counts[i].name, 0, INT_MAX, counts[i].count, error));
    }
    return TKV_OK;
}

static tkv_status types_from_json(const cJSON *json, tkv_gate_backend *b, tkv_error *error)
{
    const cJSON *item;
    tkv_status status = TKV_OK;
    cJSON_ArrayForEach(item, json)
    {
        tkv_type type;
        if (tkv_type_from_name(text_of(item, "type"), &type, NULL) == TKV_OK) {
            b->type_passed[type] = cJSON_IsTrue(cJSON_GetObjectItem(item, "right"));
            status = tkv_json_number(item, "attend_us", 0.0, MAX_MICROSECONDS,
                                     &b->probe.microseconds[type], error);
        }
        if (status != TKV_OK) {
            break;
        }
    }
    return status;
}

static tkv_status backend_from_json(const cJSON *json, tkv_gate_backend *b, tkv_error *error)
{
    *b = (tkv_gate_backend){.state = TKV_BACKEND_ABSENT};
    snprintf(b->device, sizeof b->device, "%s", text_of(json, "device"));
    snprintf(b->name, sizeof b->name, "%s", text_of(json, "kernels"));
    snprintf(b->description, sizeof b->description, "%s", text_of(json, "description"));
    snprintf(b->reason, sizeof b->reason, "%s", text_of(json, "reason"));
    for (int state = 0; state <= TKV_BACKEND_PASSED; state++) {
        if (strcmp(text_of(json, "state"), tkv_backend_state_name((tkv_backend_state)state)) == 0) {
            b->state = (tkv_backend_state)state;
        }
    }
    const cJSON *operations = cJSON_GetObjectItem(json, "kernels_right");
    for (int i = 0; i < TKV_OPERATION_COUNT; i++) {
        const cJSON *is_right =
            cJSON_GetObjectItem(operations, tkv_operation_name((tkv_operation)i));
        b->operations |= is_right ? 1u << i : 0u;
        b->operation_passed[i] = cJSON_IsTrue(is_right);
    }
    TKV_TRY(counts_from_json(json, b, error));
    return types_from_json(cJSON_GetObjectItem(json, "types"), b, error);
}

tkv_status tkv_gate_from_json(const cJSON *json, tkv_gate *gate, tkv_error *error)
{
    memset(gate, 0, sizeof *gate);
    const cJSON *backends = cJSON_GetObjectItem(json, "back_ends");
    const int n_backends = cJSON_GetArraySize(backends);
    if (n_backends < 1 || n_backends > TKV_GATE_MAX_BACKENDS) {
        return tkv_fail(error, TKV_ERR_FORMAT, "expected the result of a gate, with back_ends");
    }
    if (strcmp(text_of(json, "version"), tkv_version()) != 0) {
        return tkv_fail(error, TKV_ERR_FORMAT,
                        "the result is of version '%.32s', this is version %s",
                        text_of(json, "version"), tkv_version());
    }
    snprintf(gate->machine, sizeof gate->machine, "%s", text_of(json, "machine"));
    for (int i = 0; i < n_backends; i++) {
        tkv_error reason;
        const tkv_status status =
            backend_from_json(cJSON_GetArrayItem(backends, i), &gate->backends[i], &reason);
        if (status != TKV_OK) {
            return tkv_fail(error, status, "back end '%.32s': %.160s", gate->backends[i].name,
                            reason.message);
        }
    }
    gate->n_backends = n_backends;
    tkv_gate_decide(gate);
    return TKV_OK;
}

/* Digits that stand for this machine: FNV-1a of its description. */
static void machine_digits(const char *machine, char digits[17])
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *c = machine; *c; c++) {
        hash = (hash ^ (uint8_t)*c) * 0x100000001b3u;
    }
    snprintf(digits, 17, "%016llx", (unsigned long long)hash);
}

/* As in the XDG base directory specification: an XDG_CACHE_HOME that is not absolute counts as not
 * set. */
static tkv_status find_directory(char directory[MAX_PATH], tkv_error *error)
{
    const char *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    const bool has_cache = cache && cache[0] == '/';
    if (!has_cache && !(home && home[0] == '/')) {
        return tkv_fail(error, TKV_ERR_IO,
                        "no cache directory: expected an absolute XDG_CACHE_HOME or HOME");
    }
    const int length = snprintf(directory, MAX_PATH, "%s%s/turbokv", has_cache ? cache : home,
                                has_cache ? "" : "/.cache");
    return length < MAX_PATH - 128
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_IO, "the cache directory's path is too long");
}

static tkv_status find_file(char directory[MAX_PATH], char digits[17], char path[MAX_PATH],
                            tkv_error *error)
{
    char machine[TKV_GATE_TEXT];
    TKV_TRY(find_directory(directory, error));
    tkv_gate_describe_machine(machine);
    machine_digits(machine, digits);
    const int room = MAX_PATH - 128;
    snprintf(path, MAX_PATH, "%.*s/gate-%s-%s.json", room, directory, tkv_version(), digits);
    return TKV_OK;
}

static void make_directories(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
    mkdir(path, 0777);
}

/* Writes beside the file and then takes its place, so that readers see the old or the new one. */
static tkv_status replace_file(const char *path, const char *text, tkv_error *error)
{
    char temporary[MAX_PATH + 16];
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "w");
    const bool is_written = file && fputs(text, file) >= 0;
    const bool is_closed = file && fclose(file) == 0;
    if (!is_written || !is_closed || rename(temporary, path) != 0) {
        const tkv_status status =
            tkv_fail(error, TKV_ERR_IO, "cannot write %.250s: %s", path, strerror(errno));
        unlink(temporary);
        return status;
    }
    return TKV_OK;
}

tkv_status tkv_gate_save(const tkv_gate *gate, char *path, size_t size, tkv_error *error)
{
    char directory[MAX_PATH];
    char digits[17];
    char file[MAX_PATH];
    tkv_status status = find_file(directory, digits, file, error);
    if (status != TKV_OK) {
        return status;
    }
    make_directories(directory);
    cJSON *json = tkv_gate_to_json(gate);
    char *text = json ? cJSON_Print(json) : NULL;
    status = text ? replace_file(file, text, error)
                  : tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the gate's result");
    snprintf(path, size, "%s", file);
    free(text);
    cJSON_Delete(json);
    return status;
}

/* Says that there is no result, and of which other version there is one. */
static tkv_status fail_without_file(const char *directory, const char *digits, tkv_error *error)
{
    char other[64] = "";
    DIR *folder = opendir(directory);
    const struct dirent *entry;
    while (folder && !other[0] && (entry = readdir(folder))) {
        const char *version = strncmp(entry->d_name, "gate-", 5) == 0 ? entry->d_name + 5 : NULL;
        const char *end = version ? strstr(version, digits) : NULL;
        if (end && end > version && strcmp(end + strlen(digits), ".json") == 0) {
            snprintf(other, sizeof other, "%.*s", (int)(end - 1 - version), version);
        }
    }
    if (folder) {
        closedir(folder);
    }
    return tkv_fail(error, TKV_ERR_IO,
                    "this machine has no gate result of version %s%s%s: run 'turbokv gate'",
                    tkv_version(), other[0] ? ", only one of version " : "", other);
}

static tkv_status read_json(const char *path, cJSON **json, tkv_error *error)
{
    FILE *file = fopen(path, "r");
    char *text = file ? calloc(1, MAX_FILE) : NULL;
    if (text && fread(text, 1, MAX_FILE - 1, file) < MAX_FILE - 1) {
        *json = cJSON_Parse(text);
    }
    if (file) {
        fclose(file);
    }
    free(text);
    return *json
               ? TKV_OK
               : tkv_fail(error, TKV_ERR_FORMAT, "%.250s cannot be read: run 'turbokv gate'", path);
}

tkv_status tkv_gate_load(tkv_gate *gate, tkv_error *error)
{
    char directory[MAX_PATH];
    char digits[17];
    char path[MAX_PATH];
    cJSON *json = NULL;
    tkv_status status = find_file(directory, digits, path, error);
    if (status != TKV_OK) {
        return status;
    }
    if (access(path, F_OK) != 0) {
        return fail_without_file(directory, digits, error);
    }
    status = read_json(path, &json, error);
    if (status == TKV_OK) {
        tkv_error reason;
        status = tkv_gate_from_json(json, gate, &reason);
        if (status != TKV_OK) {
            tkv_fail(error, status, "%.200s: %.200s: run 'turbokv gate'", path, reason.message);
        }
    }
    cJSON_Delete(json);
    return status;
}

static bool is_cpu(const tkv_gate_backend *backend)
{
    return strcmp(backend->device, "cpu") == 0;
}

/* The best back end that passed: for a CPU's kernels others of the CPU, which every command can
 * use, before a device. NULL: none. */
static const tkv_gate_backend *find_substitute(const tkv_gate *gate, const tkv_gate_backend *failed)
{
    const tkv_gate_backend *substitute = gate->chosen >= 0 ? &gate->backends[gate->chosen] : NULL;
    for (int i = 0; is_cpu(failed) && i < gate->n_backends; i++) {
        const tkv_gate_backend *backend = &gate->backends[i];
        substitute = is_cpu(backend) && backend->state == TKV_BACKEND_PASSED ? backend : substitute;
    }
    return substitute;
}

/* Says what failed, and what to do: another table is chosen in one way, a device not used in
 * another. */
static tkv_status fail_as_recorded(const tkv_gate *gate, const tkv_gate_backend *failed,
                                   tkv_error *error)
{
    const tkv_gate_backend *other = find_substitute(gate, failed);
    char advice[160] = "";
    if (other && is_cpu(other) && is_cpu(failed)) {
        snprintf(advice, sizeof advice, "set TKV_CPU=%s to use those that passed; ", other->name);
    } else if (other) {
        snprintf(advice, sizeof advice, "use --device %s, which passed; ",
                 is_cpu(other) ? other->device : other->name);
    }
    return tkv_fail(error, TKV_ERR_DEVICE,
                    "kernels '%s' failed their self-test on this machine (%.120s): "
                    "%s--ignore-gate uses them nevertheless, 'turbokv gate' tests again",
                    failed->name, failed->reason, advice);
}

/* Whether a name means the back end: "cuda:0" and "cuda:00" are "cuda". */
static bool is_name_of(const tkv_gate_backend *backend, const char *name)
{
    const char *colons[] = {strrchr(backend->name, ':'), strrchr(name, ':')};
    const size_t lengths[] = {colons[0] ? (size_t)(colons[0] - backend->name)
                                        : strlen(backend->name),
                              colons[1] ? (size_t)(colons[1] - name) : strlen(name)};
    return lengths[0] == lengths[1] && strncmp(backend->name, name, lengths[0]) == 0 &&
           (colons[0] ? strtol(colons[0] + 1, NULL, 10) : 0) ==
               (colons[1] ? strtol(colons[1] + 1, NULL, 10) : 0);
}

tkv_status tkv_gate_check_device(const char *device, const char *description, tkv_error *error)
{
    tkv_gate *gate = malloc(sizeof *gate);
    tkv_status status = TKV_OK;
    if (gate && tkv_gate_load(gate, NULL) == TKV_OK) {
        for (int i = 0; i < gate->n_backends && status == TKV_OK; i++) {
            const tkv_gate_backend *backend = &gate->backends[i];
            const bool is_same = is_name_of(backend, device) &&
                                 (!description || strcmp(backend->description, description) == 0);
            if (is_same && backend->state == TKV_BACKEND_FAILED) {
                status = fail_as_recorded(gate, backend, error);
            }
        }
    }
    free(gate);
    return status;
}

tkv_status tkv_gate_check(const char *kernels, tkv_error *error)
{
    return tkv_gate_check_device(kernels, NULL, error);
}
