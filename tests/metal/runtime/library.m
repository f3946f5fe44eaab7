/* MTLLibrary, MTLFunction and MTLComputePipelineState: sources checked and compiled by msl/mslc.py,
 * kernels loaded as shared objects. */
#include "fake.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__has_feature) && __has_feature(address_sanitizer)
#define SANITIZER "address"
#elif defined(__has_feature) && __has_feature(thread_sanitizer)
#define SANITIZER "thread"
#else
#define SANITIZER "none"
#endif

/* Runs a command. Returns what it said, trimmed. */
static NSString *run_command(NSString *command, bool *is_done)
{
    *is_done = false;
    FILE *pipe = popen(command.UTF8String, "r");
    if (!pipe) {
        return @"cannot start the compiler";
    }
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    char block[4096];
    for (size_t got; (got = fread(block, 1, sizeof block, pipe)) > 0;) {
        fwrite(block, 1, got, out);
    }
    *is_done = pclose(pipe) == 0;
    fclose(out);
    while (n > 0 && text[n - 1] == '\n') {
        text[--n] = '\0';
    }
    NSString *said = [NSString stringWithUTF8String:text];
    free(text);
    return said;
}

static void report(NSError *__autoreleasing *error, NSString *text)
{
    if (error) {
        *error = fake_error("MTLLibraryErrorDomain", text);
    }
}

@implementation MTLFunctionConstantValues {
  @package
    NSMutableDictionary<NSNumber *, NSString *> *values; /* bytes in hexadecimal */
}

- (instancetype)init
{
    values = [NSMutableDictionary new];
    return self;
}

static size_t bytes_of(MTLDataType type)
{
    switch (type) {
    case MTLDataTypeBool:
    case MTLDataTypeChar:
    case MTLDataTypeUChar: return 1;
    case MTLDataTypeHalf:
    case MTLDataTypeShort:
    case MTLDataTypeUShort: return 2;
    case MTLDataTypeFloat:
    case MTLDataTypeInt:
    case MTLDataTypeUInt: return 4;
    }
    fake_misuse("setConstantValue: data type %lu", (unsigned long)type);
}

- (void)setConstantValue:(const void *)value type:(MTLDataType)type atIndex:(NSUInteger)index
{
    char text[16] = "";
    for (size_t i = 0; i < bytes_of(type); i++) {
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)value)[i]);
    }
    values[@(index)] = [NSString stringWithUTF8String:text];
}

/* All values, each behind `before` and its index followed by `after`. */
- (NSString *)textWith:(const char *)before and:(const char *)after
{
    NSString *text = @"";
    for (NSNumber *index in values.allKeys) {
        text = [NSString stringWithFormat:@"%@%s%lu%s%@", text, before, index.unsignedLongValue,
                                          after, values[index]];
    }
    return text;
}

@end

@implementation FakeFunction

- (NSString *)name
{
    return [NSString stringWithUTF8String:kernel.name];
}

@end

@implementation FakeLibrary {
    NSString *directory;
    NSString *options; /* of mslc.py */
    fake_kernel *kernels;
    int n_kernels;
    int n_constants;
    struct {
        unsigned index;
        unsigned n_bytes;
    } constants[64];
}

/* The source as a file, for the compiler to read. */
static NSString *write_source(NSString *cache, NSString *source)
{
    mkdir(cache.UTF8String, 0777);
    char path[1024];
    snprintf(path, sizeof path, "%s/source_XXXXXX", cache.UTF8String);
    const int descriptor = mkstemp(path);
    if (descriptor < 0) {
        return nil;
    }
    FILE *file = fdopen(descriptor, "w");
    const bool is_written = fwrite(source.UTF8String, 1, source.length, file) == source.length;
    return fclose(file) == 0 && is_written ? [NSString stringWithUTF8String:path] : nil;
}

static NSString *math_option(MTLCompileOptions *options)
{
    const char *set = getenv("FAKE_METAL_MATH");
    if (set) {
        return [NSString stringWithFormat:@"--math %s", set];
    }
    const bool is_fast =
        !options || (options.fastMathEnabled && options.mathMode != MTLMathModeSafe);
    return is_fast ? @"--math relaxed" : @"--math strict";
}

/* FAKE_METAL_SOURCE names a file to be used in place of the host's source. */
static NSString *replaced(NSString *source)
{
    const char *path = getenv("FAKE_METAL_SOURCE");
    if (!path) {
        return source;
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        fake_misuse("FAKE_METAL_SOURCE: cannot read %s", path);
    }
    char *text = NULL;
    size_t n = 0;
    const ssize_t length = getdelim(&text, &n, '\0', file);
    fclose(file);
    NSString *result = length < 0 ? @"" : [NSString stringWithUTF8String:text];
    free(text);
    return result;
}

+ (instancetype)libraryWithSource:(NSString *)source
                          options:(MTLCompileOptions *)compileOptions
                            error:(NSError *__autoreleasing *)error
{
    const char *set = getenv("FAKE_METAL_CACHE");
    NSString *cache = [NSString stringWithUTF8String:set ? set : FAKE_METAL_DEFAULT_CACHE];
    NSString *path = write_source(cache, replaced(source));
    if (!path) {
        report(error, [NSString stringWithFormat:@"cannot write to %@", cache]);
        return nil;
    }
    FakeLibrary *library = [self new];
    library->options =
        [NSString stringWithFormat:@"%@ --sanitize %s", math_option(compileOptions), SANITIZER];
    bool is_done;
    NSString *said =
        run_command([NSString stringWithFormat:@"'%s' '%s/mslc.py' library '%@' '%@' %@ 2>&1",
                                               FAKE_METAL_PYTHON, FAKE_METAL_COMPILER, path, cache,
                                               library->options],
                    &is_done);
    unlink(path.UTF8String);
    if (!is_done) {
        report(error, said);
        return nil;
    }
    library->directory = said;
    return [library readInformation:error] ? library : nil;
}

