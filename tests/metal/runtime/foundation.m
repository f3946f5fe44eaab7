/* The classes of include/Foundation/Foundation.h. */
#import <Foundation/Foundation.h>

#include "objc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "fake Foundation: %s\n", what);
    abort();
}

@implementation NSObject

+ (Class)class
{
    return self;
}

+ (instancetype)alloc
{
    return (__bridge_transfer id)tkv_objc_create((__bridge void *)self);
}

+ (instancetype)new
{
    return [[self alloc] init];
}

- (instancetype)init
{
    return self;
}

- (void)dealloc
{
    tkv_objc_destroy((__bridge void *)self);
}

- (BOOL)isEqual:(id)object
{
    return self == object;
}

- (NSUInteger)hash
{
    return (NSUInteger)(__bridge void *)self / 16;
}

- (BOOL)respondsToSelector:(SEL)selector
{
    return tkv_objc_method((__bridge void *)self, sel_getName(selector)) != NULL;
}

- (NSString *)description
{
    return [NSString stringWithFormat:@"<%s>", tkv_objc_class_name((__bridge void *)self)];
}

@end

/* A string made at run time. */
@interface FakeString : NSString {
    char *text;
}
@end

/* A string of the program's text, as the compiler lays it out. */
@interface NSConstantString : NSString {
    int flags;
    const char *text;
    long n_bytes;
}
@end

__asm__(".globl __CFConstantStringClassReference\n"
        ".set __CFConstantStringClassReference, OBJC_CLASS_$_NSConstantString\n");

NSString *const NSLocalizedDescriptionKey = @"NSLocalizedDescription";

/* A format, piece by piece: C knows no %@. */
static void append_format(FILE *out, const char *format, va_list *arguments)
{
    while (*format) {
        const size_t plain = strcspn(format, "%");
        fwrite(format, 1, plain, out);
        format += plain;
        if (!*format) {
            return;
        }
        const size_t length = 1 + strspn(format + 1, "0123456789.-+ #lhz") + 1;
        char piece[32];
        if (length >= sizeof piece) {
            die("stringWithFormat: a conversion is too long");
        }
        memcpy(piece, format, length);
        piece[length] = '\0';
        format += length;
        const bool is_long = strchr(piece, 'l') || strchr(piece, 'z');
        switch (piece[length - 1]) {
        case '%': fputc('%', out); break;
        case '@': {
            NSString *text = va_arg(*arguments, NSObject *).description;
            fputs(text ? text.UTF8String : "(null)", out);
            break;
        }
        case 's': fprintf(out, piece, va_arg(*arguments, const char *)); break;
        case 'p': fprintf(out, piece, va_arg(*arguments, void *)); break;
        case 'd':
        case 'i':
        case 'u':
        case 'x':
        case 'c':
            if (is_long) {
                fprintf(out, piece, va_arg(*arguments, long));
            } else {
                fprintf(out, piece, va_arg(*arguments, int));
            }
            break;
        case 'f':
        case 'g':
        case 'e': fprintf(out, piece, va_arg(*arguments, double)); break;
        default: die("stringWithFormat: an unknown conversion");
        }
    }
}

@implementation NSString

+ (instancetype)alloc
{
    void *class = (__bridge void *)self;
    if (class == (__bridge void *)[NSString class]) {
        class = (__bridge void *)[FakeString class];
    }
    return (__bridge_transfer id)tkv_objc_create(class);
}

+ (instancetype)string
{
    return [self stringWithUTF8String:""];
}

+ (instancetype)stringWithUTF8String:(const char *)bytes
{
    return [[self alloc] initWithUTF8String:bytes];
}

+ (instancetype)stringWithFormat:(NSString *)format, ...
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out) {
        return nil;
    }
    va_list arguments;
    va_start(arguments, format);
    append_format(out, format.UTF8String, &arguments);
    va_end(arguments);
    fclose(out);
    id result = [self stringWithUTF8String:text];
    free(text);
    return result;
}

- (instancetype)initWithUTF8String:(const char *)bytes
{
    return [self initWithBytes:bytes length:strlen(bytes) encoding:NSUTF8StringEncoding];
}

- (instancetype)initWithBytes:(const void *)bytes
                       length:(NSUInteger)length
                     encoding:(NSUInteger)encoding
{
    (void)bytes;
    (void)length;
    (void)encoding;
    die("a string without a class of its own");
}

