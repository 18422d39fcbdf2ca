/* SPDX-License-Identifier: MIT */
/*
 * Images with a data file, open for writing: what is given up goes back to the host and nothing else does, short files and
 * ends of disks, raw data files that are the disk, refusals, flushes that fail in either file. Files are made by qemu-img.
 */
#include "cm.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qcowkit/manage.h>
#include <qcowkit/qcowkit.h>

#include "host.h"
#include "order.h"

#define CLUSTER UINT64_C(65536)
#define SIZE	(16 * CLUSTER)

struct bench {
	struct qkt_order *order;
	struct qkt_fault *fault;
	struct qcow_image *image;
};

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	struct bench *b = ctx;
	(void)ref;
	enum qcow_status status = qcow_file_open(
		qkt_path("data"), QCOW_FILE_WRITE, &out->store, err);
	if (status == QCOW_OK)
		out->store = qkt_guard_data(b->fault, b->order, out->store, 1);
	return status;
}

/* b->image is NULL, and b->order idle, where the open fails. */
static enum qcow_status open_bench_for(
	struct bench *b, uint32_t flags, uint32_t passes, struct qcow_error *err)
{
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *base = NULL;
	*b = (struct bench){.order = qkt_order_new(NULL), .fault = qkt_fault_new()};
	o.flags = QCOW_OPEN_WRITE | flags;
	o.discard = passes;
	o.resolve = resolve;
	o.resolve_ctx = b;
	assert_ok(qcow_file_open(qkt_path("img"), QCOW_FILE_WRITE, &base, err), *err);
	return qcow_open(qkt_guard(b->fault, b->order, base, 0), &o, &b->image, err);
}

static enum qcow_status open_bench(struct bench *b, uint32_t flags, struct qcow_error *err)
{
	return open_bench_for(b, flags, QCOW_DISCARD_PASS_REQUEST, err);
}

static struct bench make(const char *options, uint64_t size)
{
	struct bench b;
	struct qcow_error err = QCOW_ERROR_INIT;
	qkt_must("rm -f img data && qemu-img create -q -f qcow2 -o data_file=data%s img %" PRIu64,
		options, size);
	assert_ok(open_bench(&b, 0, &err), err);
	return b;
}

static void end(struct bench *b)
{
	qcow_close(b->image);
	qkt_order_free(b->order);
	qkt_fault_free(b->fault);
}

static void fill(struct bench *b, uint64_t off, uint64_t len, int value)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *bytes = malloc(len);
	assert_non_null(bytes);
	memset(bytes, value, len);
	assert_ok(qcow_pwrite(b->image, bytes, len, off, 0, &err), err);
	free(bytes);
}

static void flush(struct bench *b)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_flush(b->image, &err), err);
}

static void discard(struct bench *b, uint64_t off, uint64_t len)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	assert_ok(qcow_discard(b->image, off, len, 0, &err), err);
}

static uint64_t size_of(const char *name)
{
	struct stat st;
	assert_int_equal(stat(qkt_path(name), &st), 0);
	return (uint64_t)st.st_size;
}

/* Does [off, off + len) of the data file hold nothing but `value`? What it lacks are zeros. */
static bool holds(uint64_t off, uint64_t len, int value)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	uint8_t *bytes = malloc(len);
	bool same = true;
	assert_non_null(bytes);
	assert_ok(qcow_file_open(qkt_path("data"), QCOW_FILE_SHARE, &store, &err), err);
	assert_ok(qcow_store_read_padded(store, bytes, len, off, &err), err);
	for (uint64_t i = 0; i < len; i++)
		same = same && bytes[i] == value;
	qcow_store_close(store);
	free(bytes);
	return same;
}

/* ---- what is given up ---- */

static void what_is_given_up_is_punched_after_the_flush(void **state)
{
	(void)state;
	const char *const options[] = {"", ",extended_l2=on"};
	for (size_t i = 0; i < 2; i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct bench b = make(options[i], SIZE);
		fill(&b, 0, SIZE, 7);
		flush(&b);
		discard(&b, 0, 3 * CLUSTER);
		assert_ok(qcow_zero(b.image, 5 * CLUSTER, CLUSTER, QCOW_IO_UNMAP, &err), err);
		assert_ok(qcow_zero(b.image, 8 * CLUSTER, CLUSTER, 0, &err), err);
		assert_true(holds(0, SIZE, 7));
		assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 0);
		flush(&b);
		assert_true(holds(0, 3 * CLUSTER, 0) && holds(5 * CLUSTER, CLUSTER, 0));
		assert_true(holds(3 * CLUSTER, 2 * CLUSTER, 7));
		/* zeros that keep their space */
		assert_true(holds(6 * CLUSTER, SIZE - 6 * CLUSTER, 7));
		assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 2);
		end(&b);
		qkt_must("qemu-img check -q img && qemu-io -r -c 'read -P 0 0 192k' -c 'read -P 7 "
			 "192k 128k' -c 'read -P 0 512k 64k' img | grep -v -q -i pattern");
	}
}

