#include "samples.h"

static NSString *read_source(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", SAMPLES, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = calloc(1, 1 << 16);
    assert_true(fread(text, 1, (1 << 16) - 1, file) > 0);
    fclose(file);
    NSString *source = [NSString stringWithUTF8String:text];
    free(text);
    return source;
}

id<MTLLibrary> sample_library(id<MTLDevice> device, const char *file, MTLMathMode mode)
{
    NSError *error = nil;
    MTLCompileOptions *options = [MTLCompileOptions new];
    options.mathMode = mode;
    id<MTLLibrary> library = [device newLibraryWithSource:read_source(file)
                                                  options:options
                                                    error:&error];
    if (!library) {
        fail_msg("%s", error.localizedDescription.UTF8String);
    }
    return library;
}

id<MTLComputePipelineState> sample_pipeline(id<MTLDevice> device, const char *file,
                                            const char *kernel, MTLFunctionConstantValues *values)
{
    NSError *error = nil;
    id<MTLFunction> function =
        [sample_library(device, file, MTLMathModeSafe) newFunctionWithName:@(kernel)
                                                            constantValues:values
                                                                     error:&error];
    id<MTLComputePipelineState> pipeline =
        function ? [device newComputePipelineStateWithFunction:function error:&error] : nil;
    if (!pipeline) {
        fail_msg("%s: %s", kernel, error.localizedDescription.UTF8String);
    }
    assert_int_equal(pipeline.threadExecutionWidth, 32);
    return pipeline;
}

void sample_finish(id<MTLCommandBuffer> commands)
{
    [commands commit];
    [commands waitUntilCompleted];
    if (commands.status != MTLCommandBufferStatusCompleted) {
        fail_msg("%s", commands.error.localizedDescription.UTF8String);
    }
}
