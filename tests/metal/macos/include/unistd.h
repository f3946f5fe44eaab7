#pragma once
int getpagesize(void);
