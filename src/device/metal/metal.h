/* The Metal back end as the rest of the library and its tests see it: a table of device/device.h.
 * In builds without Metal there is none. */
#ifndef TKV_DEVICE_METAL_METAL_H
#define TKV_DEVICE_METAL_METAL_H

#include "device/device.h"

/* GPUs of Apple's families 7 (M1, A14) and later, at least macOS 13. One device; `stream` of open
 * is an id<MTLCommandQueue> or NULL. Memory is unified: an address is that of an MTLBuffer in
 * shared storage, whose content the processor reads and writes in place.
 *
 * The environment variable TKV_METAL_TABLE chooses how kernels find the levels of codes: "full", a
 * table lookup, the default from family 10 (M5) on; "4mag", magnitudes from registers and a sign,
 * the default before, where lookups that differ from lane to lane are slow. TKV_METAL_ANY_GPU=1
 * tries GPUs of earlier families, for machines that understate theirs. TKV_METAL_OWN_BUFFERS=1
 * gives every allocation a buffer of its own, so that Metal's shader validation sees where it ends.
 */
extern const tkv_device_table tkv_device_table_metal;

/* The one source string of all kernels (cmake/embed_metal.cmake). */
extern const char tkv_metal_source[];

#endif
