/* MTLDevice, MTLBuffer, and settings. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fake_misuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("fake Metal: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

NSError *fake_error(const char *domain, NSString *text)
{
    return [NSError errorWithDomain:[NSString stringWithUTF8String:domain]
                               code:1
                           userInfo:@{NSLocalizedDescriptionKey : text}];
}

bool fake_setting_is(const char *name, const char *value)
{
    const char *set = getenv(name);
    return set && strcmp(set, value) == 0;
}

long fake_setting_number(const char *name, long otherwise)
{
    const char *set = getenv(name);
    return set ? atol(set) : otherwise;
}

bool fake_setting_allows(const char *name)
{
    const long left = fake_setting_number(name, -1);
    if (left < 0) {
        return true;
    }
    char text[32];
    snprintf(text, sizeof text, "%ld", left > 0 ? left - 1 : 0);
    setenv(name, text, 1);
    return left > 0;
}

void fake_setting_order(msl_order *order, uint64_t *seed)
{
    const char *set = getenv("FAKE_METAL_ORDER");
    *seed = 1;
    *order = MSL_FORWARD;
    if (!set || strcmp(set, "forward") == 0) {
        return;
    }
    if (strcmp(set, "reverse") == 0) {
        *order = MSL_REVERSE;
    } else if (strncmp(set, "random", 6) == 0) {
        *order = MSL_RANDOM;
        *seed = set[6] == ':' ? strtoull(set + 7, NULL, 10) : 1;
    } else {
        fake_misuse("FAKE_METAL_ORDER=%s: expected forward, reverse, random or random:SEED", set);
    }
}

@implementation FakeBuffer {
    void (^deallocator)(void *, NSUInteger);
    NSUInteger length;
}
@synthesize length = length;

- (instancetype)initWithLength:(NSUInteger)n
{
    length = n;
    return fake_setting_allows("FAKE_METAL_BUFFERS") && fake_region_allocate(&region, n) ? self
                                                                                         : nil;
}

- (instancetype)initWithMemory:(void *)memory
                        length:(NSUInteger)n
                   deallocator:(void (^)(void *, NSUInteger))block
{
    if (!fake_setting_allows("FAKE_METAL_BUFFERS")) {
        return nil;
    }
    length = n;
    deallocator = block;
    fake_region_adopt(&region, memory, n);
    return self;
}

- (void)dealloc
{
    if (region.memory) {
        fake_region_remove(&region);
    }
    if (deallocator) {
        deallocator(region.memory, length);
    }
}

- (void *)contents
{
    return region.memory;
}

- (uint64_t)gpuAddress
{
    return (uint64_t)(uintptr_t)region.memory;
}

@end

@implementation MTLCompileOptions
@synthesize fastMathEnabled, mathMode, mathFloatingPointFunctions, languageVersion;

- (instancetype)init
{
    fastMathEnabled = YES;
    mathMode = MTLMathModeFast;
    languageVersion = MTLLanguageVersion3_0;
    return self;
}

@end

enum { NEWEST_FAMILY = 10 };

@interface FakeDevice : NSObject <MTLDevice>
@end

/* The number of the Apple family, from FAKE_METAL_FAMILY. 0: there is no device. */
static long apple_family(void)
{
    const char *set = getenv("FAKE_METAL_FAMILY");
    if (!set) {
        return 7;
    }
    if (strcmp(set, "none") == 0) {
        return 0;
    }
    if (strncmp(set, "apple", 5) != 0 || atol(set + 5) < 1 || atol(set + 5) > NEWEST_FAMILY) {
        fake_misuse("FAKE_METAL_FAMILY=%s: expected none or apple1 to apple%d", set, NEWEST_FAMILY);
    }
    return atol(set + 5);
}

@implementation FakeDevice

- (NSString *)name
{
    return [NSString stringWithFormat:@"fake Apple%ld GPU", apple_family()];
}

- (BOOL)hasUnifiedMemory
{
    return YES;
}

- (NSUInteger)maxThreadgroupMemoryLength
{
    return MAX_THREADGROUP_BYTES;
}

- (MTLSize)maxThreadsPerThreadgroup
{
    return MTLSizeMake(MSL_MAX_THREADS, MSL_MAX_THREADS, MSL_MAX_THREADS);
}

- (NSUInteger)maxBufferLength
{
    return (NSUInteger)fake_setting_number("FAKE_METAL_MAX_BUFFER", 1L << 34);
}

- (uint64_t)recommendedMaxWorkingSetSize
{
    return 1ull << 34;
}

- (NSUInteger)currentAllocatedSize
{
    return fake_regions_total();
}

- (BOOL)supportsFamily:(MTLGPUFamily)family
{
    const long apple = apple_family();
    if (family >= MTLGPUFamilyApple1 && family < MTLGPUFamilyApple1 + NEWEST_FAMILY) {
        return family - MTLGPUFamilyApple1 < apple;
    }
    return family == MTLGPUFamilyMetal3
               ? apple >= 7
               : family >= MTLGPUFamilyCommon1 && family <= MTLGPUFamilyCommon3;
}

- (id<MTLCommandQueue>)newCommandQueue
{
    return [FakeCommandQueue new];
}

- (void)checkLength:(NSUInteger)length
{
    if (length == 0 || length > self.maxBufferLength) {
        fake_misuse("a buffer of %lu bytes: expected 1 to %lu", length, self.maxBufferLength);
    }
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options
{
    (void)options;
    [self checkLength:length];
    return [[FakeBuffer alloc] initWithLength:length];
}

- (id<MTLBuffer>)newBufferWithBytes:(const void *)bytes
                             length:(NSUInteger)length
                            options:(MTLResourceOptions)options
{
    id<MTLBuffer> buffer = [self newBufferWithLength:length options:options];
    if (buffer) {
        memcpy(buffer.contents, bytes, length);
    }
    return buffer;
}

- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void *)bytes
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void (^)(void *, NSUInteger))deallocator
{
    (void)options;
    [self checkLength:length];
    const size_t page = fake_page_bytes();
    if ((uintptr_t)bytes % page != 0 || length % page != 0) {
        fake_misuse("newBufferWithBytesNoCopy: address %p, length %lu: expected multiples of the "
                    "page size %zu",
                    bytes, length, page);
    }
    return [[FakeBuffer alloc] initWithMemory:bytes length:length deallocator:deallocator];
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString *)source
                               options:(MTLCompileOptions *)options
                                 error:(NSError *__autoreleasing *)error
{
    return [FakeLibrary libraryWithSource:source options:options error:error];
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)function
                                                             error:(NSError *__autoreleasing *)error
{
    return [FakePipeline pipelineWithFunction:(FakeFunction *)function error:error];
}

@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void)
{
    return apple_family() > 0 ? [FakeDevice new] : nil;
}
