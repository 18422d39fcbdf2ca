/* SPDX-License-Identifier: MIT */
/*
 * What a repair makes of a header and of a snapshot table: autoclear bits that nobody knows go, also where nothing else is wrong;
 * entries without the extra data of version 3 get all that is known of it; extra data that nobody reads is cut, what others
 * may know is kept byte for byte; a table that is too long loses what no longer fits.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/manage.h>
#include <qcowkit/qcowkit.h>

#include "image.h"
#include "sick.h"

#define CLUSTER 4096U
#define TABLE	(1U << 20)

struct bytes {
	uint8_t *v;
	size_t n;
};

static void put(uint8_t *p, unsigned n, uint64_t v)
{
	for (unsigned i = 0; i < n; i++)
		p[i] = (uint8_t)(v >> (8 * (n - 1 - i)));
}

static uint64_t get(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

/* An empty disk, and room for `room` bytes from TABLE on. */
static struct bytes make_image(size_t room)
{
	struct qcow_create_options c = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bytes b = {calloc(1, TABLE + room), TABLE + room};
	struct qcow_store *s = NULL;
	uint64_t size = 0;

	assert_non_null(b.v);
	assert_ok(qcow_memory_open(0, &s, &err), err);
	c.cluster_size = CLUSTER;
	c.virtual_size = 1 << 20;
	assert_ok(qcow_create(s, NULL, &c, &err), err);
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_ok(qcow_store_read(s, b.v, (size_t)size, 0, &err), err);
	qcow_store_close(s);
	if (room == 0)
		b.n = (size_t)size;
	return b;
}

/* An entry at `at` of a snapshot of no bytes, with this extra data. Answers where the next begins. */
static size_t add_entry(
	struct bytes *b, size_t at, size_t id, size_t name, const char *extra, size_t n)
{
	uint8_t *e = b->v + TABLE + at;
	size_t used = 40 + n + id + name;

	put(e + 12, 2, id);
	put(e + 14, 2, name);
	put(e + 36, 4, n);
	memcpy(e + 40, extra, n);
	memset(e + 40 + n, 'a', id + name);
	return at + (used + 7) / 8 * 8;
}

static struct qcow_repair_result repair(struct qcow_store *s, struct qcow_store *undo, bool dry_run)
{
	struct qcow_repair_options o = QCOW_REPAIR_OPTIONS_INIT;
	struct qcow_repair_result r;
	struct qcow_error err = QCOW_ERROR_INIT;

	o.dry_run = dry_run;
	o.undo = undo;
	assert_ok(qcow_repair(s, &o, &r, &err), err);
	return r;
}

static struct bytes slurp(struct qcow_store *s)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t size = 0;

	assert_ok(qcow_store_size(s, &size, &err), err);
	struct bytes b = {malloc((size_t)size), (size_t)size};
	assert_non_null(b.v);
	assert_ok(qcow_store_read(s, b.v, b.n, 0, &err), err);
	return b;
}

/* Repaired, clean, and not to be repaired again. */
static struct bytes repaired(const struct bytes *b)
{
	struct qcow_store *s = qkt_store_of(b->v, b->n);
	struct qcow_repair_result r = repair(s, NULL, false);

	assert_int_equal(r.after.corruptions + r.after.leaks, 0);
	r = repair(s, NULL, false);
	assert_int_equal(r.n_steps, 0);
	struct bytes after = slurp(s);
	qcow_store_close(s);
	return after;
}

