/* SPDX-License-Identifier: MIT */
/*
 * Making images while every Nth allocation and every Nth call on the stores fails: the failure is called what
 * it is, nothing is left allocated, and no file has a header unless the finish said yes.
 */
#include "cm.h"

#include <stdlib.h>

#include <qcowkit/qcowkit.h>

#include "failmalloc.h"
#include "fault.h"

#define CLUSTER	  512U
#define DISK_SIZE (3U << 20)

static const char old_image[512] = "QFI\xfb what was here before";

/* After a failure the file is not taken for an image, unless it was not touched at all. */
static void judge_header(struct qcow_store *store, enum qcow_status status)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t head[512];

	assert_ok(qcow_store_read_padded(store, head, sizeof(head), 0, &err), err);
	bool has_magic = memcmp(head, "QFI\xfb", 4) == 0;
	bool is_old = memcmp(head, old_image, sizeof(head)) == 0;
	if (status == QCOW_OK)
		assert_true(has_magic && !is_old);
	else
		assert_true(!has_magic || is_old);
}

static enum qcow_status put_data(struct qcow_builder *b, struct qcow_store *store, uint64_t off,
	uint64_t end, struct qcow_error *err)
{
	static const uint8_t bytes[128 * CLUSTER] = {1};

	while (off < end) {
		uint64_t host = 0;
		uint64_t run = 0;
		enum qcow_status st = qcow_builder_reserve(b, off, sizeof(bytes), &host, &run, err);
		if (st == QCOW_OK)
			st = qcow_store_write(store, bytes, run, host, err);
		if (st != QCOW_OK)
			return st;
		off += run;
	}
	return QCOW_OK;
}

static enum qcow_status put_compressed(
	struct qcow_builder *b, enum qcow_compression method, struct qcow_error *err)
{
	static const uint8_t cluster[CLUSTER] = {2};
	struct qcow_codec *codec = NULL;
	uint8_t out[CLUSTER];
	uint8_t back[CLUSTER];
	size_t n = 0;
	enum qcow_status st = qcow_codec_new(method, CLUSTER, -1, &codec, err);

	if (st == QCOW_OK)
		st = qcow_codec_compress(codec, cluster, out, &n, err);
	if (st == QCOW_OK)
		st = qcow_codec_decompress(codec, out, n, back, err);
	if (st == QCOW_OK && memcmp(cluster, back, CLUSTER) != 0)
		fail_msg("the codec answers something else");
	for (uint64_t i = 0; i < 8 && st == QCOW_OK; i++)
		st = qcow_builder_compressed(b, i * CLUSTER, out, n, err);
	qcow_codec_free(codec);
	return st;
}

/* An overlay with compressed data, plain data and zeros, whose refcount table outgrows its cluster. */
static enum qcow_status build(struct qcow_store *store, struct qcow_error *err)
{
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_builder *b = NULL;

	o.cluster_size = CLUSTER;
	o.refcount_bits = 64;
	o.virtual_size = DISK_SIZE;
	o.backing_name = "base";
	o.backing_format = "raw";
	enum qcow_status st = qcow_builder_new(store, NULL, &o, &b, err);
	if (st != QCOW_OK)
		return st;
	st = put_compressed(b, QCOW_COMPRESSION_ZLIB, err);
	if (st == QCOW_OK)
		st = put_data(b, store, 128U * CLUSTER, DISK_SIZE - (1U << 18), err);
	if (st == QCOW_OK)
		st = qcow_builder_zero(b, DISK_SIZE - (1U << 18), 1U << 18, err);
	if (st == QCOW_OK)
		return qcow_builder_finish(b, err);
	qcow_builder_abandon(b);
	return st;
}

static enum qcow_status create(
	struct qcow_store *store, struct qcow_store *data, struct qcow_error *err)
{
	struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;

	o.virtual_size = DISK_SIZE;
	o.preallocation = QCOW_PREALLOC_FULL;
	o.data_file_name = data != NULL ? "data" : NULL;
	return qcow_create(store, data, &o, err);
}

/* Scenario 0: build. 1: preallocate. 2: the same with a data file. */
static enum qcow_status run_scenario(unsigned scenario, struct qcow_store *store,
	struct qcow_store *data, struct qcow_error *err)
{
	switch (scenario) {
	case 0:
		return build(store, err);
	case 1:
		return create(store, NULL, err);
	default:
		return create(store, data, err);
	}
}

static void open_stores(struct qkt_fault *f, struct qcow_store **store, struct qcow_store **data)
{
	struct qcow_error err = QCOW_ERROR_INIT;

	assert_ok(qcow_memory_open(0, store, &err), err);
	assert_ok(qcow_memory_open(0, data, &err), err);
	assert_ok(qcow_store_write(*store, old_image, sizeof(old_image), 0, &err), err);
	if (f == NULL)
		return;
	*store = qkt_fault_wrap(f, *store, 0);
	*data = qkt_fault_wrap(f, *data, 1);
}

