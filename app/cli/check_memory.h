/* Whether there is memory for what a command is about to allocate. */
#ifndef TKV_CLI_CHECK_MEMORY_H
#define TKV_CLI_CHECK_MEMORY_H

#include "turbokv.h"

/* TKV_ERR_OUT_OF_MEMORY if something, "keys and values of 3 types", takes more bytes than this
 * machine has: to be asked before it is allocated, since systems promise what they do not have. */
tkv_status command_check_memory(const char *what, double bytes, tkv_error *error);

#endif
