/* Parts of a sequence: rows moved to other widths and positions, and attention to parts joined. */
#include "device/metal/metal_device.h"

_Static_assert(sizeof(tkv_device_rows) == 56, "shared with the kernels");
_Static_assert(sizeof(tkv_device_join) == 56, "shared with the kernels");

/* Launches a kernel that has a simdgroup for each row. */
static tkv_status launch_rows(tkv_device *device, const char *kernel, uint64_t n_rows,
                              const void *params, size_t params_bytes, tkv_error *error)
{
    const tkv_metal_launch launch = {
        .kernel = kernel,
        .threadgroups =
            MTLSizeMake((n_rows + TKV_METAL_SIMDGROUPS - 1) / TKV_METAL_SIMDGROUPS, 1, 1),
        .threads = TKV_METAL_LANES * TKV_METAL_SIMDGROUPS,
        .params = params,
        .params_bytes = params_bytes};
    return n_rows == 0 ? TKV_OK : tkv_metal_dispatch(tkv_metal_of(device), &launch, error);
}

tkv_status tkv_metal_move_rows(tkv_device *device, const tkv_device_rows *rows, tkv_error *error)
{
    return launch_rows(device, "tkv_move_rows", rows->n_rows, rows, sizeof *rows, error);
}

tkv_status tkv_metal_join(tkv_device *device, const tkv_device_join *join, tkv_error *error)
{
    return launch_rows(device, "tkv_join_parts", join->n_rows, join, sizeof *join, error);
}
