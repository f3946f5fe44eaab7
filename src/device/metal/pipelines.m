/* The kernels' source, compiled at run time, and one pipeline for each kernel and each set of
 * function constants that is used. */
#include "base/error.h"
#include "device/metal/metal_device.h"

#include <stdio.h>
#include <string.h>

#define MESSAGE_BYTES 300

/* The line of the compiler's text that begins with the file and line of the first error, or its
 * first line. */
static void first_line_of(NSError *problem, char message[MESSAGE_BYTES])
{
    const char *text = problem ? problem.localizedDescription.UTF8String : NULL;
    const char *at = text ? strstr(text, "error:") : NULL;
    while (at && at > text && at[-1] != '\n') {
        at--;
    }
    at = at ? at : text ? text : "no reason given";
    snprintf(message, MESSAGE_BYTES, "%.*s", (int)strcspn(at, "\n"), at);
}

/* Safe mathematics: the format prescribes every rounding. macOS 15 has a new name for it. */
static MTLCompileOptions *compile_options(void)
{
    MTLCompileOptions *options = [MTLCompileOptions new];
    options.languageVersion = MTLLanguageVersion3_0;
#if !defined(__MAC_OS_X_VERSION_MAX_ALLOWED) || __MAC_OS_X_VERSION_MAX_ALLOWED >= 150000
    if (@available(macOS 15.0, *)) {
        options.mathMode = MTLMathModeSafe;
        options.mathFloatingPointFunctions = MTLMathFloatingPointFunctionsPrecise;
        return options;
    }
#endif
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"
    options.fastMathEnabled = NO;
#pragma clang diagnostic pop
    return options;
}

tkv_status tkv_metal_compile_library(tkv_metal_device *device, tkv_error *error)
{
    NSError *problem = nil;
    NSString *source = [NSString stringWithUTF8String:tkv_metal_source];
    device->library = [device->device newLibraryWithSource:source
                                                   options:compile_options()
                                                     error:&problem];
    if (!device->library) {
        char message[MESSAGE_BYTES];
        first_line_of(problem, message);
        return tkv_fail(error, TKV_ERR_DEVICE, "the Metal kernels do not compile: %s", message);
    }
    return TKV_OK;
}

static NSString *key_of(const tkv_metal_launch *launch)
{
    char key[160];
    const int32_t *values = launch->constants.values;
    snprintf(key, sizeof key, "%s %d %d %d %d %d %d %d %d", launch->kernel, values[0], values[1],
             values[2], values[3], values[4], values[5], values[6], values[7]);
    return [NSString stringWithUTF8String:key];
}

/* A dispatch that asks for more threads or memory than a pipeline has is dropped without a word. */
static tkv_status check_limits(tkv_metal_device *device, const tkv_metal_launch *launch,
                               id<MTLComputePipelineState> pipeline, tkv_error *error)
{
    if (pipeline.threadExecutionWidth != TKV_METAL_LANES) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "kernel %s runs in simdgroups of %d threads: expected %d", launch->kernel,
                        (int)pipeline.threadExecutionWidth, TKV_METAL_LANES);
    }
    if (pipeline.maxTotalThreadsPerThreadgroup < launch->threads) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "kernel %s can have %d threads in a threadgroup: expected %d",
                        launch->kernel, (int)pipeline.maxTotalThreadsPerThreadgroup,
                        (int)launch->threads);
    }
    const NSUInteger bytes = pipeline.staticThreadgroupMemoryLength + launch->threadgroup_bytes;
    if (bytes > device->device.maxThreadgroupMemoryLength) {
        return tkv_fail(error, TKV_ERR_UNSUPPORTED,
                        "kernel %s needs %d bytes of threadgroup memory: expected at most %d",
                        launch->kernel, (int)bytes, (int)device->device.maxThreadgroupMemoryLength);
    }
    return TKV_OK;
}

static tkv_status make_pipeline(tkv_metal_device *device, const tkv_metal_launch *launch,
                                id<MTLComputePipelineState> __strong *pipeline, tkv_error *error)
{
    NSError *problem = nil;
    char message[MESSAGE_BYTES];
    MTLFunctionConstantValues *values = [MTLFunctionConstantValues new];
    for (NSUInteger i = 0; i < TKV_METAL_N_CONSTANTS; i++) {
        [values setConstantValue:&launch->constants.values[i] type:MTLDataTypeInt atIndex:i];
    }
    id<MTLFunction> function =
        [device->library newFunctionWithName:[NSString stringWithUTF8String:launch->kernel]
                              constantValues:values
                                       error:&problem];
    if (!function) {
        first_line_of(problem, message);
        return tkv_fail(error, TKV_ERR_DEVICE, "kernel %s cannot be specialised: %s",
                        launch->kernel, message);
    }
    *pipeline = [device->device newComputePipelineStateWithFunction:function error:&problem];
    if (!*pipeline) {
        first_line_of(problem, message);
        return tkv_fail(error, TKV_ERR_DEVICE, "kernel %s makes no pipeline: %s", launch->kernel,
                        message);
    }
    return TKV_OK;
}

tkv_status tkv_metal_pipeline(tkv_metal_device *device, const tkv_metal_launch *launch,
                              id<MTLComputePipelineState> __strong *pipeline, tkv_error *error)
{
    NSString *key = key_of(launch);
    *pipeline = device->pipelines[key];
    if (!*pipeline) {
        const tkv_status status = make_pipeline(device, launch, pipeline, error);
        if (status != TKV_OK) {
            return status;
        }
        device->pipelines[key] = *pipeline;
    }
    return check_limits(device, launch, *pipeline, error);
}