/* A cluster has one place: what is written there after the discard must not be punched. */
static void what_is_written_again_is_not_punched(void **state)
{
	(void)state;
	struct bench b = make("", SIZE);
	fill(&b, 0, SIZE, 7);
	flush(&b);
	discard(&b, 0, 4 * CLUSTER);
	fill(&b, CLUSTER, 512, 9);
	flush(&b);
	assert_true(holds(0, CLUSTER, 0));
	assert_true(holds(CLUSTER, 512, 9) && holds(CLUSTER + 512, CLUSTER - 512, 0));
	assert_true(holds(2 * CLUSTER, 2 * CLUSTER, 0));
	assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 2);
	end(&b);
	qkt_must("qemu-img check -q img && qemu-io -r -c 'read -P 9 64k 512' -c 'read -P 0 66048 "
		 "65024' img | grep -v -q -i pattern");
}

/* Clusters stay with zero clusters, their space goes; what is written there again stays. */
static void what_stays_with_zero_clusters_is_punched_too(void **state)
{
	(void)state;
	const char *const options[] = {"", ",extended_l2=on"};
	for (size_t i = 0; i < 2; i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct bench b = make(options[i], SIZE);
		end(&b);
		assert_ok(open_bench_for(
				  &b, 0, QCOW_DISCARD_PASS_REQUEST | QCOW_DISCARD_NO_UNREF, &err),
			err);
		fill(&b, 0, SIZE, 7);
		flush(&b);
		discard(&b, 0, 3 * CLUSTER);
		discard(&b, 5 * CLUSTER, 2 * CLUSTER);
		fill(&b, 5 * CLUSTER, 512, 9);
		assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 0);
		flush(&b);
		assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 2);
		assert_true(holds(0, 3 * CLUSTER, 0) && holds(6 * CLUSTER, CLUSTER, 0));
		assert_true(holds(3 * CLUSTER, 2 * CLUSTER, 7) && holds(5 * CLUSTER, 512, 9));
		fill(&b, CLUSTER, 512, 8);
		end(&b);
		assert_true(holds(CLUSTER, 512, 8));
		qkt_must("qemu-img check -q img && qemu-io -r -c 'read -P 0 0 64k' -c 'read -P 8 "
			 "64k 512' -c 'read -P 0 66048 65024' -c 'read -P 9 320k 512' -c 'read -P "
			 "0 384k 64k' img | grep -v -q -i pattern");
	}
}

static void nothing_is_punched_that_nobody_asked_for(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = make("", SIZE);
	end(&b);
	assert_ok(open_bench_for(&b, 0, QCOW_DISCARD_PASS_OTHER | QCOW_DISCARD_PASS_SNAPSHOT, &err),
		err);
	fill(&b, 0, SIZE, 7);
	flush(&b);
	discard(&b, 0, 3 * CLUSTER);
	assert_ok(qcow_zero(b.image, 5 * CLUSTER, CLUSTER, QCOW_IO_UNMAP, &err), err);
	flush(&b);
	assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 0);
	end(&b);
	assert_true(holds(0, SIZE, 7));
	/* who reads a raw data file alone finds the zeros all the same */
	b = make(",data_file_raw=on", SIZE);
	end(&b);
	assert_ok(open_bench_for(&b, 0, 0, &err), err);
	fill(&b, 0, SIZE, 7);
	discard(&b, CLUSTER, 3 * CLUSTER);
	assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 0);
	assert_true(holds(0, CLUSTER, 7) && holds(CLUSTER, 3 * CLUSTER, 0));
	end(&b);
	qkt_must("qemu-img check -q img && qemu-img compare -q -f qcow2 -F raw img data");
}

