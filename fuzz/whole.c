/* SPDX-License-Identifier: MIT */
#include "whole.h"

#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>

#define CPU_SECONDS 8 /* of a sanitized build; a stage takes a hundredth otherwise */

/* ---- the store ---- */

static enum qcow_status input_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct fuzz_input *input = ctx;
	(void)err;
	__atomic_fetch_add(&input->reads, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < n_iov; i++) {
		FUZZ_CHECK(off <= input->n && iov[i].iov_len <= input->n - off);
		memcpy(iov[i].iov_base, input->data + off, iov[i].iov_len);
		off += iov[i].iov_len;
		__atomic_fetch_add(&input->bytes_read, iov[i].iov_len, __ATOMIC_RELAXED);
	}
	return QCOW_OK;
}

static enum qcow_status input_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	const struct fuzz_input *input = ctx;
	(void)err;
	*size = input->n;
	return QCOW_OK;
}

_Noreturn static void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	abort();
}

static enum qcow_status no_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	(void)ctx, (void)iov, (void)n_iov, (void)off, (void)err;
	fail("an image that is only read is written to");
}

static enum qcow_status no_flush(void *ctx, struct qcow_error *err)
{
	(void)ctx, (void)err;
	fail("an image that is only read is flushed");
}

static enum qcow_status no_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	(void)ctx, (void)size, (void)err;
	fail("an image that is only read is truncated");
}

static void input_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){.request_align = 1,
		.physical_block = 512,
		.writable = true,
		.can_grow = true,
		.reads_zero_past_end = true};
}

static void input_close(void *ctx)
{
	(void)ctx;
}

struct qcow_store *fuzz_store_open(struct fuzz_input *input)
{
	static const struct qcow_store_ops ops = {
		.abi = QCOW_STORE_ABI,
		.name = "input",
		.preadv = input_preadv,
		.pwritev = no_pwritev,
		.flush = no_flush,
		.size = input_size,
		.truncate = no_truncate,
		.caps = input_caps,
		.close = input_close,
	};
	struct qcow_store *store = NULL;
	FUZZ_CHECK(qcow_store_new(&ops, input, &store, NULL) == QCOW_OK);
	return store;
}

/* ---- bounds ---- */

/* Of the sanitizers' runtime, where there is one. */
__attribute__((weak)) int __sanitizer_install_malloc_and_free_hooks(
	void (*)(const volatile void *, size_t), void (*)(const volatile void *));
__attribute__((weak)) size_t __sanitizer_get_allocated_size(const volatile void *);

static atomic_int_fast64_t held_bytes, peak_bytes;
static int_fast64_t held_at_begin;
static double cpu_at_begin;

static void on_malloc(const volatile void *p, size_t bytes)
{
	(void)p;
	int_fast64_t held = atomic_fetch_add(&held_bytes, (int_fast64_t)bytes);
	held += (int_fast64_t)bytes;
	int_fast64_t peak = atomic_load(&peak_bytes);
	while (held > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, held))
		;
}

static void on_free(const volatile void *p)
{
	if (p != NULL)
		atomic_fetch_sub(&held_bytes, (int_fast64_t)__sanitizer_get_allocated_size(p));
}

static double cpu_seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void fuzz_bounds_begin(void)
{
	static bool is_hooked;
	if (!is_hooked && __sanitizer_install_malloc_and_free_hooks != NULL)
		FUZZ_CHECK(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) > 0);
	is_hooked = true;
	held_at_begin = atomic_load(&held_bytes);
	atomic_store(&peak_bytes, held_at_begin);
	cpu_at_begin = cpu_seconds();
}

void fuzz_bounds_end(const char *what, uint64_t memory_bytes)
{
	int_fast64_t took = atomic_load(&peak_bytes) - held_at_begin;
	double seconds = cpu_seconds() - cpu_at_begin;
	if (getenv("FUZZ_SHOW_BOUNDS") != NULL)
		fprintf(stderr, "%s: %lld bytes, %.3f s\n", what, (long long)took, seconds);
	if (took > (int_fast64_t)memory_bytes || seconds > CPU_SECONDS) {
		fprintf(stderr, "%s took %lld bytes, %.1f s\n", what, (long long)took, seconds);
		abort();
	}
}
