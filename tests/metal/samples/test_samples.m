/* The sample kernels through the fake Metal, against their results in plain C. */
#import <Metal/Metal.h>

#include "metal/runtime/objc.h"
#include "support/support.h"

#include <unistd.h>

enum { DIM = 128, N_ROWS = 20 };

typedef struct rotate_params {
    uint32_t n_rows;
    float scale;
} rotate_params;

typedef struct page_table_entry {
    uint64_t page;
    uint32_t n_tokens;
    uint32_t reserved;
} page_table_entry;

static NSString *read_source(void)
{
    FILE *file = fopen(SAMPLES, "rb");
    assert_non_null(file);
    char *text = calloc(1, 1 << 16);
    assert_true(fread(text, 1, (1 << 16) - 1, file) > 0);
    fclose(file);
    NSString *source = [NSString stringWithUTF8String:text];
    free(text);
    return source;
}

static id<MTLLibrary> make_library(id<MTLDevice> device, MTLMathMode mode)
{
    NSError *error = nil;
    MTLCompileOptions *options = [MTLCompileOptions new];
    options.mathMode = mode;
    id<MTLLibrary> library = [device newLibraryWithSource:read_source()
                                                  options:options
                                                    error:&error];
    if (!library) {
        fail_msg("%s", error.localizedDescription.UTF8String);
    }
    return library;
}

static id<MTLComputePipelineState> make_pipeline(id<MTLDevice> device, const char *name,
                                                 bool has_signs, uint32_t seed)
{
    NSError *error = nil;
    id<MTLLibrary> library = make_library(device, MTLMathModeSafe);
    MTLFunctionConstantValues *values = [MTLFunctionConstantValues new];
    [values setConstantValue:&has_signs type:MTLDataTypeBool atIndex:0];
    [values setConstantValue:&seed type:MTLDataTypeUInt atIndex:1];
    id<MTLFunction> function = [library newFunctionWithName:@(name)
                                             constantValues:values
                                                      error:&error];
    id<MTLComputePipelineState> pipeline =
        function ? [device newComputePipelineStateWithFunction:function error:&error] : nil;
    if (!pipeline) {
        fail_msg("%s: %s", name, error.localizedDescription.UTF8String);
    }
    assert_int_equal(pipeline.threadExecutionWidth, 32);
    return pipeline;
}

static void finish(id<MTLCommandBuffer> commands)
{
    [commands commit];
    [commands waitUntilCompleted];
    if (commands.status != MTLCommandBufferStatusCompleted) {
        fail_msg("%s", commands.error.localizedDescription.UTF8String);
    }
}

static void fill_halves(_Float16 *x, size_t n)
{
    uint64_t state = 3;
    for (size_t i = 0; i < n; i++) {
        x[i] = (_Float16)random_gauss(&state);
    }
}

