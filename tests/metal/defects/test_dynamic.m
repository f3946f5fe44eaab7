/* Defects that show when a kernel runs, and misuse of the interface by the host: each in a child of
 * its own, as most end the program, and each with the words that the report must contain. */
#import <Metal/Metal.h>

#include "support/support.h"

#include <sys/wait.h>
#include <unistd.h>

#if defined(__has_feature) && __has_feature(address_sanitizer)
enum { HAS_ASAN = 1, HAS_TSAN = 0 };
#elif defined(__has_feature) && __has_feature(thread_sanitizer)
enum { HAS_ASAN = 0, HAS_TSAN = 1 };
#else
enum { HAS_ASAN = 0, HAS_TSAN = 0 };
#endif

enum { N = 128 };

typedef struct setup {
    id<MTLDevice> device;
    id<MTLBuffer> x; /* float [N], 1 */
    id<MTLCommandBuffer> commands;
    id<MTLComputeCommandEncoder> encoder;
} setup;

static id<MTLComputePipelineState> make_pipeline(id<MTLDevice> device, const char *name)
{
    NSError *error = nil;
    FILE *file = fopen(DEFECTS, "rb");
    char text[1 << 14] = "";
    if (!file || fread(text, 1, sizeof text - 1, file) == 0) {
        printf("cannot read %s\n", DEFECTS);
        _exit(1);
    }
    fclose(file);
    MTLCompileOptions *options = [MTLCompileOptions new];
    options.mathMode = MTLMathModeSafe;
    id<MTLLibrary> library = [device newLibraryWithSource:@(text) options:options error:&error];
    id<MTLFunction> function = library ? [library newFunctionWithName:@(name)] : nil;
    id<MTLComputePipelineState> pipeline =
        function ? [device newComputePipelineStateWithFunction:function error:&error] : nil;
    if (!pipeline) {
        printf("%s\n", error.localizedDescription.UTF8String);
        fflush(stdout);
        _exit(1);
    }
    return pipeline;
}

static setup begin(const char *kernel, uint32_t n)
{
    setup s = {.device = MTLCreateSystemDefaultDevice()};
    s.x = [s.device newBufferWithLength:N * sizeof(float) options:0];
    for (int i = 0; i < N; i++) {
        ((float *)s.x.contents)[i] = 1.0f;
    }
    s.commands = [[s.device newCommandQueue] commandBuffer];
    s.encoder = [s.commands computeCommandEncoder];
    [s.encoder setComputePipelineState:make_pipeline(s.device, kernel)];
    [s.encoder setBuffer:s.x offset:0 atIndex:0];
    [s.encoder setBytes:&n length:sizeof n atIndex:1];
    return s;
}

