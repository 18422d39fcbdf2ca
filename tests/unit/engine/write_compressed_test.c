/* SPDX-License-Identifier: MIT */
/*
 * Compressed writes among plain ones, zeros and discards, beside an array of bytes and under the order checker; qemu-img
 * must find the image clean and the disk equal to the array. Where streams lie, and what is remembered of them.
 */
#include "beside.h"

#include <pthread.h>

struct config {
	const char *name;
	const char *options; /* of qemu-img create */
	const char *setup; /* shell commands on img, or NULL */
	uint64_t size;
	const char *backing; /* bytes of a raw base file, or NULL */
	unsigned steps;
};

static const struct config configs[] = {
	{"zlib", "", NULL, 10 << 20, NULL, 150},
	{"zstd", "compression_type=zstd", NULL, 10 << 20, NULL, 150},
	{"odd size", "cluster_size=4k", NULL, (4 << 20) + 1536, NULL, 200},
	{"c512", "cluster_size=512", NULL, 1 << 20, NULL, 200},
	{"c2M", "cluster_size=2M", NULL, 20 << 20, NULL, 60},
	{"refcount 1", "cluster_size=4k,refcount_bits=1", NULL, 4 << 20, NULL, 200},
	{"refcount 2", "cluster_size=4k,refcount_bits=2", NULL, 4 << 20, NULL, 200},
	{"refcount 64", "cluster_size=8k,refcount_bits=64", NULL, 4 << 20, NULL, 200},
	{"extended", "extended_l2=on,cluster_size=16k", NULL, 8 << 20, NULL, 200},
	{"enabled bitmap", "cluster_size=4k", "qemu-img bitmap --add -g 512 img b", 4 << 20, NULL,
		200},
	{"v2", "compat=0.10,cluster_size=4k", NULL, 4 << 20, NULL, 200},
	{"backing", "cluster_size=4k", NULL, 6 << 20, "5000001", 200},
	{"snapshot", "cluster_size=4k",
		"qemu-io -c 'write -P 7 0 2M' -c 'write -c -P 8 2M 1M' img &&"
		"qemu-img snapshot -c s img",
		4 << 20, NULL, 200},
};

static void make_image(const struct config *c)
{
	sh("rm -f img base");
	if (c->backing != NULL)
		sh("head -c %s /dev/urandom >base", c->backing);
	sh("qemu-img create -f qcow2 %s%s %s img %llu", c->options[0] != 0 ? "-o " : "", c->options,
		c->backing != NULL ? "-b base -F raw" : "", (unsigned long long)c->size);
	if (c->setup != NULL)
		sh("%s", c->setup);
}

/* Bytes of which `dense` of 16 are random. */
static void fill(uint8_t *p, size_t n, unsigned dense, uint64_t *seed)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t r = next_random(seed);
		p[i] = r % 16 < dense ? (uint8_t)(r >> 8) : 0x11;
	}
}

static void write_compressed(
	struct qcow_image *image, const uint8_t *from, uint64_t len, uint64_t off)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	if (qcow_write_compressed(image, from, (size_t)len, off, 0, &err) != QCOW_OK)
		fail_msg("%s (%s)", err.message, err.site);
}

static void step(struct qcow_image *image, struct disk *d, uint64_t *seed)
{
	uint64_t kind = next_random(seed) % 16, off = next_random(seed) % d->size;
	uint64_t len = next_random(seed) % (next_random(seed) % 3 == 0 ? MAX_LEN : 9000);
	uint64_t unit = kind < 6 || next_random(seed) % 3 == 0 ? d->cluster : 1;
	off -= off % unit;
	len = (len + unit) / unit * unit;
	len = len > d->size - off ? d->size - off : len;
	if (kind < 6) {
		fill(d->bytes + off, (size_t)len, (unsigned)(next_random(seed) % 18), seed);
		write_compressed(image, d->bytes + off, len, off);
	} else if (kind < 9) {
		fill(d->bytes + off, (size_t)len, 16, seed);
		disk_write(image, d, off, len, 0);
	} else if (kind < 10) {
		disk_zero(image, d, off, len, QCOW_IO_UNMAP);
	} else if (kind < 11) {
		disk_discard(image, d, off, len, 0);
	} else if (kind < 15) {
		disk_read(image, d, off, len);
	} else {
		struct qcow_error err = QCOW_ERROR_INIT;
		assert_int_equal(qcow_flush(image, &err), QCOW_OK);
	}
}

