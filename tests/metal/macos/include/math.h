#pragma once
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
float sqrtf(float x);
float fabsf(float x);
float floorf(float x);
float ceilf(float x);
float expf(float x);
float logf(float x);
float fminf(float a, float b);
float fmaxf(float a, float b);
double sqrt(double x);
