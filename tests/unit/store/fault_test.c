/* SPDX-License-Identifier: MIT */
/*
 * The fault store itself: what it injects, counts and logs. Tests of crashes rest on it.
 */
#include "cm.h"

#include <errno.h>
#include <stdlib.h>

#include "fault.h"
#include "rng.h"

static struct qcow_error err;

static struct qcow_store *open_faulty(struct qkt_fault **f)
{
	struct qcow_store *inner = NULL;
	*f = qkt_fault_new();
	assert_ok(qcow_memory_open(0, &inner, &err), err);
	return qkt_fault_wrap(*f, inner, 3);
}

static void close_faulty(struct qkt_fault *f, struct qcow_store *s)
{
	qcow_store_close(s);
	qkt_fault_free(f);
}

static void the_nth_write_fails_once(void **state)
{
	(void)state;
	struct qkt_fault *f = NULL;
	struct qcow_store *s = open_faulty(&f);
	qkt_fault_arm(f, QKT_WRITE, 2, QKT_ENOSPC, false);
	assert_ok(qcow_store_write(s, "abcd", 4, 0, &err), err);
	assert_status(qcow_store_write(s, "ABCD", 4, 0, &err), QCOW_E_NOSPC, err);
	assert_int_equal(err.os_errno, ENOSPC);
	assert_says(err, "memory: writing: No space left on device");
	char got[4];
	assert_ok(qcow_store_read(s, got, 4, 0, &err), err);
	assert_memory_equal(got, "abcd", 4);
	assert_ok(qcow_store_write(s, "ABCD", 4, 0, &err), err);
	assert_int_equal(qkt_fault_hits(f), 1);
	assert_int_equal(qkt_fault_count(f, QKT_WRITE), 3);
	assert_int_equal(qkt_fault_count(f, QKT_READ), 1);
	close_faulty(f, s);
}

static void for_ever_goes_on_until_it_is_disarmed(void **state)
{
	(void)state;
	struct qkt_fault *f = NULL;
	struct qcow_store *s = open_faulty(&f);
	assert_ok(qcow_store_write(s, "abcd", 4, 0, &err), err);
	qkt_fault_arm(f, QKT_ANY, 2, QKT_EIO, true);
	assert_ok(qcow_store_flush(s, &err), err);
	assert_status(qcow_store_flush(s, &err), QCOW_E_IO, err);
	assert_status(qcow_store_zero(s, 0, 1, 0, &err), QCOW_E_IO, err);
	assert_status(qcow_store_punch(s, 0, 1, &err), QCOW_E_IO, err);
	assert_status(qcow_store_truncate(s, 9, &err), QCOW_E_IO, err);
	struct qcow_store_extent e;
	assert_status(qcow_store_extents(s, 0, 1, &e, &err), QCOW_E_IO, err);
	assert_int_equal(qkt_fault_hits(f), 5);
	qkt_fault_disarm(f);
	assert_ok(qcow_store_flush(s, &err), err);
	close_faulty(f, s);
}

static void short_does_the_first_half(void **state)
{
	(void)state;
	struct qkt_fault *f = NULL;
	struct qcow_store *s = open_faulty(&f);
	char a[] = "abc", b[] = "defgh", got[8];
	struct iovec iov[2] = {{a, 3}, {b, 5}};
	assert_ok(qcow_store_write(s, "--------", 8, 0, &err), err);
	qkt_fault_arm(f, QKT_WRITE, 1, QKT_SHORT, false);
	assert_status(qcow_store_writev(s, iov, 2, 0, &err), QCOW_E_IO, err);
	assert_ok(qcow_store_read(s, got, 8, 0, &err), err);
	assert_memory_equal(got, "abcd----", 8);
	qkt_fault_arm(f, QKT_READ, 1, QKT_SHORT, false);
	memset(got, '?', 8);
	assert_status(qcow_store_read(s, got, 8, 0, &err), QCOW_E_IO, err);
	assert_memory_equal(got, "abcd????", 8);
	close_faulty(f, s);
}

/* What the log says was done is what was done, and flushes part it into epochs. */
static void the_log_replayed_gives_the_same_bytes(void **state)
{
	(void)state;
	struct qkt_rng rng = qkt_rng_init(0x6c6f67);
	struct qkt_fault *f = NULL;
	struct qcow_store *s = open_faulty(&f);
	static uint8_t buf[5000];
	uint64_t flushes = 0;
	qkt_fault_log(f);
	for (int i = 0; i < 300; i++) {
		uint64_t off = qkt_rng_below(&rng, 100000), len = qkt_rng_below(&rng, 5000) + 1;
		if (i % 7 == 0)
			qkt_fault_arm(f, QKT_ANY, 1, i % 2 != 0 ? QKT_SHORT : QKT_EIO, false);
		enum qcow_status st = QCOW_OK;
		switch (qkt_rng_below(&rng, 5)) {
		case 0:
		case 1:
			qkt_rng_fill(&rng, buf, sizeof(buf));
			st = qcow_store_write(s, buf, (size_t)len, off, &err);
			break;
		case 2:
			st = qcow_store_zero(s, off, len, 0, &err);
			break;
		case 3:
			st = qcow_store_truncate(s, off, &err);
			break;
		default:
			st = qcow_store_flush(s, &err);
			flushes += st == QCOW_OK;
		}
		qkt_fault_disarm(f);
	}
	struct qkt_model m = qkt_model_new(0);
	uint64_t epoch = 0, size = 0;
	for (size_t i = 0; i < qkt_fault_log_count(f); i++) {
		const struct qkt_log_entry *e = qkt_fault_log_entry(f, i);
		assert_int_equal(e->store_id, 3);
		assert_int_equal(e->epoch, epoch);
		epoch += e->call == QKT_FLUSH;
		qkt_log_apply(e, &m, 0, UINT64_MAX);
	}
	assert_int_equal(epoch, flushes);
	assert_ok(qcow_store_size(s, &size, &err), err);
	assert_int_equal(size, m.size);
	uint8_t *all = malloc(m.size + 1);
	assert_non_null(all);
	assert_ok(qcow_store_read(s, all, m.size, 0, &err), err);
	assert_true(qkt_model_differs(&m, all, m.size, 0) == SIZE_MAX);
	free(all);
	qkt_model_free(&m);
	close_faulty(f, s);
}

static void a_torn_write_keeps_whole_sectors_of_the_disk(void **state)
{
	(void)state;
	uint8_t bytes[1024];
	memset(bytes, 7, sizeof(bytes));
	/* [500, 1524): sectors 0 (12 bytes), 1 (512 bytes), 2 (500 bytes) */
	struct qkt_log_entry e = {
		.call = QKT_WRITE, .off = 500, .len = sizeof(bytes), .bytes = bytes};
	struct qkt_model m = qkt_model_new(2048);
	qkt_log_apply(&e, &m, 1, 1);
	for (size_t i = 0; i < 2048; i++)
		assert_int_equal(m.bytes[i], i >= 512 && i < 1024 ? 7 : 0);
	qkt_log_apply(&e, &m, 0, 1);
	for (size_t i = 0; i < 2048; i++)
		assert_int_equal(m.bytes[i], i >= 500 && i < 1024 ? 7 : 0);
	qkt_model_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_nth_write_fails_once),
		cmocka_unit_test(for_ever_goes_on_until_it_is_disarmed),
		cmocka_unit_test(short_does_the_first_half),
		cmocka_unit_test(the_log_replayed_gives_the_same_bytes),
		cmocka_unit_test(a_torn_write_keeps_whole_sectors_of_the_disk),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
