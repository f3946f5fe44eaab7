/* The collections of include/Foundation/Foundation.h. */
#import <Foundation/Foundation.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "fake Foundation: %s\n", what);
    abort();
}

@implementation NSArray {
  @package
    __strong id *items;
    NSUInteger n;
    NSUInteger capacity;
    unsigned long n_changes;
}

+ (instancetype)array
{
    return [self new];
}

+ (instancetype)arrayWithObjects:(const id[])objects count:(NSUInteger)count
{
    NSMutableArray *array = [NSMutableArray new];
    for (NSUInteger i = 0; i < count; i++) {
        [array addObject:objects[i]];
    }
    return (id)array;
}

- (void)dealloc
{
    for (NSUInteger i = 0; i < n; i++) {
        items[i] = nil;
    }
    free((void *)items);
}

- (NSUInteger)count
{
    return n;
}

- (id)objectAtIndex:(NSUInteger)index
{
    if (index >= n) {
        die("NSArray: index beyond the end");
    }
    return items[index];
}

- (id)objectAtIndexedSubscript:(NSUInteger)index
{
    return [self objectAtIndex:index];
}

- (id)firstObject
{
    return n ? items[0] : nil;
}

- (id)lastObject
{
    return n ? items[n - 1] : nil;
}

- (BOOL)containsObject:(id)object
{
    for (NSUInteger i = 0; i < n; i++) {
        if ([items[i] isEqual:object]) {
            return YES;
        }
    }
    return NO;
}

- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState *)state
                                  objects:(__unsafe_unretained id _Nullable[])buffer
                                    count:(NSUInteger)length
{
    state->mutationsPtr = &n_changes;
    state->itemsPtr = buffer;
    NSUInteger copied = 0;
    while (copied < length && state->state < n) {
        buffer[copied++] = items[state->state++];
    }
    return copied;
}

@end

@implementation NSMutableArray

- (void)addObject:(id)object
{
    if (n == capacity) {
        capacity = capacity ? 2 * capacity : 8;
        items = (__strong id *)realloc((void *)items, capacity * sizeof *items);
        if (!items) {
            die("out of memory");
        }
        memset((void *)(items + n), 0, (capacity - n) * sizeof *items);
    }
    items[n++] = object;
    n_changes++;
}

- (void)removeObjectAtIndex:(NSUInteger)index
{
    if (index >= n) {
        die("NSMutableArray: index beyond the end");
    }
    for (NSUInteger i = index; i + 1 < n; i++) {
        items[i] = items[i + 1];
    }
    items[--n] = nil;
    n_changes++;
}

- (void)removeLastObject
{
    [self removeObjectAtIndex:n - 1];
}

- (void)removeObject:(id)object
{
    for (NSUInteger i = n; i-- > 0;) {
        if ([items[i] isEqual:object]) {
            [self removeObjectAtIndex:i];
        }
    }
}

- (void)removeAllObjects
{
    while (n > 0) {
        [self removeLastObject];
    }
}

@end

@implementation NSDictionary {
  @package
    NSMutableArray *keys;
    NSMutableArray *values;
}

+ (instancetype)dictionary
{
    return [self new];
}

+ (instancetype)dictionaryWithObjects:(const id[])objects
                              forKeys:(const id[])newKeys
                                count:(NSUInteger)count
{
    NSMutableDictionary *dictionary = [NSMutableDictionary new];
    for (NSUInteger i = 0; i < count; i++) {
        [dictionary setObject:objects[i] forKey:newKeys[i]];
    }
    return (id)dictionary;
}

- (instancetype)init
{
    keys = [NSMutableArray new];
    values = [NSMutableArray new];
    return self;
}

- (NSUInteger)count
{
    return keys.count;
}

- (NSArray *)allKeys
{
    return keys;
}

- (NSArray *)allValues
{
    return values;
}

- (id)objectForKey:(id)key
{
    for (NSUInteger i = 0; i < keys.count; i++) {
        if ([keys[i] isEqual:key]) {
            return values[i];
        }
    }
    return nil;
}

- (id)objectForKeyedSubscript:(id)key
{
    return [self objectForKey:key];
}

@end

@implementation NSMutableDictionary

- (void)setObject:(id)object forKey:(id)key
{
    [self removeObjectForKey:key];
    [keys addObject:key];
    [values addObject:object];
}

- (void)setObject:(id)object forKeyedSubscript:(id)key
{
    if (object) {
        [self setObject:object forKey:key];
    } else {
        [self removeObjectForKey:key];
    }
}

- (void)removeObjectForKey:(id)key
{
    for (NSUInteger i = 0; i < keys.count; i++) {
        if ([keys[i] isEqual:key]) {
            [keys removeObjectAtIndex:i];
            [values removeObjectAtIndex:i];
            return;
        }
    }
}

- (void)removeAllObjects
{
    [keys removeAllObjects];
    [values removeAllObjects];
}

@end
