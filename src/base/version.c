#include "turbokv.h"

#define TKV_STRING_OF(x) #x
#define TKV_STRING(x) TKV_STRING_OF(x)

const char *tkv_version(void)
{
    return TKV_STRING(TKV_VERSION_MAJOR) "." TKV_STRING(TKV_VERSION_MINOR) "." TKV_STRING(
        TKV_VERSION_PATCH);
}

int tkv_version_number(void)
{
    return TKV_VERSION_NUMBER;
}

int tkv_api_version(void)
{
    return TKV_API_VERSION;
}
