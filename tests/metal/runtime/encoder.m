/* Encoders: they check what the host asks for and record it as commands. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>

/* What an index of buffers is bound to: a buffer, or bytes. */
typedef struct binding {
    NSUInteger offset;
    NSUInteger n_bytes;
    bool is_bytes;
} binding;

@implementation FakeCommand
@synthesize isUnordered;

- (NSString *)run
{
    return nil;
}

@end

@interface FakeBytes : NSObject {
  @package
    void *memory;
}
@end

@implementation FakeBytes

- (void)dealloc
{
    free(memory);
}

@end

/* A resource that a kernel reaches through addresses in memory. */
@interface FakeUse : NSObject {
  @package
    FakeBuffer *buffer;
    bool is_writable;
}
@end

@implementation FakeUse
@end

@interface FakeDispatch : FakeCommand {
  @package
    FakePipeline *pipeline;
    NSObject *bound[MAX_BINDINGS]; /* FakeBuffer, FakeBytes or nil */
    binding bindings[MAX_BINDINGS];
    NSUInteger threadgroup_bytes[MAX_BINDINGS];
    NSMutableArray<FakeUse *> *uses;
    NSUInteger n_uses;
    msl_size threadgroups;
    msl_size threads;
}
@end

@implementation FakeDispatch

- (void)makeResident
{
    for (int i = 0; i < MAX_BINDINGS; i++) {
        if (bound[i] && !bindings[i].is_bytes) {
            fake_regions_make_resident(&((FakeBuffer *)bound[i])->region, true);
        }
    }
    for (NSUInteger i = 0; i < n_uses; i++) {
        fake_regions_make_resident(&uses[i]->buffer->region, uses[i]->is_writable);
    }
}

- (NSString *)run
{
    msl_memory memory[2 * MAX_BINDINGS];
    int n_memory = 0;
    msl_dispatch dispatch = {.kernel = pipeline->kernel.name,
                             .entry = pipeline->entry,
                             .threadgroups = threadgroups,
                             .threads = threads,
                             .threadgroup_memory = memory};
    fake_setting_order(&dispatch.order, &dispatch.seed);
    for (int i = 0; i < pipeline->n_static_memory; i++) {
        memory[n_memory++] = pipeline->static_memory[i];
    }
    const int n_static = n_memory;
    for (int i = 0; i < MAX_BINDINGS; i++) {
        if (threadgroup_bytes[i] > 0) {
            memory[n_memory] = (msl_memory){calloc(1, threadgroup_bytes[i]), threadgroup_bytes[i]};
            dispatch.arguments.threadgroups[i] = (uint64_t)(uintptr_t)memory[n_memory++].address;
        }
        if (bound[i]) {
            void *start = bindings[i].is_bytes ? ((FakeBytes *)bound[i])->memory
                                               : ((FakeBuffer *)bound[i])->region.memory;
            dispatch.arguments.buffers[i] = (uint64_t)(uintptr_t)start + bindings[i].offset;
        }
    }
    dispatch.n_threadgroup_memory = n_memory;
    [self makeResident];
    char message[1024] = "";
    fake_regions_close();
    const bool is_done = msl_execute(&dispatch, message, sizeof message);
    const bool is_intact = fake_regions_open();
    for (int i = n_static; i < n_memory; i++) {
        free(memory[i].address);
    }
    if (!is_done) {
        return [NSString stringWithUTF8String:message];
    }
    return is_intact ? nil
                     : [NSString stringWithFormat:@"kernel %s wrote behind the end of a buffer",
                                                  pipeline->kernel.name];
}

@end

@implementation FakeComputeEncoder {
    FakeCommandBuffer *commandBuffer;
    FakePipeline *pipeline;
    NSObject *bound[MAX_BINDINGS];
    binding bindings[MAX_BINDINGS];
    NSUInteger threadgroup_bytes[MAX_BINDINGS];
    NSMutableArray<FakeUse *> *uses;
    MTLDispatchType type;
    bool is_behind_barrier; /* the next dispatch keeps its place */
    bool has_ended;
}

- (instancetype)initWithCommandBuffer:(FakeCommandBuffer *)buffer type:(MTLDispatchType)dispatchType
{
    commandBuffer = buffer;
    commandBuffer->n_open_encoders++;
    uses = [NSMutableArray new];
    type = dispatchType;
    is_behind_barrier = true;
    return self;
}

- (void)dealloc
{
    if (!has_ended) {
        fake_misuse("an encoder was released without endEncoding");
    }
}

