/* SPDX-License-Identifier: MIT */
/*
 * failmalloc: the Nth allocation fails.
 *
 * One source for two uses. As a shared object named in LD_PRELOAD it stands before the C library for
 * any program, told by the environment:
 *
 *   QK_FAIL_MALLOC=N       the Nth allocation of the process (from 1) fails
 *   QK_FAIL_MALLOC_EVER=1  and every one after it
 *   QK_FAIL_MALLOC_COUNT=F at exit the number of allocations is written to the file F
 *
 * Compiled with QKT_WRAP and linked with --wrap=malloc and so on, it stands between a test's own
 * objects and any allocator, also that of a sanitizer; the test calls qkt_failmalloc_arm and asks
 * qkt_failmalloc_live for the blocks that are not freed.
 */
#include "failmalloc.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef QKT_WRAP
#define ENTRY(name) __wrap_##name
#define REAL(name)  __real_##name
#else
#define ENTRY(name) name
#define REAL(name)  __libc_##name
#endif

void *REAL(malloc)(size_t size);
void *REAL(calloc)(size_t n, size_t size);
void *REAL(realloc)(void *old, size_t size);
void REAL(free)(void *p);
void *ENTRY(malloc)(size_t size);
void *ENTRY(calloc)(size_t n, size_t size);
void *ENTRY(realloc)(void *old, size_t size);
int ENTRY(posix_memalign)(void **out, size_t align, size_t size);
void ENTRY(free)(void *p);
#ifdef QKT_WRAP
int __real_posix_memalign(void **out, size_t align, size_t size);
#else
void *__libc_memalign(size_t align, size_t size);
#endif

static _Atomic uint64_t count, nth, hits;
static _Atomic int64_t live, live_bytes, peak_bytes;
static _Atomic bool for_ever;

void qkt_failmalloc_arm(uint64_t n, bool ever)
{
	atomic_store(&count, 0);
	atomic_store(&hits, 0);
	atomic_store(&for_ever, ever);
	atomic_store(&nth, n);
}

uint64_t qkt_failmalloc_hits(void)
{
	return atomic_load(&hits);
}

uint64_t qkt_failmalloc_count(void)
{
	return atomic_load(&count);
}

int64_t qkt_failmalloc_live(void)
{
	return atomic_load(&live);
}

int64_t qkt_failmalloc_bytes(void)
{
	return atomic_load(&live_bytes);
}

void qkt_failmalloc_start_peak(void)
{
	atomic_store(&peak_bytes, atomic_load(&live_bytes));
}

int64_t qkt_failmalloc_peak(void)
{
	return atomic_load(&peak_bytes);
}

static void note_bytes(int64_t n)
{
	int64_t now = atomic_fetch_add(&live_bytes, n) + n, most = atomic_load(&peak_bytes);
	while (now > most && !atomic_compare_exchange_weak(&peak_bytes, &most, now))
		;
}

static bool fails(void)
{
	uint64_t at = atomic_fetch_add(&count, 1) + 1, n = atomic_load(&nth);
	if (n == 0 || !(at == n || (at > n && atomic_load(&for_ever))))
		return false;
	atomic_fetch_add(&hits, 1);
	errno = ENOMEM;
	return true;
}

static void *made(void *p)
{
	if (p == NULL)
		return NULL;
	atomic_fetch_add(&live, 1);
	note_bytes((int64_t)malloc_usable_size(p));
	return p;
}

void *ENTRY(malloc)(size_t size)
{
	return fails() ? NULL : made(REAL(malloc)(size));
}

void *ENTRY(calloc)(size_t n, size_t size)
{
	return fails() ? NULL : made(REAL(calloc)(n, size));
}

void *ENTRY(realloc)(void *old, size_t size)
{
	if (fails())
		return NULL;
	int64_t was = old != NULL ? (int64_t)malloc_usable_size(old) : 0;
	void *p = REAL(realloc)(old, size);
	if (old == NULL)
		return made(p);
	if (p != NULL)
		note_bytes((int64_t)malloc_usable_size(p) - was);
	return p;
}

int ENTRY(posix_memalign)(void **out, size_t align, size_t size)
{
	if (fails())
		return ENOMEM;
#ifdef QKT_WRAP
	int e = __real_posix_memalign(out, align, size);
	if (e == 0)
		(void)made(*out);
	return e;
#else
	void *p = made(__libc_memalign(align, size));
	if (p == NULL)
		return ENOMEM;
	*out = p;
	return 0;
#endif
}

void ENTRY(free)(void *p)
{
	if (p != NULL) {
		atomic_fetch_sub(&live, 1);
		note_bytes(-(int64_t)malloc_usable_size(p));
	}
	REAL(free)(p);
}

#ifndef QKT_WRAP
static uint64_t number_in(const char *name)
{
	const char *text = getenv(name);
	uint64_t n = 0;
	for (; text != NULL && *text >= '0' && *text <= '9'; text++)
		n = n * 10 + (uint64_t)(*text - '0');
	return n;
}

__attribute__((constructor)) static void start(void)
{
	qkt_failmalloc_arm(number_in("QK_FAIL_MALLOC"), number_in("QK_FAIL_MALLOC_EVER") != 0);
}

/* Without stdio, which allocates. */
__attribute__((destructor)) static void end(void)
{
	const char *path = getenv("QK_FAIL_MALLOC_COUNT");
	int fd = path != NULL ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	if (fd < 0)
		return;
	char text[24], *at = text + sizeof(text);
	*--at = '\n';
	uint64_t n = atomic_load(&count);
	do
		*--at = (char)('0' + n % 10);
	while ((n /= 10) != 0);
	ssize_t written = write(fd, at, (size_t)(text + sizeof(text) - at));
	(void)written;
	(void)close(fd);
}
#endif
