/* SPDX-License-Identifier: MIT */
/*
 * qcow_convert on stores in memory: every byte against an array, every number of workers against one,
 * and a target or source that fails at its Nth call. What QEMU says of the images is in tests/cli.
 */
#include "cm.h"

#include <stdatomic.h>
#include <stdlib.h>

#include <qcowkit/ops.h>

#include "rng.h"

#define DISK_BYTES ((size_t)3 << 20)

static uint8_t disk[DISK_BYTES];
static struct qcow_error err;

/* Text-like, random, zero and single-byte stretches of odd lengths. */
static void make_disk(uint64_t seed)
{
	struct qkt_rng rng = qkt_rng_init(seed);
	for (size_t at = 0; at < DISK_BYTES;) {
		uint8_t head[8];
		qkt_rng_fill(&rng, head, sizeof(head));
		size_t n = ((size_t)head[0] << 10 | head[1]) + 1;
		n = n < DISK_BYTES - at ? n : DISK_BYTES - at;
		if (head[2] % 4 == 0)
			qkt_rng_fill(&rng, disk + at, n);
		else if (head[2] % 4 == 1)
			for (size_t i = 0; i < n; i++)
				disk[at + i] = (uint8_t)(i % (head[3] + 1u));
		else
			memset(disk + at, 0, n);
		at += n;
	}
}

/* ---- a store that fails at its Nth call ---- */

struct flaky {
	struct qcow_store *under;
	atomic_long left; /* calls before the failure; negative: never */
};

static bool is_due(struct flaky *f)
{
	return atomic_load(&f->left) >= 0 && atomic_fetch_sub(&f->left, 1) <= 0;
}

static enum qcow_status flaky_status(struct qcow_error *e)
{
	if (e != NULL) {
		*e = (struct qcow_error)QCOW_ERROR_INIT;
		e->status = QCOW_E_IO;
		(void)snprintf(e->message, sizeof(e->message), "flaky");
	}
	return QCOW_E_IO;
}

static enum qcow_status flaky_preadv(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *e)
{
	struct flaky *f = ctx;
	return is_due(f) ? flaky_status(e) : qcow_store_readv(f->under, iov, n, off, e);
}

static enum qcow_status flaky_pwritev(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *e)
{
	struct flaky *f = ctx;
	return is_due(f) ? flaky_status(e) : qcow_store_writev(f->under, iov, n, off, e);
}

static enum qcow_status flaky_flush(void *ctx, struct qcow_error *e)
{
	struct flaky *f = ctx;
	return qcow_store_flush(f->under, e);
}

static enum qcow_status flaky_size(void *ctx, uint64_t *size, struct qcow_error *e)
{
	struct flaky *f = ctx;
	return qcow_store_size(f->under, size, e);
}

static enum qcow_status flaky_truncate(void *ctx, uint64_t size, struct qcow_error *e)
{
	struct flaky *f = ctx;
	return is_due(f) ? flaky_status(e) : qcow_store_truncate(f->under, size, e);
}

static void flaky_caps(void *ctx, struct qcow_store_caps *out)
{
	struct flaky *f = ctx;
	qcow_store_caps(f->under, out);
}

static void flaky_close(void *ctx)
{
	struct flaky *f = ctx;
	qcow_store_close(f->under);
}

static const struct qcow_store_ops flaky_ops = {
	.abi = QCOW_STORE_ABI,
	.name = "flaky",
	.preadv = flaky_preadv,
	.pwritev = flaky_pwritev,
	.flush = flaky_flush,
	.size = flaky_size,
	.truncate = flaky_truncate,
	.caps = flaky_caps,
	.close = flaky_close,
};

/* ---- opening ---- */

static struct qcow_store *memory(void)
{
	struct qcow_store *store = NULL;
	assert_ok(qcow_memory_open(0, &store, &err), err);
	return store;
}

static struct qcow_store *flaky_memory(struct flaky *f)
{
	struct qcow_store *store = NULL;
	*f = (struct flaky){.under = memory(), .left = -1};
	assert_ok(qcow_store_new(&flaky_ops, f, &store, &err), err);
	return store;
}