- (const char *)UTF8String
{
    return NULL;
}

- (NSUInteger)length
{
    return strlen(self.UTF8String);
}

- (BOOL)isEqualToString:(NSString *)other
{
    return strcmp(self.UTF8String, other.UTF8String) == 0;
}

- (BOOL)isEqual:(id)object
{
    return [object respondsToSelector:@selector(isEqualToString:)] && [self isEqualToString:object];
}

- (NSUInteger)hash
{
    NSUInteger h = 0;
    for (const char *c = self.UTF8String; *c; c++) {
        h = 31 * h + (unsigned char)*c;
    }
    return h;
}

- (BOOL)hasPrefix:(NSString *)prefix
{
    return strncmp(self.UTF8String, prefix.UTF8String, prefix.length) == 0;
}

- (NSString *)description
{
    return self;
}

@end

@implementation FakeString

- (instancetype)initWithBytes:(const void *)bytes
                       length:(NSUInteger)length
                     encoding:(NSUInteger)encoding
{
    if (encoding != NSUTF8StringEncoding) {
        return nil;
    }
    text = strndup(bytes, length);
    return text ? self : nil;
}

- (void)dealloc
{
    free(text);
}

- (const char *)UTF8String
{
    return text;
}

@end

@implementation NSConstantString

- (const char *)UTF8String
{
    return text;
}

- (NSUInteger)length
{
    return (NSUInteger)n_bytes;
}

@end

@implementation NSNumber {
    unsigned long long value;
}

+ (NSNumber *)numberWithUnsignedLongLong:(unsigned long long)number
{
    NSNumber *n = [NSNumber new];
    n->value = number;
    return n;
}

+ (NSNumber *)numberWithBool:(BOOL)number
{
    return [self numberWithUnsignedLongLong:number];
}

+ (NSNumber *)numberWithInt:(int)number
{
    return [self numberWithUnsignedLongLong:(unsigned long long)number];
}

+ (NSNumber *)numberWithUnsignedInt:(unsigned)number
{
    return [self numberWithUnsignedLongLong:number];
}

+ (NSNumber *)numberWithInteger:(NSInteger)number
{
    return [self numberWithUnsignedLongLong:(unsigned long long)number];
}

+ (NSNumber *)numberWithUnsignedInteger:(NSUInteger)number
{
    return [self numberWithUnsignedLongLong:number];
}

+ (NSNumber *)numberWithLong:(long)number
{
    return [self numberWithUnsignedLongLong:(unsigned long long)number];
}

+ (NSNumber *)numberWithUnsignedLong:(unsigned long)number
{
    return [self numberWithUnsignedLongLong:number];
}

+ (NSNumber *)numberWithLongLong:(long long)number
{
    return [self numberWithUnsignedLongLong:(unsigned long long)number];
}

- (BOOL)boolValue
{
    return value != 0;
}

- (int)intValue
{
    return (int)value;
}

- (unsigned)unsignedIntValue
{
    return (unsigned)value;
}

- (NSInteger)integerValue
{
    return (NSInteger)value;
}

- (NSUInteger)unsignedIntegerValue
{
    return value;
}

- (unsigned long)unsignedLongValue
{
    return value;
}

- (unsigned long long)unsignedLongLongValue
{
    return value;
}

- (BOOL)isEqual:(id)object
{
    return [object respondsToSelector:@selector(unsignedLongLongValue)] &&
           ((NSNumber *)object).unsignedLongLongValue == value;
}

- (NSUInteger)hash
{
    return value;
}

- (NSString *)description
{
    return [NSString stringWithFormat:@"%lld", (long)value];
}

@end

@implementation NSError {
    NSString *domain;
    NSInteger code;
    NSDictionary *userInfo;
}
@synthesize domain = domain;
@synthesize code = code;

+ (instancetype)errorWithDomain:(NSString *)errorDomain code:(NSInteger)errorCode userInfo:(id)info
{
    NSError *error = [self new];
    error->domain = errorDomain;
    error->code = errorCode;
    error->userInfo = info;
    return error;
}

- (NSString *)localizedDescription
{
    NSString *text = userInfo[NSLocalizedDescriptionKey];
    return text ? text : [NSString stringWithFormat:@"%@ error %ld", domain, (long)code];
}

- (NSString *)description
{
    return self.localizedDescription;
}

@end
