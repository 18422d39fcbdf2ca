/* SPDX-License-Identifier: MIT */
/*
 * Eight threads write, zero, discard, read and flush overlapping ranges of one image. Every sector that is written says
 * which it is, so a read finds its own sectors or zeros and never another's, whatever order the threads ran
 * in. Made for ThreadSanitizer; the order checker judges what reaches the file, and our check the outcome.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host.h"
#include "order.h"

#include <qcowkit/qcowkit.h>

#define N_THREADS 8
#define N_STEPS	  250
#define SECTOR	  512U
#define MAX_BYTES (64U * SECTOR)
#define SIZE	  (UINT64_C(512) * SECTOR * 8)

struct shared {
	struct qcow_image *image;
	uint64_t size;
	unsigned n_steps;
};

struct worker {
	pthread_t thread;
	struct shared *shared;
	uint64_t seed;
	char what[256]; /* went wrong; empty: nothing */
};

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void stamp(uint8_t *buf, uint64_t off, uint64_t len)
{
	for (uint64_t at = 0; at < len; at += 8) {
		uint64_t number = (off + at) / SECTOR + 1;
		memcpy(buf + at, &number, 8);
	}
}

/* Each word is that of its sector, or 0. */
static bool is_own(const uint8_t *buf, uint64_t off, uint64_t len, uint64_t *bad)
{
	for (uint64_t at = 0; at < len; at += 8) {
		uint64_t word = 0;
		memcpy(&word, buf + at, 8);
		*bad = off + at;
		if (word != 0 && word != (off + at) / SECTOR + 1)
			return false;
	}
	return true;
}

static void step(struct worker *w, uint8_t *buf)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_image *image = w->shared->image;
	uint64_t n_sectors = w->shared->size / SECTOR;
	uint64_t kind = next(&w->seed) % 16;
	uint64_t off = next(&w->seed) % n_sectors * SECTOR;
	uint64_t len = (1 + next(&w->seed) % (MAX_BYTES / SECTOR)) * SECTOR;
	uint64_t bad = 0;
	enum qcow_status status = QCOW_OK;
	len = len > w->shared->size - off ? w->shared->size - off : len;
	if (kind < 7) {
		stamp(buf, off, len);
		status = qcow_pwrite(image, buf, len, off, kind == 0 ? QCOW_IO_FUA : 0, &err);
	} else if (kind < 9) {
		status = qcow_zero(image, off, len, kind == 7 ? QCOW_IO_UNMAP : 0, &err);
	} else if (kind < 11) {
		status = qcow_discard(image, off, len, 0, &err);
	} else if (kind < 15) {
		status = qcow_pread(image, buf, len, off, &err);
		if (status == QCOW_OK && !is_own(buf, off, len, &bad))
			(void)snprintf(w->what, sizeof(w->what), "foreign bytes at %llu",
				(unsigned long long)bad);
	} else {
		status = qcow_flush(image, &err);
	}
	if (status != QCOW_OK)
		(void)snprintf(w->what, sizeof(w->what), "%.200s", err.message);
}

static void *work(void *ctx)
{
	struct worker *w = ctx;
	uint8_t *buf = malloc(MAX_BYTES);
	for (unsigned i = 0; i < w->shared->n_steps && w->what[0] == 0; i++)
		step(w, buf);
	free(buf);
	return NULL;
}

/* QCOWKIT_SEED=N for other sequences. */
static uint64_t seed_of_run(void)
{
	const char *text = getenv("QCOWKIT_SEED");
	return text != NULL ? strtoull(text, NULL, 10) * 1000003 : 0;
}

