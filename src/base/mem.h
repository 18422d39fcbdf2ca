/* SPDX-License-Identifier: MIT */
/*
 * mem: allocation with checked sizes. NULL means out of memory, also where the size would overflow.
 * Everything is freed with free(). QK_AUTO_FREE frees a pointer when its scope ends.
 */
#ifndef QK_BASE_MEM_H
#define QK_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/err.h"

/* n objects of `size` bytes, zeroed. n * size == 0 answers a pointer that may be freed. */
void *qk_calloc(uint64_t n, size_t size) QK_MUST_USE;

/* n objects of `size` bytes, not initialised. */
void *qk_malloc(uint64_t n, size_t size) QK_MUST_USE;

/* n objects of `size` bytes, kept from `old`; on failure NULL and `old` is untouched. */
void *qk_realloc(void *old, uint64_t n, size_t size) QK_MUST_USE;

/* The array `old`, which has n objects of `size` bytes and room for *room, or what took its place: with room for one more.
 * On failure NULL and `old` is untouched. */
void *qk_grown(void *old, size_t n, size_t *room, size_t size) QK_MUST_USE;

/* `size` bytes aligned to `align` (a power of two >= sizeof(void *)): for O_DIRECT. */
void *qk_malloc_aligned(size_t align, uint64_t size) QK_MUST_USE;

/* A NUL-terminated copy of n bytes. */
char *qk_strndup(const void *s, size_t n) QK_MUST_USE;

static inline void qk_free_ptr(void *pp)
{
	void **p = pp;
	free(*p);
	*p = NULL;
}

#define QK_AUTO_FREE __attribute__((cleanup(qk_free_ptr)))

#endif