/* A raw image over `store`, which gets `n` bytes of the disk. */
static struct qcow_image *open_raw(struct qcow_store *store, size_t n)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	assert_ok(qcow_store_write(store, disk, n, 0, &err), err);
	options.format = "raw";
	assert_ok(qcow_open(store, &options, &image, &err), err);
	return image;
}

static uint8_t *bytes_of(struct qcow_store *store, uint64_t *n)
{
	assert_ok(qcow_store_size(store, n, &err), err);
	uint8_t *bytes = malloc(*n + 1);
	assert_non_null(bytes);
	assert_ok(qcow_store_read(store, bytes, *n, 0, &err), err);
	return bytes;
}

/* The guest's bytes of a qcow2 image in `store` (which is closed) are those of the disk. */
static void assert_holds_disk(struct qcow_store *store)
{
	struct qcow_open_options options = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	options.format = "qcow2";
	assert_ok(qcow_open(store, &options, &image, &err), err);
	assert_int_equal(qcow_size(image), DISK_BYTES);
	uint8_t *got = malloc(DISK_BYTES);
	assert_non_null(got);
	assert_ok(qcow_pread(image, got, DISK_BYTES, 0, &err), err);
	assert_memory_equal(got, disk, DISK_BYTES);
	free(got);
	qcow_close(image);
}

struct watch {
	uint64_t last, total, cancel_at;
	bool broken;
};

static void report(void *ctx, uint64_t done, uint64_t total)
{
	struct watch *w = ctx;
	w->broken = w->broken || done < w->last || done > total;
	w->last = done;
	w->total = total;
}

static bool cancelled(void *ctx)
{
	const struct watch *w = ctx;
	return w->cancel_at != 0 && w->last >= w->cancel_at;
}

/* ---- tests ---- */

static void workers_make_the_same_bytes_and_every_byte_counts(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 6; round++) {
		make_disk(1000 + round);
		struct qcow_image *source = open_raw(memory(), DISK_BYTES);
		uint8_t *first = NULL;
		uint64_t first_bytes = 0;
		for (unsigned workers = 1; workers <= 16; workers += 5) {
			struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
			struct qcow_convert_result result;
			struct watch watch = {0};
			struct qcow_store *target = memory();
			options.sources = &source;
			options.n_sources = 1;
			options.n_workers = workers;
			options.compress = round % 2 == 1;
			options.create.cluster_size = UINT64_C(512) << (round * 2);
			options.progress = (struct qcow_progress){report, cancelled, &watch};
			assert_ok(qcow_convert(target, NULL, &options, &result, &err), err);
			assert_false(watch.broken);
			assert_int_equal(watch.last, DISK_BYTES);
			assert_int_equal(watch.total, DISK_BYTES);
			if (!options.compress)
				assert_int_equal(
					result.bytes_written + result.bytes_zero, DISK_BYTES);
			uint64_t n = 0;
			uint8_t *bytes = bytes_of(target, &n);
			if (first == NULL) {
				first = bytes;
				first_bytes = n;
			} else {
				assert_int_equal(n, first_bytes);
				assert_memory_equal(bytes, first, n);
				free(bytes);
			}
			assert_holds_disk(target);
		}
		free(first);
		qcow_close(source);
	}
}

static void raw_target_gets_every_byte_whatever_was_there(void **state)
{
	(void)state;
	make_disk(7);
	struct qcow_image *source = open_raw(memory(), DISK_BYTES);
	for (unsigned keep = 0; keep < 2; keep++) {
		struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
		struct qcow_store *target = memory();
		uint8_t *junk = malloc(DISK_BYTES + 4096);
		assert_non_null(junk);
		memset(junk, 0xa5, DISK_BYTES + 4096);
		assert_ok(qcow_store_write(target, junk, DISK_BYTES + 4096, 0, &err), err);
		options.format = "raw";
		options.sources = &source;
		options.n_sources = 1;
		options.n_workers = 8;
		options.keep_target = keep == 1;
		options.out_of_order = true;
		assert_ok(qcow_convert(target, NULL, &options, NULL, &err), err);
		uint64_t n = 0;
		uint8_t *bytes = bytes_of(target, &n);
		assert_int_equal(n, keep == 1 ? DISK_BYTES + 4096 : DISK_BYTES);
		assert_memory_equal(bytes, disk, DISK_BYTES);
		if (keep == 1)
			assert_memory_equal(bytes + DISK_BYTES, junk + DISK_BYTES, 4096);
		free(bytes);
		free(junk);
		qcow_store_close(target);
	}
	qcow_close(source);
}