static void run_config(const struct config *c)
{
	struct qcow_info info;
	make_image(c);
	struct bench b = open_bench(&(struct bench_options){0});
	struct disk d = disk_of(b.image, c->size);
	qcow_get_info(b.image, &info);
	d.discards = info.version == 3 || c->backing == NULL;
	uint64_t seed = 88172645463325252 + c->size;
	for (unsigned i = 0; i < c->steps; i++)
		step(b.image, &d, &seed);
	assert_true(qkt_order_judged(b.order) > 0);
	close_bench(&b);
	judge_by_qemu(d.bytes, d.size, c->name);
	disk_free(&d);
}

static void random_steps_agree_with_an_array(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
		if (is_wanted_config(configs[i].name))
			run_config(&configs[i]);
}

/* ---- where streams lie ---- */

#define CLUSTER 65536U

static void fill_cluster(uint8_t *p, unsigned dense, uint64_t seed)
{
	fill(p, CLUSTER, dense, &seed);
}

static struct qcow_extent map_cluster(struct qcow_image *image, uint64_t index)
{
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_extent e;
	assert_int_equal(qcow_map(image, index * CLUSTER, CLUSTER, 0, &e, &err), QCOW_OK);
	return e;
}

static void streams_share_clusters_and_sectors_within_a_generation(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	static uint8_t bytes[6][CLUSTER];
	sh("rm -f img && qemu-img create -f qcow2 img 4M");
	struct bench b = open_bench(&(struct bench_options){0});
	for (unsigned i = 0; i < 6; i++)
		fill_cluster(bytes[i], i == 4 ? 16 : 1, 7919 * (i + 1));
	write_compressed(b.image, bytes[0], 2 * CLUSTER, 0);
	assert_int_equal(qcow_flush(b.image, &err), QCOW_OK);
	write_compressed(b.image, bytes[2], 2 * CLUSTER, 2 * CLUSTER);
	/* nothing is won by compressing this one */
	write_compressed(b.image, bytes[4], CLUSTER, 4 * CLUSTER);
	assert_true(map_cluster(b.image, 4).flags ==
		    (QCOW_EXTENT_PRESENT | QCOW_EXTENT_DATA | QCOW_EXTENT_OFFSET));
	struct qcow_extent e[4];
	for (unsigned i = 0; i < 4; i++) {
		e[i] = map_cluster(b.image, i);
		assert_true((e[i].flags & QCOW_EXTENT_COMPRESSED) != 0);
		assert_int_equal(e[i].host_off / CLUSTER, e[0].host_off / CLUSTER);
	}
	assert_int_equal(e[0].host_off % CLUSTER, 0);
	assert_true(e[1].host_off < e[0].host_off + e[0].compressed_bytes);
	/* the publication came between the second and the third */
	assert_int_equal(e[2].host_off % 512, 0);
	assert_true(e[2].host_off == e[1].host_off + e[1].compressed_bytes);
	assert_true(e[3].host_off < e[2].host_off + e[2].compressed_bytes);
	close_bench(&b);
	judge_by_qemu(bytes[0], 5 * CLUSTER, "streams that share clusters");
}

