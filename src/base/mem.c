/* SPDX-License-Identifier: MIT */
#include "base/mem.h"

#include <string.h>

#include "base/num.h"

static bool total_of(uint64_t n, size_t size, size_t *total)
{
	uint64_t bytes = 0;
	if (!qk_mul(n, size, &bytes) || bytes > PTRDIFF_MAX)
		return false;
	*total = bytes != 0 ? (size_t)bytes : 1;
	return true;
}

void *qk_calloc(uint64_t n, size_t size)
{
	size_t total = 0;
	return total_of(n, size, &total) ? calloc(1, total) : NULL;
}

void *qk_malloc(uint64_t n, size_t size)
{
	size_t total = 0;
	return total_of(n, size, &total) ? malloc(total) : NULL;
}

void *qk_realloc(void *old, uint64_t n, size_t size)
{
	size_t total = 0;
	return total_of(n, size, &total) ? realloc(old, total) : NULL;
}

void *qk_grown(void *old, size_t n, size_t *room, size_t size)
{
	if (n < *room)
		return old;
	size_t more = *room == 0 ? 16 : *room * 2;
	void *v = qk_realloc(old, more, size);
	if (v != NULL)
		*room = more;
	return v;
}

void *qk_malloc_aligned(size_t align, uint64_t size)
{
	size_t total = 0;
	void *p = NULL;
	if (!total_of(size, 1, &total) || posix_memalign(&p, align, total) != 0)
		return NULL;
	return p;
}

char *qk_strndup(const void *s, size_t n)
{
	if (n >= PTRDIFF_MAX)
		return NULL;
	char *copy = qk_malloc(n + 1, 1);
	if (copy == NULL)
		return NULL;
	if (n != 0)
		memcpy(copy, s, n);
	copy[n] = '\0';
	return copy;
}
