/* SPDX-License-Identifier: MIT */
/*
 * The wrapper, on implementations that check what they are asked for.
 */
#include "cm.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include <qcowkit/store.h>

#include "model.h"
#include "rng.h"

#define ROOM 300000u

static struct qcow_error err;

/* An array of bytes that insists on the promises of store.h. */
struct strict {
	struct qcow_store_caps caps;
	uint8_t bytes[ROOM];
	uint64_t size;
	unsigned closed, sizes_asked;
	bool has_failed; /* a promise was broken */
	enum qcow_status zero_status;
};

static uint64_t total_of(struct strict *t, const struct iovec *iov, int n_iov, uint64_t off)
{
	uint64_t total = 0;
	for (int i = 0; i < n_iov; i++) {
		total += iov[i].iov_len;
		if (t->caps.memory_align > 1 &&
			(uintptr_t)iov[i].iov_base % t->caps.memory_align != 0)
			t->has_failed = true;
		if (t->caps.request_align > 1 && iov[i].iov_len % t->caps.request_align != 0)
			t->has_failed = true;
	}
	if (n_iov < 1 || n_iov > IOV_MAX || total == 0 || off % t->caps.request_align != 0)
		t->has_failed = true;
	return total;
}

static enum qcow_status strict_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *e)
{
	struct strict *t = ctx;
	uint64_t total = total_of(t, iov, n_iov, off), align = t->caps.request_align;
	(void)e;
	if (off + total > (t->size + align - 1) / align * align)
		t->has_failed = true;
	for (int i = 0; i < n_iov; off += iov[i++].iov_len)
		if (iov[i].iov_len != 0)
			memcpy(iov[i].iov_base, t->bytes + off, iov[i].iov_len);
	return t->has_failed ? QCOW_E_BUG : QCOW_OK;
}

static enum qcow_status strict_pwritev(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *e)
{
	struct strict *t = ctx;
	uint64_t total = total_of(t, iov, n_iov, off);
	(void)e;
	if (off + total > (t->caps.can_grow ? ROOM : t->size))
		t->has_failed = true;
	if (t->has_failed)
		return QCOW_E_BUG;
	for (int i = 0; i < n_iov; off += iov[i++].iov_len)
		if (iov[i].iov_len != 0)
			memcpy(t->bytes + off, iov[i].iov_base, iov[i].iov_len);
	t->size = off > t->size ? off : t->size;
	return QCOW_OK;
}

static enum qcow_status strict_flush(void *ctx, struct qcow_error *e)
{
	(void)ctx;
	(void)e;
	return QCOW_OK;
}

static enum qcow_status strict_size(void *ctx, uint64_t *size, struct qcow_error *e)
{
	struct strict *t = ctx;
	(void)e;
	t->sizes_asked++;
	*size = t->size;
	return QCOW_OK;
}

static enum qcow_status strict_truncate(void *ctx, uint64_t size, struct qcow_error *e)
{
	struct strict *t = ctx;
	(void)e;
	if (!t->caps.can_grow || size > ROOM)
		t->has_failed = true;
	else if (size < t->size)
		memset(t->bytes + size, 0, (size_t)(t->size - size));
	t->size = size;
	return QCOW_OK;
}

static enum qcow_status strict_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *e)
{
	struct strict *t = ctx;
	(void)flags;
	(void)e;
	if (len == 0 || off % t->caps.request_align != 0 || len % t->caps.request_align != 0)
		t->has_failed = true;
	if (t->zero_status != QCOW_OK)
		return t->zero_status;
	memset(t->bytes + off, 0, (size_t)len);
	t->size = off + len > t->size ? off + len : t->size;
	return QCOW_OK;
}

static enum qcow_status strict_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *e)
{
	return strict_zero(ctx, off, len, 0, e);
}

static void strict_caps(void *ctx, struct qcow_store_caps *out)
{
	*out = ((struct strict *)ctx)->caps;
}

static void strict_close(void *ctx)
{
	((struct strict *)ctx)->closed++;
}

static const struct qcow_store_ops strict_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "strict",
	.preadv = strict_preadv,
	.pwritev = strict_pwritev,
	.flush = strict_flush,
	.size = strict_size,
	.truncate = strict_truncate,
	.zero = strict_zero,
	.punch = strict_punch,
	.caps = strict_caps,
	.close = strict_close,
};

static struct strict strict;

static struct qcow_store *open_strict(
	const struct qcow_store_ops *ops, uint32_t align, bool can_grow)
{
	struct qcow_store *s = NULL;
	memset(&strict, 0, sizeof(strict));
	strict.caps = (struct qcow_store_caps){.request_align = align,
		.memory_align = align > 1 ? 512 : 0,
		.writable = true,
		.can_grow = can_grow};
	strict.size = can_grow ? 0 : ROOM / 4096 * 4096;
	assert_ok(qcow_store_new(ops, &strict, &s, &err), err);
	return s;
}

static void close_strict(struct qcow_store *s)
{
	assert_false(strict.has_failed);
	qcow_store_close(s);
	assert_int_equal(strict.closed, 1);
}