/* Runs N threads and says what came of it. */
static void finish(setup s, NSUInteger n_threads)
{
    [s.encoder dispatchThreadgroups:MTLSizeMake(N / n_threads, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(n_threads, 1, 1)];
    [s.encoder endEncoding];
    [s.commands commit];
    [s.commands waitUntilCompleted];
    int n_nan = 0;
    int n_other = 0;
    for (int i = 0; i < N; i++) {
        const float x = ((float *)s.x.contents)[i];
        n_nan += x != x;
        n_other += x != 3.0f;
    }
    printf("status %lu, %d NaN, %d other than 3: %s\n", (unsigned long)s.commands.status, n_nan,
           n_other, s.commands.error ? s.commands.error.localizedDescription.UTF8String : "");
}

/* One kernel of dynamic.metal. */
typedef struct defect {
    const char *kernel;
    uint32_t n;
    NSUInteger n_threads;
    const char *report;      /* in a plain build */
    const char *asan_report; /* NULL: the same */
    const char *tsan_report;
} defect;

static const defect defects[] = {
    {"correct", 2, 128, "status 4, 0 NaN, 0 other", NULL, NULL},
    {"missing_barrier", 2, 128, "status 4, 0 NaN, 64 other", NULL, "data race"},
    {"barrier_without_memory", 2, 128, "status 4, 0 NaN, 0 other", NULL, "data race"},
    {"missing_simdgroup_barrier", 2, 32, "status 4, 64 NaN, 64 other", NULL, "data race"},
    {"divergent_barrier", 2, 128, "threadgroup_barrier reached by 64 of 128 threads", NULL, NULL},
    {"divergent_barriers", 2, 128, "wait at different calls of threadgroup_barrier", NULL, NULL},
    {"divergent_shuffle", 2, 32, "divergent: 16 lanes at a SIMD function, 16 lanes finished", NULL,
     NULL},
    {"divergent_functions", 2, 32, "simdgroup 0 is divergent", NULL, NULL},
    {"early_return", 3, 32, "31 lanes at a SIMD function, 1 lanes finished", NULL, NULL},
    {"absent_lane", 1, 32, "reads the value of lane 32 of 32", NULL, NULL},
    {"uninitialised_tile", 5, 128, "status 4, 5 NaN", NULL, NULL},
    {"beyond_buffer", N, 32, "kernel beyond_buffer wrote behind the end of a buffer",
     "use-after-poison", NULL},
    {"far_beyond_buffer", N, 32, "access beyond the end of a buffer", "SEGV|beyond the end", NULL},
    {"beyond_bytes", 2, 32, "status 4", "heap-buffer-overflow", NULL},
    {"beyond_tile", N, 128, "status 4", "global-buffer-overflow", NULL},
};

static void run_defect(const void *argument)
{
    const defect *d = argument;
    finish(begin(d->kernel, d->n), d->n_threads);
}

/* What a function, run in a child, printed before the child ended. */
static char *output_of(void (*run)(const void *), const void *argument)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        @autoreleasepool {
            run(argument);
            fflush(stdout);
            _exit(0);
        }
    }
    close(ends[1]);
    char *text = calloc(1, 1 << 16);
    size_t n = 0;
    char rest[1024];
    for (ssize_t got; (got = read(ends[0], n < 60000 ? text + n : rest, 1024)) > 0;) {
        n += n < 60000 ? (size_t)got : 0;
    }
    close(ends[0]);
    waitpid(child, NULL, 0);
    text[n] = '\0';
    return text;
}

/* expected: alternatives, separated by '|' */
static void expect_report(const char *name, const char *text, const char *expected)
{
    char alternatives[256];
    snprintf(alternatives, sizeof alternatives, "%s", expected);
    for (char *one = strtok(alternatives, "|"); one; one = strtok(NULL, "|")) {
        if (strstr(text, one)) {
            return;
        }
    }
    fail_msg("%s: expected '%s', got:\n%s", name, expected, text);
}

static void reports_defects_of_kernels(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof defects / sizeof *defects; i++) {
        const defect *d = &defects[i];
        const char *expected = d->report;
        if (HAS_ASAN && d->asan_report) {
            expected = d->asan_report;
        }
        if (HAS_TSAN && d->tsan_report) {
            expected = d->tsan_report;
        }
        char *text = output_of(run_defect, d);
        expect_report(d->kernel, text, expected);
        if (strcmp(d->kernel, "correct") == 0 && strstr(text, "Sanitizer")) {
            fail_msg("the correct kernel: %s", text);
        }
        free(text);
    }
}

/* Misuse of the interface. */

static void unbound_buffer(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder setBuffer:nil offset:0 atIndex:1];
    finish(s, 128);
}

static void use_pointer(bool is_used, MTLResourceUsage usage)
{
    setup s = begin("through_pointer", 2);
    id<MTLBuffer> pointer = [s.device newBufferWithLength:8 options:0];
    *(uint64_t *)pointer.contents = s.x.gpuAddress;
    [s.encoder setBuffer:pointer offset:0 atIndex:0];
    if (is_used) {
        [s.encoder useResource:s.x usage:usage];
    }
    finish(s, 32);
}

static void used_resource(const void *argument)
{
    (void)argument;
    use_pointer(true, MTLResourceUsageRead | MTLResourceUsageWrite);
}

static void missing_use(const void *argument)
{
    (void)argument;
    use_pointer(false, 0);
}

static void use_for_reading(const void *argument)
{
    (void)argument;
    use_pointer(true, MTLResourceUsageRead);
}

static void too_many_bytes(const void *argument)
{
    (void)argument;
    static const char bytes[5000];
    setup s = begin("correct", 2);
    [s.encoder setBytes:bytes length:sizeof bytes atIndex:1];
}