static void unknown_autoclear_bits_go(void **state)
{
	struct bytes b = make_image(0);
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *undo = NULL;

	(void)state;
	put(b.v + 88, 8, UINT64_C(0x8000000000000004));
	struct qcow_store *s = qkt_store_of(b.v, b.n);
	assert_int_equal(repair(s, NULL, true).n_steps, 1);
	struct bytes after = slurp(s);
	assert_memory_equal(after.v, b.v, b.n);
	free(after.v);
	assert_ok(qcow_memory_open(0, &undo, &err), err);
	assert_int_equal(repair(s, undo, false).n_steps, 1);
	assert_int_equal(repair(s, NULL, false).n_steps, 0);
	after = slurp(s);
	assert_int_equal(get(after.v + 88, 8), 0);
	assert_int_equal(after.n, b.n);
	put(after.v + 88, 8, UINT64_C(0x8000000000000004));
	assert_memory_equal(after.v, b.v, b.n);
	free(after.v);
	assert_ok(qcow_repair_undo(s, undo, &err), err);
	after = slurp(s);
	assert_memory_equal(after.v, b.v, b.n);
	free(after.v);
	qcow_store_close(undo);
	qcow_store_close(s);
	free(b.v);
}

/* The next entry of the table of `b`: its extra data. */
static const uint8_t *next_extra(const struct bytes *b, size_t *at, size_t *n)
{
	const uint8_t *e = b->v + get(b->v + 64, 8) + *at;

	*n = (size_t)get(e + 36, 4);
	*at += (40 + *n + (size_t)get(e + 12, 2) + (size_t)get(e + 14, 2) + 7) / 8 * 8;
	return e + 40;
}

static void extra_data_is_mended(void **state)
{
	static char long_one[70000], known[50];
	struct bytes b = make_image(1 << 20);
	size_t at = 0, n = 0;

	(void)state;
	memset(known, 'k', sizeof(known));
	memset(known + 8, 0, 8); /* size of the disk */
	memset(long_one, 'l', sizeof(long_one));
	memset(long_one + 8, 0, 8);
	at = add_entry(&b, at, 1, 3, "", 0);
	at = add_entry(&b, at, 2, 3, known, sizeof(known));
	at = add_entry(&b, at, 3, 3, "\0\0\0\0\0\0\0\7", 8);
	at = add_entry(&b, at, 4, 3, long_one, sizeof(long_one));
	(void)add_entry(&b, at, 5, 3, known, 16);
	put(b.v + 60, 4, 5);
	put(b.v + 64, 8, TABLE);
	struct bytes after = repaired(&b);
	assert_int_equal(get(after.v + 60, 4), 5);
	at = 0;
	for (unsigned i = 0; i < 5; i++) {
		static const size_t want[] = {24, 50, 24, 1024, 16};
		const uint8_t *extra = next_extra(&after, &at, &n);
		assert_int_equal(n, want[i]);
		assert_int_equal(get(extra + 8, 8), 0);
		if (i == 0 || i == 2)
			assert_true(get(extra + 16, 8) == UINT64_MAX); /* no instructions counted */
		if (i == 2)
			assert_int_equal(get(extra, 8), 7);
		if (i == 1 || i == 4)
			assert_memory_equal(extra, known, n);
		if (i == 3)
			assert_memory_equal(extra, long_one, n);
	}
	free(after.v);
	free(b.v);
}

static void a_table_that_is_too_long_is_cut(void **state)
{
	static const char extra[1024];
	const size_t entry = 40 + 1024 + 2 * 65535 + 2;
	const size_t n = (64U << 20) / entry + 3;
	struct bytes b = make_image(n * entry);
	size_t at = 0;

	(void)state;
	for (size_t i = 0; i < n; i++)
		at = add_entry(&b, at, 65535, 65535, extra, sizeof(extra));
	put(b.v + 60, 4, n);
	put(b.v + 64, 8, TABLE);
	struct bytes after = repaired(&b);
	assert_int_equal(get(after.v + 60, 4), n - 3);
	assert_memory_equal(after.v + get(after.v + 64, 8), b.v + TABLE, (n - 3) * entry);
	free(after.v);
	free(b.v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unknown_autoclear_bits_go),
		cmocka_unit_test(extra_data_is_mended),
		cmocka_unit_test(a_table_that_is_too_long_is_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
