#pragma once
#include <stdarg.h>
#include <stddef.h>
int snprintf(char *text, size_t n, const char *format, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *text, size_t n, const char *format, va_list arguments)
    __attribute__((format(printf, 3, 0)));
