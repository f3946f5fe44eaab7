/* What the runtime offers to the classes that it is bootstrapped with, and to tests. */
#ifndef TESTS_METAL_OBJC_H
#define TESTS_METAL_OBJC_H

#include <stddef.h>

/* Objects that live. A test that ends with more than it began with leaks. */
long fake_metal_live_objects(void);

void *tkv_objc_create(void *class_object);
void tkv_objc_destroy(void *object);
const char *tkv_objc_class_name(void *object);
/* The method's address or NULL. */
void *tkv_objc_method(void *object, const char *selector);

#endif
