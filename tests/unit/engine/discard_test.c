/* SPDX-License-Identifier: MIT */
/*
 * Clusters that are set free, and the file system: which causes punch holes, when, and that zero clusters keep their
 * clusters where that was asked for. The stores below are the order checker's, which aborts on a hole that comes too early, and
 * one that counts; what readers see is an array of bytes.
 */
#include "cm.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <qcowkit/qcowkit.h>

#include "order.h"

#define CLUSTER UINT64_C(65536)
#define SIZE	(UINT64_C(16) << 20)
#define PASS_ALL                                                             \
	((uint32_t)(QCOW_DISCARD_PASS_REQUEST | QCOW_DISCARD_PASS_SNAPSHOT | \
		    QCOW_DISCARD_PASS_OTHER))

struct bench {
	struct qkt_order *order;
	struct qkt_fault *fault;
	struct qcow_store *base;
	struct qcow_image *image;
};

static enum qcow_status try_bench(
	struct bench *b, uint32_t version, uint32_t discard, bool extended, struct qcow_error *err)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	*b = (struct bench){.order = qkt_order_new(NULL), .fault = qkt_fault_new()};
	create.version = version;
	create.virtual_size = SIZE;
	create.cluster_size = CLUSTER;
	create.extended_l2 = extended;
	assert_ok(qcow_memory_open(0, &b->base, err), *err);
	assert_ok(qcow_create(b->base, NULL, &create, err), *err);
	o.flags = QCOW_OPEN_WRITE;
	o.discard = discard;
	return qcow_open(qkt_guard(b->fault, b->order, b->base, 0), &o, &b->image, err);
}

static struct bench new_bench(uint32_t version, uint32_t discard)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b;
	assert_ok(try_bench(&b, version, discard, false, &err), err);
	return b;
}

static void end_bench(struct bench *b)
{
	qcow_close(b->image);
	qkt_order_free(b->order);
	qkt_fault_free(b->fault);
}

static void write_clusters(struct bench *b, uint64_t first, uint64_t n, uint8_t byte)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *buf = malloc((size_t)(n * CLUSTER));
	memset(buf, byte, (size_t)(n * CLUSTER));
	assert_ok(qcow_pwrite(b->image, buf, (size_t)(n * CLUSTER), first * CLUSTER, 0, &err), err);
	free(buf);
}

static void discard(struct bench *b, uint64_t first, uint64_t n)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_discard(b->image, first * CLUSTER, n * CLUSTER, 0, &err), err);
}

static void flush(struct bench *b)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_flush(b->image, &err), err);
}

static void expect(struct bench *b, uint64_t cluster, uint8_t byte)
{
	static uint8_t got[CLUSTER], want[CLUSTER];
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_pread(b->image, got, sizeof(got), cluster * CLUSTER, &err), err);
	memset(want, byte, sizeof(want));
	assert_memory_equal(got, want, sizeof(got));
}

/* Where the guest cluster lies in the file; QCOW_NO_OFFSET: nowhere. */
static uint64_t host_of(struct bench *b, uint64_t cluster)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_extent e;
	assert_ok(qcow_map(b->image, cluster * CLUSTER, CLUSTER, 0, &e, &err), err);
	return (e.flags & QCOW_EXTENT_OFFSET) != 0 ? e.host_off : QCOW_NO_OFFSET;
}

/* Is the cluster at `off` of the file zeros, which none of these tests writes as data? */
static bool is_hole(struct bench *b, uint64_t off)
{
	static uint8_t got[CLUSTER];
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_store_read_padded(b->base, got, sizeof(got), off, &err), err);
	return got[0] == 0 && memcmp(got, got + 1, sizeof(got) - 1) == 0;
}

static uint64_t n_punches(struct bench *b)
{
	return qkt_fault_count(b->fault, QKT_PUNCH);
}

/* ---- which and when ---- */

static void discarded_clusters_are_punched_behind_the_barrier(void **state)
{
	(void)state;
	struct bench b = new_bench(3, QCOW_DISCARD_PASS_REQUEST);
	write_clusters(&b, 0, 8, 0x11);
	flush(&b);
	uint64_t at = host_of(&b, 2);
	discard(&b, 2, 3);
	assert_int_equal(n_punches(&b), 0);
	assert_false(is_hole(&b, at));
	flush(&b);
	/* one hole for all three */
	assert_int_equal(n_punches(&b), 1);
	for (uint64_t i = 0; i < 3; i++)
		assert_true(is_hole(&b, at + i * CLUSTER));
	assert_false(is_hole(&b, at + 3 * CLUSTER));
	/* used again afterwards */
	write_clusters(&b, 10, 1, 0x22);
	assert_int_equal(host_of(&b, 10), at);
	flush(&b);
	expect(&b, 10, 0x22);
	expect(&b, 2, 0);
	expect(&b, 5, 0x11);
	assert_int_equal(n_punches(&b), 1);
	end_bench(&b);
}