/* A cluster is decoded and kept; then it is given up, and another stream lies at the same place. */
static void what_was_decoded_is_forgotten_when_its_place_is_used_again(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	static uint8_t old[CLUSTER], new[CLUSTER];
	uint8_t got[100];
	fill_cluster(old, 2, 17);
	memcpy(new, old, CLUSTER);
	/* as long when compressed */
	for (unsigned i = 0; i < 200; i++)
		new[i] = (uint8_t)(new[i] ^ 1);
	sh("rm -f img && qemu-img create -f qcow2 img 4M");
	struct bench b = open_bench(&(struct bench_options){0});
	write_compressed(b.image, old, CLUSTER, 0);
	struct qcow_extent was = map_cluster(b.image, 0);
	assert_int_equal(qcow_flush(b.image, &err), QCOW_OK);
	assert_int_equal(qcow_pread(b.image, got, sizeof(got), 0, &err), QCOW_OK);
	assert_memory_equal(got, old, sizeof(got));
	/* overwritten by copy: the rest of the cluster comes from the stream */
	assert_int_equal(qcow_pwrite(b.image, new, 10, 5, QCOW_IO_FUA, &err), QCOW_OK);
	write_compressed(b.image, new, CLUSTER, CLUSTER);
	struct qcow_extent is = map_cluster(b.image, 1);
	assert_int_equal(is.host_off, was.host_off);
	assert_int_equal(is.compressed_bytes, was.compressed_bytes);
	assert_int_equal(qcow_pread(b.image, got, sizeof(got), CLUSTER, &err), QCOW_OK);
	assert_memory_equal(got, new, sizeof(got));
	assert_int_equal(qcow_pread(b.image, got, sizeof(got), 50, &err), QCOW_OK);
	assert_memory_equal(got, old + 50, sizeof(got));
	close_bench(&b);
	sh("qemu-img check img");
}

/* Half of the stream is there when the store fails; what follows goes elsewhere, and nothing leaks. */
static void a_stream_that_cannot_be_written_leaves_nothing(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	static uint8_t old[CLUSTER], new[CLUSTER], got[CLUSTER];
	fill_cluster(old, 2, 17);
	fill_cluster(new, 6, 18);
	for (unsigned nth = 1; nth <= 3; nth++) {
		sh("rm -f img && qemu-img create -f qcow2 img 4M");
		struct bench b = open_bench(&(struct bench_options){0});
		for (unsigned i = 0; i < 3; i++) {
			bool fails = i + 1 == nth;
			write_compressed(b.image, old, CLUSTER, i * CLUSTER);
			if (fails)
				qkt_fault_arm(b.fault, QKT_WRITE, 1, QKT_SHORT, false);
			assert_int_equal(
				qcow_write_compressed(b.image, new, CLUSTER, i * CLUSTER, 0, &err),
				fails ? QCOW_E_IO : QCOW_OK);
			qkt_fault_disarm(b.fault);
			assert_int_equal(
				qcow_pread(b.image, got, CLUSTER, i * CLUSTER, &err), QCOW_OK);
			assert_memory_equal(got, fails ? old : new, CLUSTER);
		}
		close_bench(&b);
		sh("qemu-img check img && qemu-img convert -O raw img got");
	}
}

static void what_cannot_be_compressed_is_refused(void **state)
{
	(void)state;
	struct qcow_error err = QCOW_ERROR_INIT;
	struct qcow_open_options o = QCOW_OPEN_OPTIONS_INIT;
	struct qcow_store *store = NULL;
	struct qcow_image *image = NULL;
	static uint8_t bytes[2 * CLUSTER];
	sh("rm -f img && qemu-img create -f qcow2 img 1000k");
	struct bench b = open_bench(&(struct bench_options){0});
	assert_int_equal(
		qcow_write_compressed(b.image, bytes, CLUSTER, 512, 0, &err), QCOW_E_INVAL);
	assert_int_equal(qcow_write_compressed(b.image, bytes, 512, 0, 0, &err), QCOW_E_INVAL);
	assert_int_equal(qcow_write_compressed(b.image, bytes, CLUSTER, 15 * CLUSTER, 0, &err),
		QCOW_E_RANGE);
	assert_int_equal(qcow_write_compressed(b.image, bytes, 1000 * 1024 - 15 * CLUSTER,
				 15 * CLUSTER, QCOW_IO_FUA, &err),
		QCOW_OK);
	close_bench(&b);
	sh("qemu-img check img");
	sh("rm -f img && qemu-img create --object secret,id=s,data=x -f qcow2 -o "
	   "encrypt.format=aes,encrypt.key-secret=s img 1M && cp img before");
	o.flags = QCOW_OPEN_WRITE;
	o.secret = (struct qcow_secret){"x", 1};
	for (unsigned raw = 0; raw < 2; raw++) {
		o.format = raw != 0 ? "raw" : NULL;
		assert_int_equal(
			qcow_file_open(in_dir("img"), QCOW_FILE_WRITE, &store, &err), QCOW_OK);
		assert_int_equal(qcow_open(store, &o, &image, &err), QCOW_OK);
		assert_int_equal(qcow_write_compressed(image, bytes, CLUSTER, 0, 0, &err),
			QCOW_E_UNSUPPORTED);
		qcow_close(image);
	}
	sh("cmp img before");
}