static void incomplete_tables_are_refused(void **state)
{
	(void)state;
	struct qcow_store *s = NULL;
	struct qcow_store_ops ops = strict_ops;
	memset(&strict, 0, sizeof(strict));
	strict.caps.request_align = 1;
	ops.abi = 2;
	assert_status(qcow_store_new(&ops, &strict, &s, &err), QCOW_E_INVAL, err);
	ops = strict_ops;
	ops.size = NULL;
	assert_status(qcow_store_new(&ops, &strict, &s, &err), QCOW_E_INVAL, err);
	ops = strict_ops;
	ops.flush = NULL;
	strict.caps.writable = true;
	assert_status(qcow_store_new(&ops, &strict, &s, &err), QCOW_E_INVAL, err);
	strict.caps.request_align = 513;
	assert_status(qcow_store_new(&strict_ops, &strict, &s, &err), QCOW_E_INVAL, err);
	assert_int_equal(strict.closed, 0);
	assert_null(s);
}

static void without_optional_calls_it_answers_for_them(void **state)
{
	(void)state;
	struct qcow_store_ops ops = strict_ops;
	ops.zero = NULL;
	ops.punch = NULL;
	struct qcow_store *s = open_strict(&ops, 1, true), *memory = NULL;
	struct qcow_store_extent e;
	assert_ok(qcow_memory_open(10, &memory, &err), err);
	memset(strict.bytes, 9, 2000);
	assert_ok(qcow_store_truncate(s, 2000, &err), err);
	assert_ok(qcow_store_zero(s, 5, 100000, 0, &err), err);
	for (size_t i = 0; i < 100005; i++)
		assert_int_equal(strict.bytes[i], i < 5 ? 9 : 0);
	assert_int_equal(strict.size, 100005);
	assert_status(qcow_store_punch(s, 0, 5, &err), QCOW_E_NOTSUP, err);
	assert_ok(qcow_store_extents(s, 5, UINT64_MAX, &e, &err), err);
	assert_true(!e.is_hole && e.off == 5 && e.len == 100000);
	assert_status(qcow_store_clone(s, 0, memory, 0, 5, &err), QCOW_E_NOTSUP, err);
	assert_int_equal(qcow_store_fd(s), -1);
	qcow_store_close(memory);
	close_strict(s);
}

static void zero_that_cannot_is_done_by_writing(void **state)
{
	(void)state;
	struct qcow_store *s = open_strict(&strict_ops, 1, true);
	memset(strict.bytes, 9, 100);
	assert_ok(qcow_store_truncate(s, 100, &err), err);
	strict.zero_status = QCOW_E_NOTSUP;
	assert_ok(qcow_store_zero(s, 10, 80, 0, &err), err);
	for (size_t i = 0; i < 100; i++)
		assert_int_equal(strict.bytes[i], i < 10 || i >= 90 ? 9 : 0);
	strict.zero_status = QCOW_E_NOSPC;
	assert_status(qcow_store_zero(s, 10, 80, 0, &err), QCOW_E_NOSPC, err);
	assert_says(err, "strict: zeroing failed: no space left");
	assert_int_equal(err.host_off, 10);
	close_strict(s);
}

static void names_are_copied_and_used(void **state)
{
	(void)state;
	struct qcow_store *s = open_strict(&strict_ops, 1, true);
	char name[] = "disk.qcow2", b = 0;
	assert_string_equal(qcow_store_name(s), "strict");
	assert_ok(qcow_store_set_name(s, name, &err), err);
	name[0] = 'X';
	assert_string_equal(qcow_store_name(s), "disk.qcow2");
	assert_status(qcow_store_read(s, &b, 1, 7, &err), QCOW_E_RANGE, err);
	assert_string_equal(
		err.message, "disk.qcow2: reading 1 bytes at offset 7 is past the end at 0");
	assert_int_equal(err.host_off, 7);
	assert_status(qcow_store_read(s, &b, 1, 7, NULL), QCOW_E_RANGE, err);
	close_strict(s);
}

static void lists_without_bytes_do_nothing(void **state)
{
	(void)state;
	struct qcow_store *s = open_strict(&strict_ops, 1, true);
	struct iovec iov[3] = {{NULL, 0}, {NULL, 0}, {NULL, 0}};
	assert_ok(qcow_store_writev(s, iov, 3, 99, &err), err);
	assert_ok(qcow_store_readv(s, iov, 3, 0, &err), err);
	assert_ok(qcow_store_readv(s, NULL, 0, 0, &err), err);
	assert_ok(qcow_store_zero(s, 50, 0, 0, &err), err);
	assert_ok(qcow_store_punch(s, 50, 0, &err), err);
	assert_status(qcow_store_readv(s, iov, -1, 0, &err), QCOW_E_INVAL, err);
	char b[2] = {0};
	iov[0] = (struct iovec){b, SIZE_MAX};
	iov[1] = (struct iovec){b, 2};
	assert_status(qcow_store_readv(s, iov, 2, 0, &err), QCOW_E_INVAL, err);
	assert_int_equal(strict.size, 0);
	close_strict(s);
}

