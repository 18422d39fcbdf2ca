/* SPDX-License-Identifier: MIT */
/*
 * secmem: see secmem.h. Locking and the exclusion from core files are best effort: a process may lock
 * little memory (RLIMIT_MEMLOCK), and that is no reason to refuse an image. Wiping always happens.
 */
#include "crypto/secmem.h"

#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "base/num.h"

#define PAGE_BYTES 4096U

static size_t whole_pages(size_t n)
{
	return (n + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

void *qk_secmem_new(size_t n)
{
	size_t bytes = whole_pages(n);
	void *p = qk_malloc_aligned(PAGE_BYTES, bytes);

	if (p == NULL)
		return NULL;
	memset(p, 0, bytes);
	(void)mlock(p, bytes);
	(void)madvise(p, bytes, MADV_DONTDUMP);
	return p;
}

void qk_secmem_free(void *p, size_t n)
{
	size_t bytes = whole_pages(n);

	if (p == NULL)
		return;
	explicit_bzero(p, bytes);
	(void)madvise(p, bytes, MADV_DODUMP);
	(void)munlock(p, bytes);
	free(p);
}
