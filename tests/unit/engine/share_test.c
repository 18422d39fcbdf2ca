/* SPDX-License-Identifier: MIT */
/*
 * What threads share in one image: the cache of L2 slices under eviction, the decode of a compressed
 * cluster, the tables that are loaded once. And reads that must not wait, and tables that cannot be read.
 * The image lies in a store that counts, delays and fails reads.
 */
#include "qemu.h"

#include <pthread.h>
#include <stdatomic.h>

#include "engine/map.h"

/* ---- a store that counts, delays and fails ---- */

struct spy {
	uint8_t *data;
	size_t n;
	uint64_t watch_off, watch_len; /* reads that touch this are counted, … */
	atomic_uint n_watched;
	unsigned delay_us; /* … slowed down, … */
	atomic_bool is_failing; /* … or fail */
};

static bool is_watched(const struct spy *spy, uint64_t off, size_t len)
{
	return off < spy->watch_off + spy->watch_len && spy->watch_off < off + len;
}

static enum qcow_status spy_preadv(
	void *ctx, const struct iovec *iov, int n_iov, uint64_t off, struct qcow_error *err)
{
	struct spy *spy = ctx;
	(void)err;
	for (int i = 0; i < n_iov; i++) {
		if (is_watched(spy, off, iov[i].iov_len)) {
			atomic_fetch_add(&spy->n_watched, 1);
			if (spy->delay_us != 0)
				usleep(spy->delay_us);
			if (atomic_load(&spy->is_failing))
				return QCOW_E_IO;
		}
		memcpy(iov[i].iov_base, spy->data + off, iov[i].iov_len);
		off += iov[i].iov_len;
	}
	return QCOW_OK;
}

static enum qcow_status spy_size(void *ctx, uint64_t *size_bytes, struct qcow_error *err)
{
	(void)err;
	*size_bytes = ((struct spy *)ctx)->n;
	return QCOW_OK;
}

static void spy_caps(void *ctx, struct qcow_store_caps *out)
{
	(void)ctx;
	*out = (struct qcow_store_caps){.request_align = 1, .physical_block = 512};
}

static void spy_close(void *ctx)
{
	(void)ctx;
}

static const struct qcow_store_ops spy_ops = {.abi = QCOW_STORE_ABI,
	.name = "spy",
	.preadv = spy_preadv,
	.size = spy_size,
	.caps = spy_caps,
	.close = spy_close};

static struct qcow_image *open_spy(struct spy *spy, const char *name, uint64_t cache_bytes)
{
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	o.cache_bytes = cache_bytes;
	spy->data = slurp(name, &spy->n);
	assert_int_equal(qcow_store_new(&spy_ops, spy, &store, NULL), QCOW_OK);
	assert_int_equal(qcow_open(store, &o, &image, NULL), QCOW_OK);
	return image;
}

/* ---- tests ---- */

struct reader {
	struct qcow_image *image;
	const uint8_t *truth;
	size_t n;
	uint64_t seed;
	unsigned n_reads;
	size_t max_len;
	bool is_good;
};

static void *read_randomly(void *arg)
{
	struct reader *r = arg;
	uint8_t *buf = malloc(r->max_len);
	r->is_good = true;
	for (unsigned i = 0; i < r->n_reads && r->is_good; i++) {
		size_t off = next_random(&r->seed) % r->n;
		size_t len = 1 + next_random(&r->seed) % r->max_len;
		len = len > r->n - off ? r->n - off : len;
		r->is_good = qcow_pread(r->image, buf, len, off, NULL) == QCOW_OK &&
			     memcmp(buf, r->truth + off, len) == 0;
	}
	free(buf);
	return NULL;
}

static void run_readers(
	struct qcow_image *image, const uint8_t *truth, size_t n, unsigned n_reads, size_t max_len)
{
	pthread_t threads[8];
	struct reader readers[8];
	for (unsigned i = 0; i < 8; i++) {
		readers[i] = (struct reader){.image = image,
			.truth = truth,
			.n = n,
			.seed = i + 1,
			.n_reads = n_reads,
			.max_len = max_len};
		assert_int_equal(pthread_create(&threads[i], NULL, read_randomly, &readers[i]), 0);
	}
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_true(readers[i].is_good);
	}
}

