/* Which back ends with memory of their own this build has. */
#include "device/device.h"

#ifdef TKV_HAVE_CUDA
extern const tkv_device_table tkv_device_table_cuda;
#endif
#ifdef TKV_HAVE_METAL
extern const tkv_device_table tkv_device_table_metal;
#endif

static const tkv_device_table *const tables[] = {
#ifdef TKV_HAVE_CUDA
    &tkv_device_table_cuda,
#endif
#ifdef TKV_HAVE_METAL
    &tkv_device_table_metal,
#endif
    NULL,
};

const tkv_device_table *tkv_device_tables(int index)
{
    const int n_tables = (int)(sizeof tables / sizeof *tables) - 1;
    return index >= 0 && index < n_tables ? tables[index] : NULL;
}
