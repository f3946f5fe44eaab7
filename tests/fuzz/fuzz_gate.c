/* Gate records: refused with a message, or a gate that says the same when it is written and read
 * again, and whose verdict follows from its back ends. */
#include "fuzz/fuzz.h"

#include "gate/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const int fuzz_runs = 1500;

static char *gate_text(const tkv_gate *gate)
{
    cJSON *json = tkv_gate_to_json(gate);
    char *text = json ? cJSON_Print(json) : NULL;
    if (!text) {
        fuzz_fail("no memory for a record");
    }
    cJSON_Delete(json);
    return text;
}

size_t fuzz_seed(int index, uint8_t data[FUZZ_MAX_INPUT])
{
    if (index > 0) {
        return 0;
    }
    tkv_gate gate = {.machine = "a machine", .n_backends = 2};
    for (int i = 0; i < 2; i++) {
        tkv_gate_backend *b = &gate.backends[i];
        snprintf(b->device, sizeof b->device, "cpu");
        snprintf(b->name, sizeof b->name, i ? "avx2" : "scalar");
        b->state = i ? TKV_BACKEND_FAILED : TKV_BACKEND_PASSED;
        b->n_cases = 10;
        b->n_failed = i;
        b->probe.n_tokens = 1024;
        b->probe.n_threads = 1;
        for (int type = 0; type < TKV_TYPE_COUNT; type++) {
            b->type_passed[type] = true;
            b->probe.microseconds[type] = 10.0 + type;
        }
    }
    tkv_gate_decide(&gate);
    char *text = gate_text(&gate);
    const size_t size = strlen(text);
    memcpy(data, text, size);
    free(text);
    return size;
}

static void check_gate(const tkv_gate *gate)
{
    tkv_error error;
    tkv_gate again;
    char *text = gate_text(gate);
    cJSON *json = cJSON_Parse(text);
    const tkv_status status = tkv_gate_from_json(json, &again, &error);
    if (status != TKV_OK) {
        fuzz_fail("a record that was written is refused: %s", error.message);
    }
    char *second = gate_text(&again);
    if (strcmp(text, second) != 0) {
        fuzz_fail("%s\nbecame\n%s", text, second);
    }
    if (gate->chosen >= gate->n_backends ||
        (gate->chosen >= 0 && gate->backends[gate->chosen].state != TKV_BACKEND_PASSED)) {
        fuzz_fail("back end %d of %d is chosen, and it did not pass", gate->chosen,
                  gate->n_backends);
    }
    free(second);
    free(text);
    cJSON_Delete(json);
}

/* Where this machine's record is read from: a directory of this run. */
static const char *record_path(void)
{
    static char directory[80];
    static char path[512];
    if (!path[0]) {
        tkv_error error;
        tkv_gate gate = {.n_backends = 1};
        snprintf(directory, sizeof directory, "%s.d", fuzz_file());
        setenv("XDG_CACHE_HOME", directory, 1);
        if (tkv_gate_save(&gate, path, sizeof path, &error) != TKV_OK) {
            fuzz_fail("%s", error.message);
        }
    }
    return path;
}

static void remove_record(void)
{
    char directory[512];
    unlink(record_path());
    snprintf(directory, sizeof directory, "%s.d/turbokv", fuzz_file());
    rmdir(directory);
    snprintf(directory, sizeof directory, "%s.d", fuzz_file());
    rmdir(directory);
}

/* As what this machine's gate left. */
static void read_as_file(const uint8_t *data, size_t size)
{
    static bool is_prepared = false;
    static tkv_gate gate;
    tkv_error error;
    fuzz_write_file(record_path(), data, size);
    if (!is_prepared) {
        atexit(remove_record);
        is_prepared = true;
    }
    tkv_status status = tkv_gate_load(&gate, &error);
    fuzz_check_error(status, &error);
    if (status == TKV_OK) {
        check_gate(&gate);
    }
    status = tkv_gate_check("avx2", &error);
    fuzz_check_error(status, &error);
}

static void read_as_text(const uint8_t *data, size_t size)
{
    static tkv_gate gate;
    tkv_error error;
    cJSON *json = cJSON_ParseWithLength((const char *)data, size);
    const tkv_status status = json ? tkv_gate_from_json(json, &gate, &error) : TKV_ERR_FORMAT;
    if (json) {
        fuzz_check_error(status, &error);
    }
    if (status == TKV_OK) {
        check_gate(&gate);
    }
    cJSON_Delete(json);
}

/* Finding the file takes far longer than reading what is in it: one input of 32. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size % 32 == 0) {
        read_as_file(data, size);
    } else {
        read_as_text(data, size);
    }
    return 0;
}