/* 16 MiB of numbered words in 512-byte clusters: 512 L2 tables, and a cache of 32 slices. */
static void readers_agree_while_the_cache_evicts(void **state)
{
	(void)state;
	size_t n = 16 << 20;
	FILE *f = fopen(in_dir("flat"), "wb");
	assert_non_null(f);
	for (uint32_t i = 0; i < n / 4; i++)
		assert_int_equal(fwrite(&i, 1, 4, f), 4);
	fclose(f);
	sh("qemu-img convert -f raw -O qcow2 -o cluster_size=512 flat t");
	uint8_t *truth = slurp("flat", &n);
	struct spy spy = {.watch_len = 0};
	struct qcow_image *image = open_spy(&spy, "t", 1);
	run_readers(image, truth, n, 3000, 3000);
	qcow_close(image);
	free(spy.data);
	free(truth);
}

static void readers_agree_on_compressed_clusters(void **state)
{
	(void)state;
	size_t n = 0;
	sh("seq 1 400000 >flat; truncate -s 2621952 flat; "
	   "qemu-img convert -c -f raw -O qcow2 -o cluster_size=16k flat t; "
	   "qemu-img convert -c -f raw -O qcow2 -o cluster_size=2M,compression_type=zstd flat u");
	uint8_t *truth = slurp("flat", &n);
	for (int i = 0; i < 2; i++) {
		struct spy spy = {.watch_len = 0};
		struct qcow_image *image = open_spy(&spy, i == 0 ? "t" : "u", 0);
		run_readers(image, truth, n, i == 0 ? 2000 : 200, 40000);
		qcow_close(image);
		free(spy.data);
	}
	free(truth);
}

/* Find where the one compressed cluster of `name` lies. */
static void watch_cluster(struct spy *spy, struct qcow_image *image)
{
	const struct qk_map_request rq = {
		.image = image, .len = 65536, .max_depth = UINT32_MAX, .may_block = true};
	struct qk_run run;
	assert_int_equal(qk_map_find(&rq, &run, NULL), QCOW_OK);
	assert_int_equal(run.kind, QK_RUN_COMPRESSED);
	spy->watch_off = run.host_off.v;
	spy->watch_len = run.compressed_bytes;
}

static void one_cluster_wanted_by_many_is_decoded_once(void **state)
{
	(void)state;
	sh("rm -f t; qemu-img create -q -f qcow2 t 1M; qemu-io -c 'write -c -P 7 0 64k' t");
	uint8_t *truth = malloc(60000);
	memset(truth, 7, 60000);
	struct spy spy = {.watch_len = 0, .delay_us = 20000};
	struct qcow_image *image = open_spy(&spy, "t", 0);
	watch_cluster(&spy, image);
	run_readers(image, truth, 60000, 50, 4096);
	assert_int_equal(atomic_load(&spy.n_watched), 1);
	qcow_close(image);
	free(spy.data);
	free(truth);
}

static void *read_own_cluster(void *arg)
{
	struct reader *r = arg;
	uint8_t buf[64];
	memset(buf, 0, sizeof(buf));
	r->is_good = qcow_pread(r->image, buf, 64, (r->seed << 21) + 1000, NULL) == QCOW_OK;
	for (int i = 0; i < 64; i++)
		r->is_good = r->is_good && buf[i] == r->seed + 1;
	return NULL;
}