/* ---- threads ---- */

#define N_THREADS 6
#define N_OWN	  8 /* clusters */
#define SMALL	  4096U

struct writer {
	pthread_t thread;
	struct qcow_image *image;
	uint64_t first; /* cluster */
	uint8_t bytes[N_OWN * SMALL];
	bool is_good;
};

static void *write_own(void *ctx)
{
	struct writer *w = ctx;
	struct qcow_error err = QCOW_ERROR_INIT;
	uint64_t seed = 88172645463325252 + w->first;
	uint8_t got[SMALL];
	w->is_good = true;
	for (unsigned i = 0; i < 150 && w->is_good; i++) {
		uint64_t k = next_random(&seed) % N_OWN, kind = next_random(&seed) % 8;
		uint8_t *own = w->bytes + k * SMALL;
		uint64_t off = (w->first + k) * SMALL;
		fill(own, SMALL, (unsigned)(next_random(&seed) % 12), &seed);
		w->is_good = (kind == 0 ? qcow_pwrite(w->image, own, SMALL, off, 0, &err)
					: qcow_write_compressed(w->image, own, SMALL, off,
						  kind == 1 ? QCOW_IO_FUA : 0, &err)) == QCOW_OK;
		k = next_random(&seed) % N_OWN;
		uint64_t at = next_random(&seed) % (SMALL - 100);
		w->is_good = w->is_good &&
			     qcow_pread(w->image, got, 100, (w->first + k) * SMALL + at, &err) ==
				     QCOW_OK &&
			     memcmp(got, w->bytes + k * SMALL + at, 100) == 0;
	}
	return NULL;
}

static void threads_do_not_disturb_each_other(void **state)
{
	(void)state;
	static struct writer w[N_THREADS];
	sh("rm -f img && qemu-img create -f qcow2 -o cluster_size=4k img 1M");
	struct bench b = open_bench(&(struct bench_options){.threads = true});
	for (unsigned i = 0; i < N_THREADS; i++) {
		w[i].image = b.image;
		w[i].first = i * N_OWN;
		assert_int_equal(pthread_create(&w[i].thread, NULL, write_own, &w[i]), 0);
	}
	for (unsigned i = 0; i < N_THREADS; i++)
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
	close_bench(&b);
	FILE *f = fopen(in_dir("truth"), "wb");
	for (unsigned i = 0; i < N_THREADS; i++) {
		assert_true(w[i].is_good);
		assert_int_equal(fwrite(w[i].bytes, 1, sizeof(w[i].bytes), f), sizeof(w[i].bytes));
	}
	fclose(f);
	sh("qemu-img check img && qemu-img convert -O raw img got && head -c %u got | cmp - truth",
		N_THREADS * N_OWN * SMALL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(streams_share_clusters_and_sectors_within_a_generation),
		cmocka_unit_test(what_was_decoded_is_forgotten_when_its_place_is_used_again),
		cmocka_unit_test(a_stream_that_cannot_be_written_leaves_nothing),
		cmocka_unit_test(what_cannot_be_compressed_is_refused),
		cmocka_unit_test(threads_do_not_disturb_each_other),
		cmocka_unit_test(random_steps_agree_with_an_array),
	};
	if (!has_qemu()) {
		print_message("SKIP qemu-img or qemu-io is missing (Debian: qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