static void run_workers(struct shared *shared)
{
	struct worker workers[N_THREADS];
	for (unsigned i = 0; i < N_THREADS; i++) {
		workers[i] = (struct worker){
			.shared = shared, .seed = 88172645463325252 + i * 77 + seed_of_run()};
		assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	for (unsigned i = 0; i < N_THREADS; i++)
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
	for (unsigned i = 0; i < N_THREADS; i++)
		if (workers[i].what[0] != 0)
			fail_msg("thread %u: %s", i, workers[i].what);
}

/* What the closed image left behind. */
static void check_clean(struct qcow_store *store, struct qcow_store *data)
{
	struct qcow_check_options o = QCOW_CHECK_OPTIONS_INIT;
	struct qcow_check_result result;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *image = NULL;
	open.flags = QCOW_OPEN_NO_BACKING | (data != NULL ? (unsigned)QCOW_OPEN_NO_DATA_FILE : 0);
	assert_int_equal(qcow_open(store, &open, &image, &err), QCOW_OK);
	assert_int_equal(qcow_check(image, &o, &result, &err), QCOW_OK);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
	qcow_close(image);
	qcow_store_close(data);
}

/* ---- a store that passes everything on and whose close leaves the inner one open ---- */

static enum qcow_status lent_preadv(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	return qcow_store_readv(ctx, iov, n, off, err);
}

static enum qcow_status lent_pwritev(
	void *ctx, const struct iovec *iov, int n, uint64_t off, struct qcow_error *err)
{
	return qcow_store_writev(ctx, iov, n, off, err);
}

static enum qcow_status lent_flush(void *ctx, struct qcow_error *err)
{
	return qcow_store_flush(ctx, err);
}

static enum qcow_status lent_size(void *ctx, uint64_t *size, struct qcow_error *err)
{
	return qcow_store_size(ctx, size, err);
}

static enum qcow_status lent_truncate(void *ctx, uint64_t size, struct qcow_error *err)
{
	return qcow_store_truncate(ctx, size, err);
}

static enum qcow_status lent_zero(
	void *ctx, uint64_t off, uint64_t len, unsigned flags, struct qcow_error *err)
{
	return qcow_store_zero(ctx, off, len, flags, err);
}

static enum qcow_status lent_punch(void *ctx, uint64_t off, uint64_t len, struct qcow_error *err)
{
	return qcow_store_punch(ctx, off, len, err);
}

static void lent_caps(void *ctx, struct qcow_store_caps *out)
{
	qcow_store_caps(ctx, out);
}

static void lent_close(void *ctx)
{
	(void)ctx;
}

static struct qcow_store *lend(struct qcow_store *inner)
{
	static const struct qcow_store_ops ops = {.abi = QCOW_STORE_ABI,
		.name = "lent",
		.preadv = lent_preadv,
		.pwritev = lent_pwritev,
		.flush = lent_flush,
		.size = lent_size,
		.truncate = lent_truncate,
		.zero = lent_zero,
		.punch = lent_punch,
		.caps = lent_caps,
		.close = lent_close};
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	assert_int_equal(qcow_store_new(&ops, inner, &store, &err), QCOW_OK);
	return store;
}

/* A store in memory with the bytes of `path`. */
static struct qcow_store *load(const char *path)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	size_t n = 0;
	uint8_t *bytes = qkt_slurp(path, &n);
	assert_int_equal(qcow_memory_open(0, &store, &err), QCOW_OK);
	assert_int_equal(qcow_store_write(store, bytes, n, 0, &err), QCOW_OK);
	free(bytes);
	return store;
}

/* Every sector says which it is. */
static void write_stamped(const char *name)
{
	uint8_t *all = malloc(SIZE);
	FILE *f = fopen(qkt_path(name), "wb");
	assert_non_null(f);
	stamp(all, 0, SIZE);
	assert_int_equal(fwrite(all, 1, SIZE, f), SIZE);
	fclose(f);
	free(all);
}

static struct qcow_store *new_image(uint32_t version, uint64_t cluster_size)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_store *store = NULL;
	create.version = version;
	create.cluster_size = cluster_size;
	create.virtual_size = SIZE;
	assert_int_equal(qcow_memory_open(0, &store, &err), QCOW_OK);
	assert_int_equal(qcow_create(store, NULL, &create, &err), QCOW_OK);
	return store;
}

/* What the workers write to. */
struct bench {
	struct qcow_store *store, *data; /* data: NULL where there is no data file */
	struct qkt_order *order;
	struct qkt_fault *fault;
};

static enum qcow_status resolve(void *ctx, const struct qcow_reference *ref,
	struct qcow_resolved *out, struct qcow_error *err)
{
	struct bench *b = ctx;
	(void)ref;
	(void)err;
	out->store = qkt_guard_data(b->fault, b->order, lend(b->data), 1);
	return QCOW_OK;
}

/* A raw data file holds the disk. */
static void check_raw(struct qcow_store *data, const uint8_t *all)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	uint8_t *raw = malloc(SIZE);
	assert_int_equal(qcow_store_read_padded(data, raw, SIZE, 0, &err), QCOW_OK);
	assert_memory_equal(raw, all, SIZE);
	free(raw);
}