/* Run with a failure at call `at` of the target (or source); true once nothing failed. */
static bool fails_at(long at, bool in_source, unsigned workers)
{
	struct flaky source_flaky, target_flaky;
	struct qcow_store *source_store = flaky_memory(&source_flaky);
	struct qcow_store *target = flaky_memory(&target_flaky);
	struct qcow_image *source = open_raw(source_store, DISK_BYTES);
	struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
	options.sources = &source;
	options.n_sources = 1;
	options.n_workers = workers;
	atomic_store(in_source ? &source_flaky.left : &target_flaky.left, at);
	enum qcow_status status = qcow_convert(target, NULL, &options, NULL, &err);
	atomic_store(&source_flaky.left, -1);
	atomic_store(&target_flaky.left, -1);
	if (status != QCOW_OK) {
		uint8_t magic[4] = {0};
		uint64_t size = 0;
		assert_int_equal(status, QCOW_E_IO);
		assert_says(err, "flaky");
		assert_ok(qcow_store_size(target, &size, &err), err);
		if (size >= sizeof(magic))
			assert_ok(qcow_store_read(target, magic, sizeof(magic), 0, &err), err);
		/* never something that opens */
		assert_memory_not_equal(magic, "QFI\xfb", 4);
		qcow_store_close(target);
	} else {
		assert_holds_disk(target);
	}
	qcow_close(source);
	return status == QCOW_OK;
}

static void failing_call_ends_the_run_and_leaves_no_image(void **state)
{
	(void)state;
	make_disk(99);
	for (unsigned workers = 1; workers <= 8; workers += 7)
		for (int in_source = 0; in_source < 2; in_source++) {
			long at = 0;
			while (!fails_at(at, in_source == 1, workers)) {
				at++;
				assert_true(at < 10000);
			}
			assert_true(at > 3);
		}
}

static void cancelling_stops_and_says_so(void **state)
{
	(void)state;
	make_disk(5);
	struct qcow_image *source = open_raw(memory(), DISK_BYTES);
	struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
	struct watch watch = {.cancel_at = DISK_BYTES / 2};
	struct qcow_store *target = memory();
	options.sources = &source;
	options.n_sources = 1;
	options.n_workers = 2;
	options.progress = (struct qcow_progress){report, cancelled, &watch};
	assert_status(qcow_convert(target, NULL, &options, NULL, &err), QCOW_E_CANCELLED, err);
	qcow_store_close(target);
	qcow_close(source);
}

static bool cancelled_after_a_while(void *ctx)
{
	unsigned *left = ctx;
	return *left == 0 || --*left == 0;
}

/* A long hole is one piece of work: the preallocation of its clusters has to ask as well. */
static void cancelling_stops_preallocation_too(void **state)
{
	(void)state;
	struct qcow_store *sparse = NULL, *target = memory();
	assert_ok(qcow_memory_open(UINT64_C(8) << 30, &sparse, &err), err);
	struct qcow_image *source = open_raw(sparse, 1);
	struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
	unsigned left = 200;
	options.sources = &source;
	options.n_sources = 1;
	options.create.cluster_size = 4096;
	options.create.preallocation = QCOW_PREALLOC_METADATA;
	options.progress = (struct qcow_progress){NULL, cancelled_after_a_while, &left};
	assert_status(qcow_convert(target, NULL, &options, NULL, &err), QCOW_E_CANCELLED, err);
	qcow_store_close(target);
	qcow_close(source);
}

