/* The result of a machine's gate as JSON, and kept for later runs: one file for each machine and
 * version of the library, in the user's cache directory. */
#ifndef TKV_GATE_RECORD_H
#define TKV_GATE_RECORD_H

#include "gate/machine.h"

#include <cjson/cJSON.h>

/* NULL if memory ran out. */
cJSON *tkv_gate_to_json(const tkv_gate *gate);

/* The inverse. TKV_ERR_FORMAT for what another version wrote, or nobody. */
tkv_status tkv_gate_from_json(const cJSON *json, tkv_gate *gate, tkv_error *error);

/* Keeps the result in place of an older one. path [size] receives where. */
tkv_status tkv_gate_save(const tkv_gate *gate, char *path, size_t size, tkv_error *error);

/* Reads this machine's and this version's result. TKV_ERR_IO if there is none: the message says so,
 * and names another version's. */
tkv_status tkv_gate_load(tkv_gate *gate, tkv_error *error);

/* TKV_ERR_DEVICE if these kernels failed when the gate last looked; TKV_OK if they passed, or if
 * nothing readable is known about them. */
tkv_status tkv_gate_check(const char *kernels, tkv_error *error);

/* The same of a device, "cuda" or "cuda:1". What was found of another one in its place, which
 * `description` (device/device.h; NULL: any) tells, counts as nothing. */
tkv_status tkv_gate_check_device(const char *device, const char *description, tkv_error *error);

#endif