static void run_on(struct bench b, bool is_raw, uint64_t stage_bytes, struct qcow_image *backing)
{
	struct qcow_open_options open = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	const struct qkt_order_options order = {.threads = true, .report = true};
	b.order = qkt_order_new(&order);
	b.fault = qkt_fault_new();
	struct shared shared = {.size = SIZE, .n_steps = N_STEPS};
	open.flags = QCOW_OPEN_WRITE;
	open.stage_bytes = stage_bytes;
	open.backing = backing;
	open.resolve = resolve;
	open.resolve_ctx = &b;
	if (qcow_open(qkt_guard(b.fault, b.order, lend(b.store), 0), &open, &shared.image, &err) !=
		QCOW_OK)
		fail_msg("%s", err.message);
	run_workers(&shared);
	uint8_t *all = malloc(shared.size);
	uint64_t bad = 0;
	assert_int_equal(qcow_pread(shared.image, all, shared.size, 0, &err), QCOW_OK);
	assert_true(is_own(all, 0, shared.size, &bad));
	if (is_raw)
		check_raw(b.data, all);
	free(all);
	assert_int_equal(qcow_flush(shared.image, &err), QCOW_OK);
	qcow_close(shared.image);
	check_clean(b.store, b.data);
	if (qkt_order_rule(b.order) != QKT_O_NONE)
		fail_msg("%s", qkt_order_message(b.order));
	qkt_order_free(b.order);
	qkt_fault_free(b.fault);
}

static void run(struct qcow_store *store, uint64_t stage_bytes, struct qcow_image *backing)
{
	run_on((struct bench){.store = store}, false, stage_bytes, backing);
}

static void run_beside_data(uint64_t cluster_size, bool is_raw, bool is_extended, uint64_t stage)
{
	struct qcow_create_options create = QCOW_CREATE_OPTIONS_INIT;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct bench b = {.order = NULL};
	create.version = 3;
	create.cluster_size = cluster_size;
	create.virtual_size = SIZE;
	create.data_file_name = "data";
	create.data_file_raw = is_raw;
	create.extended_l2 = is_extended;
	assert_int_equal(qcow_memory_open(0, &b.store, &err), QCOW_OK);
	assert_int_equal(qcow_memory_open(0, &b.data, &err), QCOW_OK);
	if (qcow_create(b.store, b.data, &create, &err) != QCOW_OK)
		fail_msg("%s", err.message);
	run_on(b, is_raw, stage, NULL);
}

static void threads_share_a_data_file(void **state)
{
	(void)state;
	run_beside_data(4096, false, false, 0);
	run_beside_data(65536, false, false, 0);
	run_beside_data(512, false, false, 1);
	run_beside_data(16384, false, true, 0);
	run_beside_data(4096, true, false, 0);
}

static void threads_share_small_clusters(void **state)
{
	(void)state;
	run(new_image(3, 1024), 0, NULL);
}

static void threads_share_clusters(void **state)
{
	(void)state;
	run(new_image(3, 65536), 0, NULL);
}

static void threads_share_a_small_stage(void **state)
{
	(void)state;
	run(new_image(2, 512), 1, NULL);
}

static void threads_copy_from_a_backing_image(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *backing = NULL;
	o.format = "raw";
	write_stamped("base");
	assert_int_equal(qcow_open(load(qkt_path("base")), &o, &backing, &err), QCOW_OK);
	run(new_image(3, 4096), 0, backing);
}

static void threads_copy_from_a_snapshot_and_compressed_clusters(void **state)
{
	(void)state;
	if (!qkt_has_program("qemu-img"))
		qkt_skip("qemu-img is missing (Debian: qemu-utils)");
	write_stamped("base");
	qkt_must("qemu-img convert -f raw -O qcow2 -o cluster_size=4k base img && qemu-img "
		 "snapshot -c s img");
	run(load(qkt_path("img")), 0, NULL);
	qkt_must("qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k base img && qemu-img "
		 "snapshot -c s img");
	run(load(qkt_path("img")), 1, NULL);
}

static void threads_share_subclusters(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_image *backing = NULL;
	if (!qkt_has_program("qemu-img"))
		qkt_skip("qemu-img is missing (Debian: qemu-utils)");
	write_stamped("base");
	qkt_must("qemu-img convert -f raw -O qcow2 -o cluster_size=16k,extended_l2=on base img && "
		 "qemu-img snapshot -c s img");
	run(load(qkt_path("img")), 0, NULL);
	qkt_must("qemu-img convert -c -f raw -O qcow2 -o cluster_size=64k,extended_l2=on base img");
	run(load(qkt_path("img")), 1, NULL);
	qkt_must("rm img; qemu-img create -f qcow2 -o cluster_size=16k,extended_l2=on img %llu",
		(unsigned long long)SIZE);
	o.format = "raw";
	assert_int_equal(qcow_open(load(qkt_path("base")), &o, &backing, &err), QCOW_OK);
	run(load(qkt_path("img")), 0, backing);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_share_subclusters),
		cmocka_unit_test(threads_share_a_data_file),
		cmocka_unit_test(threads_share_small_clusters),
		cmocka_unit_test(threads_share_clusters),
		cmocka_unit_test(threads_share_a_small_stage),
		cmocka_unit_test(threads_copy_from_a_backing_image),
		cmocka_unit_test(threads_copy_from_a_snapshot_and_compressed_clusters),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
