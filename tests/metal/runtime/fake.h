/* The classes of the fake Metal, and what they share. */
#ifndef TESTS_METAL_FAKE_H
#define TESTS_METAL_FAKE_H

#import <Metal/Metal.h>

#include "executor/executor.h"
#include "regions.h"

enum { MAX_BINDINGS = MSL_MAX_ARGUMENTS, MAX_BYTES_LENGTH = 4096, MAX_THREADGROUP_BYTES = 32768 };

NS_ASSUME_NONNULL_BEGIN

/* The host broke a rule of the interface: says so and aborts, as Metal's validation layer does. */
_Noreturn void fake_misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

NSError *fake_error(const char *domain, NSString *text);

/* Settings, read from the environment whenever they matter. README.md describes them. */
bool fake_setting_is(const char *name, const char *value);
long fake_setting_number(const char *name, long otherwise);
/* Counts down a setting of how many calls succeed; false: this one is to fail. */
bool fake_setting_allows(const char *name);
void fake_setting_order(msl_order *order, uint64_t *seed);

@interface FakeBuffer : NSObject <MTLBuffer> {
  @package
    fake_region region;
}
@property(nullable, copy, atomic) NSString *label;
- (nullable instancetype)initWithLength:(NSUInteger)length;
- (instancetype)initWithMemory:(void *)memory
                        length:(NSUInteger)length
                   deallocator:(nullable void (^)(void *, NSUInteger))block;
@end

/* One function of a compiled library. */
typedef struct fake_kernel {
    char name[64];
    uint32_t buffers; /* bit per index */
    uint32_t threadgroups;
    NSUInteger max_threads;
    NSUInteger static_bytes;
} fake_kernel;

@interface FakeLibrary : NSObject <MTLLibrary>
+ (nullable instancetype)libraryWithSource:(NSString *)source
                                   options:(nullable MTLCompileOptions *)options
                                     error:(NSError *_Nullable __autoreleasing *)error;
@end

@interface FakeFunction : NSObject <MTLFunction> {
  @package
    fake_kernel kernel;
    NSString *path; /* of the shared object */
}
@property(nullable, copy, atomic) NSString *label;
@end

@interface FakePipeline : NSObject <MTLComputePipelineState> {
  @package
    fake_kernel kernel;
    void (*entry)(const msl_arguments *);
    const msl_memory *static_memory;
    int n_static_memory;
}
+ (nullable instancetype)pipelineWithFunction:(FakeFunction *)function
                                        error:(NSError *_Nullable __autoreleasing *)error;
@end

/* Work of a command buffer. */
@interface FakeCommand : NSObject
/* nil, or what went wrong */
- (nullable NSString *)run;
/* Whether it may change places with its predecessor. */
@property(readwrite, nonatomic) BOOL isUnordered;
@end

@interface FakeCommandQueue : NSObject <MTLCommandQueue>
@property(nullable, copy, atomic) NSString *label;
@end

@interface FakeCommandBuffer : NSObject <MTLCommandBuffer> {
  @package
    NSMutableArray<FakeCommand *> *commands;
    int n_open_encoders;
}
@property(nullable, copy, atomic) NSString *label;
- (instancetype)initWithQueue:(FakeCommandQueue *)queue;
- (void)execute;
@end

@interface FakeComputeEncoder : NSObject <MTLComputeCommandEncoder>
@property(nullable, copy, atomic) NSString *label;
- (instancetype)initWithCommandBuffer:(FakeCommandBuffer *)buffer type:(MTLDispatchType)type;
@end

@interface FakeBlitEncoder : NSObject <MTLBlitCommandEncoder>
@property(nullable, copy, atomic) NSString *label;
- (instancetype)initWithCommandBuffer:(FakeCommandBuffer *)buffer;
@end

NS_ASSUME_NONNULL_END

#endif