static void reads_below_the_known_end_ask_for_no_size(void **state)
{
	(void)state;
	struct qcow_store *s = open_strict(&strict_ops, 1, true);
	char b[100] = {0};
	assert_ok(qcow_store_write(s, b, 100, 0, &err), err);
	unsigned asked = strict.sizes_asked;
	for (int i = 0; i < 10; i++)
		assert_ok(qcow_store_read(s, b, 10, (uint64_t)i * 10, &err), err);
	assert_int_equal(strict.sizes_asked, asked);
	/* what somebody else appends is found by asking again; what we cut off is gone at once */
	strict.size = 200;
	assert_ok(qcow_store_read(s, b, 100, 100, &err), err);
	assert_ok(qcow_store_truncate(s, 50, &err), err);
	assert_status(qcow_store_read(s, b, 1, 50, &err), QCOW_E_RANGE, err);
	close_strict(s);
}

static void padded_reads_end_in_zeros(void **state)
{
	(void)state;
	struct qcow_store *s = open_strict(&strict_ops, 1, true);
	char b[6] = "??????";
	assert_ok(qcow_store_write(s, "abc", 3, 0, &err), err);
	assert_ok(qcow_store_read_padded(s, b, 5, 1, &err), err);
	assert_memory_equal(b, "bc\0\0\0?", 6);
	assert_ok(qcow_store_read_padded(s, b, 5, UINT64_MAX - 2, &err), err);
	assert_memory_equal(b, "\0\0\0\0\0?", 6);
	close_strict(s);
}

/* ---- alignment ---- */

static void random_step(struct qcow_store *s, struct qkt_model *m, struct qkt_rng *rng)
{
	static uint8_t mem[20000 + 64];
	const size_t limit = strict.caps.can_grow ? 200000 : m->size;
	struct iovec iov[3];
	size_t off = (size_t)qkt_rng_below(rng, limit);
	size_t len = (size_t)qkt_rng_below(rng, qkt_rng_below(rng, 2) != 0 ? 20000 : 600) + 1;
	uint8_t *buf = mem + qkt_rng_below(rng, 64);
	if (qkt_rng_below(rng, 4) == 0) {
		off &= ~(size_t)4095;
		len = 8192;
	}
	len = len < limit - off ? len : limit - off;
	size_t first = (size_t)qkt_rng_below(rng, len + 1);
	iov[0] = (struct iovec){buf, first};
	iov[1] = (struct iovec){NULL, 0};
	iov[2] = (struct iovec){buf + first, len - first};
	switch (qkt_rng_below(rng, 6)) {
	case 0:
	case 1:
		qkt_rng_fill(rng, buf, len);
		qkt_model_write(m, buf, len, off);
		assert_ok(qcow_store_writev(s, iov, 3, off, &err), err);
		break;
	case 2:
		qkt_model_zero(m, len, off);
		assert_ok(qcow_store_zero(s, off, len, 0, &err), err);
		break;
	case 3:
		if (off + len > m->size)
			break;
		qkt_model_zero(m, len, off);
		assert_ok(qcow_store_punch(s, off, len, &err), err);
		break;
	case 4:
		if (!strict.caps.can_grow)
			break;
		qkt_model_resize(m, off);
		assert_ok(qcow_store_truncate(s, off, &err), err);
		break;
	default:
		if (off >= m->size)
			break;
		len = len < m->size - off ? len : m->size - off;
		assert_ok(qcow_store_read(s, buf, len, off, &err), err);
		assert_true(qkt_model_differs(m, buf, len, off) == SIZE_MAX);
	}
	assert_false(strict.has_failed);
	assert_int_equal(strict.size, m->size);
	assert_true(qkt_model_differs(m, strict.bytes, m->size, 0) == SIZE_MAX);
}

static void any_shape_on_an_aligned_store_agrees_with_an_array(void **state)
{
	(void)state;
	static const uint32_t aligns[] = {1, 512, 4096};
	struct qkt_rng rng = qkt_rng_init(0x616c69);
	for (size_t i = 0; i < 6; i++) {
		bool can_grow = i < 3;
		struct qcow_store *s = open_strict(&strict_ops, aligns[i % 3], can_grow);
		struct qkt_model m = qkt_model_new((size_t)strict.size);
		for (int k = 0; k < 400; k++)
			random_step(s, &m, &rng);
		qkt_model_free(&m);
		close_strict(s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(incomplete_tables_are_refused),
		cmocka_unit_test(without_optional_calls_it_answers_for_them),
		cmocka_unit_test(zero_that_cannot_is_done_by_writing),
		cmocka_unit_test(names_are_copied_and_used),
		cmocka_unit_test(lists_without_bytes_do_nothing),
		cmocka_unit_test(reads_below_the_known_end_ask_for_no_size),
		cmocka_unit_test(padded_reads_end_in_zeros),
		cmocka_unit_test(any_shape_on_an_aligned_store_agrees_with_an_array),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