/* Eight threads in eight clusters of 2 MiB at once, where four decoded ones are kept. */
static void more_clusters_at_once_than_are_kept_are_served(void **state)
{
	(void)state;
	sh("rm -f t; qemu-img create -q -f qcow2 -o cluster_size=2M t 16M; for i in 0 1 2 3 4 5 6 "
	   "7; do "
	   "qemu-io -c \"write -c -P $((i+1)) $((i*2))M 2M\" t || exit 1; done");
	struct spy spy = {.watch_len = 0};
	struct qcow_image *image = open_spy(&spy, "t", 0);
	pthread_t threads[8];
	struct reader readers[8];
	uint8_t byte = 0;
	assert_int_equal(qcow_pread(image, &byte, 1, 0, NULL), QCOW_OK); /* the tables */
	spy.watch_len = UINT64_MAX;
	spy.delay_us = 30000;
	for (unsigned i = 0; i < 8; i++) {
		readers[i] = (struct reader){.image = image, .seed = i};
		assert_int_equal(
			pthread_create(&threads[i], NULL, read_own_cluster, &readers[i]), 0);
	}
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_true(readers[i].is_good);
	}
	qcow_close(image);
	free(spy.data);
}

/* Read a little of each cluster of 64 KiB, here and there in it: how often the store was asked. */
static unsigned read_all(struct spy *spy, struct qcow_image *image, const uint8_t *truth, size_t n)
{
	uint8_t buf[100];
	unsigned before = atomic_load(&spy->n_watched);
	for (size_t i = 0; i * 65536 < n; i++) {
		size_t off = i * 65536 + i % 600 * 100;
		assert_int_equal(qcow_pread(image, buf, sizeof(buf), off, NULL), QCOW_OK);
		assert_memory_equal(buf, truth + off, sizeof(buf));
	}
	return atomic_load(&spy->n_watched) - before;
}

static void as_many_decoded_clusters_are_kept_as_the_budget_has_room_for(void **state)
{
	(void)state;
	size_t n = 0;
	sh("seq 1 3000000 | head -c 16M >flat; qemu-img convert -c -f raw -O qcow2 flat t");
	uint8_t *truth = slurp("flat", &n);
	for (int is_large = 0; is_large < 2; is_large++) {
		struct spy spy = {.watch_len = 0};
		struct qcow_image *image = open_spy(&spy, "t", is_large ? 64 << 20 : 0);
		uint8_t buf[100];
		spy.watch_len = UINT64_MAX;
		assert_int_equal(qcow_pread_nowait(image, buf, 100, 0, NULL), QCOW_E_WOULD_BLOCK);
		assert_true(read_all(&spy, image, truth, n) >= 256);
		unsigned again = read_all(&spy, image, truth, n);
		assert_true(is_large ? again == 0 : again >= 192); /* 4 MiB of 16 */
		for (size_t i = 0; is_large && i < 256; i++) {
			size_t off = i * 65536 + 65436 - i;
			assert_int_equal(qcow_pread_nowait(image, buf, 100, off, NULL), QCOW_OK);
			assert_memory_equal(buf, truth + off, 100);
		}
		assert_int_equal(qcow_pread_nowait(image, buf, 100, 0, NULL),
			is_large ? QCOW_OK : QCOW_E_WOULD_BLOCK);
		qcow_close(image);
		free(spy.data);
	}
	free(truth);
}

static void a_failed_decode_is_tried_again(void **state)
{
	(void)state;
	sh("rm -f t; qemu-img create -q -f qcow2 t 1M; qemu-io -c 'write -c -P 7 0 64k' t");
	struct spy spy = {.watch_len = 0};
	struct qcow_image *image = open_spy(&spy, "t", 0);
	uint8_t byte = 0;
	watch_cluster(&spy, image);
	atomic_store(&spy.is_failing, true);
	assert_int_equal(qcow_pread(image, &byte, 1, 5, NULL), QCOW_E_IO);
	assert_int_equal(qcow_pread(image, &byte, 1, 5, NULL), QCOW_E_IO);
	atomic_store(&spy.is_failing, false);
	assert_int_equal(qcow_pread(image, &byte, 1, 5, NULL), QCOW_OK);
	assert_int_equal(byte, 7);
	qcow_close(image);
	free(spy.data);
}

