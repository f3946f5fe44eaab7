/* A device whose memory is the host's and whose kernels are the CPU's reference, so that what runs
 * on devices is tested where there is none. Its addresses are no host pointers: using one as such
 * ends the program. It also counts its memory, fails on demand and captures calls as a graph. */
#ifndef TKV_TESTS_REFERENCE_DEVICE_H
#define TKV_TESTS_REFERENCE_DEVICE_H

#include "device/device.h"

extern const tkv_device_table reference_device_table;

/* A context on it, with one thread. */
tkv_context *create_reference_context(void);

/* Bytes of the device's memory in use, of all its contexts. */
size_t reference_device_bytes(void);

/* The call after `n` more ones fails, or all from then on. */
void reference_device_fail(int n, bool is_once);

/* Ends that; returns whether a call has failed. */
bool reference_device_recover(void);

/* What is called now is recorded and not done; calls that no graph can hold fail. */
void reference_device_capture(void);
void reference_device_end_capture(void);

/* Does what was captured last. */
void reference_device_replay(void);

#endif
