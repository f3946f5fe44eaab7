/* A function that the C library of macOS lacks: macos/check_objects.py must refuse it. */
#import <Metal/Metal.h>

char *secure_getenv(const char *name);

bool tkv_is_allowed(void)
{
    return secure_getenv("TKV_METAL") != NULL;
}