/* An overlay that gives up everything: what the file holds beside what entries name is nobody's business. */
static void what_an_emptied_overlay_had_is_punched(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	for (unsigned nth = 0; nth < 2; nth++) {
		struct bench b = make("", SIZE);
		fill(&b, CLUSTER, 3 * CLUSTER, 7);
		fill(&b, 8 * CLUSTER, 8 * CLUSTER, 7);
		discard(&b, 14 * CLUSTER, 2 * CLUSTER);
		end(&b);
		qkt_must("printf x | dd of=data conv=notrunc bs=1 seek=350000 status=none && "
			 "printf x | dd of=data conv=notrunc bs=1 seek=5 status=none && "
			 "qemu-img create -q -f raw base 1M && "
			 "qemu-img rebase -u -b base -F raw img");
		assert_ok(open_bench(&b, QCOW_OPEN_NO_BACKING, &err), err);
		if (nth == 1)
			qkt_fault_arm(b.fault, QKT_FLUSH, 1, QKT_EIO, false);
		assert_int_equal(qcow_empty(b.image, &err), nth == 1 ? QCOW_E_IO : QCOW_OK);
		if (nth == 0) {
			assert_true(holds(CLUSTER, 3 * CLUSTER, 0) &&
				    holds(10 * CLUSTER, 4 * CLUSTER, 0));
			assert_true(holds(5, 1, 'x') && holds(350000, 1, 'x'));
		} else {
			assert_true(holds(CLUSTER, 3 * CLUSTER, 7));
		}
		qkt_fault_disarm(b.fault);
		end(&b);
		qkt_must("qemu-img check -q img");
	}
}

/* ---- ends ---- */

static void short_data_file_grows(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = make("", SIZE);
	uint8_t got[1024];
	fill(&b, 0, SIZE, 7);
	end(&b);
	/* what it lacks reads as zeros, by the entries that name it */
	qkt_must("truncate -s 100000 data");
	assert_ok(open_bench(&b, 0, &err), err);
	fill(&b, 4 * CLUSTER + 512, 100, 5);
	assert_ok(qcow_pread(b.image, got, sizeof(got), 4 * CLUSTER, &err), err);
	assert_true(got[511] == 0 && got[512] == 5 && got[611] == 5 && got[612] == 0);
	flush(&b);
	end(&b);
	assert_int_equal(size_of("data"), 4 * CLUSTER + 612);
	qkt_must("qemu-io -r -c 'read -P 5 262656 100' -c 'read -P 7 0 100000' img | "
		 "grep -v -q -i pattern");
}

/* Nothing is written past the end of the disk: a device may end there. */
static void data_file_ends_with_the_disk(void **state)
{
	(void)state;
	const char *const options[] = {"", ",extended_l2=on", ",cluster_size=4k"};
	const uint64_t size = 3 * CLUSTER + 1536;
	for (size_t i = 0; i < 3; i++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct bench b = make(options[i], size);
		fill(&b, size - 100, 100, 7);
		fill(&b, 5, 10, 7);
		flush(&b);
		assert_int_equal(size_of("data"), size);
		discard(&b, 0, size);
		flush(&b);
		fill(&b, size - 1000, 100, 7);
		assert_ok(qcow_zero(b.image, size - 950, 950, 0, &err), err);
		end(&b);
		assert_int_equal(size_of("data"), size);
		qkt_must("qemu-img check -q img && qemu-img convert -O raw img raw && truncate -s "
			 "%" PRIu64 " data && cmp raw data",
			size);
	}
}

/* ---- raw ---- */

static void raw_data_file_is_the_disk(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = make(",data_file_raw=on", SIZE);
	fill(&b, 0, SIZE, 7);
	assert_ok(qcow_zero(b.image, 100, CLUSTER, 0, &err), err);
	assert_ok(qcow_zero(b.image, 4 * CLUSTER, CLUSTER, QCOW_IO_UNMAP, &err), err);
	discard(&b, 6 * CLUSTER - 9, CLUSTER + 20);
	assert_true(holds(0, 100, 7) && holds(100, CLUSTER, 0) && holds(CLUSTER + 100, 900, 7));
	assert_true(holds(4 * CLUSTER, CLUSTER, 0) && holds(6 * CLUSTER, CLUSTER, 0));
	assert_true(holds(7 * CLUSTER, 100, 7) && holds(5 * CLUSTER, CLUSTER, 7));
	assert_int_equal(qcow_zero(b.image, 0, 4096, QCOW_IO_FAST, &err), QCOW_E_NOTSUP);
	end(&b);
	qkt_must("qemu-img check -q img && qemu-img compare -q -f qcow2 -F raw img data");
}

