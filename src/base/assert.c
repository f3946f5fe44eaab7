#include "base/assert.h"

#ifdef TKV_ASSERTIONS

#include <stdio.h>
#include <stdlib.h>

_Noreturn void tkv_assertion_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: expected %s\n", file, line, condition);
    abort();
}

#else

typedef int tkv_no_assertions; /* a file of ISO C is not empty */

#endif