/* 0x30000: L1; 0x40000: the first L2 table */
static void a_table_that_cannot_be_read_costs_its_range_until_it_can(void **state)
{
	(void)state;
	sh("rm -f t; qemu-img create -q -f qcow2 t 1G; "
	   "qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 512M 64k' t");
	static const uint64_t tables[] = {0x30000, 0x40000};
	for (int i = 0; i < 2; i++) {
		struct spy spy = {.watch_off = tables[i], .watch_len = 512};
		struct qcow_image *image = open_spy(&spy, "t", 0);
		struct qcow_error err = QCOW_ERROR_INIT;
		uint8_t byte = 0;
		atomic_store(&spy.is_failing, true);
		assert_int_equal(qcow_pread(image, &byte, 1, 0, &err), QCOW_E_IO);
		assert_int_equal(err.finding, QCOW_FINDING_TABLE_READ_FAILED);
		assert_int_equal(err.host_off, tables[i]);
		if (tables[i] == 0x40000) {
			assert_int_equal(qcow_pread(image, &byte, 1, 512 << 20, &err), QCOW_OK);
			assert_int_equal(byte, 2);
		}
		atomic_store(&spy.is_failing, false);
		assert_int_equal(qcow_pread(image, &byte, 1, 0, &err), QCOW_OK);
		assert_int_equal(byte, 1);
		qcow_close(image);
		free(spy.data);
	}
}

static void a_read_that_must_not_wait_says_so(void **state)
{
	(void)state;
	sh("rm -f t; qemu-img create -q -f qcow2 t 1G; "
	   "qemu-io -c 'write -P 1 0 64k' -c 'write -z 64k 64k' -c 'write -P 2 512M 64k' t");
	struct spy spy = {.watch_off = 0, .watch_len = UINT64_MAX};
	struct qcow_image *image = open_spy(&spy, "t", 0);
	struct qk_map_request rq = {.image = image, .len = 256 << 10, .max_depth = UINT32_MAX};
	struct qk_read read;
	unsigned n_before = atomic_load(&spy.n_watched);
	assert_int_equal(qk_read_begin(&rq, &read, NULL), QCOW_OK);
	assert_true(read.is_blocked);
	assert_int_equal(read.covered, 0);
	qk_read_end(&read);
	rq.may_block = true;
	assert_int_equal(qk_read_begin(&rq, &read, NULL), QCOW_OK);
	qk_read_end(&read);
	uint8_t byte = 0;
	assert_int_equal(qcow_pread(image, &byte, 1, (512 << 20) - 1, NULL), QCOW_OK);
	/* now the first and the last slice of the table are cached, and nothing is read any more */
	n_before = atomic_load(&spy.n_watched);
	rq.may_block = false;
	assert_int_equal(qk_read_begin(&rq, &read, NULL), QCOW_OK);
	assert_false(read.is_blocked);
	assert_int_equal(read.n, 3);
	assert_int_equal(read.covered, 256 << 10);
	assert_int_equal(read.runs[0].kind, QK_RUN_PLAIN);
	assert_int_equal(read.runs[1].kind, QK_RUN_ZERO);
	assert_int_equal(read.runs[2].kind, QK_RUN_UNALLOCATED);
	qk_read_end(&read);
	/* the second table is not: what lies before it is served */
	rq.off.v = (512 << 20) - 4096;
	rq.len = 8192;
	assert_int_equal(qk_read_begin(&rq, &read, NULL), QCOW_OK);
	assert_true(read.is_blocked);
	assert_int_equal(read.covered, 4096);
	qk_read_end(&read);
	assert_int_equal(atomic_load(&spy.n_watched), n_before);
	qcow_close(image);
	free(spy.data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(readers_agree_while_the_cache_evicts),
		cmocka_unit_test(readers_agree_on_compressed_clusters),
		cmocka_unit_test(one_cluster_wanted_by_many_is_decoded_once),
		cmocka_unit_test(more_clusters_at_once_than_are_kept_are_served),
		cmocka_unit_test(as_many_decoded_clusters_are_kept_as_the_budget_has_room_for),
		cmocka_unit_test(a_failed_decode_is_tried_again),
		cmocka_unit_test(a_table_that_cannot_be_read_costs_its_range_until_it_can),
		cmocka_unit_test(a_read_that_must_not_wait_says_so),
	};
	if (!has_qemu())
		return 77;
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