static void odd_threadgroup_memory(const void *argument)
{
    (void)argument;
    setup s = begin("with_memory", 2);
    [s.encoder setThreadgroupMemoryLength:100 atIndex:0];
}

static void too_much_threadgroup_memory(const void *argument)
{
    (void)argument;
    setup s = begin("with_memory", 2);
    [s.encoder setThreadgroupMemoryLength:32784 atIndex:0];
}

static void missing_threadgroup_memory(const void *argument)
{
    (void)argument;
    finish(begin("with_memory", 2), 32);
}

static void short_threadgroup_memory(const void *argument)
{
    (void)argument;
    setup s = begin("with_memory", 2);
    [s.encoder setThreadgroupMemoryLength:64 atIndex:0];
    finish(s, 32);
}

static void too_many_threads(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(256, 1, 1)];
}

static void empty_grid(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder dispatchThreadgroups:MTLSizeMake(0, 1, 1)
              threadsPerThreadgroup:MTLSizeMake(128, 1, 1)];
}

static void open_encoder(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.commands commit];
}

static void double_commit(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder endEncoding];
    [s.commands commit];
    [s.commands commit];
}

static void wait_before_commit(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder endEncoding];
    [s.commands waitUntilCompleted];
}

static void offset_beyond_end(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder setBuffer:s.x offset:N * sizeof(float) atIndex:0];
}

static void odd_offset(const void *argument)
{
    (void)argument;
    setup s = begin("correct", 2);
    [s.encoder setBuffer:s.x offset:2 atIndex:0];
}

static void odd_memory(const void *argument)
{
    (void)argument;
    static char memory[8192];
    [MTLCreateSystemDefaultDevice() newBufferWithBytesNoCopy:memory + 16
                                                      length:4096
                                                     options:0
                                                 deallocator:nil];
}

static void unknown_message(const void *argument)
{
    (void)argument;
    [(id)MTLCreateSystemDefaultDevice() addObject:@"nothing"];
}

static const struct misuse {
    const char *name;
    void (*run)(const void *);
    const char *report;
    bool is_for_asan; /* reported there only */
} misuses[] = {
    {"unbound buffer", unbound_buffer, "kernel correct: buffer(1) is not bound", false},
    {"used resource", used_resource, "status 4, 0 NaN", false},
    {"missing useResource", missing_use, "not resident: neither bound nor named to useResource",
     false},
    {"useResource for reading", use_for_reading, "made resident for reading only", false},
    {"too many bytes", too_many_bytes, "setBytes: 5000 bytes", false},
    {"odd threadgroup memory", odd_threadgroup_memory, "100 bytes: expected a multiple of 16",
     false},
    {"too much threadgroup memory", too_much_threadgroup_memory, "32784 bytes: expected", false},
    {"missing threadgroup memory", missing_threadgroup_memory, "threadgroup(0) is not set", false},
    {"short threadgroup memory", short_threadgroup_memory, "heap-buffer-overflow", true},
    {"too many threads", too_many_threads, "256 threads per threadgroup: expected 1 to 128", false},
    {"empty grid", empty_grid, "a grid of 0 x 1 x 1", false},
    {"open encoder", open_encoder, "commit with an open encoder", false},
    {"double commit", double_commit, "was committed already", false},
    {"wait before commit", wait_before_commit, "waitUntilCompleted before commit", false},
    {"offset beyond the end", offset_beyond_end, "offset 512 of a buffer of 512 bytes", false},
    {"odd offset", odd_offset, "offset 2: expected a multiple of 4", false},
    {"odd memory", odd_memory, "expected multiples of the page size", false},
    {"unknown message", unknown_message, "unrecognized selector: FakeDevice addObject:", false},
};

static void reports_misuse_by_the_host(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof misuses / sizeof *misuses; i++) {
        if (misuses[i].is_for_asan && !HAS_ASAN) {
            continue;
        }
        char *text = output_of(misuses[i].run, NULL);
        expect_report(misuses[i].name, text, misuses[i].report);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reports_defects_of_kernels),
        cmocka_unit_test(reports_misuse_by_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