static void only_the_causes_that_were_asked_for_are_passed_on(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	static const uint32_t wanted[] = {0, QCOW_DISCARD_PASS_REQUEST, QCOW_DISCARD_PASS_SNAPSHOT,
		QCOW_DISCARD_PASS_OTHER, PASS_ALL};
	uint8_t *noise = calloc(1, CLUSTER);
	memset(noise, 7, CLUSTER / 2);
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		bool by_request = (wanted[i] & QCOW_DISCARD_PASS_REQUEST) != 0;
		bool by_others = (wanted[i] & QCOW_DISCARD_PASS_OTHER) != 0;
		struct bench b = new_bench(3, wanted[i]);
		write_clusters(&b, 0, 4, 0x11);
		assert_ok(
			qcow_write_compressed(b.image, noise, CLUSTER, 6 * CLUSTER, 0, &err), err);
		flush(&b);
		discard(&b, 0, 1);
		flush(&b);
		assert_int_equal(n_punches(&b), by_request ? 1 : 0);
		assert_ok(qcow_zero(b.image, CLUSTER, CLUSTER, QCOW_IO_UNMAP, &err), err);
		flush(&b);
		assert_int_equal(n_punches(&b), by_request ? 2 : 0);
		/* zeros that keep the cluster free none */
		assert_ok(qcow_zero(b.image, 2 * CLUSTER, CLUSTER, 0, &err), err);
		flush(&b);
		assert_int_equal(n_punches(&b), by_request ? 2 : 0);
		/* the only stream in its cluster */
		write_clusters(&b, 6, 1, 0x22);
		flush(&b);
		assert_int_equal(n_punches(&b), (by_request ? 2 : 0) + (by_others ? 1 : 0));
		expect(&b, 6, 0x22);
		end_bench(&b);
	}
	free(noise);
}

static void a_stream_beside_another_is_not_punched(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = new_bench(3, PASS_ALL);
	uint8_t *noise = calloc(1, CLUSTER);
	memset(noise, 7, CLUSTER / 2);
	assert_ok(qcow_write_compressed(b.image, noise, CLUSTER, 0, 0, &err), err);
	assert_ok(qcow_write_compressed(b.image, noise, CLUSTER, CLUSTER, 0, &err), err);
	flush(&b);
	discard(&b, 0, 1);
	flush(&b);
	assert_int_equal(n_punches(&b), 0);
	uint8_t *got = malloc(CLUSTER);
	assert_ok(qcow_pread(b.image, got, CLUSTER, CLUSTER, &err), err);
	assert_memory_equal(got, noise, CLUSTER);
	discard(&b, 1, 1);
	flush(&b);
	assert_int_equal(n_punches(&b), 1);
	free(got);
	free(noise);
	end_bench(&b);
}

static void a_hole_that_fails_is_nobodys_concern(void **state)
{
	(void)state;
	struct bench b = new_bench(3, PASS_ALL);
	write_clusters(&b, 0, 8, 0x11);
	flush(&b);
	/* other failures say nothing about the next hole */
	qkt_fault_arm(b.fault, QKT_PUNCH, 1, QKT_EIO, true);
	discard(&b, 0, 1);
	flush(&b);
	discard(&b, 2, 1);
	flush(&b);
	assert_int_equal(qkt_fault_hits(b.fault), 2);
	qkt_fault_disarm(b.fault);
	expect(&b, 0, 0);
	expect(&b, 1, 0x11);
	write_clusters(&b, 9, 2, 0x33);
	flush(&b);
	expect(&b, 9, 0x33);
	end_bench(&b);
}

static void a_failed_flush_punches_nothing(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	for (uint64_t nth = 1; nth <= 2; nth++) {
		struct bench b = new_bench(3, PASS_ALL);
		write_clusters(&b, 0, 8, 0x11);
		flush(&b);
		discard(&b, 0, 4);
		write_clusters(&b, 9, 1, 0x22);
		qkt_fault_arm(b.fault, QKT_FLUSH, nth, QKT_EIO, false);
		assert_int_equal(qcow_flush(b.image, &err), QCOW_E_IO);
		assert_int_equal(n_punches(&b), 0);
		qkt_fault_disarm(b.fault);
		assert_ok(qcow_recover(b.image, &err), err);
		flush(&b);
		expect(&b, 4, 0x11);
		end_bench(&b);
	}
}

/* ---- clusters that are kept ---- */

