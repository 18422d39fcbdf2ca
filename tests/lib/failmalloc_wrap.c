/* SPDX-License-Identifier: MIT */
/* failmalloc for tests that link it: tests/lib/meson.build has the arguments. */
#define QKT_WRAP 1
#include "failmalloc.c"