- (void)checkIsOpen
{
    if (has_ended) {
        fake_misuse("an encoder was used after endEncoding");
    }
}

- (void)checkIndex:(NSUInteger)index
{
    [self checkIsOpen];
    if (index >= MAX_BINDINGS) {
        fake_misuse("index %lu: expected less than %d", index, MAX_BINDINGS);
    }
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)state
{
    [self checkIsOpen];
    if (!state) {
        fake_misuse("setComputePipelineState: nil");
    }
    pipeline = (FakePipeline *)state;
}

- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    [self checkIndex:index];
    if (buffer && offset >= buffer.length) {
        fake_misuse("buffer(%lu): offset %lu of a buffer of %lu bytes", index, offset,
                    buffer.length);
    }
    if (offset % 4 != 0) {
        fake_misuse("buffer(%lu): offset %lu: expected a multiple of 4", index, offset);
    }
    bound[index] = (FakeBuffer *)buffer;
    bindings[index] = (binding){.offset = offset};
}

- (void)setBufferOffset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    [self checkIndex:index];
    if (!bound[index] || bindings[index].is_bytes) {
        fake_misuse("setBufferOffset: buffer(%lu) is not bound", index);
    }
    [self setBuffer:(FakeBuffer *)bound[index] offset:offset atIndex:index];
}

- (void)setBytes:(const void *)bytes length:(NSUInteger)length atIndex:(NSUInteger)index
{
    [self checkIndex:index];
    if (length == 0 || length > MAX_BYTES_LENGTH) {
        fake_misuse("setBytes: %lu bytes for buffer(%lu): expected 1 to %d", length, index,
                    MAX_BYTES_LENGTH);
    }
    FakeBytes *copy = [FakeBytes new];
    copy->memory = malloc(length);
    if (!copy->memory) {
        fake_misuse("out of memory");
    }
    memcpy(copy->memory, bytes, length);
    bound[index] = copy;
    bindings[index] = (binding){.n_bytes = length, .is_bytes = true};
}

- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index
{
    [self checkIndex:index];
    if (length % 16 != 0 || length > MAX_THREADGROUP_BYTES) {
        fake_misuse("threadgroup(%lu): %lu bytes: expected a multiple of 16 up to %d", index,
                    length, MAX_THREADGROUP_BYTES);
    }
    threadgroup_bytes[index] = length;
}

- (void)useResource:(id<MTLResource>)resource usage:(MTLResourceUsage)usage
{
    [self checkIsOpen];
    if (!resource || !(usage & (MTLResourceUsageRead | MTLResourceUsageWrite))) {
        fake_misuse("useResource: no resource, or neither reading nor writing");
    }
    FakeUse *use = [FakeUse new];
    use->buffer = (FakeBuffer *)resource;
    use->is_writable = usage & MTLResourceUsageWrite;
    [uses addObject:use];
}

- (void)useResources:(const id<MTLResource>[])resources
               count:(NSUInteger)count
               usage:(MTLResourceUsage)usage
{
    for (NSUInteger i = 0; i < count; i++) {
        [self useResource:resources[i] usage:usage];
    }
}

- (void)memoryBarrierWithScope:(MTLBarrierScope)scope
{
    [self checkIsOpen];
    is_behind_barrier |= (scope & MTLBarrierScopeBuffers) != 0;
}

- (void)checkBindings
{
    NSUInteger bytes = pipeline->kernel.static_bytes;
    for (NSUInteger i = 0; i < MAX_BINDINGS; i++) {
        if ((pipeline->kernel.buffers >> i & 1) && !bound[i]) {
            fake_misuse("kernel %s: buffer(%lu) is not bound", pipeline->kernel.name, i);
        }
        if (pipeline->kernel.threadgroups >> i & 1) {
            if (threadgroup_bytes[i] == 0) {
                fake_misuse("kernel %s: the length of threadgroup(%lu) is not set",
                            pipeline->kernel.name, i);
            }
            bytes += threadgroup_bytes[i];
        }
    }
    if (bytes > MAX_THREADGROUP_BYTES) {
        fake_misuse("kernel %s: %lu bytes of threadgroup memory: at most %d", pipeline->kernel.name,
                    bytes, MAX_THREADGROUP_BYTES);
    }
}

- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads
{
    [self checkIsOpen];
    if (!pipeline) {
        fake_misuse("dispatch without a pipeline");
    }
    const NSUInteger n_threads = threads.width * threads.height * threads.depth;
    if (n_threads == 0 || n_threads > pipeline.maxTotalThreadsPerThreadgroup) {
        fake_misuse("kernel %s: %lu threads per threadgroup: expected 1 to %lu",
                    pipeline->kernel.name, n_threads, pipeline.maxTotalThreadsPerThreadgroup);
    }
    if (groups.width == 0 || groups.height == 0 || groups.depth == 0 || groups.width > UINT32_MAX ||
        groups.height > UINT32_MAX || groups.depth > UINT32_MAX) {
        fake_misuse("kernel %s: a grid of %lu x %lu x %lu threadgroups", pipeline->kernel.name,
                    groups.width, groups.height, groups.depth);
    }
    [self checkBindings];
    FakeDispatch *dispatch = [FakeDispatch new];
    dispatch->pipeline = pipeline;
    for (int i = 0; i < MAX_BINDINGS; i++) {
        dispatch->bound[i] = bound[i];
        dispatch->bindings[i] = bindings[i];
        /* Lengths that the kernel has no use for are allowed. */
        dispatch->threadgroup_bytes[i] =
            (pipeline->kernel.threadgroups >> i & 1) ? threadgroup_bytes[i] : 0;
    }
    dispatch->uses = uses;
    dispatch->n_uses = uses.count;
    dispatch->threadgroups =
        (msl_size){(uint32_t)groups.width, (uint32_t)groups.height, (uint32_t)groups.depth};
    dispatch->threads =
        (msl_size){(uint32_t)threads.width, (uint32_t)threads.height, (uint32_t)threads.depth};
    dispatch.isUnordered = type == MTLDispatchTypeConcurrent && !is_behind_barrier;
    is_behind_barrier = false;
    [commandBuffer->commands addObject:dispatch];
}

- (void)endEncoding
{
    [self checkIsOpen];
    has_ended = true;
    commandBuffer->n_open_encoders--;
}

@end

@interface FakeCopy : FakeCommand {
  @package
    FakeBuffer *source; /* nil: fill */
    FakeBuffer *target;
    NSUInteger source_offset;
    NSUInteger target_offset;
    NSUInteger n_bytes;
    uint8_t value;
}
@end

@implementation FakeCopy

- (NSString *)run
{
    if (source) {
        memmove(target->region.memory + target_offset, source->region.memory + source_offset,
                n_bytes);
    } else {
        memset(target->region.memory + target_offset, value, n_bytes);
    }
    return nil;
}

@end

@implementation FakeBlitEncoder {
    FakeCommandBuffer *commandBuffer;
    bool has_ended;
}

- (instancetype)initWithCommandBuffer:(FakeCommandBuffer *)buffer
{
    commandBuffer = buffer;
    commandBuffer->n_open_encoders++;
    return self;
}

- (void)dealloc
{
    if (!has_ended) {
        fake_misuse("an encoder was released without endEncoding");
    }
}

static void check_range(const char *what, id<MTLBuffer> buffer, NSUInteger offset, NSUInteger n)
{
    if (n == 0 || offset > buffer.length || n > buffer.length - offset) {
        fake_misuse("%s: %lu bytes from %lu on of a buffer of %lu", what, n, offset, buffer.length);
    }
}

- (void)add:(FakeCopy *)copy
{
    if (has_ended) {
        fake_misuse("an encoder was used after endEncoding");
    }
    [commandBuffer->commands addObject:copy];
}

- (void)copyFromBuffer:(id<MTLBuffer>)source
          sourceOffset:(NSUInteger)sourceOffset
              toBuffer:(id<MTLBuffer>)target
     destinationOffset:(NSUInteger)targetOffset
                  size:(NSUInteger)size
{
    check_range("copyFromBuffer", source, sourceOffset, size);
    check_range("copyFromBuffer", target, targetOffset, size);
    FakeCopy *copy = [FakeCopy new];
    copy->source = (FakeBuffer *)source;
    copy->target = (FakeBuffer *)target;
    copy->source_offset = sourceOffset;
    copy->target_offset = targetOffset;
    copy->n_bytes = size;
    [self add:copy];
}

- (void)fillBuffer:(id<MTLBuffer>)buffer range:(NSRange)range value:(uint8_t)value
{
    check_range("fillBuffer", buffer, range.location, range.length);
    FakeCopy *copy = [FakeCopy new];
    copy->target = (FakeBuffer *)buffer;
    copy->target_offset = range.location;
    copy->n_bytes = range.length;
    copy->value = value;
    [self add:copy];
}

- (void)endEncoding
{
    if (has_ended) {
        fake_misuse("an encoder was used after endEncoding");
    }
    has_ended = true;
    commandBuffer->n_open_encoders--;
}

@end