/* As in QEMU, whose disks are whole sectors: what follows a source of an odd size begins at the next. */
static void sources_begin_at_sectors(void **state)
{
	(void)state;
	static const size_t sizes[] = {1000, 512, 1, 70001};
	make_disk(6);
	for (unsigned is_qcow2 = 0; is_qcow2 < 2; is_qcow2++) {
		struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
		struct qcow_image *sources[4], *made = NULL;
		struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
		struct qcow_store *target = memory();
		uint8_t want[73216] = {0}, got[73216];
		for (size_t i = 0, at = 0; i < 4; i++) {
			sources[i] = open_raw(memory(), sizes[i]);
			memcpy(want + at, disk, sizes[i]);
			at += (sizes[i] + 511) / 512 * 512;
		}
		options.sources = sources;
		options.n_sources = 4;
		options.format = open.format = is_qcow2 != 0 ? "qcow2" : "raw";
		assert_ok(qcow_convert(target, NULL, &options, NULL, &err), err);
		assert_ok(qcow_open(target, &open, &made, &err), err);
		/* a raw target ends with the last byte, an image for QEMU's sake with its sector */
		assert_int_equal(
			qcow_size(made), 1024 + 512 + 512 + (is_qcow2 != 0 ? 70144 : 70001));
		assert_ok(qcow_pread(made, got, qcow_size(made), 0, &err), err);
		assert_memory_equal(got, want, qcow_size(made));
		qcow_close(made);
		for (size_t i = 0; i < 4; i++)
			qcow_close(sources[i]);
	}
}

/* The content of the named file is not known here: the zeros of the source must not be left to it. */
static void zeros_are_kept_over_a_backing_file_that_is_only_named(void **state)
{
	(void)state;
	struct qcow_store *target = memory(), *old = memory();
	struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *below = NULL;
	make_disk(7);
	memset(disk + 65536, 0, 1 << 20);
	struct qcow_image *source = open_raw(memory(), DISK_BYTES);
	options.sources = &source;
	options.n_sources = 1;
	options.create.backing_name = "old";
	options.create.backing_format = "raw";
	assert_ok(qcow_convert(target, NULL, &options, NULL, &err), err);
	uint8_t *junk = malloc(DISK_BYTES);
	assert_non_null(junk);
	memset(junk, 0x5a, DISK_BYTES);
	assert_ok(qcow_store_write(old, junk, DISK_BYTES, 0, &err), err);
	open.format = "raw";
	assert_ok(qcow_open(old, &open, &below, &err), err);
	open = (struct qcow_open_options)QCOW_OPEN_OPTIONS_INIT;
	open.backing = below;
	struct qcow_image *made = NULL;
	assert_ok(qcow_open(target, &open, &made, &err), err);
	assert_ok(qcow_pread(made, junk, DISK_BYTES, 0, &err), err);
	assert_memory_equal(junk, disk, DISK_BYTES);
	free(junk);
	qcow_close(made);
	qcow_close(source);
}

static void bad_options_are_refused_before_anything_is_written(void **state)
{
	(void)state;
	make_disk(5);
	struct qcow_image *source = open_raw(memory(), DISK_BYTES);
	for (unsigned i = 0; i < 6; i++) {
		struct qcow_convert_options options = QCOW_CONVERT_OPTIONS_INIT;
		struct qcow_store *target = memory();
		uint64_t size = 1;
		options.sources = &source;
		options.n_sources = 1;
		options.format = i == 0 ? "vmdk" : i < 3 ? "raw" : "qcow2";
		options.compress = i == 1;
		options.keep_target = i == 3;
		options.n_workers = i == 4 ? 17 : 1;
		if (i == 2)
			options.create.data_file_name = "d";
		if (i == 5)
			options.create.cluster_size = 3;
		assert_int_not_equal(qcow_convert(target, NULL, &options, NULL, &err), QCOW_OK);
		assert_true(err.message[0] != '\0');
		assert_ok(qcow_store_size(target, &size, &err), err);
		assert_int_equal(size, 0);
		qcow_store_close(target);
	}
	qcow_close(source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(workers_make_the_same_bytes_and_every_byte_counts),
		cmocka_unit_test(raw_target_gets_every_byte_whatever_was_there),
		cmocka_unit_test(failing_call_ends_the_run_and_leaves_no_image),
		cmocka_unit_test(cancelling_stops_and_says_so),
		cmocka_unit_test(cancelling_stops_preallocation_too),
		cmocka_unit_test(sources_begin_at_sectors),
		cmocka_unit_test(zeros_are_kept_over_a_backing_file_that_is_only_named),
		cmocka_unit_test(bad_options_are_refused_before_anything_is_written),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