/* The file that msl/build.py leaves. */
- (BOOL)readInformation:(NSError *__autoreleasing *)error
{
    NSString *path = [NSString stringWithFormat:@"%@/info", directory];
    FILE *file = fopen(path.UTF8String, "r");
    if (!file) {
        report(error, [NSString stringWithFormat:@"cannot read %@", path]);
        return NO;
    }
    char line[256];
    while (fgets(line, sizeof line, file)) {
        [self readLine:line];
    }
    fclose(file);
    return YES;
}

- (void)readLine:(const char *)line
{
    fake_kernel k;
    unsigned index;
    unsigned n_bytes;
    if (sscanf(line, "kernel %63s %u %u %lu %lu", k.name, &k.buffers, &k.threadgroups,
               &k.max_threads, &k.static_bytes) == 5) {
        kernels = realloc(kernels, (size_t)(n_kernels + 1) * sizeof *kernels);
        kernels[n_kernels++] = k;
    } else if (sscanf(line, "constant %*s %u %u", &index, &n_bytes) == 2) {
        constants[n_constants].index = index;
        constants[n_constants++].n_bytes = n_bytes;
    }
}

- (void)dealloc
{
    free(kernels);
}

- (NSArray<NSString *> *)functionNames
{
    NSMutableArray *names = [NSMutableArray new];
    for (int i = 0; i < n_kernels; i++) {
        [names addObject:[NSString stringWithUTF8String:kernels[i].name]];
    }
    return names;
}

- (id<MTLFunction>)newFunctionWithName:(NSString *)name
{
    return [self newFunctionWithName:name
                      constantValues:[MTLFunctionConstantValues new]
                               error:NULL];
}

/* A value of another size than the declaration's would be cut or padded. */
- (NSString *)checkConstants:(MTLFunctionConstantValues *)values
{
    for (int i = 0; i < n_constants; i++) {
        NSString *value = values->values[@(constants[i].index)];
        if (value && value.length != 2 * constants[i].n_bytes) {
            return [NSString stringWithFormat:@"function constant %u: a value of %lu bytes for a "
                                              @"variable of %u",
                                              constants[i].index, value.length / 2,
                                              constants[i].n_bytes];
        }
    }
    return nil;
}

/* The path of the kernel's shared object, compiled unless it has been. */
- (NSString *)specialise:(NSString *)name
                    with:(MTLFunctionConstantValues *)values
                  isDone:(bool *)is_done
{
    NSString *path =
        [NSString stringWithFormat:@"%@/%@%@.so", directory, name, [values textWith:"_" and:"-"]];
    if (access(path.UTF8String, R_OK) == 0) {
        *is_done = true;
        return path;
    }
    return run_command([NSString stringWithFormat:@"'%s' '%s/mslc.py' specialise '%@' %@ %@%@ 2>&1",
                                                  FAKE_METAL_PYTHON, FAKE_METAL_COMPILER, directory,
                                                  name, options,
                                                  [values textWith:" --constant " and:"="]],
                       is_done);
}

- (id<MTLFunction>)newFunctionWithName:(NSString *)name
                        constantValues:(MTLFunctionConstantValues *)values
                                 error:(NSError *__autoreleasing *)error
{
    FakeFunction *function = [FakeFunction new];
    for (int i = 0; i < n_kernels; i++) {
        if (strcmp(kernels[i].name, name.UTF8String) == 0) {
            function->kernel = kernels[i];
        }
    }
    if (!function->kernel.name[0]) {
        report(error, [NSString stringWithFormat:@"the library has no function %@", name]);
        return nil;
    }
    NSString *said = [self checkConstants:values];
    bool is_done = false;
    if (!said) {
        said = [self specialise:name with:values isDone:&is_done];
    }
    if (!is_done) {
        report(error, said);
        return nil;
    }
    function->path = said;
    return function;
}

@end

@implementation FakePipeline

+ (instancetype)pipelineWithFunction:(FakeFunction *)function
                               error:(NSError *__autoreleasing *)error
{
    FakePipeline *pipeline = [self new];
    void *object = fake_setting_allows("FAKE_METAL_PIPELINES")
                       ? dlopen(function->path.UTF8String, RTLD_NOW | RTLD_LOCAL)
                       : NULL;
    if (!object) {
        const char *said = dlerror();
        report(error, [NSString stringWithUTF8String:said ? said : "no pipeline, as asked for"]);
        return nil;
    }
    /* The object stays loaded: sanitizers name its functions at the end of the program. */
    pipeline->kernel = function->kernel;
    pipeline->entry = (void (*)(const msl_arguments *))dlsym(object, "msl_enter");
    pipeline->static_memory = dlsym(object, "msl_threadgroup_memory");
    pipeline->n_static_memory = *(const int *)dlsym(object, "msl_n_threadgroup_memory");
    return pipeline;
}

- (NSUInteger)maxTotalThreadsPerThreadgroup
{
    const NSUInteger limit =
        (NSUInteger)fake_setting_number("FAKE_METAL_MAX_THREADS", MSL_MAX_THREADS);
    return kernel.max_threads < limit ? kernel.max_threads : limit;
}

- (NSUInteger)threadExecutionWidth
{
    return MSL_SIMD_WIDTH;
}

- (NSUInteger)staticThreadgroupMemoryLength
{
    return kernel.static_bytes;
}

@end
