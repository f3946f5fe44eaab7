/* The known-answer test, and the speed probe, of a back end with memory of its own, through the
 * operations of its table alone (device/device.h): rotation, moved rows, stored pages and loaded
 * rows bit for bit as the scalar reference has them, attention, to all tokens at once and to parts
 * that are joined, within the rounding that the table states. */
#ifndef TKV_GATE_DEVICE_TEST_H
#define TKV_GATE_DEVICE_TEST_H

#include "device/device.h"
#include "gate/probe.h"
#include "gate/self_test.h"

/* Runs all cases with heads of up to max_head_dim (TKV_DEVICE_TEST_ALL: every size) on a device. An
 * error of the device ends the test and is returned. */
#define TKV_DEVICE_TEST_ALL 576
tkv_status tkv_device_test_run(const tkv_device_table *table, int index, int max_head_dim,
                               tkv_self_test *test, tkv_error *error);

/* As tkv_probe_run, on a context of n_tokens; TKV_DEVICE_PROBE_TOKENS are enough to be bound by
 * memory. */
#define TKV_DEVICE_PROBE_TOKENS 16384
tkv_status tkv_device_probe_run(const tkv_device_table *table, int index, int n_tokens,
                                tkv_probe *probe, tkv_error *error);

#endif