static void discarded_clusters_are_kept_for_the_next_write(void **state)
{
	(void)state;
	for (int extended = 0; extended < 2; extended++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct bench b;
		assert_ok(try_bench(&b, 3, PASS_ALL | QCOW_DISCARD_NO_UNREF, extended != 0, &err),
			err);
		write_clusters(&b, 0, 4, 0x11);
		flush(&b);
		uint64_t at = host_of(&b, 1);
		discard(&b, 1, 2);
		assert_false(is_hole(&b, at));
		flush(&b);
		assert_int_equal(host_of(&b, 1), at);
		assert_true(is_hole(&b, at));
		assert_true(is_hole(&b, at + CLUSTER));
		assert_false(is_hole(&b, at + 2 * CLUSTER));
		expect(&b, 1, 0);
		/* a part of it, in place; the rest is zeros */
		uint8_t some[512], got[1024];
		memset(some, 0x44, sizeof(some));
		assert_ok(qcow_pwrite(b.image, some, sizeof(some), CLUSTER + 4096, 0, &err), err);
		assert_int_equal(host_of(&b, 1), at);
		flush(&b);
		assert_ok(qcow_pread(b.image, got, sizeof(got), CLUSTER + 4096, &err), err);
		assert_memory_equal(got, some, sizeof(some));
		assert_int_equal(got[512], 0);
		end_bench(&b);
	}
}

/* What was written after the discard, before its flush, is not punched away. */
static void a_cluster_that_is_written_again_is_not_punched(void **state)
{
	(void)state;
	struct bench b = new_bench(3, PASS_ALL | QCOW_DISCARD_NO_UNREF);
	write_clusters(&b, 0, 4, 0x11);
	flush(&b);
	uint64_t at = host_of(&b, 1);
	discard(&b, 1, 1);
	write_clusters(&b, 1, 1, 0x22);
	flush(&b);
	assert_int_equal(n_punches(&b), 0);
	assert_int_equal(host_of(&b, 1), at);
	expect(&b, 1, 0x22);
	end_bench(&b);
}

static void version_2_cannot_keep_them(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b;
	assert_int_equal(try_bench(&b, 2, QCOW_DISCARD_NO_UNREF, false, &err), QCOW_E_INVAL);
	assert_non_null(strstr(err.message, "version 2"));
	end_bench(&b);
	assert_int_equal(try_bench(&b, 3, 16, false, &err), QCOW_E_INVAL);
	end_bench(&b);
}

/* ---- close ---- */

static void what_was_punched_at_the_end_is_cut_at_close(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	char path[] = "/tmp/qcowkit-discard-XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(unlink(path), 0);
	for (int pass = 0; pass < 2; pass++) {
		struct bench b = {.order = qkt_order_new(NULL), .fault = qkt_fault_new()};
		uint64_t full = 0, cut = 0;
		create.virtual_size = SIZE;
		assert_ok(qcow_file_open_fd(
				  dup(fd), QCOW_FILE_WRITE | QCOW_FILE_NO_LOCK, &store, &err),
			err);
		assert_ok(qcow_create(store, NULL, &create, &err), err);
		o.flags = QCOW_OPEN_WRITE;
		o.discard = pass != 0 ? PASS_ALL : 0;
		assert_ok(
			qcow_open(qkt_guard(b.fault, b.order, store, 0), &o, &b.image, &err), err);
		write_clusters(&b, 0, 8, 0x11);
		flush(&b);
		assert_ok(qcow_store_size(store, &full, &err), err);
		discard(&b, 4, 4);
		end_bench(&b);
		assert_ok(qcow_file_open_fd(dup(fd), QCOW_FILE_NO_LOCK, &store, &err), err);
		assert_ok(qcow_store_size(store, &cut, &err), err);
		assert_int_equal(cut, full - 4 * CLUSTER);
		struct qcow_open_options plain = QCOW_OPEN_OPTIONS_INIT;
		assert_ok(qcow_open(store, &plain, &b.image, &err), err);
		expect(&b, 3, 0x11);
		expect(&b, 4, 0);
		qcow_close(b.image);
	}
	assert_int_equal(close(fd), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(discarded_clusters_are_punched_behind_the_barrier),
		cmocka_unit_test(only_the_causes_that_were_asked_for_are_passed_on),
		cmocka_unit_test(a_stream_beside_another_is_not_punched),
		cmocka_unit_test(a_hole_that_fails_is_nobodys_concern),
		cmocka_unit_test(a_failed_flush_punches_nothing),
		cmocka_unit_test(discarded_clusters_are_kept_for_the_next_write),
		cmocka_unit_test(a_cluster_that_is_written_again_is_not_punched),
		cmocka_unit_test(version_2_cannot_keep_them),
		cmocka_unit_test(what_was_punched_at_the_end_is_cut_at_close),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
