/* A misspelt method: macos/check_objects.py must refuse it. */
#import <Metal/Metal.h>

id<MTLCommandQueue> tkv_make_queue(id<MTLDevice> device)
{
    return [device newComandQueue];
}