/* A writer that was killed before its entry was durable: the guest sees zeros there, the file has something else. */
static void zeros_reach_a_raw_data_file_where_nothing_is_allocated(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = make("", SIZE);
	end(&b);
	qkt_must("printf '\\002' | dd of=img bs=1 seek=95 conv=notrunc status=none && head -c %u "
		 "/dev/zero | tr '\\0' '\\7' >data",
		(unsigned)SIZE);
	assert_ok(open_bench(&b, 0, &err), err);
	assert_ok(qcow_zero(b.image, CLUSTER + 512, 2 * CLUSTER, 0, &err), err);
	discard(&b, 8 * CLUSTER, CLUSTER);
	end(&b);
	assert_true(holds(CLUSTER + 512, 2 * CLUSTER, 0) && holds(8 * CLUSTER, CLUSTER, 0));
	assert_true(holds(0, CLUSTER + 512, 7) && holds(9 * CLUSTER, CLUSTER, 7));
}

/* ---- refusals ---- */

static void refuse(uint32_t flags, enum qcow_status want, const char *words)
{
	struct bench b;
	struct qcow_error err = QCOW_ERROR_INIT;
	if (open_bench(&b, flags, &err) != want)
		fail_msg("%d: %s", err.status, err.message);
	if (strstr(err.message, words) == NULL)
		fail_msg("no '%s' in '%s'", words, err.message);
	qkt_order_free(b.order);
	qkt_fault_free(b.fault);
}

static enum qcow_status resolve_read_only(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	(void)ctx;
	(void)ref;
	return qcow_file_open(qkt_path("data"), 0, &out->store, err);
}

static void what_cannot_be_kept_is_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *base = NULL;
	struct qcow_image *image = NULL;
	struct bench b = make("", SIZE);
	uint8_t *cluster = calloc(1, CLUSTER);
	assert_int_equal(
		qcow_write_compressed(b.image, cluster, CLUSTER, 0, 0, &err), QCOW_E_UNSUPPORTED);
	assert_non_null(strstr(err.message, "data file"));
	free(cluster);
	end(&b);
	refuse(QCOW_OPEN_NO_DATA_FILE, QCOW_E_POLICY, "'data' was not opened");
	o.flags = QCOW_OPEN_WRITE;
	o.resolve = resolve_read_only;
	assert_ok(qcow_file_open(qkt_path("img"), QCOW_FILE_WRITE, &base, &err), err);
	assert_int_equal(qcow_open(base, &o, &image, &err), QCOW_E_READONLY);
	assert_non_null(strstr(err.message, "data file"));
}

/* ---- failures ---- */

static void failed_flush_of_either_file_fences_and_recovers(void **state)
{
	(void)state;
	/* the data file's, the image's before the entries, the image's behind them */
	for (unsigned nth = 1; nth <= 3; nth++) {
		struct qcow_error err = QCOW_ERROR_INIT;
		struct bench b = make("", SIZE);
		uint8_t got[512];
		fill(&b, 0, CLUSTER, 3);
		flush(&b);
		fill(&b, 2 * CLUSTER, CLUSTER, 4);
		discard(&b, 0, CLUSTER);
		qkt_fault_arm(b.fault, QKT_FLUSH, nth, QKT_EIO, false);
		assert_int_equal(qcow_flush(b.image, &err), QCOW_E_IO);
		assert_int_equal(qkt_fault_count(b.fault, QKT_PUNCH), 0);
		assert_true(holds(0, CLUSTER, 3));
		qkt_fault_disarm(b.fault);
		assert_int_equal(qcow_pwrite(b.image, got, 1, 0, 0, &err), QCOW_E_IO);
		assert_ok(qcow_recover(b.image, &err), err);
		fill(&b, 2 * CLUSTER, CLUSTER, 5);
		flush(&b);
		assert_ok(qcow_pread(b.image, got, sizeof(got), 2 * CLUSTER, &err), err);
		assert_int_equal(got[0], 5);
		end(&b);
		qkt_must("qemu-img check -q img && qemu-io -r -c 'read -P 5 128k 64k' img | "
			 "grep -v -q -i pattern");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_given_up_is_punched_after_the_flush),
		cmocka_unit_test(what_is_written_again_is_not_punched),
		cmocka_unit_test(what_stays_with_zero_clusters_is_punched_too),
		cmocka_unit_test(nothing_is_punched_that_nobody_asked_for),
		cmocka_unit_test(what_an_emptied_overlay_had_is_punched),
		cmocka_unit_test(short_data_file_grows),
		cmocka_unit_test(data_file_ends_with_the_disk),
		cmocka_unit_test(raw_data_file_is_the_disk),
		cmocka_unit_test(zeros_reach_a_raw_data_file_where_nothing_is_allocated),
		cmocka_unit_test(what_cannot_be_kept_is_refused),
		cmocka_unit_test(failed_flush_of_either_file_fences_and_recovers),
	};
	qkt_need_program("qemu-img", "qemu-utils");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
