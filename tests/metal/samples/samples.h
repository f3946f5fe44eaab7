/* What tests of the sample kernels share. */
#ifndef TESTS_METAL_SAMPLES_H
#define TESTS_METAL_SAMPLES_H

#import <Metal/Metal.h>

#include "support/support.h"

/* A file of this folder as a library. Fails the test if it does not compile. */
id<MTLLibrary> sample_library(id<MTLDevice> device, const char *file, MTLMathMode mode);

id<MTLComputePipelineState> sample_pipeline(id<MTLDevice> device, const char *file,
                                            const char *kernel, MTLFunctionConstantValues *values);

/* Commits, waits, and fails the test unless all went well. */
void sample_finish(id<MTLCommandBuffer> commands);

#endif
