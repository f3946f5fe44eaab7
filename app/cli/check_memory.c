#include "cli/check_memory.h"

#include "eval/plan.h"

tkv_status command_check_memory(const char *what, double bytes, tkv_error *error)
{
    const double memory = (double)tkv_machine_memory();
    return memory > 0.0 && bytes > memory
               ? tkv_fail(error, TKV_ERR_OUT_OF_MEMORY,
                          "%s: %.1f GB, but this machine has %.1f GB of memory", what, 1e-9 * bytes,
                          1e-9 * memory)
               : TKV_OK;
}
