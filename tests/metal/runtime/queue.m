/* MTLCommandQueue and MTLCommandBuffer. Committed work runs as late as Metal allows, when somebody
 * waits for it, so that a host that reads results too early gets the old ones. */
#include "fake.h"

#include <time.h>

static CFTimeInterval now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

@implementation FakeCommandQueue {
  @package
    NSMutableArray<FakeCommandBuffer *> *pending; /* committed and not yet run */
}

- (instancetype)init
{
    pending = [NSMutableArray new];
    return self;
}

- (id<MTLCommandBuffer>)commandBuffer
{
    return [[FakeCommandBuffer alloc] initWithQueue:self];
}

- (id<MTLCommandBuffer>)commandBufferWithUnretainedReferences
{
    return [self commandBuffer];
}

/* Runs what was committed, in order, up to and with the last. */
- (void)runUpTo:(FakeCommandBuffer *)last
{
    while (pending.count > 0) {
        FakeCommandBuffer *buffer = pending[0];
        [pending removeObjectAtIndex:0];
        [buffer execute];
        if (buffer == last) {
            return;
        }
    }
}

@end

@implementation FakeCommandBuffer {
    FakeCommandQueue *queue;
    MTLCommandBufferStatus status;
    NSError *error;
    NSMutableArray *handlers;
    CFTimeInterval start_time;
    CFTimeInterval end_time;
}
@synthesize error = error;
@synthesize GPUStartTime = start_time;
@synthesize GPUEndTime = end_time;

- (instancetype)initWithQueue:(FakeCommandQueue *)owner
{
    queue = owner;
    commands = [NSMutableArray new];
    handlers = [NSMutableArray new];
    return self;
}

- (void)checkIsNotCommitted
{
    if (status >= MTLCommandBufferStatusCommitted) {
        fake_misuse("a command buffer was used after commit");
    }
    if (n_open_encoders > 0) {
        fake_misuse("a command buffer has an open encoder: endEncoding is missing");
    }
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoder
{
    return [self computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial];
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)type
{
    [self checkIsNotCommitted];
    return [[FakeComputeEncoder alloc] initWithCommandBuffer:self type:type];
}

- (id<MTLBlitCommandEncoder>)blitCommandEncoder
{
    [self checkIsNotCommitted];
    return [[FakeBlitEncoder alloc] initWithCommandBuffer:self];
}

- (void)addCompletedHandler:(MTLCommandBufferHandler)block
{
    if (status >= MTLCommandBufferStatusCommitted) {
        fake_misuse("addCompletedHandler after commit");
    }
    [handlers addObject:(id)block];
}

- (void)enqueue
{
    if (status != MTLCommandBufferStatusNotEnqueued) {
        fake_misuse("enqueue: the command buffer is in the queue already");
    }
    status = MTLCommandBufferStatusEnqueued;
}

- (void)commit
{
    if (status >= MTLCommandBufferStatusCommitted) {
        fake_misuse("commit: the command buffer was committed already");
    }
    if (n_open_encoders > 0) {
        fake_misuse("commit with an open encoder: endEncoding is missing");
    }
    status = MTLCommandBufferStatusCommitted;
    [queue->pending addObject:self];
    if (fake_setting_is("FAKE_METAL_EAGER", "1")) {
        [queue runUpTo:self];
    }
}

- (void)waitUntilScheduled
{
    if (status < MTLCommandBufferStatusCommitted) {
        fake_misuse("waitUntilScheduled before commit");
    }
}

- (void)waitUntilCompleted
{
    if (status < MTLCommandBufferStatusCommitted) {
        fake_misuse("waitUntilCompleted before commit");
    }
    if (status < MTLCommandBufferStatusCompleted) {
        [queue runUpTo:self];
    }
}

/* Polling must come to an end. */
- (MTLCommandBufferStatus)status
{
    const MTLCommandBufferStatus before = status;
    if (status == MTLCommandBufferStatusCommitted) {
        [queue runUpTo:self];
    }
    return before;
}

/* Commands between barriers of a concurrent encoder may run in any order: here, with lanes in
 * reverse, the last one first. */
- (void)sortCommands
{
    msl_order order;
    uint64_t seed;
    fake_setting_order(&order, &seed);
    NSMutableArray *sorted = [NSMutableArray new];
    for (NSUInteger first = 0; order == MSL_REVERSE && first < commands.count;) {
        NSUInteger end = first + 1;
        while (end < commands.count && commands[end].isUnordered) {
            end++;
        }
        for (NSUInteger i = end; i-- > first;) {
            [sorted addObject:commands[i]];
        }
        first = end;
    }
    if (order == MSL_REVERSE) {
        commands = sorted;
    }
}

- (void)execute
{
    NSString *failure =
        fake_setting_allows("FAKE_METAL_COMMITS") ? nil : @"the GPU failed, as asked for";
    [self sortCommands];
    start_time = now();
    for (FakeCommand *command in commands) {
        if (!failure) {
            failure = [command run];
        }
    }
    end_time = now();
    if (failure) {
        error = fake_error("MTLCommandBufferErrorDomain", failure);
    }
    status = failure ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted;
    [commands removeAllObjects];
    NSMutableArray *called = handlers;
    handlers = nil;
    for (MTLCommandBufferHandler handler in called) {
        handler(self);
    }
}

@end
