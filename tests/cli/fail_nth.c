/* SPDX-License-Identifier: MIT */
/*
 * fail_nth: preloaded into a program, makes its allocation number FAIL_AT (from 0) fail, once.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);

static atomic_long count;

static int fails(void)
{
	const char *at = getenv("FAIL_AT");
	if (at == NULL || atomic_fetch_add(&count, 1) != strtol(at, NULL, 10))
		return 0;
	errno = ENOMEM; /* pthread_create counts on it */
	return 1;
}

__attribute__((visibility("default"))) void *malloc(size_t bytes)
{
	return fails() ? NULL : __libc_malloc(bytes);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t bytes)
{
	return fails() ? NULL : __libc_calloc(n, bytes);
}

__attribute__((visibility("default"))) void *realloc(void *old, size_t bytes)
{
	return fails() ? NULL : __libc_realloc(old, bytes);
}