static void every_store_call_that_fails_leaves_no_header(void **state)
{
	(void)state;
	for (unsigned scenario = 0; scenario < 3; scenario++) {
		uint64_t n_failed = 0;
		for (uint64_t nth = 1;; nth++) {
			struct qkt_fault *f = qkt_fault_new();
			struct qcow_store *store = NULL;
			struct qcow_store *data = NULL;
			struct qcow_error err = QCOW_ERROR_INIT;
			open_stores(f, &store, &data);
			qkt_fault_arm(f, QKT_ANY, nth, QKT_ENOSPC, (nth & 1) != 0);
			enum qcow_status st = run_scenario(scenario, store, data, &err);
			uint64_t hits = qkt_fault_hits(f);
			qkt_fault_disarm(f);
			assert_int_equal(st, hits != 0 ? QCOW_E_NOSPC : QCOW_OK);
			assert_int_equal(err.status, st);
			judge_header(store, st);
			qcow_store_close(store);
			qcow_store_close(data);
			qkt_fault_free(f);
			if (hits == 0)
				break;
			n_failed++;
		}
		assert_true(n_failed >= 8);
	}
}

/* Every state after a crash has no header, or all that it names: sector 0 is alone between two barriers. */
static void a_durable_image_gets_its_header_after_a_barrier(void **state)
{
	(void)state;
	for (unsigned with_data = 0; with_data < 2; with_data++) {
		struct qkt_fault *f = qkt_fault_new();
		struct qcow_store *store = NULL;
		struct qcow_store *data = NULL;
		struct qcow_error err = QCOW_ERROR_INIT;
		struct qcow_create_options o = QCOW_CREATE_OPTIONS_INIT;
		open_stores(f, &store, &data);
		qkt_fault_log(f);
		o.virtual_size = DISK_SIZE;
		o.preallocation = QCOW_PREALLOC_FULL;
		o.data_file_name = with_data == 1 ? "data" : NULL;
		o.durable = true;
		assert_ok(qcow_create(store, with_data == 1 ? data : NULL, &o, &err), err);
		size_t n = qkt_fault_log_count(f);
		assert_true(n > 8);
		/* ... flush [flush] sector-0 [flush] flush */
		assert_int_equal(qkt_fault_log_entry(f, n - 1)->call, QKT_FLUSH);
		size_t header = n - 2 - with_data;
		assert_int_equal(qkt_fault_log_entry(f, header)->call, QKT_WRITE);
		assert_int_equal(qkt_fault_log_entry(f, header)->off, 0);
		assert_int_equal(qkt_fault_log_entry(f, header)->len, 512);
		for (size_t i = header - 1 - with_data; i < header; i++)
			assert_int_equal(qkt_fault_log_entry(f, i)->call, QKT_FLUSH);
		/* the old header goes first, and for good */
		assert_int_equal(qkt_fault_log_entry(f, 0)->call, QKT_TRUNCATE);
		assert_int_equal(qkt_fault_log_entry(f, 1)->call, QKT_FLUSH);
		qcow_store_close(store);
		qcow_store_close(data);
		qkt_fault_free(f);
	}
}

static void sweep_allocations(bool for_ever)
{
	for (unsigned scenario = 0; scenario < 3; scenario++) {
		uint64_t n_failed = 0;
		for (uint64_t nth = 1;; nth++) {
			struct qcow_store *store = NULL;
			struct qcow_store *data = NULL;
			struct qcow_error err = QCOW_ERROR_INIT;
			int64_t live = qkt_failmalloc_live();
			open_stores(NULL, &store, &data);
			qkt_failmalloc_arm(nth, for_ever);
			enum qcow_status st = run_scenario(scenario, store, data, &err);
			uint64_t hits = qkt_failmalloc_hits();
			qkt_failmalloc_arm(0, false);
			if (hits != 0 && st != QCOW_E_NOMEM)
				fail_msg("scenario %u, allocation %llu: %s", scenario,
					(unsigned long long)nth, qcow_status_name(st));
			judge_header(store, st);
			qcow_store_close(store);
			qcow_store_close(data);
			assert_int_equal(qkt_failmalloc_live(), live);
			if (hits == 0)
				break;
			n_failed++;
		}
		assert_true(n_failed >= 8);
	}
}

static void every_allocation_that_fails_once_leaves_no_header(void **state)
{
	(void)state;
	sweep_allocations(false);
}

static void every_allocation_from_the_nth_on_leaves_no_header(void **state)
{
	(void)state;
	sweep_allocations(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_store_call_that_fails_leaves_no_header),
		cmocka_unit_test(a_durable_image_gets_its_header_after_a_barrier),
		cmocka_unit_test(every_allocation_that_fails_once_leaves_no_header),
		cmocka_unit_test(every_allocation_from_the_nth_on_leaves_no_header),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