static void rotate(float *x)
{
    for (int half = 1; half < DIM; half *= 2) {
        for (int i = 0; i < DIM; i++) {
            if (!(i & half)) {
                const float a = x[i];
                const float b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
}

static void check_rotated(const _Float16 *source, const float *target, bool has_signs,
                          uint32_t seed, float scale)
{
    for (int row = 0; row < N_ROWS; row++) {
        float x[DIM];
        for (int i = 0; i < DIM; i++) {
            const bool is_minus =
                has_signs && __builtin_popcount(seed * ((uint32_t)i + 1)) % 2 == 1;
            x[i] = (is_minus ? -1.0f : 1.0f) * (float)source[row * DIM + i];
        }
        rotate(x);
        for (int i = 0; i < DIM; i++) {
            assert_float_equal(target[row * DIM + i], x[i] * scale, 0.0f);
        }
    }
}

/* Every combination of function constants is a pipeline of its own. */
static void rotates(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> source = [device newBufferWithLength:N_ROWS * DIM * 2 options:0];
        id<MTLBuffer> target = [device newBufferWithLength:N_ROWS * DIM * 4 options:0];
        fill_halves(source.contents, N_ROWS * DIM);
        const rotate_params params = {N_ROWS, 0.25f};
        for (int has_signs = 0; has_signs < 2; has_signs++) {
            for (int by_simdgroup = 0; by_simdgroup < 2; by_simdgroup++) {
                id<MTLComputePipelineState> pipeline =
                    make_pipeline(device, by_simdgroup ? "rotate_128_by_simdgroup" : "rotate_128",
                                  has_signs, 0x9e3779b9u);
                memset(target.contents, 0xff, target.length);
                id<MTLCommandBuffer> commands = [[device newCommandQueue] commandBuffer];
                id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
                [encoder setComputePipelineState:pipeline];
                [encoder setBuffer:source offset:0 atIndex:0];
                [encoder setBuffer:target offset:0 atIndex:1];
                [encoder setBytes:&params length:sizeof params atIndex:2];
                [encoder dispatchThreadgroups:MTLSizeMake(by_simdgroup ? N_ROWS / 4 : N_ROWS, 1, 1)
                        threadsPerThreadgroup:MTLSizeMake(DIM, 1, 1)];
                [encoder endEncoding];
                finish(commands);
                check_rotated(source.contents, target.contents, has_signs && !by_simdgroup,
                              0x9e3779b9u, params.scale);
            }
        }
    }
}

static void sums_through_threadgroup_memory(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> source = [device newBufferWithLength:N_ROWS * DIM * 2 options:0];
        id<MTLBuffer> target = [device newBufferWithLength:N_ROWS * 4 options:0];
        fill_halves(source.contents, N_ROWS * DIM);
        id<MTLCommandBuffer> commands = [[device newCommandQueue] commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:make_pipeline(device, "sum_squares", false, 0)];
        [encoder setBuffer:source offset:0 atIndex:0];
        [encoder setBuffer:target offset:0 atIndex:1];
        [encoder setThreadgroupMemoryLength:16 atIndex:0];
        [encoder dispatchThreadgroups:MTLSizeMake(N_ROWS, 1, 1)
                threadsPerThreadgroup:MTLSizeMake(DIM, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        for (int row = 0; row < N_ROWS; row++) {
            double sum = 0;
            for (int i = 0; i < DIM; i++) {
                const double x = ((_Float16 *)source.contents)[row * DIM + i];
                sum += x * x;
            }
            assert_float_equal(((float *)target.contents)[row], sum, 1e-4);
        }
    }
}

static void multiplies_matrices(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> a = [device newBufferWithLength:8 * 16 * 2 options:0];
        id<MTLBuffer> b = [device newBufferWithLength:16 * 8 * 2 options:0];
        id<MTLBuffer> c = [device newBufferWithLength:8 * 8 * 4 options:0];
        _Float16 *left = a.contents;
        _Float16 *right = b.contents;
        for (int i = 0; i < 128; i++) {
            left[i] = (_Float16)(i % 7 - 3);
            right[i] = (_Float16)(i % 11 - 5);
        }
        id<MTLCommandBuffer> commands = [[device newCommandQueue] commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:make_pipeline(device, "multiply_matrices", false, 0)];
        [encoder setBuffer:a offset:0 atIndex:0];
        [encoder setBuffer:b offset:0 atIndex:1];
        [encoder setBuffer:c offset:0 atIndex:2];
        [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
                threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        for (int i = 0; i < 64; i++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) {
                sum += (float)left[i / 8 * 16 + k] * (float)right[k * 8 + i % 8];
            }
            assert_float_equal(((float *)c.contents)[i], sum, 0.0f);
        }
    }
}

/* Pages in memory of the program, reached through addresses in a table. */
static void follows_addresses(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
        float *memory = aligned_alloc(page_bytes, 2 * page_bytes);
        for (size_t i = 0; i < 2 * page_bytes / sizeof(float); i++) {
            memory[i] = (float)(i % 100);
        }
        __block int n_freed = 0;
        @autoreleasepool {
            id<MTLBuffer> pages = [device newBufferWithBytesNoCopy:memory
                                                            length:2 * page_bytes
                                                           options:MTLResourceStorageModeShared
                                                       deallocator:^(void *p, NSUInteger n) {
                                                         (void)n;
                                                         free(p);
                                                         n_freed++;
                                                       }];
            id<MTLBuffer> table = [device newBufferWithLength:3 * sizeof(page_table_entry)
                                                      options:0];
            page_table_entry *entries = table.contents;
            for (uint32_t i = 0; i < 3; i++) {
                entries[i] = (page_table_entry){pages.gpuAddress + 400 * i, 20 + i, 0};
            }
            id<MTLBuffer> sums = [device newBufferWithLength:12 options:0];
            id<MTLCommandBuffer> commands = [[device newCommandQueue] commandBuffer];
            __block bool was_told = false;
            [commands addCompletedHandler:^(id<MTLCommandBuffer> done) {
              was_told = done.status == MTLCommandBufferStatusCompleted;
            }];
            id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
            [encoder setComputePipelineState:make_pipeline(device, "sum_pages", false, 0)];
            [encoder setBuffer:table offset:0 atIndex:0];
            [encoder setBuffer:sums offset:0 atIndex:1];
            [encoder useResource:pages usage:MTLResourceUsageRead];
            [encoder dispatchThreadgroups:MTLSizeMake(3, 1, 1)
                    threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
            [encoder endEncoding];
            finish(commands);
            assert_true(was_told);
            for (int i = 0; i < 3; i++) {
                const int n = 20 + i;
                assert_float_equal(((float *)sums.contents)[i], n * (n - 1) / 2, 0.0f);
            }
        }
        assert_int_equal(n_freed, 1);
    }
}

static void counts_atomically(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> bytes = [device newBufferWithLength:640 options:0];
        id<MTLBuffer> counts = [device newBufferWithLength:16 options:0];
        id<MTLBuffer> total = [device newBufferWithLength:4 options:0];
        uint32_t expected[4] = {0};
        for (unsigned i = 0; i < 640; i++) {
            ((uint8_t *)bytes.contents)[i] = (uint8_t)(i * i);
            expected[i * i & 3]++;
        }
        id<MTLCommandBuffer> commands = [[device newCommandQueue] commandBuffer];
        id<MTLBlitCommandEncoder> blit = [commands blitCommandEncoder];
        [blit fillBuffer:counts range:NSMakeRange(0, 16) value:0];
        [blit endEncoding];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:make_pipeline(device, "count_bytes", false, 0)];
        [encoder setBuffer:bytes offset:0 atIndex:0];
        [encoder setBuffer:counts offset:0 atIndex:1];
        [encoder setBuffer:total offset:0 atIndex:2];
        [encoder dispatchThreadgroups:MTLSizeMake(10, 1, 1)
                threadsPerThreadgroup:MTLSizeMake(64, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        assert_memory_equal(counts.contents, expected, sizeof expected);
        assert_float_equal(*(float *)total.contents, 640.0f, 0.0f);
    }
}

/* Committed work runs late, and once. */
static void runs_when_waited_for(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        id<MTLBuffer> buffer = [device newBufferWithLength:64 options:0];
        id<MTLCommandQueue> queue = [device newCommandQueue];
        id<MTLCommandBuffer> first = [queue commandBuffer];
        id<MTLBlitCommandEncoder> blit = [first blitCommandEncoder];
        [blit fillBuffer:buffer range:NSMakeRange(0, 64) value:1];
        [blit endEncoding];
        id<MTLCommandBuffer> second = [queue commandBuffer];
        blit = [second blitCommandEncoder];
        [blit fillBuffer:buffer range:NSMakeRange(0, 1) value:2];
        [blit endEncoding];
        [first commit];
        [second commit];
        assert_int_equal(((uint8_t *)buffer.contents)[0], 0);
        [second waitUntilCompleted];
        assert_int_equal(((uint8_t *)buffer.contents)[0], 2);
        assert_int_equal(((uint8_t *)buffer.contents)[1], 1);
        [first waitUntilCompleted];
        assert_int_equal(((uint8_t *)buffer.contents)[0], 2);
    }
}

static void says_what_is_wrong_with_a_source(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        NSError *error = nil;
        id<MTLLibrary> library = [device newLibraryWithSource:@"kernel void f( {}"
                                                      options:nil
                                                        error:&error];
        assert_null((__bridge void *)library);
        assert_non_null(strstr(error.localizedDescription.UTF8String, "error: "));
        library = make_library(device, MTLMathModeSafe);
        assert_int_equal(library.functionNames.count, 6);
        assert_null((__bridge void *)[library newFunctionWithName:@"absent"]);
        assert_null((__bridge void *)[library newFunctionWithName:@"rotate_128"
                                                   constantValues:[MTLFunctionConstantValues new]
                                                            error:&error]);
        assert_non_null(strstr(error.localizedDescription.UTF8String, "has_signs (index 0)"));
    }
}

static void has_families(void **state)
{
    (void)state;
    @autoreleasepool {
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        assert_true([device supportsFamily:MTLGPUFamilyApple7]);
        assert_false([device supportsFamily:MTLGPUFamilyApple8]);
        setenv("FAKE_METAL_FAMILY", "apple9", 1);
        assert_true([device supportsFamily:MTLGPUFamilyApple8]);
        setenv("FAKE_METAL_FAMILY", "none", 1);
        assert_null((__bridge void *)MTLCreateSystemDefaultDevice());
        unsetenv("FAKE_METAL_FAMILY");
        assert_int_equal(device.maxThreadsPerThreadgroup.width, 1024);
    }
}

static void leaks_nothing(void **state)
{
    (void)state;
    assert_int_equal(fake_metal_live_objects(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotates),
        cmocka_unit_test(sums_through_threadgroup_memory),
        cmocka_unit_test(multiplies_matrices),
        cmocka_unit_test(follows_addresses),
        cmocka_unit_test(counts_atomically),
        cmocka_unit_test(runs_when_waited_for),
        cmocka_unit_test(says_what_is_wrong_with_a_source),
        cmocka_unit_test(has_families),
        cmocka_unit_test(leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
